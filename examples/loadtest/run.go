package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/redis/rueidis"
)

// session is one run: a target, a scenario, and what looks on.
type session struct {
	c       *config
	out     io.Writer
	t       *target
	env     *environment
	w       *workload
	report  *report
	screen  *screen
	page    *page
	sampler *sampler
}

// open connects, and refuses what must not be done.
func open(ctx context.Context, c *config, out io.Writer) (_ *session, err error) {
	if host := c.remote(); host != "" && !c.safety.yes {
		return nil, usage("%s is not this machine: with --yes it is loaded all the same", host)
	}
	s := &session{c: c, out: out, screen: newScreen(out, c.live)}
	s.env = &environment{
		data: newDataset(c.prefix, c.keys, c.classes, c.dist, c.compressible), ttl: c.ttl, jitter: c.jitter,
		csc: c.csc, raw: c.raw, callLimit: c.timeout,
	}
	if s.env.callLimit == 0 {
		s.env.callLimit = 5 * time.Second
	}
	if least := len(s.env.data.turns); c.keys < least {
		return nil, usage("--keys must be at least %d, so that each class of values has some", least)
	}
	if s.t, err = connect(c.connection); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	s.env.client = s.t.client
	if s.w, err = c.scenario.build(s.env); err != nil {
		return nil, err
	}
	if c.noPreload {
		s.w.fill = nil
	}
	asking, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	_, all, err := s.t.primaries(asking)
	if err != nil {
		all = nil // what must be known is asked for again
	}
	s.report = &report{
		Schema: schemaVersion, Started: time.Now(), Arguments: c.arguments, Scenario: c.scenario.name,
		Data: data{Prefix: c.prefix, Keys: c.keys, TTL: c.ttl.Seconds(), Jitter: c.jitter, Classes: c.classes},
		Target: targetInfo{
			Address: s.t.address, Version: versionOf(all), Mode: modeOf(s.t.client, c.url), Policy: all.text("maxmemory_policy"), Primaries: max(len(all), 1),
		},
		Revision: revision(), Warnings: []string{},
	}
	if len(all) == 0 {
		s.report.Target.Policy = "unknown"
	}
	if c.url == embedded {
		s.report.Target.Version = "not a Redis"
	}
	if len(all) == 1 && all[0]["role"] == "slave" {
		s.report.Warnings = append(s.report.Warnings, "it is a replica, of "+all[0]["master_host"]+":"+all[0]["master_port"]+": it refuses writes")
	}
	if err := s.check(all); err != nil {
		return nil, err
	}
	if c.schedule != nil && !c.safety.keep && !c.noPreload && c.url != embedded { // preload keeps them
		if err := s.t.mayCleanUp(ctx, c.prefix); err != nil {
			return nil, fmt.Errorf("the keys could not be removed at the end, as --keep would leave them: %w", err)
		}
	}
	if s.w.start != nil {
		s.w.start()
	}
	return s, nil
}

// check refuses what would not fit or would block the server for long.
func (s *session) check(all infos) error {
	if !s.c.safety.allowBig {
		for _, o := range s.w.operations {
			var width int
			if n, _ := fmt.Sscanf(o.name, "mget[%d]", &width); n == 1 {
				for _, c := range s.c.classes {
					if strings.HasSuffix(o.name, "("+c.Name+")") && width*c.Size > 1e6 {
						return usage("%s would be a reply of %s, for which a server makes all others wait; --allow-big does it", o.name, size(float64(width*c.Size)))
					}
				}
			}
		}
	}
	if s.c.pressure > 0 {
		if deref(all.sum("maxmemory")) == 0 {
			return usage("--pressure fills the server up to its maxmemory, and it has none, or does not tell it")
		}
		return nil
	}
	bytes := 0.0
	if s.w.fill != nil {
		bytes = s.env.data.estimate() * float64(s.c.keys*s.w.copies)
	}
	if !s.c.closed && len(s.c.schedule) > 0 {
		most := 0.0
		for _, g := range s.c.schedule {
			most = max(most, g.from, g.to)
		}
		weights := 0.0
		for _, o := range s.w.operations {
			weights += o.weight
		}
		for _, o := range s.w.operations {
			bytes += o.weight / weights * most * o.ttl.Seconds() * o.bytes
		}
	}
	var large *tooLargeError
	err := fits(bytes, all)
	switch {
	case errors.As(err, &large):
		return usage("refused: %w; use fewer --keys, or --pressure to see what happens when it is full", err)
	case err != nil && s.c.url != embedded:
		s.report.Warnings = append(s.report.Warnings, "whether the keys fit was not checked: INFO memory is unknown")
	}
	return nil
}

// revision returns the commit that the program was built from, if Go noted it.
func revision() string {
	build, _ := debug.ReadBuildInfo()
	if build == nil {
		return ""
	}
	for _, s := range build.Settings {
		if s.Key == "vcs.revision" {
			return s.Value
		}
	}
	return ""
}

func versionOf(all infos) string {
	if len(all) == 0 {
		return "unknown"
	}
	if v := all.text("valkey_version"); v != "unknown" {
		return "Valkey " + v
	}
	if v := all.text("redis_version"); v != "unknown" {
		return "Redis " + v
	}
	return "unknown"
}

func modeOf(client rueidis.Client, url string) string {
	switch client.Mode() {
	case rueidis.ClientModeCluster:
		return "cluster"
	case rueidis.ClientModeSentinel:
		return "sentinel"
	}
	if url == embedded {
		return "embedded"
	}
	return "standalone"
}

func (s *session) close() {
	if s.t != nil {
		s.t.close()
	}
}

// load fills the dataset.
func (s *session) load(ctx context.Context) (err error) {
	if s.w.fill == nil {
		return nil
	}
	s.report.Preload, err = preload(ctx, s.t, s.w, s.env.data, s.c.batch, s.c.preloadRate, func(p progress) {
		s.screen.progress(p.String())
		s.page.status(p.String())
	})
	return err
}

// run makes the load, while others look on.
func (s *session) run(ctx context.Context) (err error) {
	watching, stop := context.WithCancel(ctx)
	sampled := make(chan struct{})
	go func() {
		defer close(sampled)
		s.sampler.run(watching, s.c.sample)
	}()
	var found <-chan *diagnosis
	if s.c.knee != nil {
		found = s.diagnose(watching, s.c.kneeStep)
		if err = s.findKnee(ctx); ctx.Err() != nil {
			err = nil // what was found until then is shown
		}
	} else {
		found = s.diagnose(watching, s.c.schedule.duration())
		err = s.measure(ctx, s.c.schedule, s.c.warmup)
	}
	timer := time.AfterFunc(stepTimeout, stop) // a server that is gone answers nobody
	s.report.Doctor = <-found
	timer.Stop()
	stop()
	<-sampled
	return err
}

// measure runs the load once and fills in the report.
func (s *session) measure(ctx context.Context, sched schedule, warmup time.Duration) error {
	e := newEngine(s.w.operations, sched)
	e.closed, e.think, e.poisson, e.maxInflight, e.timeout, e.warmup = s.c.closed, s.c.think, s.c.poisson, s.c.maxInflight, s.c.timeout, warmup
	m := &monitor{s: s, e: e}
	before := s.t.serverLatency(ctx)
	first := s.sampler.fresh(ctx)
	in, out := s.t.got.Load(), s.t.sent.Load()
	m.own, m.ownKnown = ownCPU()
	ownBefore := m.own
	m.last, m.sampled = time.Now(), first
	began := m.last
	watching, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { m.run(watching, s.c.sample) })
	if s.c.pressure > 0 {
		wg.Go(func() { s.press(watching, e) })
	}
	e.run(ctx)
	took := time.Since(began)
	own, ownOK := ownCPU()
	stop()
	wg.Wait()
	looking, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	last := s.sampler.fresh(looking)
	m.tick(true)
	r := s.report
	r.Started = e.begin.Add(warmup)
	r.Seconds = e.measured().Seconds()
	r.Interrupted = ctx.Err() != nil
	r.Series = m.points
	r.Load = load{Loop: "open", Planned: e.planned(), MaxLag: micros(e.rec.maxLag), Saturated: e.saturated()}
	if e.closed {
		r.Load = load{Loop: "closed", Users: e.schedule.level(max(e.end-1, 0))}
	}
	if r.Seconds > 0 {
		r.Load.Achieved = float64(e.inTime.Load()) / r.Seconds
		r.Load.Rate = r.Load.Planned / r.Seconds
	}
	r.Wire = wire{Seconds: took.Seconds(), In: float64(s.t.got.Load() - in), Out: float64(s.t.sent.Load() - out)}
	if m.ownKnown && ownOK {
		r.Generator = known(100 * (own - ownBefore).Seconds() / took.Seconds() / float64(runtime.GOMAXPROCS(0)))
	}
	r.CPU = nil
	if f := per(first, last, cpuTime); f != nil {
		r.CPU = known(100 * *f)
	}
	r.Evicted, r.Expired = change(first, last, "evicted_keys"), change(first, last, "expired_keys")
	r.Memory, r.MaxMemory, r.Clients = nil, nil, nil
	if last != nil {
		r.Memory, r.MaxMemory, r.Clients = last.infos.sum("used_memory"), last.infos.sum("maxmemory"), last.infos.sum("connected_clients")
	}
	return s.fill(e, before, s.t.serverLatency(looking))
}

// fill makes the rows of the report.
func (s *session) fill(e *engine, before, after map[string]histogram) error {
	r := s.report
	rows := e.rec.totals()
	r.Rows = make([]row, len(rows))
	total := newCounts()
	for i, c := range rows {
		o := e.operations[i]
		r.Rows[i] = rowOf(o, c)
		if err := r.Rows[i].encode(c); err != nil {
			return err
		}
		if after != nil && before != nil && o.command != "" {
			h := after[o.command].since(before[o.command])
			r.Rows[i].ServerP50, r.Rows[i].ServerP99 = h.quantile(50), h.quantile(99)
		}
		total.merge(c)
	}
	r.Total = rowOf(operation{name: "Aggregated"}, total)
	if err := r.Total.encode(total); err != nil {
		return err
	}
	rates(r)
	r.Overheads = nil
	for i, o := range e.operations {
		if o.twin == "" {
			continue
		}
		j := slices.IndexFunc(e.operations, func(p operation) bool { return p.name == o.twin })
		package_, raw := r.Rows[j].Response, r.Rows[i].Response
		r.Overheads = append(r.Overheads, overhead{Name: o.twin, Raw: o.name, P50: package_.P50 - raw.P50, P99: package_.P99 - raw.P99, Mean: package_.Mean - raw.Mean})
	}
	return nil
}

// rates fills in the rates of the last ten seconds.
func rates(r *report) {
	if n := len(r.Series); n > 0 {
		last := r.Series[max(n-10, 0):]
		for _, p := range last {
			r.Total.RPS += p.RPS / float64(len(last))
			r.Total.FailuresPS += p.Errors / float64(len(last))
		}
	}
	for i := range r.Rows {
		if r.Total.Requests > 0 {
			r.Rows[i].RPS = r.Total.RPS * float64(r.Rows[i].Requests) / float64(r.Total.Requests)
		}
		if r.Total.Failures > 0 {
			r.Rows[i].FailuresPS = r.Total.FailuresPS * float64(r.Rows[i].Failures) / float64(r.Total.Failures)
		}
	}
}

// press adds keys until the servers are full, evenly over the time of --pressure.
func (s *session) press(ctx context.Context, e *engine) {
	first := s.sampler.last.Load()
	if first == nil {
		return
	}
	used, most := first.infos.sum("used_memory"), first.infos.sum("maxmemory")
	if used == nil || most == nil || *most <= *used {
		return
	}
	d := s.env.data
	perSecond := (*most - *used) / d.estimate() / s.c.pressure.Seconds()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for n := 0; ; {
		due := int(time.Since(e.begin).Seconds() * perSecond)
		for ; n < due && ctx.Err() == nil; n += s.c.batch {
			sets := make(rueidis.Commands, s.c.batch)
			for i := range sets {
				sets[i] = s.env.setCommand(fmt.Sprintf("%spressure:%d", d.prefix, n+i), d.value(d.classOf(n+i)), s.env.ttl)
			}
			s.t.info.DoMulti(ctx, sets...) // that they are refused when it is full is the purpose
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// fresh takes a sample now.
func (s *sampler) fresh(ctx context.Context) *sample {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	_, all, err := s.t.primaries(ctx)
	if err != nil {
		return nil
	}
	n := &sample{time.Now(), all}
	s.last.Store(n)
	return n
}

func change(a, b *sample, name string) figure {
	f := rate(a, b, name)
	if f == nil {
		return nil
	}
	return known(float64(int64(*f*b.at.Sub(a.at).Seconds() + 0.5)))
}

// warn adds what a reader of the report must know.
func (r *report) warn(c *config) {
	add := func(format string, args ...any) { r.Warnings = append(r.Warnings, fmt.Sprintf(format, args...)) }
	if r.Target.Mode == "embedded" {
		add("an embedded miniredis was under load, which shows this program and says nothing about Redis")
	}
	if r.Load.Loop == "closed" {
		add("closed loop: while the server stalls nothing is sent, so that stalls are under-sampled; --rate has no such blind spot")
	}
	if r.Generator != nil && *r.Generator > 80 {
		add("this program used %.0f%% of its processors: the latencies are partly its own; use more generators and merge", *r.Generator)
	}
	if p := r.Total.errorPercent(); p >= 1 {
		add("%.0f%% of the requests failed: they are in the rates and the percentiles, and may have failed quickly", p)
	}
	if r.Load.MaxLag > 10_000 && r.Load.Saturated == "" {
		add("requests began up to %.1f ms late, which their response times include", r.Load.MaxLag/1000)
	}
	if r.Preload != nil && r.Seconds > r.Data.TTL*(1-r.Data.Jitter) {
		add("the run was longer than the TTL of what was loaded before: later reads found less and less")
	}
	if r.Evicted != nil && *r.Evicted > 0 {
		add("the servers evicted %s keys: memory is too small for the dataset", count(*r.Evicted))
	}
	moving := 0.0
	for _, w := range r.Rows {
		if w.TTL > 0 && r.Seconds > 0 {
			moving += float64(w.Requests) / r.Seconds * w.TTL
		}
	}
	if moving > float64(r.Data.Keys) {
		add("writes × TTL make %s keys at a time, more than the %s that were loaded before", count(moving), count(float64(r.Data.Keys)))
	}
	if r.Total.Hits+r.Total.Misses > 0 && r.Total.Hits == 0 {
		add("nothing was found: is the dataset there?")
	}
	if c.retry {
		add("with --retry the client hides failures of reads, and their time is part of the latency")
	}
}
