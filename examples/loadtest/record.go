package main

import (
	"encoding/base64"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// maxMicros is the longest time that histograms tell apart, a minute; longer ones count as this, and exactly in maximum
// and mean.
const maxMicros = 60_000_000

// times is a distribution of durations: to the microsecond and to three digits.
type times struct {
	hist          *hdrhistogram.Histogram
	sum, min, max time.Duration
}

func newTimes() times { return times{hist: hdrhistogram.New(1, maxMicros, 3)} }

func (t *times) record(d time.Duration) {
	d = max(d, 0)
	if t.hist.TotalCount() == 0 || d < t.min {
		t.min = d
	}
	t.max = max(t.max, d)
	t.sum += d
	micros := min(max((d+500).Microseconds(), 1), maxMicros)
	_ = t.hist.RecordValue(micros) // it is in range
}

func (t *times) merge(o *times) {
	if o.count() == 0 {
		return
	}
	if t.count() == 0 || o.min < t.min {
		t.min = o.min
	}
	t.max = max(t.max, o.max)
	t.sum += o.sum
	t.hist.Merge(o.hist)
}

func (t *times) reset() {
	if t.count() > 0 {
		t.hist.Reset()
	}
	t.sum, t.min, t.max = 0, 0, 0
}

func (t *times) count() int64 { return t.hist.TotalCount() }

// quantile returns the value at p percent in microseconds, which is never above the maximum.
func (t *times) quantile(p float64) float64 {
	return min(float64(t.hist.ValueAtQuantile(p)), max(micros(t.max), 1))
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// latency is what a report has of times, in microseconds. HDR is the whole distribution, so that reports can be merged.
type latency struct {
	Count int64   `json:"count"`
	Min   float64 `json:"min"`
	Mean  float64 `json:"mean"`
	P50   float64 `json:"p50"`
	P90   float64 `json:"p90"`
	P95   float64 `json:"p95"`
	P99   float64 `json:"p99"`
	P999  float64 `json:"p99.9"`
	Max   float64 `json:"max"`
	HDR   string  `json:"hdr,omitempty"`
}

func (t *times) latency() latency {
	if t.count() == 0 {
		return latency{}
	}
	return latency{
		Count: t.count(), Min: micros(t.min), Mean: micros(t.sum) / float64(t.count()), Max: micros(t.max),
		P50: t.quantile(50), P90: t.quantile(90), P95: t.quantile(95), P99: t.quantile(99), P999: t.quantile(99.9),
	}
}

// encoded is latency with the distribution.
func (t *times) encoded() (latency, error) {
	l := t.latency()
	if l.Count == 0 {
		return l, nil
	}
	b, err := t.hist.Encode(hdrhistogram.V2CompressedEncodingCookieBase)
	l.HDR = base64.StdEncoding.EncodeToString(b)
	return l, err
}

// times is the reverse of encoded.
func (l *latency) times() (times, error) {
	t := newTimes()
	if l.Count == 0 {
		return t, nil
	}
	b, err := base64.StdEncoding.DecodeString(l.HDR)
	if err != nil || l.HDR == "" {
		return t, fmt.Errorf("a latency has no distribution")
	}
	h, err := hdrhistogram.Decode(b)
	if err != nil {
		return t, fmt.Errorf("decode a distribution: %w", err)
	}
	if dropped := t.hist.Merge(h); dropped > 0 || t.count() != l.Count {
		return t, fmt.Errorf("a distribution has %d values, not %d", t.count(), l.Count)
	}
	unit := float64(time.Microsecond)
	t.min, t.max, t.sum = time.Duration(l.Min*unit), time.Duration(l.Max*unit), time.Duration(l.Mean*unit*float64(l.Count))
	return t, nil
}

// counts is what happened in one row of the table.
type counts struct {
	requests     int64
	errors       map[string]int64 // by class
	hits, misses int64
	in, out      int64 // bytes of keys and values received and sent
	response     times // from when the request was due
	service      times // from when it was sent
}

func newCounts() *counts {
	return &counts{errors: map[string]int64{}, response: newTimes(), service: newTimes()}
}

func (c *counts) merge(o *counts) {
	c.requests += o.requests
	c.hits += o.hits
	c.misses += o.misses
	c.in += o.in
	c.out += o.out
	for class, n := range o.errors {
		c.errors[class] += n
	}
	c.response.merge(&o.response)
	c.service.merge(&o.service)
}

func (c *counts) reset() {
	clear(c.errors)
	c.response.reset()
	c.service.reset()
	*c = counts{errors: c.errors, response: c.response, service: c.service}
}

func (c *counts) clone() *counts {
	n := newCounts()
	n.merge(c)
	n.errors = maps.Clone(c.errors)
	return n
}

func (c *counts) failures() (n int64) {
	for _, k := range c.errors {
		n += k
	}
	return n
}

// outcome is what one operation did.
type outcome struct {
	hits, misses int
	in, out      int
	err          error
}

// shard takes the results of a part of the goroutines, so that they do not wait for each other.
type shard struct {
	mu   sync.Mutex
	rows []*counts
	lag  time.Duration // the longest since the last collect
}

func newRows(n int) []*counts {
	rows := make([]*counts, n)
	for i := range rows {
		rows[i] = newCounts()
	}
	return rows
}

func (s *shard) record(row int, o outcome, response, service, lag time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.rows[row]
	c.requests++
	c.hits += int64(o.hits)
	c.misses += int64(o.misses)
	c.in += int64(o.in)
	c.out += int64(o.out)
	if o.err != nil {
		c.errors[classify(o.err)]++
	}
	c.response.record(response)
	c.service.record(service)
	s.lag = max(s.lag, lag)
}

// recorder collects what the shards took.
type recorder struct {
	shards []*shard
	spare  []*counts
	mu     sync.Mutex
	total  []*counts // all rows so far
	maxLag time.Duration
}

func newRecorder(rows, shards int) *recorder {
	r := &recorder{spare: newRows(rows), total: newRows(rows)}
	for range shards {
		r.shards = append(r.shards, &shard{rows: newRows(rows)})
	}
	return r
}

// collect adds what the shards took since the last time to the total and returns it: all rows together, and the longest lag.
func (r *recorder) collect() (*counts, time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	interval, lag := newCounts(), time.Duration(0)
	for _, s := range r.shards {
		s.mu.Lock()
		s.rows, r.spare = r.spare, s.rows
		lag = max(lag, s.lag)
		s.lag = 0
		s.mu.Unlock()
		for i, c := range r.spare {
			if c.requests > 0 {
				r.total[i].merge(c)
				interval.merge(c)
				c.reset()
			}
		}
	}
	r.maxLag = max(r.maxLag, lag)
	return interval, lag
}

// totals returns copies of all rows as they are at the last collect.
func (r *recorder) totals() []*counts {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]*counts, len(r.total))
	for i, c := range r.total {
		all[i] = c.clone()
	}
	return all
}

// view shows all rows as they are at the last collect.
func (r *recorder) view(show func(rows []*counts)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	show(r.total)
}
