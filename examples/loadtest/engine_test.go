package main

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// server is a fake one which answers after a millisecond, but for the time that it stalls.
type server struct {
	mu        sync.Mutex
	from, to  time.Time // of the stall
	perSecond int       // how much it can do, or 0 for anything
	free      time.Time
	due       []time.Duration // when requests came, since the first
	first     time.Time
}

func (s *server) do(ctx context.Context) outcome {
	now := time.Now()
	s.mu.Lock()
	if s.first.IsZero() {
		s.first = now
	}
	s.due = append(s.due, now.Sub(s.first))
	until := now.Add(time.Millisecond)
	if !now.Before(s.from) && now.Before(s.to) {
		until = s.to
	}
	if s.perSecond > 0 {
		if s.free.Before(now) {
			s.free = now
		}
		s.free = s.free.Add(time.Second / time.Duration(s.perSecond))
		until = s.free
	}
	s.mu.Unlock()
	select {
	case <-time.After(time.Until(until)):
		return outcome{hits: 1}
	case <-ctx.Done():
		return outcome{err: ctx.Err()}
	}
}

func runEngine(t *testing.T, s *server, sched schedule, change func(*engine)) (*engine, *counts) {
	t.Helper()
	e := newEngine([]operation{{name: "op", weight: 1, do: s.do}}, sched)
	if change != nil {
		change(e)
	}
	e.run(t.Context())
	e.rec.collect()
	return e, e.rec.totals()[0]
}

func steady(level float64, d time.Duration) schedule { return schedule{{d, level, level}} }

func TestEngine_OpenLoopTimesAStallFromWhenRequestsWereDue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &server{from: time.Now().Add(2 * time.Second), to: time.Now().Add(3 * time.Second)}
		e, c := runEngine(t, s, steady(1000, 10*time.Second), nil)
		require.EqualValues(t, 10_000, c.requests)
		require.Empty(t, e.saturated())
		// A tenth of the requests came during the stall, evenly.
		require.InDelta(t, 1000, c.response.quantile(50), 10)
		require.InDelta(t, 500_000, c.response.quantile(95), 10_000)
		require.InDelta(t, 900_000, c.response.quantile(99), 10_000)
		require.Less(t, e.rec.maxLag, time.Millisecond)
	})
}

// With no free place the requests wait inside the program: also that is response time, and not service time.
func TestEngine_OpenLoopTimesWhatWaitsForAPlace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &server{from: time.Now().Add(2 * time.Second), to: time.Now().Add(3 * time.Second)}
		e, c := runEngine(t, s, steady(1000, 10*time.Second), func(e *engine) { e.maxInflight = 10 })
		require.EqualValues(t, 10_000, c.requests, "no slot is skipped")
		require.Greater(t, c.response.quantile(95), 400_000.0)
		require.Less(t, c.service.quantile(95), 2000.0)
		require.NotEmpty(t, e.saturated())
	})
}

func TestEngine_ClosedLoopHardlySeesAStall(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &server{from: time.Now().Add(2 * time.Second), to: time.Now().Add(3 * time.Second)}
		_, c := runEngine(t, s, steady(4, 6*time.Second), func(e *engine) { e.closed = true })
		require.Less(t, c.response.quantile(99), 2000.0, "which is why the report warns of it")
		require.InDelta(t, float64(time.Second), float64(c.response.max), float64(2*time.Millisecond))
	})
}

func TestEngine_SaysThatItIsSaturated(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		capacity, inflight int
		d                  time.Duration
		saturated          bool
	}{
		"half of the rate":          {500, 20_000, 3 * time.Second, true},
		"half, and few under way":   {500, 100, 3 * time.Second, true},
		"more than the rate":        {1100, 20_000, 3 * time.Second, false},
		"a little less, for longer": {900, 20_000, 15 * time.Second, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				e, c := runEngine(t, &server{perSecond: test.capacity}, steady(1000, test.d), func(e *engine) { e.maxInflight = test.inflight })
				require.Equal(t, test.saturated, e.saturated() != "", e.saturated())
				if test.saturated {
					require.InDelta(t, test.capacity, float64(e.inTime.Load())/e.measured().Seconds(), float64(test.capacity)/50)
					require.Greater(t, c.response.quantile(99), 400_000.0)
				}
			})
		})
	}
}

func TestEngine_WarmUpCountsForNothing(t *testing.T) {
	t.Parallel()
	for _, closed := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s := &server{from: time.Now(), to: time.Now().Add(time.Second)}
			_, c := runEngine(t, s, steady(10, 3*time.Second), func(e *engine) { e.warmup, e.closed = time.Second, closed })
			require.Less(t, c.response.max, 2*time.Millisecond)
			require.GreaterOrEqual(t, c.requests, int64(20))
		})
	}
}

func TestEngine_FollowsStages(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &server{}
		e, c := runEngine(t, s, newSchedule([]stage{{100, 10 * time.Second}, {1000, 10 * time.Second}}, 0), nil)
		require.EqualValues(t, 11_000, c.requests)
		early := 0
		for _, d := range s.due {
			if d < 10*time.Second-time.Millisecond {
				early++
			}
		}
		require.InDelta(t, 1000, early, 2)
		require.InDelta(t, 11_000, e.planned(), 1e-6)
	})
}

func TestEngine_UsersComeAndGo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var most int64
		s := &server{}
		stages := newSchedule([]stage{{50, 10 * time.Second}, {5, 5 * time.Second}}, 10)
		e := newEngine([]operation{{name: "op", weight: 1}}, stages)
		e.closed, e.think = true, 9*time.Millisecond
		e.operations[0].do = func(ctx context.Context) outcome {
			s.mu.Lock()
			most = max(most, e.inflight.Load())
			s.mu.Unlock()
			return s.do(ctx)
		}
		e.run(t.Context())
		e.rec.collect()
		require.EqualValues(t, 50, most)
		// 100 requests per second and user: 50 users after 5s; back to 5 in 4.5s.
		require.InDelta(t, 100*(125+250+4.5*27.5+2.5), e.rec.totals()[0].requests, 1500)
	})
}

func TestEngine_PoissonHasTheRateAndItsGaps(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &server{}
		_, c := runEngine(t, s, steady(1000, 20*time.Second), func(e *engine) { e.poisson = true })
		require.InDelta(t, 20_000, c.requests, 5*math.Sqrt(20_000))
		slices.Sort(s.due)
		sum, squares := 0.0, 0.0
		for i := range s.due[1:] {
			gap := (s.due[i+1] - s.due[i]).Seconds()
			sum += gap
			squares += gap * gap
		}
		n := float64(len(s.due) - 1)
		mean := sum / n
		deviation := math.Sqrt(squares/n - mean*mean)
		require.InDelta(t, 1, deviation/mean, 0.1, "equal gaps would have 0")
	})
}

func TestEngine_EndsWhenItIsTold(t *testing.T) {
	t.Parallel()
	for _, closed := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s := &server{}
			e := newEngine([]operation{{name: "op", weight: 1, do: s.do}}, steady(10, time.Hour))
			e.closed = closed
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			e.run(ctx)
			require.InDelta(t, 2, time.Since(e.begin).Seconds(), 0.1)
			require.InDelta(t, 2, e.measured().Seconds(), 0.1)
			e.rec.collect()
			require.Empty(t, e.saturated())
		})
	}
}

// A server that is gone must not keep the run from its end.
func TestEngine_EndsAlthoughNothingIsAnswered(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &server{to: time.Now().Add(time.Hour)}
		e, c := runEngine(t, s, steady(1000, 4*time.Second), func(e *engine) { e.maxInflight, e.timeout = 500, 5*time.Second })
		require.InDelta(t, 5.5, time.Since(e.begin).Seconds(), 0.5)
		require.NotEmpty(t, e.saturated())
		require.Equal(t, c.requests, c.errors[classTimeout])
	})
}

// A timeout is no answer, however quickly it comes.
func TestEngine_IsSaturatedWhenRequestsTimeOut(t *testing.T) {
	t.Parallel()
	for _, poisson := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s := &server{perSecond: 100}
			e, c := runEngine(t, s, steady(1000, 20*time.Second), func(e *engine) { e.timeout, e.poisson = 300*time.Millisecond, poisson })
			require.Contains(t, e.saturated(), "had no answer in time")
			require.InDelta(t, c.requests-c.errors[classTimeout], e.inTime.Load(), 50)
		})
	}
}

func TestEngine_PicksByWeight(t *testing.T) {
	t.Parallel()
	e := newEngine([]operation{{weight: 1}, {weight: 3}, {weight: 0}}, nil)
	n := [3]int{}
	for range 40_000 {
		n[e.pick()]++
	}
	require.InDelta(t, 10_000, n[0], 500)
	require.InDelta(t, 30_000, n[1], 500)
	require.Zero(t, n[2])
}

func TestSchedule_InverseOfRequests(t *testing.T) {
	t.Parallel()
	for name, s := range map[string]schedule{
		"steady":  steady(20_000, time.Minute),
		"ramp":    newSchedule([]stage{{1000, time.Minute}}, 50),
		"stages":  newSchedule([]stage{{5000, 30 * time.Second}, {20_000, time.Minute}, {10, 5 * time.Second}}, 1000),
		"down":    newSchedule([]stage{{100, time.Second}, {0, time.Second}}, 100),
		"pause":   newSchedule([]stage{{100, time.Second}, {0, time.Second}, {50, time.Second}}, 0),
		"unended": newSchedule([]stage{{100, time.Second}}, 10),
	} {
		all := s.requests(s.duration())
		require.Positive(t, all, name)
		last := time.Duration(-1)
		for range 1000 {
			n := rand.Float64() * all
			at, ok := s.at(n)
			require.True(t, ok, name)
			require.InDelta(t, n, s.requests(at), 1e-3, name)
		}
		for n := range int(min(all, 5000)) {
			at, ok := s.at(float64(n))
			require.True(t, ok)
			require.Greater(t, at, last)
			last = at
		}
		_, ok := s.at(all + 1e-3)
		require.False(t, ok, name)
	}
	require.Equal(t, schedule{{10 * time.Second, 0, 100}, {20 * time.Second, 100, 100}}, newSchedule([]stage{{100, 30 * time.Second}}, 10))
	require.Equal(t, schedule{{time.Second, 0, 10}}, newSchedule([]stage{{100, time.Second}}, 10))
}

func TestTimes_MicrosecondsAndThreeDigits(t *testing.T) {
	t.Parallel()
	// Of the kind that a tool with milliseconds shows as 0, 1 and 1.
	all, h := make([]time.Duration, 100_000), newTimes()
	for i := range all {
		all[i] = time.Duration(200e3 * math.Exp(0.61*rand.NormFloat64()))
		h.record(all[i])
	}
	slices.Sort(all)
	for _, p := range []float64{50, 95, 99, 99.9} {
		exact := micros(all[int(math.Ceil(p/100*float64(len(all))-1e-6))-1])
		require.InDelta(t, exact, h.quantile(p), max(exact/1000, 1), p)
	}
	sum := time.Duration(0)
	for _, d := range all {
		sum += d
	}
	require.Equal(t, sum, h.sum)
	require.Equal(t, all[0], h.min)
	require.Equal(t, all[len(all)-1], h.max)
}

func TestTimes_BeyondTheRange(t *testing.T) {
	t.Parallel()
	h := newTimes()
	h.record(0)
	h.record(-time.Second)
	require.Zero(t, h.max)
	h.record(3 * time.Minute)
	require.Equal(t, 3*time.Minute, h.max)
	require.InDelta(t, maxMicros, h.quantile(99), maxMicros/1000.0)
	require.Zero(t, h.min)
}

func TestRecorder_LosesNothing(t *testing.T) {
	t.Parallel()
	r := newRecorder(2, 3)
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			for n := range 1000 {
				r.shards[i%3].record(n%2, outcome{hits: 1, in: 2, err: map[bool]error{true: errors.New("x")}[n%10 == 0]}, time.Millisecond, time.Microsecond, 0)
			}
		})
	}
	intervals := int64(0)
	for range 5 {
		c, _ := r.collect()
		intervals += c.requests
	}
	wg.Wait()
	c, _ := r.collect()
	intervals += c.requests
	require.EqualValues(t, 6000, intervals)
	rows := r.totals()
	require.EqualValues(t, 3000, rows[0].requests)
	require.EqualValues(t, 3000, rows[1].hits)
	require.EqualValues(t, 6000, rows[1].in)
	require.EqualValues(t, 600, rows[0].failures())
	require.EqualValues(t, 3000, rows[0].response.count())
}

func TestEngine_IsSaturatedWhenRequestsBeginLate(t *testing.T) {
	t.Parallel()
	e := newEngine([]operation{{name: "op", weight: 1}}, steady(10, time.Second))
	e.end = time.Second
	e.inTime.Store(10)
	e.rec.maxLag = maxLag
	require.Empty(t, e.saturated())
	e.rec.maxLag++
	require.Contains(t, e.saturated(), "late")
}
