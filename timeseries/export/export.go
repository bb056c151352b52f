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
//	POST /query     points of the targets that are asked for, each once: at most Options.MaxPoints of each and 200,000 in all
//
// Prometheus takes one value per time. So a window is not served as soon as it has ended, but when what was counted in it is in
// Redis, of processes with the same timeseries.Options as the handler's store: Store.Delay later. What comes later still, for
// Redis did not answer or an event is late, is in no gauge; queries have it.
//
// Only series that Options.Series names are served, of which those that are not UTF-8 cannot be. There is no
// authentication: put it behind yours. What it answers is bounded, and so is what it reads. A read from Redis that fails is
// a 503, without details. A series whose sum overflows has no value, and the others are answered.
package export

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/redispatterns/redispatterns/timeseries"
)

const (
	maxBody    = 1 << 20 // bytes of a query
	maxTargets = 100     // per query
	maxSeries  = 1000    // per scrape
	maxPoints  = 200_000 // of all targets of a query

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

	// Window is what the gauge counts: the last whole one that ended Store.Delay ago or earlier, of those that begin at
	// multiples of it since 1970-01-01 UTC. A multiple of the smallest Step of the store that has a Keep of at least two
	// windows, that delay and the next larger Step. Defaults to 1m.
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
	case opts.MaxPoints < 1 || opts.MaxPoints > 100_000:
		return nil, fmt.Errorf("export: Options.MaxPoints must be 1 to 100,000, got %d", opts.MaxPoints)
	case opts.Fill > timeseries.FillLinear:
		return nil, fmt.Errorf("export: Options.Fill must be one of the constants, got %d", opts.Fill)
	}
	if err := checkWindow(opts.Window, store.Delay(), store.Resolutions()); err != nil {
		return nil, fmt.Errorf("export: Options.Window %w", err)
	}
	return newHandler(store, opts), nil
}

// checkWindow returns an error unless the last whole window is always made of whole buckets, however long ago it began: up to two
// windows and the delay. Where small buckets end, larger ones begin, at one of their own borders.
func checkWindow(window, delay time.Duration, resolutions []timeseries.Resolution) error {
	last := len(resolutions) - 1
	if most := (resolutions[last].Keep - delay) / 2; window <= 0 || window > most {
		return fmt.Errorf("must be positive and at most half of the store's longest Keep without its Delay, that is %v, got %v", most, window)
	}
	for last > 0 && resolutions[last-1].Keep >= 2*window+delay+resolutions[last].Step {
		last--
	}
	if step := resolutions[last].Step; window%step != 0 {
		return fmt.Errorf("must be a multiple of %v, which is the smallest Step that is kept for two of it and the store's Delay, got %v", step, window)
	}
	return nil
}

// source is what a handler needs of a store.
type source interface {
	Delay() time.Duration
	Now(ctx context.Context) (time.Time, error)
	RangeMany(ctx context.Context, r timeseries.Range, series ...string) ([]timeseries.Series, error)
}

type handler struct {
	store source
	opts  Options
}

func newHandler(store source, opts Options) http.Handler {
	h := &handler{store, opts}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	mux.HandleFunc("GET /metrics", h.metrics)
	mux.HandleFunc("POST /metrics", h.names)
	mux.HandleFunc("POST /search", h.names)
	mux.HandleFunc("POST /query", h.query)
	return mux
}

// series are those that are served, each once.
func (h *handler) series(r *http.Request) ([]string, error) {
	series, err := h.opts.Series(r.Context())
	if err != nil {
		return nil, err
	}
	return unique(series[:min(len(series), maxSeries)]), nil
}

// unique returns each name once, but for those that neither format can say.
func unique(names []string) []string {
	seen := make(map[string]bool, len(names))
	all := make([]string, 0, len(names))
	for _, n := range names {
		if !seen[n] && utf8.ValidString(n) {
			seen[n] = true
			all = append(all, n)
		}
	}
	return all
}

// unavailable is all that is said of an error, which may be about keys.
func unavailable(w http.ResponseWriter) {
	http.Error(w, "the time series cannot be read", http.StatusServiceUnavailable)
}
