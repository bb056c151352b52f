package main

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/redispatterns/redispatterns/cache"
)

// metrics adds up what the cache tells its hooks, for Prometheus. Labels have a few known values each: never
// a key, and no tenant.
type metrics struct {
	mu                                            sync.Mutex
	hits, stale, notFound, misses, unavailable    int
	loads, loadErrors, refreshes, stored, refused int
	errors                                        map[string]int // by operation
	lookupTime, loadTime                          histogram
}

func newMetrics() *metrics {
	return &metrics{
		errors:     map[string]int{cache.OpRead: 0, cache.OpLease: 0, cache.OpStore: 0, cache.OpEncode: 0, cache.OpDecode: 0},
		lookupTime: newHistogram(.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25),
		loadTime:   newHistogram(.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1),
	}
}

func (m *metrics) hooks() cache.Hooks {
	return cache.Hooks{
		Lookup: func(_ context.Context, info cache.LookupInfo) {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.hits += info.Hits
			m.stale += info.Stale
			m.notFound += info.NotFound
			m.misses += info.Misses
			m.unavailable += info.Unavailable
			m.lookupTime.observe(info.Took)
		},
		Load: func(_ context.Context, info cache.LoadInfo) {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.loads++
			if info.Err != nil {
				m.loadErrors++
			}
			if info.Refresh {
				m.refreshes++
			}
			m.stored += info.Stored
			m.refused += info.Refused
			m.loadTime.observe(info.Took)
		},
		Error: func(_ context.Context, op string, _ error) {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.errors[op]++
		},
	}
}

// serve writes the metrics in Prometheus' text format, version 0.0.4.
func (m *metrics) serve(w http.ResponseWriter, _ *http.Request) {
	m.mu.Lock()
	var b bytes.Buffer
	head(&b, "cache_keys_total", "counter", "Keys looked up, by what was found.")
	for _, found := range []struct {
		result string
		n      int
	}{{"hit", m.hits}, {"stale", m.stale}, {"not_found", m.notFound}, {"miss", m.misses}} {
		fmt.Fprintf(&b, "cache_keys_total{result=%q} %d\n", found.result, found.n)
	}
	for _, c := range []struct {
		name, help string
		n          int
	}{
		{"cache_unavailable_total", "Misses because Redis failed, or had failed a moment before: alert on this.", m.unavailable},
		{"cache_loads_total", "Calls of the model.", m.loads},
		{"cache_load_errors_total", "Of these, calls that failed.", m.loadErrors},
		{"cache_refreshes_total", "Of these, calls in the background, for stale scores.", m.refreshes},
		{"cache_stored_total", "Scores that Redis took.", m.stored},
		{"cache_refused_total", "Scores not stored, being older than a deletion.", m.refused},
	} {
		head(&b, c.name, "counter", c.help)
		fmt.Fprintf(&b, "%s %d\n", c.name, c.n)
	}
	head(&b, "cache_errors_total", "counter", "Failures that no user has seen, by operation.")
	for _, op := range slices.Sorted(maps.Keys(m.errors)) {
		fmt.Fprintf(&b, "cache_errors_total{op=%q} %d\n", op, m.errors[op])
	}
	m.lookupTime.write(&b, "cache_lookup_seconds", "Time of reading Redis.")
	m.loadTime.write(&b, "cache_load_seconds", "Time of the model.")
	m.mu.Unlock()
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	_, _ = w.Write(b.Bytes())
}

func head(b *bytes.Buffer, name, kind, help string) {
	fmt.Fprintf(b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
}

type histogram struct {
	bounds []float64 // upper, in seconds, ascending
	counts []int     // between a bound and the one before it; the last is above all
	sum    float64
}

func newHistogram(bounds ...float64) histogram {
	return histogram{bounds: bounds, counts: make([]int, len(bounds)+1)}
}

func (h *histogram) observe(d time.Duration) {
	i, _ := slices.BinarySearch(h.bounds, d.Seconds()) // a bound belongs to its own bucket
	h.counts[i]++
	h.sum += d.Seconds()
}

func (h *histogram) write(b *bytes.Buffer, name, help string) {
	head(b, name, "histogram", help)
	n := 0
	for i, bound := range h.bounds {
		n += h.counts[i]
		fmt.Fprintf(b, "%s_bucket{le=\"%v\"} %d\n", name, bound, n)
	}
	n += h.counts[len(h.bounds)]
	fmt.Fprintf(b, "%s_bucket{le=\"+Inf\"} %d\n%s_sum %v\n%s_count %d\n", name, n, name, h.sum, name, n)
}
