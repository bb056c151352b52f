package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// engine makes requests happen when they are due, and measures them.
type engine struct {
	operations  []operation
	schedule    schedule // requests per second (open loop) or users (closed loop)
	closed      bool
	think       time.Duration // closed loop: pause of a user between requests
	poisson     bool          // open loop: exponential gaps instead of equal ones
	maxInflight int           // open loop: how many requests may be under way
	timeout     time.Duration // of one request
	warmup      time.Duration // what is due before counts for nothing

	rec      *recorder
	chances  []float64 // cumulative weights of operations
	begin    time.Time
	inflight atomic.Int64
	full     atomic.Bool   // maxInflight was reached
	begun    atomic.Int64  // requests that count
	inTime   atomic.Int64  // of these, those that were answered before the schedule's end
	end      time.Duration // when run ended, at most the schedule's length
}

func newEngine(operations []operation, s schedule) *engine {
	e := &engine{operations: operations, schedule: s, maxInflight: 20_000, timeout: 5 * time.Second}
	sum := 0.0
	for _, o := range operations {
		sum += o.weight
		e.chances = append(e.chances, sum)
	}
	e.rec = newRecorder(len(operations), min(runtime.GOMAXPROCS(0), 4))
	return e
}

func (e *engine) pick() int {
	x := rand.Float64() * e.chances[len(e.chances)-1]
	for i, c := range e.chances {
		if x < c {
			return i
		}
	}
	return len(e.chances) - 1
}

// run makes the load until its schedule or ctx ends, and returns when all that was begun has ended.
func (e *engine) run(ctx context.Context) {
	e.begin = time.Now()
	if e.closed {
		ctx, stop := context.WithDeadline(ctx, e.begin.Add(e.schedule.duration()))
		defer stop()
		e.runClosed(ctx)
	} else {
		e.runOpen(ctx)
	}
	e.end = e.schedule.duration()
	if ctx.Err() != nil {
		e.end = min(time.Since(e.begin), e.end)
	}
}

// measured is for how long what was due was counted.
func (e *engine) measured() time.Duration { return max(e.end-e.warmup, 0) }

// planned returns how many requests were due in that time.
func (e *engine) planned() float64 {
	return max(e.schedule.requests(e.end)-e.schedule.requests(e.warmup), 0)
}

// runOpen begins each request when it is due, whatever became of those before. None is left out: when the program or the
// server falls behind, requests begin late, and the time that they were late is a part of their response time.
func (e *engine) runOpen(ctx context.Context) {
	dispatchers := len(e.rec.shards)
	slots := make(chan struct{}, e.maxInflight)
	over := make(chan struct{})
	end := time.AfterFunc(e.schedule.duration(), func() { close(over) })
	defer end.Stop()
	var wg, requests sync.WaitGroup
	for d := range dispatchers {
		wg.Go(func() {
			timer := time.NewTimer(time.Hour)
			defer timer.Stop()
			n := float64(d)
			if e.poisson { // the sum of Poisson processes is one
				n = rand.ExpFloat64() * float64(dispatchers)
			}
			for {
				t, ok := e.schedule.at(n)
				if !ok {
					return
				}
				due := e.begin.Add(t)
				// A sleep takes a little longer than it should: the next few go out up to 0.2ms early, which run accounts for.
				if early := time.Until(due); early > 200*time.Microsecond {
					timer.Reset(early - 100*time.Microsecond)
					select {
					case <-timer.C:
					case <-ctx.Done():
					}
				}
				if ctx.Err() != nil || time.Since(e.begin) > e.schedule.duration()+maxLag {
					return // it is saturated, and that may take for ever
				}
				select {
				case slots <- struct{}{}:
				default:
					e.full.Store(true)
					select {
					case slots <- struct{}{}:
					case <-ctx.Done():
						return
					case <-over: // what is due and cannot begin is missing in what was achieved
						return
					}
				}
				requests.Go(func() {
					defer func() { <-slots }()
					e.request(d, e.pick(), due)
				})
				if e.poisson {
					n += rand.ExpFloat64() * float64(dispatchers)
				} else {
					n += float64(dispatchers)
				}
			}
		})
	}
	wg.Wait()
	requests.Wait()
}

// runClosed lets users make one request after the other.
func (e *engine) runClosed(ctx context.Context) {
	var wg sync.WaitGroup
	var active atomic.Int64
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	running := make(map[int64]*atomic.Bool)
	for {
		level := int64(e.schedule.level(time.Since(e.begin)) + 0.5)
		active.Store(level)
		for id := range level {
			if r := running[id]; r != nil && r.Load() {
				continue
			}
			alive := new(atomic.Bool)
			alive.Store(true)
			running[id] = alive
			wg.Go(func() {
				defer alive.Store(false)
				for ctx.Err() == nil && id < active.Load() {
					e.request(int(id)%len(e.rec.shards), e.pick(), time.Time{})
					if e.think > 0 {
						select {
						case <-time.After(e.think):
						case <-ctx.Done():
						}
					}
				}
			})
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			wg.Wait()
			return
		}
	}
}

// request does one operation that was due at a time, or now if that is zero.
func (e *engine) request(shard, row int, due time.Time) {
	e.inflight.Add(1)
	defer e.inflight.Add(-1)
	// Not with the context of the run: what was begun is finished, or times out, also at the end.
	ctx, cancel := context.WithTimeout(context.Background(), e.timeout)
	defer cancel()
	sent := time.Now()
	if due.IsZero() {
		due = sent
	}
	counts := due.Sub(e.begin) >= e.warmup
	if sent.Before(due) {
		due = sent
	}
	o := e.operations[row].do(ctx)
	done := time.Now()
	if !counts {
		return
	}
	e.begun.Add(1)
	// No answer within the timeout is none in time, however short the timeout is.
	if done.Sub(e.begin) <= e.schedule.duration() && (o.err == nil || classify(o.err) != classTimeout) {
		e.inTime.Add(1)
	}
	e.rec.shards[shard].record(row, o, done.Sub(due), done.Sub(sent), sent.Sub(due))
}

// maxLag is how late a request may begin, and by how much time's load the answers may be behind at the end, before the run is
// called saturated.
const maxLag = time.Second

// saturated says why the load was not what it should have been, or "". Call it after run and a last collect.
func (e *engine) saturated() string {
	if e.closed {
		return ""
	}
	due := e.planned()
	if e.poisson { // that is how many are to be expected
		due = float64(e.begun.Load())
	}
	unanswered := due - float64(e.inTime.Load())
	level := e.schedule.level(e.end - 1)
	switch {
	case e.full.Load():
		return "as many requests were under way as may be"
	case e.rec.maxLag > maxLag:
		return "requests began up to " + e.rec.maxLag.Round(time.Millisecond).String() + " late"
	case unanswered > 10 && unanswered > level*min(maxLag, e.measured()/4).Seconds():
		return fmt.Sprintf("%.0f of %.0f requests had no answer in time", unanswered, due)
	}
	return ""
}
