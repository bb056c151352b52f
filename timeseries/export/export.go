// Package export shows the counters of a timeseries.Store over HTTP: as OpenMetrics text for Prometheus and others, and as JSON for
// Grafana's JSON data source (simpod-json-datasource, and those like it). It needs nothing but the store.
//
//	handler, err := export.New(store, export.Options{Series: export.List("hits", "errors")})
//	http.Handle("/timeseries/", http.StripPrefix("/timeseries", handler))
//
// It serves
//
//	GET  /          200, for the data source's test
//	GET  /metrics   what each series has counted in the last whole Options.Window, as a gauge
//	POST /metrics   and POST /search: the series' names
//	POST /query     points of the targets that are asked for, at most Options.MaxPoints of each
//
// Only series that Options.Series names are served. There is no authentication: put it behind yours. What it answers is bounded, and
// so is what it reads. A read from Redis that fails is a 503, without details.
package export

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redispatterns/redispatterns/timeseries"
)

const (
	maxBody    = 1 << 20 // bytes of a query
	maxTargets = 100     // per query
	maxSeries  = 1000    // per scrape

	defaultMetric    = "timeseries_events"
	defaultWindow    = time.Minute
	defaultMaxPoints = 11_000
)

// Options configures a handler. Series is required.
type Options struct {
	// Series says which series are served; it is called with each request, whose first 1000 count. See [List].
	Series func(ctx context.Context) ([]string, error)

	// Metric is the name of the gauge. Defaults to "timeseries_events".
	Metric string

	// Window is what the gauge counts: the last whole one, of those that begin at multiples of it since 1970-01-01 UTC. Whole
	// seconds, a multiple of the store's smallest Step. Defaults to 1m.
	Window time.Duration

	// MaxPoints bounds each target of a query; wider buckets make up for it. 1 to 100,000. Defaults to 11,000.
	MaxPoints int

	// Fill is for points without events. Defaults to timeseries.FillZero.
	Fill timeseries.Fill
}

// List returns a function for Options.Series that always returns these names.
func List(series ...string) func(context.Context) ([]string, error) {
	series = slices.Clone(series)
	return func(context.Context) ([]string, error) { return series, nil }
}

var metricName = regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_]*$`)

// New returns a handler.
func New(store *timeseries.Store, opts Options) (http.Handler, error) {
	if opts.Metric == "" {
		opts.Metric = defaultMetric
	}
	if opts.Window == 0 {
		opts.Window = defaultWindow
	}
	if opts.MaxPoints == 0 {
		opts.MaxPoints = defaultMaxPoints
	}
	switch {
	case store == nil:
		return nil, errors.New("export: store is required")
	case opts.Series == nil:
		return nil, errors.New("export: Options.Series is required")
	case !metricName.MatchString(opts.Metric):
		return nil, fmt.Errorf("export: Options.Metric must be of letters, digits and underscores, got %q", opts.Metric)
	case opts.Window < time.Second || opts.Window%time.Second != 0:
		return nil, fmt.Errorf("export: Options.Window must be whole seconds, got %v", opts.Window)
	case opts.MaxPoints < 1 || opts.MaxPoints > 100_000:
		return nil, fmt.Errorf("export: Options.MaxPoints must be 1 to 100,000, got %d", opts.MaxPoints)
	case opts.Fill > timeseries.FillLinear:
		return nil, fmt.Errorf("export: Options.Fill must be one of the constants, got %d", opts.Fill)
	}
	h := &handler{store, opts}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	mux.HandleFunc("GET /metrics", h.metrics)
	mux.HandleFunc("POST /metrics", h.names)
	mux.HandleFunc("POST /search", h.names)
	mux.HandleFunc("POST /query", h.query)
	return mux, nil
}

type handler struct {
	store *timeseries.Store
	opts  Options
}

func (h *handler) series(r *http.Request) ([]string, error) {
	series, err := h.opts.Series(r.Context())
	return series[:min(len(series), maxSeries)], err
}

// unavailable is all that is said of an error, which may be about keys.
func unavailable(w http.ResponseWriter) {
	http.Error(w, "the time series cannot be read", http.StatusServiceUnavailable)
}

var escape = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

func (h *handler) metrics(w http.ResponseWriter, r *http.Request) {
	series, err := h.series(r)
	if err != nil {
		unavailable(w)
		return
	}
	now, err := h.store.Now(r.Context())
	if err != nil {
		unavailable(w)
		return
	}
	end := now.Truncate(h.opts.Window)
	all, err := h.store.RangeMany(r.Context(), timeseries.Range{From: end.Add(-h.opts.Window), To: end, Step: h.opts.Window}, series...)
	if err != nil {
		unavailable(w)
		return
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "# TYPE %s gauge\n# HELP %s Events in the last whole %v.\n", h.opts.Metric, h.opts.Metric, h.opts.Window)
	for i, s := range all {
		var n int64
		for _, p := range s.Points {
			n += p.Value
		}
		fmt.Fprintf(&b, "%s{series=\"%s\"} %d %d\n", h.opts.Metric, escape.Replace(strings.ToValidUTF8(series[i], "\uFFFD")), n, end.Unix())
	}
	b.WriteString("# EOF\n")
	w.Header().Set("Content-Type", "application/openmetrics-text; version=1.0.0; charset=utf-8")
	_, _ = w.Write(b.Bytes()) // the client has gone
}

func respond(w http.ResponseWriter, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		unavailable(w)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(body) // the client has gone
}

func (h *handler) names(w http.ResponseWriter, r *http.Request) {
	series, err := h.series(r)
	if err != nil {
		unavailable(w)
		return
	}
	if strings.HasSuffix(r.URL.Path, "/search") {
		respond(w, append([]string{}, series...))
		return
	}
	type option struct {
		Label string `json:"label"`
		Value string `json:"value"`
	}
	options := []option{}
	for _, s := range series {
		options = append(options, option{s, s})
	}
	respond(w, options)
}

type query struct {
	Range struct {
		From, To time.Time
	}
	MaxDataPoints int
	Targets       []struct{ Target string }
}

type answer struct {
	Target     string     `json:"target"`
	Datapoints [][2]value `json:"datapoints"`
}

// value is a number or, if it is nil, null.
type value struct{ n *int64 }

func (v value) MarshalJSON() ([]byte, error) {
	if v.n == nil {
		return []byte("null"), nil
	}
	return strconv.AppendInt(nil, *v.n, 10), nil
}

func (h *handler) query(w http.ResponseWriter, r *http.Request) {
	var q query
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&q); err != nil || len(q.Targets) > maxTargets || !q.Range.From.Before(q.Range.To) {
		http.Error(w, "not a query", http.StatusBadRequest)
		return
	}
	served, err := h.series(r)
	if err != nil {
		unavailable(w)
		return
	}
	answers := []answer{}
	var names []string
	for _, t := range q.Targets {
		if t.Target == "" { // a panel without a choice yet
			continue
		}
		if !slices.Contains(served, t.Target) {
			http.Error(w, "there is no such series", http.StatusNotFound)
			return
		}
		names = append(names, t.Target)
	}
	points := h.opts.MaxPoints
	if q.MaxDataPoints > 0 {
		points = min(points, q.MaxDataPoints)
	}
	if len(names) > 0 {
		all, err := h.store.RangeMany(r.Context(), timeseries.Range{From: q.Range.From, To: q.Range.To, MaxPoints: points, Fill: h.opts.Fill}, names...)
		switch {
		case errors.Is(err, timeseries.ErrTooMany):
			http.Error(w, "too much is asked for", http.StatusBadRequest)
			return
		case err != nil:
			unavailable(w)
			return
		}
		for i, s := range all {
			a := answer{Target: names[i], Datapoints: make([][2]value, 0, len(s.Points))}
			for j := range s.Points {
				p := &s.Points[j]
				ms := p.Start.UnixMilli()
				v := value{&p.Value}
				if p.Missing && !p.Filled {
					v.n = nil
				}
				a.Datapoints = append(a.Datapoints, [2]value{v, {&ms}})
			}
			answers = append(answers, a)
		}
	}
	respond(w, answers)
}
