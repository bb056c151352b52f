package ratelimit

import (
	"context"
	"math"
	"math/big"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"
)

// noServer is a client that must not be used.
type noServer struct{ rueidis.Client }

func (noServer) Mode() rueidis.ClientMode { return rueidis.ClientModeStandalone }

func TestNew_RefusesBadOptions(t *testing.T) {
	t.Parallel()
	ok := PerSecond(1)
	for name, c := range map[string]struct {
		limit Limit
		opts  Options
	}{
		"Prefix":          {ok, Options{Prefix: "a{b"}},
		"Resolution":      {ok, Options{Resolution: -2}},
		"Timeout":         {ok, Options{Timeout: time.Microsecond}},
		"OnFailure":       {ok, Options{OnFailure: 4}},
		"LocalShare":      {ok, Options{LocalShare: 1.1}},
		"DenyCacheSize":   {ok, Options{DenyCacheSize: 1e8}},
		"DenyCacheMaxAge": {ok, Options{DenyCacheMaxAge: 48 * time.Hour}},
		"Rate":            {PerSecond(0), Options{}},
		"Window":          {Per(1, time.Microsecond), Options{}},
	} {
		for _, construct := range []func(rueidis.Client, Limit, Options) (*Limiter, error){NewFixedWindow, NewSlidingWindow, NewTokenBucket} {
			l, err := construct(noServer{}, c.limit, c.opts)
			require.ErrorContains(t, err, "ratelimit: "+name)
			require.Nil(t, l)
		}
	}
	for _, opts := range []Options{{Resolution: 1025}, {LocalShare: math.NaN()}, {LocalShare: -1}, {Timeout: -1}, {OnFailure: -1}} {
		_, err := NewSlidingWindow(noServer{}, ok, opts)
		require.Error(t, err)
	}
	_, err := NewFixedWindow(nil, ok, Options{})
	require.ErrorContains(t, err, "client")
}

func TestLimit_Bounds(t *testing.T) {
	t.Parallel()
	for _, bad := range []Limit{
		{},
		PerSecond(-1), PerSecond(maxUnits + 1), PerSecond(math.MaxInt64), PerSecond(math.MinInt64),
		Per(1, 0), Per(1, -time.Second), Per(1, time.Millisecond+1), Per(1, maxWindow+time.Millisecond), Per(1, math.MaxInt64),
		{Rate: 1, Window: time.Second, Burst: -1},
		{Rate: 1, Window: time.Second, Burst: maxUnits + 1},
		{Rate: 1, Window: maxWindow, Burst: 11},
		{Rate: 1, Window: maxWindow, Burst: maxUnits},
	} {
		_, err := NewTokenBucket(noServer{}, bad, Options{})
		require.Error(t, err, "%+v", bad)
	}
	for _, good := range []Limit{
		PerSecond(1), PerMinute(maxUnits), PerHour(7), Per(1, time.Millisecond), Per(1, 30*24*time.Hour), Per(maxUnits, maxWindow),
		{Rate: 1, Window: maxWindow, Burst: 10},
		{Rate: maxUnits, Window: time.Millisecond, Burst: maxUnits},
	} {
		l, err := NewTokenBucket(noServer{}, good, Options{})
		require.NoError(t, err, "%+v", good)
		require.Positive(t, l.Limit().Burst)
	}
	_, err := NewSlidingWindow(noServer{}, Limit{Rate: 1, Window: time.Second, Burst: 1}, Options{})
	require.ErrorContains(t, err, "Burst")
}

func TestWith_RemembersSoMany(t *testing.T) {
	t.Parallel()
	l, err := NewTokenBucket(noServer{}, PerSecond(1), Options{})
	require.NoError(t, err)
	require.Same(t, l, l.With(PerSecond(1)))
	for i := range int64(2 * maxDerived) {
		other := l.With(PerSecond(i + 2))
		require.Equal(t, i+2, other.Limit().Rate)
		require.Equal(t, i < maxDerived, other == l.With(PerSecond(i+2)))
	}
	_, err = l.With(PerSecond(0)).Allow(t.Context(), "k")
	require.ErrorContains(t, err, "Rate")
	require.Error(t, l.With(PerSecond(0)).Wait(t.Context(), "k"))
	_, err = l.With(PerSecond(0)).Peek(t.Context(), "k")
	require.Error(t, err)
	require.Error(t, l.With(PerSecond(0)).Reset(t.Context(), "k"))
	_, err = AllowMany(t.Context(), Request{Limiter: l.With(PerSecond(0)), Key: "k", N: 1})
	require.Error(t, err)
}

// TestWith_CountsTogetherInThisProcess is about the limiters that With does not remember.
func TestWith_CountsTogetherInThisProcess(t *testing.T) {
	t.Parallel()
	l, err := NewFixedWindow(noServer{}, PerHour(5), Options{OnFailure: Local})
	require.NoError(t, err)
	for i := range int64(maxDerived) {
		l.With(PerHour(100 + i))
	}
	forgotten := l.With(PerHour(3))
	require.NotSame(t, forgotten, l.With(PerHour(3)))
	admitted := 0
	for range 10 {
		tier := l.With(PerHour(3))
		if tier.local.take(tier, "k", 1).Allowed {
			admitted++
		}
	}
	require.Equal(t, 3, admitted)
	tier := l.With(PerHour(3))
	tier.denied.add(sinceEpoch(), subject{tier.limit, "k"}, denial{n: 1, until: sinceEpoch() + time.Hour})
	_, refused := l.With(PerHour(3)).decideLocally("k", 1)
	require.True(t, refused)
}

func TestAllow_DecidesWithoutAServerWhatCannotPass(t *testing.T) {
	t.Parallel()
	l, err := NewFixedWindow(noServer{}, PerSecond(5), Options{})
	require.NoError(t, err)
	r, err := l.AllowN(t.Context(), "k", 6)
	require.NoError(t, err)
	require.Equal(t, Result{Limit: 5, RetryAfter: Never, Source: SourceLimit}, r)
	require.ErrorIs(t, l.WaitN(t.Context(), "k", 6), ErrExceedsLimit)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = l.Allow(ended, "k")
	require.ErrorIs(t, err, context.Canceled)
	all, err := AllowAll(t.Context())
	require.NoError(t, err)
	require.True(t, all.Allowed)
}

func TestScripts_HaveAllSections(t *testing.T) {
	t.Parallel()
	for _, a := range []algorithm{fixedWindow, slidingWindow, approximateWindow, tokenBucket} {
		require.NotContains(t, a.open, "--[[")
	}
	for _, source := range []string{fixedSource, slidingSource, approximateSource, bucketSource} {
		for _, section := range []string{"open", "take", "give", "save"} {
			require.Equal(t, 1, strings.Count(source, "\n--- "+section+"\n"))
		}
	}
}

func TestSource_HasNames(t *testing.T) {
	t.Parallel()
	require.Equal(t, "redis deny-cache fallback limit Source(9)", strings.Join([]string{
		SourceRedis.String(), SourceDenyCache.String(), SourceFallback.String(), SourceLimit.String(), Source(9).String(),
	}, " "))
}

// FuzzRefill compares with fractions of any size.
func FuzzRefill(f *testing.F) {
	f.Add(int64(3), int64(1000), int64(2))
	f.Fuzz(func(t *testing.T, rate, ms, n int64) {
		limit := Limit{Rate: rate, Window: time.Duration(ms) * time.Millisecond, Burst: n}
		if ms > 1e12 || limit.check(true) != nil || n < 1 {
			t.Skip()
		}
		l, err := NewTokenBucket(noServer{}, limit, Options{})
		require.NoError(t, err)
		want := new(big.Int).Mul(big.NewInt(n), big.NewInt(ms*1000))
		want.Div(want, big.NewInt(rate))
		require.Equal(t, want.Int64(), l.refill.took(n))
	})
}

// TestBatch_PlacesAreThoseOfTheCallsThatStay has random callers join and leave.
func TestBatch_PlacesAreThoseOfTheCallsThatStay(t *testing.T) {
	t.Parallel()
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		b := &batch{}
		type call struct {
			run  run
			at   place
			left bool
		}
		var calls []call
		kinds := 1 + rnd.Int64N(100)
		for range 300 {
			if i := rnd.IntN(len(calls) + 1); i < len(calls) && !calls[i].left && rnd.IntN(3) == 0 {
				require.True(t, b.leave(calls[i].at))
				calls[i].left = true
				continue
			}
			c := call{run: run{key: string(rune('a' + rnd.Int64N(kinds)%7)), n: 1 + rnd.Int64N(kinds)/7}}
			var ok bool
			if c.at, ok = b.join(c.run.key, c.run.n); ok {
				calls = append(calls, c)
			} else {
				require.Len(t, b.runs, maxRuns)
			}
		}
		// Those that stay are numbered in order within their runs, each of which is for another key or n.
		next := make([]int64, len(b.runs))
		stay := 0
		for _, c := range calls {
			if c.left {
				continue
			}
			stay++
			at := b.now(c.at)
			got := b.runs[at.run]
			got.count = 0
			require.Equal(t, c.run, got)
			require.Equal(t, next[at.run], at.index)
			next[at.run]++
		}
		require.Equal(t, stay, b.calls)
		different := map[run]bool{}
		for i, r := range b.runs {
			require.Equal(t, next[i], r.count)
			different[run{r.key, r.n, 0}] = true
		}
		require.Len(t, different, len(b.runs))
		b.isSealed = true
		require.True(t, b.leave(place{}))
		require.Len(t, b.abandoned, 1)
		b.isDone = true
		require.False(t, b.leave(place{}))
	}
}

// inBubble runs a test in synctest's time, after the package's epoch.
func inBubble(t *testing.T, test func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Hour - sinceEpoch()) //nolint:forbidigo // synctest's time
		test(t)
	})
}

// TestLocal_NeverExceedsItsShare plays random calls in synctest's time.
func TestLocal_NeverExceedsItsShare(t *testing.T) {
	t.Parallel()
	for seed := range uint64(100) {
		inBubble(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 0))
			window := time.Duration(1+rnd.IntN(5000)) * time.Millisecond
			limit := Per(1+rnd.Int64N(100), window)
			construct := NewSlidingWindow
			isBucket := seed%2 == 0
			if isBucket {
				construct = NewTokenBucket
			}
			share := []float64{1, 0.5, 0.1}[rnd.IntN(3)]
			l, err := construct(noServer{}, limit, Options{OnFailure: Local, LocalShare: share})
			require.NoError(t, err)
			most := max(1, int64(float64(limit.Rate)*share))
			type event struct {
				at time.Time
				n  int64
			}
			var log []event
			for range 200 {
				n := 1 + rnd.Int64N(max(1, most/2))
				r := l.local.take(l, "k", n)
				require.Equal(t, SourceFallback, r.Source)
				require.Equal(t, most, r.Limit)
				require.GreaterOrEqual(t, r.Remaining, int64(0))
				if r.Allowed {
					log = append(log, event{time.Now(), n})
					var used int64
					for _, e := range log {
						if time.Since(e.at) < window {
							used += e.n
						}
					}
					if isBucket {
						require.LessOrEqual(t, used, 2*most+1)
					} else {
						require.LessOrEqual(t, used, most)
					}
				} else if rnd.IntN(2) == 0 {
					require.Positive(t, r.RetryAfter)
					time.Sleep(r.RetryAfter) //nolint:forbidigo // synctest's time
					require.True(t, l.local.take(l, "k", n).Allowed)
					log = append(log, event{time.Now(), n})
				}
				time.Sleep(time.Duration(rnd.Int64N(int64(window) / 5))) //nolint:forbidigo // synctest's time
			}
		})
	}
}

func TestLocal_IsBounded(t *testing.T) {
	t.Parallel()
	l, err := NewFixedWindow(noServer{}, PerHour(1), Options{})
	require.NoError(t, err)
	key := make([]byte, 4)
	for i := range localKeys + 5000 {
		key[0], key[1], key[2] = byte(i), byte(i>>8), byte(i>>16)
		l.local.take(l, string(key), 1)
	}
	total := 0
	for i := range l.local.table.parts {
		total += len(l.local.table.parts[i].entries)
	}
	require.LessOrEqual(t, total, localKeys)
	require.Greater(t, total, localKeys*9/10)
}

func TestDenyCache_IsBoundedAndAgeing(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		l, err := NewFixedWindow(noServer{}, PerHour(10), Options{})
		require.NoError(t, err)
		c := newDenyCache(640, time.Second)
		deny := func(key string, n int64, wait time.Duration) {
			c.add(sinceEpoch(), subject{l.limit, key}, denial{n: n, until: sinceEpoch() + min(wait, time.Second), passes: sinceEpoch() + wait})
		}
		deny("k", 5, time.Hour)
		refused := func(key string, n int64) bool { _, ok := c.look(l, key, n); return ok }
		require.False(t, refused("k", 4))
		require.True(t, refused("k", 5))
		require.True(t, refused("k", 6))
		deny("k", 7, time.Hour)
		require.True(t, refused("k", 5), "the smaller says more")
		deny("k", 3, time.Hour)
		require.True(t, refused("k", 3))
		time.Sleep(time.Second) //nolint:forbidigo // synctest's time
		require.False(t, refused("k", 3), "too old")
		deny("k", 8, time.Millisecond)
		require.True(t, refused("k", 8))
		require.False(t, refused("k", 3))
		r, _ := c.look(l, "k", 9)
		require.Equal(t, time.Millisecond, r.RetryAfter)
		time.Sleep(time.Millisecond) //nolint:forbidigo // synctest's time
		require.False(t, refused("k", 8))
		deny("k", 8, time.Minute)
		c.drop(l.shared, "k")
		require.False(t, refused("k", 8))
		asked := sinceEpoch() // before the drop
		c.add(asked, subject{l.limit, "k"}, denial{n: 8, until: asked + time.Minute})
		require.False(t, refused("k", 8), "it may have been refused before the drop")
		time.Sleep(time.Millisecond) //nolint:forbidigo // synctest's time
		deny("k", 8, time.Minute)
		require.True(t, refused("k", 8))
		deny(strings.Repeat("k", maxDenyKey+1), 8, time.Minute)
		require.False(t, refused(strings.Repeat("k", maxDenyKey+1), 8))
		for i := range 5000 {
			deny(string(rune(i)), 1, time.Minute)
		}
		total := 0
		for i := range c.table.parts {
			total += len(c.table.parts[i].entries)
		}
		require.LessOrEqual(t, total, 640)
		require.GreaterOrEqual(t, total, 500)
	})
}

// TestDenyCache_DropsAKeyUnderAllLimits does so when few limits are known, and when more are than With remembers.
func TestDenyCache_DropsAKeyUnderAllLimits(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		l, err := NewFixedWindow(noServer{}, PerHour(10), Options{})
		require.NoError(t, err)
		c := &l.denied
		for _, limits := range []int{0, 3, maxDerived + 5} {
			asked := []*Limiter{l}
			for i := range limits {
				asked = append(asked, l.With(PerHour(int64(100+i))))
			}
			refused := denial{n: 1, until: sinceEpoch() + time.Hour}
			part := c.table.part("k")
			part.entries = nil
			for _, under := range asked {
				part.set(subject{under.limit, "k"}, refused)
				part.set(subject{under.limit, "other"}, refused)
			}
			part.size.Store(1)
			c.drop(l.shared, "k")
			require.Len(t, part.entries, len(asked))
			for s := range part.entries {
				require.Equal(t, "other", s.key)
			}
		}
	})
}

func TestBreakers_OpenAfterFailuresAndProbe(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		b := newBreakers(64, time.Second)
		ok := func(part int) bool { ok, _ := b.ranges[part].allow(); return ok }
		b.failed(3)
		b.failed(3)
		b.succeeded(3)
		b.failed(3)
		b.failed(3)
		require.True(t, ok(3))
		b.failed(3)
		require.False(t, ok(3))
		require.True(t, ok(4))
		probes := 0
		for range 100 {
			if _, probe := b.ranges[3].allow(); probe {
				probes++
			}
			time.Sleep(10 * time.Millisecond) //nolint:forbidigo // synctest's time
		}
		require.InDelta(t, 10, probes, 1)
		b.succeeded(3)
		require.True(t, ok(3))
		b.failed(5)
		time.Sleep(time.Second) //nolint:forbidigo // synctest's time
		b.failed(6)
		require.False(t, ok(60), "nothing has succeeded anywhere for as long as patience")
		_, probe := b.ranges[61].allow()
		require.True(t, probe, "it is seen at once whether this one is well")
		_, probe = b.ranges[61].allow()
		require.False(t, probe)
		b.succeeded(7)
		b.ranges[7].failures.Store(breakerFailures + 2) // as if they came while the success was being noted
		b.failed(7)
		require.False(t, ok(7))
	})
}

// slowTimer is a context whose deadline has passed and whose timer has not fired.
type slowTimer struct{ context.Context } //nolint:containedctx // it is a context

func (slowTimer) Deadline() (time.Time, bool) { return time.Now().Add(-time.Microsecond), true }

func TestNote_ACallersDeadlineSaysNothingAboutRedis(t *testing.T) {
	t.Parallel()
	l, err := NewFixedWindow(noServer{}, PerSecond(1), Options{})
	require.NoError(t, err)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	isOpen := func() bool { ok, _ := l.breakers.ranges[0].allow(); return !ok }
	for range 2 * breakerFailures {
		l.note(slowTimer{t.Context()}, 0, context.DeadlineExceeded)
		l.note(ended, 0, context.Canceled)
	}
	require.False(t, isOpen())
	for range breakerFailures {
		l.note(t.Context(), 0, context.DeadlineExceeded) // Timeout's
	}
	require.True(t, isOpen())
}

// TestLocal_NeverExceedsItsShareUnderContention has callers wait for each other, between windows that are short.
func TestLocal_NeverExceedsItsShareUnderContention(t *testing.T) {
	t.Parallel()
	const rate, window = 20, 8 * time.Millisecond
	l, err := NewSlidingWindow(noServer{}, Per(rate, window), Options{OnFailure: Local})
	require.NoError(t, err)
	type event struct{ before, after time.Duration }
	var admitted []event
	var mu sync.Mutex
	var wg sync.WaitGroup
	end := time.Now().Add(300 * time.Millisecond)
	for range 32 {
		wg.Go(func() {
			for time.Now().Before(end) {
				before := sinceEpoch()
				if l.local.take(l, "k", 1).Allowed {
					mu.Lock()
					admitted = append(admitted, event{before, sinceEpoch()})
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	require.Greater(t, len(admitted), rate)
	for _, first := range admitted {
		together := 0
		for _, other := range admitted {
			if other.before >= first.before && other.after < first.before+window {
				together++
			}
		}
		require.LessOrEqual(t, together, rate)
	}
}
