package main

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// registry writes metrics in Prometheus' text format. In a service use its client library, or OpenTelemetry's: the hooks
// stay the same.
type registry struct {
	mu      sync.Mutex
	metrics []interface{ write(b *bytes.Buffer) }
}

func (r *registry) writeTo(w io.Writer) error {
	r.mu.Lock()
	var b bytes.Buffer
	for _, m := range r.metrics {
		m.write(&b)
	}
	r.mu.Unlock()
	_, err := w.Write(b.Bytes())
	return err
}

// family is a metric with all its series, by the values of its labels.
type family[T any] struct {
	r                *registry
	name, help, kind string
	labels           []string
	series           map[string]T
	order            []string
}

func newFamily[T any](r *registry, name, help, kind string, labels []string) family[T] {
	return family[T]{r: r, name: name, help: help, kind: kind, labels: labels, series: map[string]T{}}
}

// key is how a series' labels are written.
func (f *family[T]) key(values []string) string {
	parts := make([]string, len(values))
	for i, value := range values {
		parts[i] = f.labels[i] + "=" + strconv.Quote(value)
	}
	return strings.Join(parts, ",")
}

func (f *family[T]) put(key string, value T) {
	if _, ok := f.series[key]; !ok {
		f.order = append(f.order, key)
	}
	f.series[key] = value
}

func (f *family[T]) head(b *bytes.Buffer) {
	fmt.Fprintf(b, "# HELP %s %s\n# TYPE %s %s\n", f.name, f.help, f.name, f.kind)
}

type counter struct{ family[int] }

func (r *registry) counter(name, help string, labels ...string) *counter {
	c := &counter{newFamily[int](r, name, help, "counter", labels)}
	r.metrics = append(r.metrics, c)
	return c
}

func (c *counter) add(n int, values ...string) {
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	key := c.key(values)
	c.put(key, c.series[key]+n)
}

func (c *counter) write(b *bytes.Buffer) {
	c.head(b)
	for _, key := range c.order {
		fmt.Fprintf(b, "%s{%s} %d\n", c.name, key, c.series[key])
	}
}

type gauge struct{ family[float64] }

func (r *registry) gauge(name, help string, labels ...string) *gauge {
	g := &gauge{newFamily[float64](r, name, help, "gauge", labels)}
	r.metrics = append(r.metrics, g)
	return g
}

func (g *gauge) set(value float64, values ...string) {
	g.r.mu.Lock()
	defer g.r.mu.Unlock()
	g.put(g.key(values), value)
}

func (g *gauge) write(b *bytes.Buffer) {
	g.head(b)
	for _, key := range g.order {
		fmt.Fprintf(b, "%s{%s} %v\n", g.name, key, g.series[key])
	}
}

// buckets begin where Redis does: a tenth of a millisecond.
var buckets = []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}

// times are a histogram's: how many were in each bucket, the last being above all, and what they add up to.
type times struct {
	counts []int
	sum    float64
}

type histogram struct{ family[*times] }

func (r *registry) histogram(name, help string, labels ...string) *histogram {
	h := &histogram{newFamily[*times](r, name, help, "histogram", labels)}
	r.metrics = append(r.metrics, h)
	return h
}

func (h *histogram) observe(d time.Duration, values ...string) {
	h.r.mu.Lock()
	defer h.r.mu.Unlock()
	key := h.key(values)
	s := h.series[key]
	if s == nil {
		s = &times{counts: make([]int, len(buckets)+1)}
		h.put(key, s)
	}
	i, _ := slices.BinarySearch(buckets, d.Seconds()) // a bound belongs to its own bucket
	s.counts[i]++
	s.sum += d.Seconds()
}

func (h *histogram) write(b *bytes.Buffer) {
	h.head(b)
	for _, key := range h.order {
		s, n := h.series[key], 0
		for i, bound := range buckets {
			n += s.counts[i]
			fmt.Fprintf(b, "%s_bucket{%s,le=\"%v\"} %d\n", h.name, key, bound, n)
		}
		n += s.counts[len(buckets)]
		fmt.Fprintf(b, "%s_bucket{%s,le=\"+Inf\"} %d\n%s_sum{%s} %v\n%s_count{%s} %d\n", h.name, key, n, h.name, key, s.sum, h.name, key, n)
	}
}
