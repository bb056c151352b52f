package main

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// monitor makes a point of each second.
type monitor struct {
	s        *session
	e        *engine
	points   []point
	latest   point // also while warming up
	last     time.Time
	before   *sample // the last two
	sampled  *sample
	own      time.Duration
	ownKnown bool
	gcs      int64
}

func (m *monitor) run(ctx context.Context, every time.Duration) {
	var gc debug.GCStats
	debug.ReadGCStats(&gc)
	m.gcs = gc.NumGC
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			m.tick(false)
			m.show()
		case <-ctx.Done():
			return
		}
	}
}

// tick makes a point of what happened since the last one.
func (m *monitor) tick(last bool) {
	now := time.Now()
	t := now.Sub(m.e.begin) - m.e.warmup
	if !last && t > 0 && t < m.s.c.sample/2 {
		return // so little is left to the next point
	}
	interval, lag := m.e.rec.collect()
	d := now.Sub(m.last).Seconds()
	p := point{T: t.Seconds(), Lag: micros(lag), Inflight: float64(m.e.inflight.Load())}
	own, ok := ownCPU()
	if ok && m.ownKnown {
		p.Own = known(100 * (own - m.own).Seconds() / d / float64(runtime.GOMAXPROCS(0)))
	}
	m.own, m.last = own, now
	p.GCPause = m.gcPause()
	if next := m.s.sampler.last.Load(); next != nil && (m.sampled == nil || next.at.After(m.sampled.at)) {
		m.before, m.sampled = m.sampled, next
	}
	if m.before != nil && now.Sub(m.sampled.at) < 2*m.s.c.sample { // else the server does not answer: a gap
		p.serverFigures(m.before, m.sampled)
	}
	m.latest = p
	if p.T <= 0 || d < 0.05 { // warming up, or the end just after a point
		return
	}
	d = min(d, p.T) // the first begins with the end of the warm-up
	p.RPS, p.Errors = float64(interval.requests)/d, float64(interval.failures())/d
	found := row{Hits: interval.hits, Misses: interval.misses}
	p.Hit = found.hitPercent()
	if interval.requests > 0 {
		l := interval.response.latency()
		p.P50, p.P95, p.P99, p.P999 = &l.P50, &l.P95, &l.P99, &l.P999
	}
	m.points = append(m.points, p)
}

// serverFigures fills in what two samples tell.
func (p *point) serverFigures(a, b *sample) {
	p.Used, p.Max, p.Clients = b.infos.sum("used_memory"), b.infos.sum("maxmemory"), b.infos.sum("connected_clients")
	p.Frag = b.infos.most("mem_fragmentation_ratio")
	p.Evicted, p.Expired = rate(a, b, "evicted_keys"), rate(a, b, "expired_keys")
	p.NetIn, p.NetOut = rate(a, b, "total_net_input_bytes"), rate(a, b, "total_net_output_bytes")
	if f := per(a, b, cpuTime); f != nil {
		p.CPU = known(100 * *f)
	}
	p.OOM = per(a, b, func(s *sample) figure {
		sum := 0.0
		for _, i := range s.infos {
			if i.figure("used_memory") == nil {
				return nil
			}
			if text, ok := i["errorstat_OOM"]; ok { // it has no line of what never happened
				if f := (info{"n": strings.TrimPrefix(text, "count=")}).figure("n"); f != nil {
					sum += *f
				}
			}
		}
		return &sum
	})
}

func (m *monitor) gcPause() figure {
	var gc debug.GCStats
	debug.ReadGCStats(&gc)
	longest := time.Duration(0)
	for _, pause := range gc.Pause[:min(int(gc.NumGC-m.gcs), len(gc.Pause))] {
		longest = max(longest, pause)
	}
	m.gcs = gc.NumGC
	return known(micros(longest))
}

// show draws the report as it is.
func (m *monitor) show() {
	r := *m.s.report
	r.Series, r.Warnings, r.latest = m.points, slices.Clone(r.Warnings), &m.latest
	r.Seconds = max((time.Since(m.e.begin) - m.e.warmup).Seconds(), 0)
	m.e.rec.view(func(rows []*counts) {
		total := newCounts()
		r.Rows = make([]row, len(rows))
		for i, c := range rows {
			r.Rows[i] = rowOf(m.e.operations[i], c)
			total.merge(c)
		}
		r.Total = rowOf(operation{name: "Aggregated"}, total)
		r.Load = load{Loop: "open", Rate: m.e.schedule.level(min(time.Since(m.e.begin), m.e.schedule.duration()-1)), MaxLag: micros(m.e.rec.maxLag)}
		if m.e.closed {
			r.Load = load{Loop: "closed", Users: r.Load.Rate}
		}
	})
	rates(&r)
	r.Load.Achieved = r.Total.RPS
	elapsed := time.Since(m.e.begin)
	status := fmt.Sprintf("run %s/%s", clock(elapsed), clock(m.e.schedule.duration()))
	if elapsed < m.e.warmup {
		status += "  warming up"
	}
	m.s.screen.live(&r, status)
	m.s.page.show(&r, status)
}

func clock(d time.Duration) string {
	s := int(d.Seconds())
	if s >= 3600 {
		return fmt.Sprintf("%d:%02d:%02d", s/3600, s/60%60, s%60)
	}
	return fmt.Sprintf("%02d:%02d", s/60, s%60)
}
