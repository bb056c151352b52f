package main

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"time"
)

// merge makes one report of those of several generators that ran at the same time against the same server. Requests and rates
// add up, distributions are merged, so that the percentiles are those of all requests; what was read from the server is taken
// from the first.
func merge(reports []*report) (*report, error) {
	if len(reports) < 2 {
		return nil, usage("merge at least two reports")
	}
	all := *reports[0]
	all.Merged, all.Gates, all.Overheads, all.Knee, all.Warnings = len(reports), nil, nil, nil, nil
	names := make([]string, 0, len(all.Rows))
	rows := map[string]*mergedRow{}
	total := newMergedRow(all.Total)
	series := map[int64]*point{}
	var seconds []int64
	all.Load.Planned, all.Load.Rate, all.Load.Achieved, all.Load.Users, all.Load.Saturated, all.Load.MaxLag = 0, 0, 0, 0, "", 0
	all.Wire.In, all.Wire.Out = 0, 0
	for i, r := range reports {
		if r.Target.Mode != all.Target.Mode || r.Load.Loop != all.Load.Loop {
			return nil, errors.New("the reports are of different kinds of server or load")
		}
		if slices.ContainsFunc(reports[:i], func(o *report) bool { return o.Started.Equal(r.Started) }) {
			return nil, usage("report %d is of the same run as one before it: its requests would count twice", i+1)
		}
		all.Interrupted = all.Interrupted || r.Interrupted
		if gap := r.Started.Sub(all.Started).Abs(); gap > 5*time.Second {
			all.Warnings = append(all.Warnings, fmt.Sprintf("report %d began %v apart from the first: rates add up only while both ran", i+1, gap.Round(time.Second)))
		}
		for _, w := range r.Rows {
			if rows[w.Name] == nil {
				rows[w.Name] = newMergedRow(w)
				names = append(names, w.Name)
			}
			if err := rows[w.Name].add(w); err != nil {
				return nil, fmt.Errorf("report %d: %s: %w", i+1, w.Name, err)
			}
		}
		if err := total.add(r.Total); err != nil {
			return nil, fmt.Errorf("report %d: %w", i+1, err)
		}
		for _, p := range r.Series {
			second := r.Started.Add(time.Duration(p.T * float64(time.Second))).Round(time.Second).Unix()
			m := series[second]
			if m == nil {
				m = &p
				m.T += r.Started.Sub(all.Started).Seconds()
				series[second] = m
				seconds = append(seconds, second)
				continue
			}
			m.RPS += p.RPS
			m.Errors += p.Errors
			m.Inflight += p.Inflight
			m.Lag = max(m.Lag, p.Lag)
			// Of one second there is no distribution: the worst generator's stands for all.
			m.P50, m.P95, m.P99, m.P999 = larger(m.P50, p.P50), larger(m.P95, p.P95), larger(m.P99, p.P99), larger(m.P999, p.P999)
		}
		all.Seconds = max(all.Seconds, r.Seconds)
		all.Load.Planned += r.Load.Planned
		all.Load.Rate += r.Load.Rate
		all.Load.Achieved += r.Load.Achieved
		all.Load.Users += r.Load.Users
		all.Load.MaxLag = max(all.Load.MaxLag, r.Load.MaxLag)
		if r.Load.Saturated != "" && all.Load.Saturated == "" {
			all.Load.Saturated = fmt.Sprintf("report %d: %s", i+1, r.Load.Saturated)
		}
		all.Wire.In += r.Wire.In
		all.Wire.Out += r.Wire.Out
		all.Generator = larger(all.Generator, r.Generator)
		all.Warnings = append(all.Warnings, r.Warnings...)
	}
	all.Rows = nil
	for _, name := range names {
		w, err := rows[name].row()
		if err != nil {
			return nil, err
		}
		all.Rows = append(all.Rows, w)
	}
	var err error
	if all.Total, err = total.row(); err != nil {
		return nil, err
	}
	all.Series = nil
	for _, s := range slices.Sorted(slices.Values(seconds)) {
		all.Series = append(all.Series, *series[s])
	}
	return &all, nil
}

// mergedRow is a row of which the distributions are open.
type mergedRow struct {
	first row
	c     *counts
	rps   float64
	fps   float64
}

func newMergedRow(w row) *mergedRow { return &mergedRow{first: w, c: newCounts()} }

func (m *mergedRow) add(w row) error {
	c := &counts{requests: w.Requests, errors: w.Errors, hits: w.Hits, misses: w.Misses, in: w.BytesIn, out: w.BytesOut}
	var err, serviceErr error
	c.response, err = w.Response.times()
	c.service, serviceErr = w.Service.times()
	if err := errors.Join(err, serviceErr); err != nil {
		return err
	}
	m.c.merge(c)
	m.rps += w.RPS
	m.fps += w.FailuresPS
	return nil
}

func (m *mergedRow) row() (row, error) {
	w := rowOf(operation{name: m.first.Name, command: m.first.Command}, m.c)
	w.TTL, w.BytesPerKey, w.ServerP50, w.ServerP99 = m.first.TTL, m.first.BytesPerKey, m.first.ServerP50, m.first.ServerP99
	w.RPS, w.FailuresPS = m.rps, m.fps
	return w, w.encode(m.c)
}

// encode adds the whole distributions.
func (r *row) encode(c *counts) (err error) {
	var serviceErr error
	r.Response, err = c.response.encoded()
	r.Service, serviceErr = c.service.encoded()
	return errors.Join(err, serviceErr)
}

func larger(a, b figure) figure {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	}
	return known(math.Max(*a, *b))
}
