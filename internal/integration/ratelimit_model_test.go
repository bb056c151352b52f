package integration

import (
	"cmp"
	"context"
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"math/big"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/redis/rueidis/rueidishook"
	"github.com/stretchr/testify/require"

	"github.com/redispatterns/redispatterns/internal/integration/redistest"
	"github.com/redispatterns/redispatterns/ratelimit"
)

// clockSource goes before a script, and makes the last of its arguments the server's time, in microseconds. Keys expire by
// that time as they do in Redis: when more milliseconds than their TTL have passed.
const clockSource = `
local faked = tonumber(table.remove(ARGV))
local real, ms = redis, math.floor(faked / 1000)
local function call(command, key, ...)
	if command == 'TIME' then
		return {math.floor(faked / 1000000), faked % 1000000}
	end
	local clock = key .. ':expires'
	local expires = tonumber(real.call('GET', clock) or nil)
	if expires and ms > expires then
		real.call('DEL', key, clock)
		expires = nil
	end
	local a, b, c = ...
	if command == 'PEXPIRETIME' then
		return expires or -1
	elseif command == 'DEL' then
		return real.call('DEL', key, clock)
	elseif command == 'SET' then
		local at = b == 'PX' and ms + c or b == 'PXAT' and c or 0
		if at < ms + 1 or at % 1 ~= 0 then
			error('SET without a TTL')
		end
		real.call('SET', clock, string.format('%.0f', at), 'EX', 3600)
		return real.call('SET', key, a, 'EX', 3600)
	end
	return real.call(command, key, ...)
end
local redis = {call = call, pcall = call}
`

// serverClock is a hook that makes scripts take the time from here. It learns their sources from the client, by not
// knowing them at first.
type serverClock struct {
	rueidishook.Hook
	now     int64
	sources *sync.Map // *rueidis.Lua by the SHA of what it stands for
}

var fakedScripts sync.Map

func withServerClock(client rueidis.Client, now time.Time) (rueidis.Client, *serverClock) {
	c := &serverClock{now: now.UnixMicro(), sources: &fakedScripts}
	return rueidishook.WithHook(client, c), c
}

func (c *serverClock) advance(d time.Duration) { c.now += d.Microseconds() }

func (c *serverClock) Do(client rueidis.Client, ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	words := cmd.Commands()
	switch words[0] {
	case "EVAL":
		source := clockSource + words[1]
		sum := sha1.Sum([]byte(words[1]))
		c.sources.Store(hex.EncodeToString(sum[:]), rueidis.NewLuaScript(source))
		words[1] = hex.EncodeToString(sum[:])
	case "EVALSHA":
		if _, known := c.sources.Load(words[1]); !known {
			return client.Do(ctx, client.B().Evalsha().Sha1(strings.Repeat("0", 40)).Numkeys(0).Build())
		}
	default:
		return client.Do(ctx, cmd)
	}
	script, _ := c.sources.Load(words[1])
	keys, err := strconv.Atoi(words[2])
	if err != nil {
		panic(err)
	}
	args := append(append([]string{}, words[3+keys:]...), strconv.FormatInt(c.now, 10))
	return script.(*rueidis.Lua).Exec(ctx, client, words[3:3+keys], args)
}

// model is what a limiter should do, written for clarity. Times are in microseconds.
type model interface {
	take(now, n int64) ratelimit.Result
	give(now, n int64)
}

func span(micros int64) time.Duration { return time.Duration(micros) * time.Microsecond }

// fixedModel counts in milliseconds, as Redis' TTLs do.
type fixedModel struct{ rate, window, ends, used int64 }

func (m *fixedModel) roll(now int64) time.Duration {
	ms := now / 1000
	if m.used == 0 || ms >= m.ends {
		m.ends, m.used = ms+m.window/1000+1, 0
	}
	return time.Duration(m.ends-ms) * time.Millisecond
}

func (m *fixedModel) take(now, n int64) ratelimit.Result {
	reset := m.roll(now)
	r := ratelimit.Result{Limit: m.rate, Allowed: m.used+n <= m.rate}
	if r.Allowed {
		m.used += n
	} else {
		r.RetryAfter = reset
	}
	r.Remaining = m.rate - m.used
	if m.used > 0 {
		r.ResetAfter = reset
	}
	return r
}

func (m *fixedModel) give(now, n int64) {
	m.roll(now)
	m.used = max(0, m.used-n)
}

type event struct{ at, n int64 }

type slidingModel struct {
	rate, window, step int64
	log                []event
	admitted           []event // at their true times
}

func (m *slidingModel) slide(now int64) (used int64) {
	for len(m.log) > 0 && m.log[0].at+m.window <= now {
		m.log = m.log[1:]
	}
	for _, e := range m.log {
		used += e.n
	}
	return used
}

func (m *slidingModel) take(now, n int64) ratelimit.Result {
	used := m.slide(now)
	r := ratelimit.Result{Limit: m.rate, Allowed: used+n <= m.rate}
	if r.Allowed {
		at := now
		if at%m.step != 0 {
			at += m.step - at%m.step
		}
		m.log = append(m.log, event{at, n})
		m.admitted = append(m.admitted, event{now, n})
		used += n
	} else {
		need := used + n - m.rate
		for _, e := range m.log {
			if need -= e.n; need <= 0 {
				r.RetryAfter = span(e.at + m.window - now)
				break
			}
		}
	}
	r.Remaining = m.rate - used
	if len(m.log) > 0 {
		r.ResetAfter = span(m.log[len(m.log)-1].at + m.window - now)
	}
	return r
}

func (m *slidingModel) give(now, n int64) {
	m.slide(now)
	for _, log := range []*[]event{&m.log, &m.admitted} {
		left := n
		for left > 0 && len(*log) > 0 {
			last := &(*log)[len(*log)-1]
			k := min(left, last.n)
			left -= k
			if last.n -= k; last.n == 0 {
				*log = (*log)[:len(*log)-1]
			}
		}
	}
}

// inWindow is how many units were admitted in (from, to].
func (m *slidingModel) inWindow(from, to int64) (sum int64) {
	for _, e := range m.admitted {
		if e.at > from && e.at <= to {
			sum += e.n
		}
	}
	return sum
}

// bucketModel keeps its tokens as a fraction of whole numbers.
type bucketModel struct {
	rate, window, burst int64
	tokens              *big.Rat
	at                  int64
}

func ratOf(a, b int64) *big.Rat { return big.NewRat(a, b) }

func (m *bucketModel) drip(now int64) {
	m.tokens.Add(m.tokens, new(big.Rat).Mul(ratOf(now-m.at, 1), ratOf(m.rate, m.window)))
	if full := ratOf(m.burst, 1); m.tokens.Cmp(full) > 0 {
		m.tokens = full
	}
	m.at = now
}

// until is how many microseconds it takes until there are n tokens, rounded up.
func (m *bucketModel) until(n int64) time.Duration {
	missing := new(big.Rat).Sub(ratOf(n, 1), m.tokens)
	if missing.Sign() <= 0 {
		return 0
	}
	missing.Mul(missing, ratOf(m.window, m.rate))
	up := new(big.Int).Add(missing.Num(), new(big.Int).Sub(missing.Denom(), big.NewInt(1)))
	return span(up.Div(up, missing.Denom()).Int64())
}

func (m *bucketModel) take(now, n int64) ratelimit.Result {
	m.drip(now)
	r := ratelimit.Result{Limit: m.burst, Allowed: m.tokens.Cmp(ratOf(n, 1)) >= 0}
	if r.Allowed {
		m.tokens.Sub(m.tokens, ratOf(n, 1))
	} else {
		r.RetryAfter = m.until(n)
	}
	r.Remaining = new(big.Int).Div(m.tokens.Num(), m.tokens.Denom()).Int64()
	r.ResetAfter = m.until(m.burst)
	return r
}

func (m *bucketModel) give(now, n int64) {
	m.drip(now)
	m.tokens.Add(m.tokens, ratOf(n, 1))
	m.drip(now)
}

// subjectUnderTest is a limiter, its server's clock and its model.
type subjectUnderTest struct {
	limiter *ratelimit.Limiter
	hold    *holder
	clock   *serverClock
	model   model
	window  time.Duration
	most    int64
	grain   time.Duration // of RetryAfter
}

// schedules is how many random histories each algorithm is held against its model for.
func schedules() int {
	if soak() {
		return 100_000
	}
	return 800
}

// follow plays a random history of calls and compares each result with the model's.
func (s *subjectUnderTest) follow(t *testing.T, rnd *rand.Rand, key string, calls int, check func(now, n int64, r ratelimit.Result)) {
	ctx := t.Context()
	trace := []string{}
	for i := range calls {
		switch rnd.IntN(4) {
		case 0: // a burst
		case 1:
			s.clock.advance(time.Duration(rnd.Int64N(int64(s.window)/50 + 1)))
		case 2:
			s.clock.advance(time.Duration(rnd.Int64N(int64(s.window)/4 + 1)))
		case 3:
			if rnd.IntN(4) == 0 {
				s.clock.advance(time.Duration(rnd.Int64N(int64(s.window) * 5 / 2)))
			}
		}
		n := int64(1)
		if rnd.IntN(3) == 0 {
			n += rnd.Int64N(max(1, s.most/(1+rnd.Int64N(6))))
		}
		if rnd.IntN(12) == 0 {
			trace = append(trace, fmt.Sprintf("%d give %d", s.clock.now, n))
			require.NoError(t, s.limiter.Refund(ctx, key, n))
			s.model.give(s.clock.now, n)
			continue
		}
		trace = append(trace, fmt.Sprintf("%d take %d", s.clock.now, n))
		want := s.model.take(s.clock.now, n)
		var got ratelimit.Result
		var err error
		if i > 0 && rnd.IntN(6) == 0 { // not the first, which may take two round trips, for the script
			got = s.together(t, rnd, key, n, want, &trace, check)
		} else {
			got, err = s.limiter.AllowN(ctx, key, n)
			require.NoError(t, err)
			require.Equal(t, want, got, "%+v\n%s", s.limiter.Limit(), strings.Join(trace, "\n"))
			if check != nil {
				check(s.clock.now, n, got)
			}
		}
		if !got.Allowed && rnd.IntN(2) == 0 {
			s.clock.advance(got.RetryAfter - s.grain)
			early, err := s.limiter.AllowN(ctx, key, n)
			require.NoError(t, err)
			require.False(t, early.Allowed, "just before RetryAfter")
			s.clock.advance(s.grain)
			trace = append(trace, fmt.Sprintf("%d again", s.clock.now))
			want := s.model.take(s.clock.now, n)
			require.True(t, want.Allowed)
			got, err := s.limiter.AllowN(ctx, key, n)
			require.NoError(t, err)
			require.Equal(t, want, got, "after RetryAfter\n%s", strings.Join(trace, "\n"))
			if check != nil {
				check(s.clock.now, n, got)
			}
		}
	}
}

// together makes a call of n units, whose result shall be want, and others of as many that wait for it and then are one
// run, a while later. It returns the result of the last of those that are refused, or of any.
func (s *subjectUnderTest) together(
	t *testing.T, rnd *rand.Rand, key string, n int64, want ratelimit.Result, trace *[]string, check func(now, n int64, r ratelimit.Result),
) ratelimit.Result {
	results := func(calls int) <-chan ratelimit.Result {
		got := make(chan ratelimit.Result, calls)
		for range calls {
			go func() {
				r, err := s.limiter.AllowN(t.Context(), key, n)
				if err != nil {
					t.Error(err)
				}
				got <- r
			}()
		}
		return got
	}
	s.hold.on.Store(true)
	first := results(1)
	<-s.hold.held
	s.hold.on.Store(false)
	began := s.clock.now
	s.clock.advance(time.Duration(rnd.Int64N(int64(s.window) + 1)))
	calls := 2 + rnd.IntN(6)
	*trace = append(*trace, fmt.Sprintf("%d take %d by each of %d", s.clock.now, n, calls))
	others := results(calls)
	require.NoError(t, after(t.Context(), time.Millisecond)) // let them join; one that is late is decided no other way
	s.hold.release <- struct{}{}
	got := make([]ratelimit.Result, calls)
	require.Equal(t, want, <-first, "%+v\n%s", s.limiter.Limit(), strings.Join(*trace, "\n"))
	for i := range got {
		got[i] = <-others
	}
	slices.SortFunc(got, func(a, b ratelimit.Result) int { // those that are refused leave the same, and least
		return cmp.Or(cmp.Compare(b.Remaining, a.Remaining), cmp.Compare(a.RetryAfter, b.RetryAfter))
	})
	if check != nil {
		check(began, n, want)
	}
	for i := range got {
		want = s.model.take(s.clock.now, n)
		require.InDelta(t, want.ResetAfter, got[i].ResetAfter, float64(time.Microsecond)) // it is reckoned back from that of the last
		want.ResetAfter = got[i].ResetAfter
		require.Equal(t, want, got[i], "%+v, call %d\n%s", s.limiter.Limit(), i, strings.Join(*trace, "\n"))
		if check != nil {
			check(s.clock.now, n, got[i])
		}
	}
	return got[calls-1]
}

// eachSchedule runs histories in parallel.
func eachSchedule(t *testing.T, fn func(t *testing.T, client rueidis.Client, prefix string, i int, rnd *rand.Rand)) {
	t.Helper()
	client := redistest.Shared(t).Client(t)
	prefix := redistest.Prefix(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	var wg sync.WaitGroup
	const workers = 16
	for w := range workers {
		wg.Go(func() {
			for i := w; i < schedules() && !t.Failed(); i += workers {
				fn(t, client, prefix, i, rand.New(rand.NewPCG(seed, uint64(i))))
			}
		})
	}
	wg.Wait()
}

func aModelLimit(rnd *rand.Rand) ratelimit.Limit {
	window := time.Duration(1+rnd.Int64N([]int64{10, 1000, 3_600_000, 30 * 86_400_000}[rnd.IntN(4)])) * time.Millisecond
	return ratelimit.Per(1+rnd.Int64N([]int64{1, 5, 40, 300, 5000, 1e12}[rnd.IntN(6)]), window)
}

func modelOptions(prefix string) ratelimit.Options {
	return ratelimit.Options{Prefix: prefix, Timeout: 10 * time.Second, DenyCacheSize: -1}
}

func TestRateLimit_FixedWindowIsItsModel(t *testing.T) {
	t.Parallel()
	eachSchedule(t, func(t *testing.T, client rueidis.Client, prefix string, i int, rnd *rand.Rand) {
		hooked, clock := withServerClock(client, time.Now())
		hold := newHolder()
		limit := aModelLimit(rnd)
		l, err := ratelimit.NewFixedWindow(rueidishook.WithHook(hooked, hold), limit, modelOptions(prefix))
		require.NoError(t, err)
		w := limit.Window.Microseconds()
		s := subjectUnderTest{l, hold, clock, &fixedModel{rate: limit.Rate, window: w}, limit.Window, limit.Rate, time.Millisecond}
		s.follow(t, rnd, strconv.Itoa(i), 10, nil)
	})
}

// TestRateLimit_SlidingWindowNeverExceedsItsRate also holds the guarantee itself against what was admitted, whatever
// the model says: never more than Rate in any window, and nothing refused that is older than the window and a step.
func TestRateLimit_SlidingWindowNeverExceedsItsRate(t *testing.T) {
	t.Parallel()
	eachSchedule(t, func(t *testing.T, client rueidis.Client, prefix string, i int, rnd *rand.Rand) {
		hooked, clock := withServerClock(client, time.Now())
		hold := newHolder()
		limit := aModelLimit(rnd)
		opts := modelOptions(prefix)
		opts.Resolution = []int{0, 0, 1, 2, 7, 64, 1024, ratelimit.Exact}[rnd.IntN(8)]
		l, err := ratelimit.NewSlidingWindow(rueidishook.WithHook(hooked, hold), limit, opts)
		require.NoError(t, err)
		w := limit.Window.Microseconds()
		k := int64(opts.Resolution)
		if k == 0 && limit.Rate > 64 {
			k = 64
		}
		step := int64(1)
		if k > 0 {
			step = (w + k - 1) / k
		}
		m := &slidingModel{rate: limit.Rate, window: w, step: step}
		s := subjectUnderTest{l, hold, clock, m, limit.Window, limit.Rate, time.Microsecond}
		s.follow(t, rnd, strconv.Itoa(i), 12, func(now, n int64, r ratelimit.Result) {
			if r.Allowed {
				require.LessOrEqual(t, m.inWindow(now-w, now), limit.Rate)
			} else {
				late := int64(0)
				if k > 0 {
					late = w / k
				}
				require.Greater(t, m.inWindow(now-w-late-1, now)+n, limit.Rate, "refused more than W/K late")
			}
		})
	})
}

func TestRateLimit_TokenBucketIsExact(t *testing.T) {
	t.Parallel()
	eachSchedule(t, func(t *testing.T, client rueidis.Client, prefix string, i int, rnd *rand.Rand) {
		hooked, clock := withServerClock(client, time.Now())
		hold := newHolder()
		limit := aModelLimit(rnd)
		switch rnd.IntN(4) {
		case 0: // fast
			limit = ratelimit.PerSecond(1 + rnd.Int64N(1e7))
			limit.Burst = 1 + rnd.Int64N(limit.Rate*(1+rnd.Int64N(600)))
		case 1: // slow
			limit = ratelimit.Per(1+rnd.Int64N(3), time.Duration(1+rnd.IntN(30))*24*time.Hour)
			limit.Burst = 1 + rnd.Int64N(20)
		case 2: // no common divisor
			limit = ratelimit.Per(999_983+rnd.Int64N(1000), 30*24*time.Hour)
		}
		l, err := ratelimit.NewTokenBucket(rueidishook.WithHook(hooked, hold), limit, modelOptions(prefix))
		require.NoError(t, err)
		burst := l.Limit().Burst
		full := time.Duration(float64(burst) / float64(limit.Rate) * float64(limit.Window))
		m := &bucketModel{limit.Rate, limit.Window.Microseconds(), burst, ratOf(burst, 1), clock.now}
		s := subjectUnderTest{l, hold, clock, m, full, burst, time.Microsecond}
		s.follow(t, rnd, strconv.Itoa(i), 12, nil)
	})
}

func TestRateLimit_TokenBucketOverManyTokens(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	for _, limit := range []ratelimit.Limit{
		{Rate: 3, Window: time.Hour, Burst: 3},
		{Rate: 7, Window: 24 * time.Hour, Burst: 1},
		{Rate: 1_000_003, Window: time.Second, Burst: 60_000_000},
	} {
		hooked, clock := withServerClock(client, time.Now())
		l, err := ratelimit.NewTokenBucket(hooked, limit, modelOptions(redistest.Prefix(t)))
		require.NoError(t, err)
		// As greedily as can be for d: burst + rate * d, to the token.
		began, admitted := clock.now, int64(0)
		r, err := l.AllowN(t.Context(), "k", limit.Burst)
		require.NoError(t, err)
		require.True(t, r.Allowed)
		n := max(1, limit.Burst/1000)
		for range 300 {
			r, err := l.AllowN(t.Context(), "k", n)
			require.NoError(t, err)
			if r.Allowed {
				admitted += n
				continue
			}
			clock.advance(r.RetryAfter)
		}
		r, err = l.Peek(t.Context(), "k")
		require.NoError(t, err)
		brought := new(big.Int).Mul(big.NewInt(clock.now-began), big.NewInt(limit.Rate))
		brought.Div(brought, big.NewInt(limit.Window.Microseconds()))
		require.Equal(t, brought.Int64(), admitted+r.Remaining, "%+v", limit)
	}
}

// TestRateLimit_ApproximateKeepsItsBound holds the two counters against what they promise: less than twice the rate in
// any window, and an exact RetryAfter.
func TestRateLimit_ApproximateKeepsItsBound(t *testing.T) {
	t.Parallel()
	eachSchedule(t, func(t *testing.T, client rueidis.Client, prefix string, i int, rnd *rand.Rand) {
		hooked, clock := withServerClock(client, time.Now())
		limit := aModelLimit(rnd)
		opts := modelOptions(prefix)
		opts.Approximate = true
		l, err := ratelimit.NewSlidingWindow(hooked, limit, opts)
		require.NoError(t, err)
		w := limit.Window.Microseconds()
		log := &slidingModel{rate: limit.Rate, window: w, step: 1}
		key := strconv.Itoa(i)
		for range 12 {
			clock.advance(time.Duration(rnd.Int64N(int64(limit.Window) / (1 + rnd.Int64N(20)))))
			n := 1 + rnd.Int64N(max(1, limit.Rate/(1+rnd.Int64N(4))))
			r, err := l.AllowN(t.Context(), key, n)
			require.NoError(t, err)
			if !r.Allowed {
				require.LessOrEqual(t, r.RetryAfter, 2*limit.Window)
				clock.advance(r.RetryAfter - time.Microsecond)
				early, err := l.AllowN(t.Context(), key, n)
				require.NoError(t, err)
				require.False(t, early.Allowed)
				clock.advance(time.Microsecond)
				r, err = l.AllowN(t.Context(), key, n)
				require.NoError(t, err)
				require.True(t, r.Allowed, "%+v after RetryAfter", limit)
			}
			log.admitted = append(log.admitted, event{clock.now, n})
			require.Less(t, log.inWindow(clock.now-w, clock.now), 2*limit.Rate)
			require.GreaterOrEqual(t, r.Remaining, int64(0))
		}
	})
}

// TestRateLimit_AClockThatStepsBackFreesNothing sets the server's clock back and forth between calls.
func TestRateLimit_AClockThatStepsBackFreesNothing(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	const rate = 100
	for name, newLimiter := range allAlgorithms {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, step := range []time.Duration{time.Millisecond, time.Second, 10 * time.Minute, 40 * time.Minute} {
				hooked, clock := withServerClock(client, time.Now())
				l, err := newLimiter(hooked, ratelimit.PerHour(rate), modelOptions(redistest.Prefix(t)))
				require.NoError(t, err)
				r, err := l.AllowN(t.Context(), "k", 60)
				require.NoError(t, err)
				require.True(t, r.Allowed)
				clock.advance(-step)
				r, err = l.Peek(t.Context(), "k")
				require.NoError(t, err)
				require.EqualValues(t, 40, r.Remaining)
				r, err = l.AllowN(t.Context(), "k", 41)
				require.NoError(t, err)
				require.False(t, r.Allowed)
				retry := r.RetryAfter
				r, err = l.AllowN(t.Context(), "k", 40)
				require.NoError(t, err)
				require.True(t, r.Allowed)
				r, err = l.Allow(t.Context(), "k")
				require.NoError(t, err)
				require.False(t, r.Allowed)
				require.LessOrEqual(t, r.RetryAfter, 2*time.Hour+step)
				require.Positive(t, retry)
				clock.advance(step) // back where it was: nothing has been freed on the way
				r, err = l.Allow(t.Context(), "k")
				require.NoError(t, err)
				require.False(t, r.Allowed, "%v", step)
				if name != "bucket" { // whose tokens come one by one
					clock.advance(time.Hour - time.Millisecond)
					require.Zero(t, peek(t, l, "k").Remaining, "%v: nothing was taken before that hour", step)
					r, err = l.Allow(t.Context(), "k")
					require.NoError(t, err)
				}
				clock.advance(r.RetryAfter)
				r, err = l.Allow(t.Context(), "k")
				require.NoError(t, err)
				require.True(t, r.Allowed, "%v", step)
			}
		})
	}
}

type constructor func(rueidis.Client, ratelimit.Limit, ratelimit.Options) (*ratelimit.Limiter, error)

var allAlgorithms = map[string]constructor{
	"fixed":   ratelimit.NewFixedWindow,
	"sliding": ratelimit.NewSlidingWindow,
	"approximate": func(c rueidis.Client, l ratelimit.Limit, o ratelimit.Options) (*ratelimit.Limiter, error) {
		o.Approximate = true
		return ratelimit.NewSlidingWindow(c, l, o)
	},
	"bucket": ratelimit.NewTokenBucket,
}

// spy keeps the scripts that a limiter runs.
type spy struct {
	rueidishook.Hook
	mu    sync.Mutex
	words [][]string
}

func (s *spy) on(client rueidis.Client) rueidis.Client { return rueidishook.WithHook(client, s) }

func (s *spy) Do(client rueidis.Client, ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	s.mu.Lock()
	s.words = append(s.words, append([]string{}, cmd.Commands()...))
	s.mu.Unlock()
	return client.Do(ctx, cmd)
}

func (s *spy) evals() (found [][]string) {
	for _, words := range s.words {
		if strings.HasPrefix(words[0], "EVAL") {
			found = append(found, words)
		}
	}
	return found
}
