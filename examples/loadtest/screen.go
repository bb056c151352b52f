package main

import (
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"golang.org/x/term"
)

// screen shows a run on a terminal, as a table that is drawn anew, or elsewhere as a line per second.
type screen struct {
	mu    sync.Mutex
	out   io.Writer
	mode  string // table, plain or off
	lines int    // that the last table took
	width int
}

func newScreen(out io.Writer, mode string) *screen {
	s := &screen{out: out, mode: mode, width: 200}
	if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		if s.mode == "" {
			s.mode = "table"
		}
		if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 20 {
			s.width = w
		}
	}
	if s.mode == "" {
		s.mode = "plain"
	}
	return s
}

// draw replaces what was drawn last.
func (s *screen) draw(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b strings.Builder
	if s.lines > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", s.lines)
	}
	s.lines = 0
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if utf8.RuneCountInString(line) > s.width-1 {
			line = string([]rune(line)[:s.width-1])
		}
		b.WriteString(line + "\x1b[K\n")
		s.lines++
	}
	b.WriteString("\x1b[J")
	fmt.Fprint(s.out, b.String())
}

// keep leaves what was drawn where it is.
func (s *screen) keep() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = 0
}

func (s *screen) progress(text string) {
	switch s.mode {
	case "table":
		s.draw(text + "\n")
	case "plain":
		fmt.Fprintln(s.out, text)
	}
}

func (s *screen) live(r *report, status string) {
	switch s.mode {
	case "table":
		var b strings.Builder
		r.table(&b, status)
		s.draw(b.String())
	case "plain":
		fmt.Fprintln(s.out, r.line(status))
	}
}

// milliseconds writes microseconds as milliseconds, with about three digits.
func milliseconds(micros float64) string {
	switch ms := micros / 1000; {
	case ms >= 100:
		return strconv.FormatFloat(ms, 'f', 0, 64)
	case ms >= 10:
		return strconv.FormatFloat(ms, 'f', 1, 64)
	case ms >= 1:
		return strconv.FormatFloat(ms, 'f', 2, 64)
	default:
		return strconv.FormatFloat(ms, 'f', 3, 64)
	}
}

func orUnknown(f figure, write func(float64) string) string {
	if f == nil {
		return "unknown"
	}
	return write(*f)
}

func percentText(v float64) string { return strconv.FormatFloat(v, 'f', 1, 64) + "%" }

func (r *report) loadText() string {
	if r.Load.Loop == "closed" {
		return fmt.Sprintf("closed, %.0f users  %s/s", r.Load.Users, count(r.Load.Achieved))
	}
	return fmt.Sprintf("open %s/s  achieved %s/s  lag %s ms", count(r.Load.Rate), count(r.Load.Achieved), milliseconds(r.Load.MaxLag))
}

// line is one second on one line.
func (r *report) line(status string) string {
	l := r.Total.Response
	text := status + "  " + r.loadText()
	if l.Count > 0 {
		text += fmt.Sprintf("  p50 %s  p95 %s  p99 %s ms", milliseconds(l.P50), milliseconds(l.P95), milliseconds(l.P99))
	}
	return text + fmt.Sprintf("  errors %s (%.2f%%)  hit %s  %s", count(float64(r.Total.Failures)), r.Total.errorPercent(),
		orUnknown(r.Total.hitPercent(), percentText), r.serverLine())
}

// serverLine is what the servers say at the moment.
func (r *report) serverLine() string {
	p := point{Used: r.Memory, Max: r.MaxMemory, Clients: r.Clients}
	if n := len(r.Series); r.latest != nil {
		p = *r.latest
	} else if n > 0 {
		p = r.Series[n-1]
	}
	memory := orUnknown(p.Used, size)
	if p.Used != nil && p.Max != nil && *p.Max > 0 {
		memory += "/" + size(*p.Max) + fmt.Sprintf(" (%.0f%%)", 100**p.Used / *p.Max)
	}
	perSecond := func(f figure) string { return orUnknown(f, func(v float64) string { return count(v) + "/s" }) }
	flow := "unknown"
	if p.NetIn != nil && p.NetOut != nil {
		flow = fmt.Sprintf("%.1f/%.1f MB/s", *p.NetIn/1e6, *p.NetOut/1e6)
	}
	return fmt.Sprintf("SERVER used %s  frag %s  evicted %s  expired %s  OOM %s  cpu %s  in/out %s  clients %s", memory,
		orUnknown(p.Frag, func(v float64) string { return strconv.FormatFloat(v, 'f', 2, 64) }), perSecond(p.Evicted), perSecond(p.Expired),
		perSecond(p.OOM), orUnknown(p.CPU, func(v float64) string { return fmt.Sprintf("%.0f%%", v) }), flow, orUnknown(p.Clients, count))
}

// table writes what is there, with the columns of Locust and some more; all times in milliseconds.
func (r *report) table(w io.Writer, status string) {
	inflight := 0.0
	if n := len(r.Series); n > 0 {
		inflight = r.Series[n-1].Inflight
	}
	fmt.Fprintf(w, "%s  %s  inflight %.0f  errors %s (%.2f%%)\n", status, r.loadText(), inflight, count(float64(r.Total.Failures)), r.Total.errorPercent())
	header := []string{"OP", "reqs", "fails", "p50", "p95", "p99", "p99.9", "max", "avg", "min", "svc p99", "srv p99", "B in", "B out", "RPS", "fail/s", "hit%"}
	lines := [][]string{header}
	for _, o := range append(slices.Clone(r.Rows), r.Total) {
		l, n := o.Response, float64(max(o.Requests, 1))
		cells := []string{o.Name, count(float64(o.Requests)), count(float64(o.Failures))}
		if l.Count == 0 {
			cells = append(cells, "-", "-", "-", "-", "-", "-", "-", "-")
		} else {
			for _, v := range []float64{l.P50, l.P95, l.P99, l.P999, l.Max, l.Mean, l.Min, o.Service.P99} {
				cells = append(cells, milliseconds(v))
			}
		}
		server, hit := "-", "-"
		if o.ServerP99 != nil {
			server = milliseconds(*o.ServerP99)
		}
		if h := o.hitPercent(); h != nil {
			hit = strconv.FormatFloat(*h, 'f', 1, 64)
		}
		lines = append(lines, append(cells, server, count(float64(o.BytesIn)/n), count(float64(o.BytesOut)/n), count(o.RPS),
			strconv.FormatFloat(o.FailuresPS, 'f', 1, 64), hit))
	}
	writeColumns(w, lines)
	for _, f := range r.failures() {
		fmt.Fprintf(w, "FAILED %s × %s: %s\n", count(float64(f.n)), f.name, f.class)
	}
	fmt.Fprintln(w, r.serverLine())
}

// failure is how often an operation failed in a way.
type failure struct {
	name, class string
	n           int64
}

func (r *report) failures() (all []failure) {
	for _, w := range r.Rows {
		for _, class := range slices.Sorted(maps.Keys(w.Errors)) {
			all = append(all, failure{w.Name, class, w.Errors[class]})
		}
	}
	return all
}

// writeColumns aligns the first column left and the others right.
func writeColumns(w io.Writer, lines [][]string) {
	widths := make([]int, len(lines[0]))
	for _, cells := range lines {
		for i, c := range cells {
			widths[i] = max(widths[i], utf8.RuneCountInString(c))
		}
	}
	for _, cells := range lines {
		for i, c := range cells {
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c))
			switch i {
			case 0:
				fmt.Fprint(w, c+pad)
			default:
				fmt.Fprint(w, "  "+pad+c)
			}
		}
		fmt.Fprintln(w)
	}
}

// print writes the whole report.
func (r *report) print(w io.Writer, size sizeOptions) {
	fmt.Fprintf(w, "\nRESULT  %s on %s, %s, %s, maxmemory-policy %s\n", r.Scenario, r.Target.Address, r.Target.Version, r.Target.Mode, r.Target.Policy)
	status := fmt.Sprintf("%.1fs", r.Seconds)
	if r.Interrupted {
		status += " (interrupted)"
	}
	r.table(w, status)
	if r.Generator != nil {
		fmt.Fprintf(w, "this program used %.0f%% of its processors\n", *r.Generator)
	}
	for _, o := range r.Overheads {
		fmt.Fprintf(w, "OVERHEAD %s over %s: p50 %+.0f µs, p99 %+.0f µs, mean %+.0f µs\n", o.Name, o.Raw, o.P50, o.P99, o.Mean)
	}
	if r.Knee != nil {
		r.Knee.print(w)
	}
	if r.Load.Saturated != "" {
		fmt.Fprintf(w, "SATURATED (achieved %s of %s per second): %s. The percentiles are of a load that could not be kept up.\n",
			count(r.Load.Achieved), count(r.Load.Rate), r.Load.Saturated)
	}
	for _, text := range r.Warnings {
		fmt.Fprintln(w, "NOTE:", text)
	}
	for _, g := range r.Gates {
		fmt.Fprintln(w, "GATE", g)
	}
	r.Doctor.print(w)
	fmt.Fprintln(w)
	sizeOf(r, size).print(w)
}
