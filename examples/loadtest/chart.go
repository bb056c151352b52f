package main

import (
	"fmt"
	"html/template"
	"math"
	"strconv"
	"strings"
)

// maxPoints is how many points a chart has at most: a page must stay small however long the run was.
const maxPoints = 600

// line is one series of a chart.
type line struct {
	name  string
	key   string // of point's JSON, for the page's script
	color int    // of page.html's palette
	right bool   // on the right axis
	of    func(p *point) figure
	low   bool // of several points the lowest is shown, not the highest
	write func(float64) string
}

// chart has all its lines on the time axis that all charts share.
type chart struct {
	title       string
	left, right string // what the axes show
	log         bool
	lines       []line
}

func always(of func(p *point) float64) func(*point) figure {
	return func(p *point) figure { v := of(p); return &v }
}

func perSecondText(v float64) string { return short(v) + "/s" }

var allCharts = []chart{
	{"Requests and errors per second", "/s", "", false, []line{
		{"requests", "rps", 0, false, always(func(p *point) float64 { return p.RPS }), true, perSecondText},
		{"errors", "errors", 1, false, always(func(p *point) float64 { return p.Errors }), false, perSecondText},
	}},
	{"Response time since due (logarithmic)", "ms", "", true, []line{
		{"p50", "p50", 2, false, func(p *point) figure { return p.P50 }, false, msText},
		{"p95", "p95", 0, false, func(p *point) figure { return p.P95 }, false, msText},
		{"p99", "p99", 3, false, func(p *point) figure { return p.P99 }, false, msText},
		{"p99.9", "p99.9", 1, false, func(p *point) figure { return p.P999 }, false, msText},
	}},
	{"Memory of the servers", "", "", false, []line{
		{"used_memory", "used_memory", 0, false, func(p *point) figure { return p.Used }, false, size},
		{"maxmemory", "maxmemory", 1, false, func(p *point) figure {
			if p.Max != nil && *p.Max == 0 {
				return nil
			}
			return p.Max
		}, false, size},
	}},
	{"Hit ratio, evicted and expired keys", "%", "/s", false, []line{
		{"hit ratio", "hit", 2, false, func(p *point) figure { return p.Hit }, true, percentText},
		{"evicted", "evicted", 1, true, func(p *point) figure { return p.Evicted }, false, perSecondText},
		{"expired", "expired", 3, true, func(p *point) figure { return p.Expired }, false, perSecondText},
	}},
	{"Server: processor and network", "% of a core", "bytes/s", false, []line{
		{"cpu", "server_cpu", 1, false, func(p *point) figure { return p.CPU }, false, percentText},
		{"in", "net_in", 0, true, func(p *point) figure { return p.NetIn }, false, sizeText},
		{"out", "net_out", 2, true, func(p *point) figure { return p.NetOut }, false, sizeText},
	}},
	{"This program: requests under way, and how late they began", "", "ms", false, []line{
		{"in flight", "inflight", 0, false, always(func(p *point) float64 { return p.Inflight }), false, short},
		{"lag", "lag", 1, true, always(func(p *point) float64 { return p.Lag }), false, msText},
	}},
}

func msText(micros float64) string {
	if micros == 0 {
		return "0 ms"
	}
	return milliseconds(micros) + " ms"
}

func sizeText(b float64) string { return size(b) + "/s" }

// short writes 12345 as 12.3k.
func short(v float64) string {
	switch {
	case v >= 1e6:
		return strconv.FormatFloat(v/1e6, 'f', 1, 64) + "M"
	case v >= 1e4:
		return strconv.FormatFloat(v/1e3, 'f', 1, 64) + "k"
	case v >= 100 || v == math.Trunc(v):
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
	return strconv.FormatFloat(v, 'f', 1, 64)
}

// thin leaves at most n points, each of which has the worst of those that it stands for.
func thin(points []point, n int) []point {
	if len(points) <= n {
		return points
	}
	thinned := make([]point, n)
	for i := range thinned {
		part := points[i*len(points)/n : (i+1)*len(points)/n]
		p := part[len(part)-1]
		for _, o := range part {
			p.RPS, p.Errors, p.Lag, p.Inflight = min(p.RPS, o.RPS), max(p.Errors, o.Errors), max(p.Lag, o.Lag), max(p.Inflight, o.Inflight)
			for _, f := range []struct{ to, from *figure }{
				{&p.P50, &o.P50},
				{&p.P95, &o.P95},
				{&p.P99, &o.P99},
				{&p.P999, &o.P999},
				{&p.Used, &o.Used},
				{&p.Evicted, &o.Evicted},
				{&p.Expired, &o.Expired},
				{&p.OOM, &o.OOM},
				{&p.CPU, &o.CPU},
				{&p.NetIn, &o.NetIn},
				{&p.NetOut, &o.NetOut},
				{&p.GCPause, &o.GCPause},
			} {
				*f.to = larger(*f.to, *f.from)
			}
			if o.Hit != nil && (p.Hit == nil || *o.Hit < *p.Hit) {
				p.Hit = o.Hit
			}
		}
		thinned[i] = p
	}
	return thinned
}

// Plots are drawn in units of their own and stretched by the page: text is beside them, and lines keep their width.
const plotWidth, plotHeight = 1000.0, 100.0

func charts(points []point) []template.HTML {
	end := 1.0
	for _, p := range points {
		end = max(end, p.T)
	}
	all := make([]template.HTML, len(allCharts))
	for i, c := range allCharts {
		all[i] = c.draw(points, end)
	}
	return all
}

// draw returns the chart as a figure of HTML with the plot in SVG. What is unknown is a gap, and a chart of nothing says so.
func (c chart) draw(points []point, end float64) template.HTML {
	var b strings.Builder
	fmt.Fprintf(&b, "<figure class=chart data-end=%q><figcaption>%s", trim(end), template.HTMLEscapeString(c.title))
	var axes [2]struct{ least, most float64 }
	axes[0].least, axes[1].least = math.Inf(1), math.Inf(1)
	seen := 0
	for _, l := range c.lines {
		a := &axes[btoi(l.right)]
		found := false
		for i := range points {
			if v := l.of(&points[i]); v != nil {
				a.most = max(a.most, *v)
				if *v > 0 {
					a.least = min(a.least, *v)
				}
				found = true
			}
		}
		note := ""
		if !found {
			note = " (unknown)"
			if l.key == "maxmemory" && len(points) > 0 && points[0].Max != nil {
				note = " (not set)"
			}
		} else {
			seen++
		}
		fmt.Fprintf(&b, " <span class=key><i class=c%d></i>%s%s</span>", l.color, template.HTMLEscapeString(l.name), note)
	}
	b.WriteString("</figcaption>")
	if seen == 0 {
		b.WriteString("<p class=unknown>unknown: the server does not tell</p></figure>")
		return template.HTML(b.String())
	}
	for i := range axes {
		if axes[i].most <= 0 {
			axes[i].most = 1
		}
		axes[i].most = nice(axes[i].most)
	}
	logLow, logHigh := math.Floor(math.Log10(min(axes[0].least, axes[0].most))), math.Ceil(math.Log10(axes[0].most))
	if logHigh <= logLow {
		logHigh = logLow + 1
	}
	y := func(v float64, right bool) float64 {
		if c.log {
			return plotHeight * (1 - (math.Log10(max(v, math.Pow(10, logLow)))-logLow)/(logHigh-logLow))
		}
		return plotHeight * (1 - v/axes[btoi(right)].most)
	}
	labels := func(right bool) {
		var write func(float64) string
		for _, l := range c.lines {
			if l.right == right {
				write = l.write
				break
			}
		}
		class := "left"
		if right {
			class = "right"
		}
		fmt.Fprintf(&b, "<div class=%q>", "y "+class)
		if write != nil {
			for _, part := range []float64{1, 0.5, 0} {
				v := axes[btoi(right)].most * part
				if c.log {
					v = math.Pow(10, logLow+(logHigh-logLow)*part)
				}
				fmt.Fprintf(&b, "<span>%s</span>", template.HTMLEscapeString(write(v)))
			}
		}
		b.WriteString("</div>")
	}
	b.WriteString("<div class=grid>")
	labels(false)
	fmt.Fprintf(&b, `<div class=box><svg class="plot" viewBox="0 0 %g %g" preserveAspectRatio="none" role="img"><title>%s</title>`, plotWidth, plotHeight, template.HTMLEscapeString(c.title))
	for _, part := range []float64{0, 0.25, 0.5, 0.75, 1} {
		fmt.Fprintf(&b, `<path class="rule" d="M0 %gH%g"/>`, part*plotHeight, plotWidth)
	}
	for _, l := range c.lines {
		var d strings.Builder
		open := false
		for i := range points {
			v := l.of(&points[i])
			if v == nil {
				open = false
				continue
			}
			x, y := points[i].T/end*plotWidth, y(*v, l.right)
			if open {
				fmt.Fprintf(&d, "L%s %s", trim(x), trim(y))
			} else {
				fmt.Fprintf(&d, "M%s %sh0", trim(x), trim(y)) // h0: a point that stays alone is a dot
			}
			open = true
		}
		fmt.Fprintf(&b, `<path class="line c%d" data-key="%s" d="%s"/>`, l.color, l.key, d.String())
	}
	b.WriteString("</svg><div class=cursor></div></div>")
	labels(true)
	b.WriteString("</div><div class=x></div></figure>")
	return template.HTML(b.String())
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// trim writes a coordinate with as many digits as can be seen.
func trim(v float64) string {
	return strings.TrimSuffix(strings.TrimRight(strconv.FormatFloat(v, 'f', 2, 64), "0"), ".")
}

// nice returns the next of 1, 1.5, 2, 3, 4, 5, 6, 8 times a power of ten.
func nice(v float64) float64 {
	unit := math.Pow(10, math.Floor(math.Log10(v)))
	for _, n := range []float64{1, 1.5, 2, 3, 4, 5, 6, 8, 10} {
		if v <= n*unit*(1+1e-9) {
			return n * unit
		}
	}
	return v
}

// spectrum draws the response time at each percentile, the closer to 100 the wider.
func (r *report) spectrum() (template.HTML, error) {
	type curve struct {
		name  string
		color int
		l     *latency
	}
	curves := []curve{{"response", 0, &r.Total.Response}, {"service", 2, &r.Total.Service}}
	nines := max(math.Ceil(math.Log10(float64(max(r.Total.Requests, 10)))), 2)
	top := math.Ceil(math.Log10(max(r.Total.Response.Max, 10)))
	low := math.Floor(math.Log10(max(min(r.Total.Response.Min, r.Total.Service.Min), 1)))
	var b strings.Builder
	b.WriteString("<figure class=chart><figcaption>Percentiles of all requests (both axes logarithmic)")
	for _, c := range curves {
		fmt.Fprintf(&b, " <span class=key><i class=c%d></i>%s</span>", c.color, c.name)
	}
	fmt.Fprintf(&b, `</figcaption><div class=grid><div class="y left"><span>%s</span><span>%s</span></div><div class=box><svg viewBox="0 0 %g %g" preserveAspectRatio="none" role="img"><title>percentiles</title>`,
		msText(math.Pow(10, top)), msText(math.Pow(10, low)), plotWidth, plotHeight)
	for d := low; d <= top; d++ {
		fmt.Fprintf(&b, `<path class="rule" d="M0 %sH%g"/>`, trim(plotHeight*(1-(d-low)/(top-low))), plotWidth)
	}
	for _, c := range curves {
		t, err := c.l.times()
		if err != nil {
			return "", err
		}
		var d strings.Builder
		const steps = 200
		for i := range steps + 1 {
			n := nines * float64(i) / steps
			v := max(t.quantile(100*(1-math.Pow(10, -n))), 1)
			op := "L"
			if i == 0 {
				op = "M"
			}
			fmt.Fprintf(&d, "%s%s %s", op, trim(n/nines*plotWidth), trim(plotHeight*(1-(math.Log10(v)-low)/(top-low))))
		}
		fmt.Fprintf(&b, `<path class="line c%d" d="%s"/>`, c.color, d.String())
	}
	b.WriteString(`</svg></div><div class="y right"></div></div><div class="x fixed">`)
	for n := range int(nines) + 1 {
		text := "0%"
		if n > 0 {
			text = strconv.FormatFloat(100*(1-math.Pow(10, -float64(n))), 'f', max(n-2, 0), 64) + "%"
		}
		fmt.Fprintf(&b, "<span>%s</span>", text)
	}
	b.WriteString("</div></figure>")
	return template.HTML(b.String()), nil
}
