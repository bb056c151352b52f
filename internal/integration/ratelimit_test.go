package integration

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/redispatterns/redispatterns/internal/integration/redistest"
	"github.com/redispatterns/redispatterns/ratelimit"
)

// newLimiter returns a limiter that does not take a busy test machine for a failing Redis.
func newLimiter(t *testing.T, construct constructor, client rueidis.Client, limit ratelimit.Limit, opts ratelimit.Options) *ratelimit.Limiter {
	t.Helper()
	if opts.Prefix == "" {
		opts.Prefix = redistest.Prefix(t)
	}
	if opts.Timeout == 0 {
		opts.Timeout = 10 * time.Second
	}
	l, err := construct(client, limit, opts)
	require.NoError(t, err)
	return l
}

func allowN(t *testing.T, l *ratelimit.Limiter, key string, n int64) ratelimit.Result {
	t.Helper()
	r, err := l.AllowN(t.Context(), key, n)
	require.NoError(t, err)
	return r
}

func peek(t *testing.T, l *ratelimit.Limiter, key string) ratelimit.Result {
	t.Helper()
	r, err := l.Peek(t.Context(), key)
	require.NoError(t, err)
	return r
}

// limitKey is the key of Redis for an id.
func limitKey(prefix, algorithm string, window time.Duration, id string) string {
	return fmt.Sprintf("%s:%s%d:{%s}", prefix, algorithm[:1], window.Milliseconds(), id)
}

func TestRateLimit_DoesItsJobEverywhere(t *testing.T) {
	t.Parallel()
	redistest.EachTarget(t, func(t *testing.T, client rueidis.Client) { limitsAsPromised(t, client) })
}

// TestRateLimit_UsersMayTestWithMiniredis keeps a promise to users' tests; miniredis stands in for no server here.
func TestRateLimit_UsersMayTestWithMiniredis(t *testing.T) {
	t.Parallel()
	mini := miniredis.RunT(t)
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{mini.Addr()}, DisableCache: true, ForceSingleClient: true})
	require.NoError(t, err)
	t.Cleanup(client.Close)
	limitsAsPromised(t, client)
}

func limitsAsPromised(t *testing.T, client rueidis.Client) {
	ctx := t.Context()
	prefix := redistest.Prefix(t)
	for name, construct := range allAlgorithms {
		l := newLimiter(t, construct, client, ratelimit.PerHour(10), ratelimit.Options{Prefix: prefix})
		for i := range int64(10) {
			require.Equal(t, 10-i, peek(t, l, "k").Remaining, name)
			r := allowN(t, l, "k", 1)
			require.True(t, r.Allowed, name)
			require.Equal(t, 9-i, r.Remaining, name)
			require.EqualValues(t, 10, r.Limit)
			require.Zero(t, r.RetryAfter)
			require.Positive(t, r.ResetAfter)
			require.Equal(t, ratelimit.SourceRedis, r.Source)
		}
		for i, source := range []ratelimit.Source{ratelimit.SourceRedis, ratelimit.SourceDenyCache} {
			r := allowN(t, l, "k", 1)
			require.False(t, r.Allowed, name)
			require.Zero(t, r.Remaining)
			require.Greater(t, r.RetryAfter, 5*time.Minute, "%s %d", name, i)
			require.LessOrEqual(t, r.RetryAfter, 2*time.Hour+time.Millisecond)
			if i == 0 {
				require.Equal(t, source, r.Source)
			}
		}
		require.False(t, peek(t, l, "k").Allowed)
		require.NoError(t, l.Refund(ctx, "k", 3))
		require.EqualValues(t, 3, peek(t, l, "k").Remaining, name)
		require.False(t, allowN(t, l, "k", 4).Allowed, name)
		require.True(t, allowN(t, l, "k", 3).Allowed, name)
		require.NoError(t, l.Refund(ctx, "k", math.MaxInt64))
		require.EqualValues(t, 10, peek(t, l, "k").Remaining, "%s: a refund never exceeds the limit", name)
		require.True(t, allowN(t, l, "k", 10).Allowed)
		require.NoError(t, l.Reset(ctx, "k"))
		require.EqualValues(t, 10, peek(t, l, "k").Remaining, name)

		never := allowN(t, l, "k", 11)
		require.Equal(t, ratelimit.Result{Limit: 10, RetryAfter: ratelimit.Never, Source: ratelimit.SourceLimit}, never)
		for _, n := range []int64{0, -1, math.MinInt64} {
			_, err := l.AllowN(ctx, "k", n)
			require.ErrorContains(t, err, "n must be")
			require.Error(t, l.Refund(ctx, "k", n))
			require.Error(t, l.WaitN(ctx, "k", n))
		}
		_, err := l.With(ratelimit.PerHour(0)).Allow(ctx, "k")
		require.ErrorContains(t, err, "Rate")

		// Any bytes are a key, and each is its own.
		for _, hostile := range []string{"", "%", "}", "{", "{}", "}{", "a}b", "{a}b", "\x00\xff", strings.Repeat("x", 10_000), "k:t", "*"} {
			require.EqualValues(t, 9, allowN(t, l, hostile, 1).Remaining, "%s %q", name, hostile)
		}

		// A tier has more of the same.
		require.True(t, allowN(t, l, "tier", 10).Allowed)
		gold := l.With(ratelimit.PerHour(100))
		require.Same(t, gold, l.With(ratelimit.PerHour(100)))
		require.EqualValues(t, 89, allowN(t, gold, "tier", 1).Remaining, name)
		require.False(t, allowN(t, l, "tier", 1).Allowed)

		// Several at once.
		request := func(key string, n int64) ratelimit.Request { return ratelimit.Request{Limiter: l, Key: key, N: n} }
		requests := []ratelimit.Request{request("m1", 1), request("m2", 10), request("m2", 1), request("m3", 11)}
		for i := range 50 {
			requests = append(requests, request("m"+strconv.Itoa(100+i), 2))
		}
		results, err := ratelimit.AllowMany(ctx, requests...)
		require.NoError(t, err)
		require.Len(t, results, len(requests))
		require.Equal(t, []bool{true, true, false, false}, []bool{results[0].Allowed, results[1].Allowed, results[2].Allowed, results[3].Allowed})
		require.Equal(t, ratelimit.Never, results[3].RetryAfter)
		for _, r := range results[4:] {
			require.EqualValues(t, 8, r.Remaining)
		}
	}
	_, err := ratelimit.AllowMany(ctx)
	require.NoError(t, err)

	// All or none, over all kinds.
	var all []ratelimit.Request
	for name, construct := range allAlgorithms {
		l := newLimiter(t, construct, client, ratelimit.PerHour(10), ratelimit.Options{Prefix: prefix, DenyCacheSize: -1})
		all = append(all, ratelimit.Request{Limiter: l, Key: "{acme}" + name, N: 4})
	}
	for i := range int64(2) {
		r, err := ratelimit.AllowAll(ctx, all...)
		require.NoError(t, err)
		require.True(t, r.Allowed)
		for _, one := range r.Results {
			require.True(t, one.Allowed)
			require.Equal(t, 6-4*i, one.Remaining)
		}
	}
	for i := range all {
		all[i].N = 2
	}
	all[2].N = 3
	r, err := ratelimit.AllowAll(ctx, all...)
	require.NoError(t, err)
	require.False(t, r.Allowed)
	require.Equal(t, r.Results[2].RetryAfter, r.RetryAfter)
	for i, one := range r.Results {
		require.Equal(t, i != 2, one.Allowed)
		require.EqualValues(t, 2, one.Remaining)
		require.EqualValues(t, 2, peek(t, all[i].Limiter, all[i].Key).Remaining, "a refused part leaves the others untouched")
	}
	_, err = ratelimit.AllowAll(ctx, all[0], all[0])
	require.ErrorContains(t, err, "one key")
	_, err = ratelimit.AllowAll(ctx, ratelimit.Request{})
	require.Error(t, err)
	if client.Mode() == rueidis.ClientModeCluster {
		other := all[1]
		other.Key = "elsewhere"
		_, err = ratelimit.AllowAll(ctx, all[0], other)
		require.ErrorIs(t, err, ratelimit.ErrCrossSlot)
	}
}

func TestRateLimit_AdmitsExactlyTheLimit(t *testing.T) {
	t.Parallel()
	const limit, clients = 1000, 4
	for name, construct := range allAlgorithms {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := redistest.Shared(t)
			prefix := redistest.Prefix(t)
			var mu sync.Mutex
			remaining := map[int64]bool{}
			var wg sync.WaitGroup
			for range clients {
				l := newLimiter(t, construct, server.Client(t), ratelimit.PerHour(limit), ratelimit.Options{Prefix: prefix})
				for range 64 {
					wg.Go(func() {
						for range 10 {
							r, err := l.Allow(t.Context(), "k")
							if err != nil {
								t.Error(err)
								return
							}
							if r.Allowed {
								mu.Lock()
								if remaining[r.Remaining] {
									t.Errorf("two calls were told that %d remain", r.Remaining)
								}
								remaining[r.Remaining] = true
								mu.Unlock()
							}
						}
					})
				}
			}
			wg.Wait()
			require.Len(t, remaining, limit)
			require.True(t, remaining[0])
			require.True(t, remaining[limit-1])
		})
	}
}

// TestRateLimit_MixedCostsInOneBatch has calls of different costs share round trips.
func TestRateLimit_MixedCostsInOneBatch(t *testing.T) {
	t.Parallel()
	for name, construct := range allAlgorithms {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLimiter(t, construct, redistest.Shared(t).Client(t), ratelimit.PerHour(5000), ratelimit.Options{DenyCacheSize: -1})
			var admitted, refunded atomic.Int64
			var wg sync.WaitGroup
			for w := range 64 {
				wg.Go(func() {
					rnd := rand.New(rand.NewPCG(1, uint64(w)))
					for range 20 {
						n := 1 + rnd.Int64N(9)
						ctx, cancel := context.WithCancel(t.Context())
						if rnd.IntN(4) == 0 {
							time.AfterFunc(time.Duration(rnd.IntN(1000))*time.Microsecond, cancel)
						}
						r, err := l.AllowN(ctx, "k", n)
						cancel()
						if err != nil {
							refunded.Add(1)
							continue
						}
						if r.Allowed {
							admitted.Add(n)
						}
					}
				})
			}
			wg.Wait()
			// What cancelled callers had taken has been given back, before or just after the others returned.
			require.Eventually(t, func() bool { return peek(t, l, "k").Remaining == 5000-admitted.Load() }, 10*time.Second, time.Millisecond)
			t.Logf("%d units admitted, %d calls cancelled", admitted.Load(), refunded.Load())
		})
	}
}

func TestRateLimit_RefusedCallsAndPeekWriteNothing(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t)
	for name, construct := range allAlgorithms {
		prefix := redistest.Prefix(t)
		l := newLimiter(t, construct, client, ratelimit.PerHour(10), ratelimit.Options{Prefix: prefix, DenyCacheSize: -1})
		require.True(t, allowN(t, l, "k", 8).Allowed)
		peek(t, l, "k")
		key := limitKey(prefix, name, time.Hour, "k")
		dump := func() string {
			s, err := do(t, client, key, "DUMP").ToString()
			require.NoError(t, err)
			at, err := do(t, client, key, "PEXPIRETIME").AsInt64()
			require.NoError(t, err)
			return fmt.Sprintf("%q %d", s, at)
		}
		before := dump()
		commands := redistest.Commands(t, server, func() {
			for range 10 {
				require.False(t, allowN(t, l, "k", 3).Allowed)
				require.EqualValues(t, 2, peek(t, l, "k").Remaining)
			}
			require.Equal(t, ratelimit.Never, allowN(t, l, "k", 11).RetryAfter)
		})
		require.EqualValues(t, 20, commands["evalsha"], "one round trip each, and none for what can never pass")
		for command := range commands {
			require.Contains(t, []string{"evalsha", "get", "getrange", "pexpiretime", "time"}, command)
		}
		require.Equal(t, before, dump())
	}
}

func TestRateLimit_AnAdmittedCallTakesFewCommands(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	for name, construct := range allAlgorithms {
		l := newLimiter(t, construct, server.Client(t), ratelimit.PerHour(1000), ratelimit.Options{})
		allowN(t, l, "k", 1)
		for _, n := range redistest.Commands(t, server, func() { allowN(t, l, "k", 1) }) {
			require.EqualValues(t, 1, n)
		}
		commands := redistest.Commands(t, server, func() { allowN(t, l, "k", 1) })
		most := 4
		if name == "fixed" {
			most = 5 // among them when the window ends
		}
		require.LessOrEqual(t, len(commands), most, "%v", commands)
	}
}

func TestRateLimit_MemoryIsBounded(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	for _, rate := range []int64{64, 65, 1000, 1e6, 1e12} {
		hooked, clock := withServerClock(client, time.Now())
		prefix := redistest.Prefix(t)
		l, err := ratelimit.NewSlidingWindow(hooked, ratelimit.PerMinute(rate), modelOptions(prefix))
		require.NoError(t, err)
		calls := min(rate, 300)
		for range calls {
			require.True(t, allowN(t, l, "user:1234567", rate/calls).Allowed)
			clock.advance(time.Minute / time.Duration(calls+1))
		}
		n, err := client.Do(t.Context(), client.B().MemoryUsage().Key(limitKey(prefix, "sliding", time.Minute, "user:1234567")).Samples(0).Build()).AsInt64()
		require.NoError(t, err)
		require.LessOrEqual(t, n, int64(1100), "rate %d", rate)
		require.Greater(t, n, int64(800), "rate %d: the test did not fill the window", rate)
	}
}

func TestRateLimit_EveryKeyHasATTL(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	for name, construct := range allAlgorithms {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, window := range []time.Duration{5 * time.Second, time.Hour, 30 * 24 * time.Hour} {
				prefix := redistest.Prefix(t)
				l := newLimiter(t, construct, client, ratelimit.Per(100, window), ratelimit.Options{Prefix: prefix, DenyCacheSize: -1})
				key := limitKey(prefix, name, window, "k")
				pttl := func() time.Duration {
					n, err := do(t, client, key, "PTTL").AsInt64()
					require.NoError(t, err)
					return time.Duration(n) * time.Millisecond
				}
				for i := range 30 {
					r := allowN(t, l, "k", int64(1+i%7))
					if i%5 == 4 {
						require.NoError(t, l.Refund(t.Context(), "k", 2))
					}
					require.Positive(t, pttl())
					require.LessOrEqual(t, pttl(), 2*window+2*window/64+time.Second)
					if name == "fixed" && i > 0 { // anchored at the first call
						require.LessOrEqual(t, pttl(), window)
						require.LessOrEqual(t, r.ResetAfter, window+time.Millisecond)
					}
				}
				// One that was lost comes back, and the key does not block for ever.
				require.False(t, allowN(t, l, "k", 100).Allowed)
				do(t, client, key, "PERSIST")
				left := peek(t, l, "k").Remaining
				require.Less(t, left, int64(100), "what was used still counts")
				require.Negative(t, pttl(), "a question changes nothing")
				if name == "fixed" { // the others know by their value when they end
					require.False(t, allowN(t, l, "k", 100).Allowed)
					require.Positive(t, pttl(), "a refusal sees to it")
					do(t, client, key, "PERSIST")
					require.NoError(t, l.Refund(t.Context(), "k", 1))
					require.Positive(t, pttl())
				}
				if window == 5*time.Second {
					require.Eventually(t, func() bool { return allowN(t, l, "k", 100).Allowed }, 20*time.Second, 10*time.Millisecond)
					require.Positive(t, pttl())
				}
			}
		})
	}
}

// TestRateLimit_AFixedWindowDoesNotMove is by the true clock: a window that moved with each call would never end.
func TestRateLimit_AFixedWindowDoesNotMove(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	l := newLimiter(t, ratelimit.NewFixedWindow, client, ratelimit.Per(1_000_000, 400*time.Millisecond), ratelimit.Options{})
	first := allowN(t, l, "k", 1)
	require.InDelta(t, 401, first.ResetAfter.Milliseconds(), 5)
	last := first.Remaining
	require.Eventually(t, func() bool {
		r := allowN(t, l, "k", 1)
		begun := r.Remaining > last
		last = r.Remaining
		return begun
	}, 10*time.Second, time.Millisecond)
}

func TestRateLimit_WindowsOfAMillisecond(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	for name, construct := range allAlgorithms {
		l := newLimiter(t, construct, client, ratelimit.Per(5, time.Millisecond), ratelimit.Options{})
		began := time.Now()
		var admitted int64
		for calls := 0; calls < 20 || time.Since(began) < 50*time.Millisecond; calls++ {
			if allowN(t, l, "k", 1).Allowed {
				admitted++
			}
		}
		ms := time.Since(began).Milliseconds() + 1
		require.LessOrEqual(t, admitted, 2*5*(ms+1), name)
		require.GreaterOrEqual(t, admitted, int64(10), name)
	}
}

// TestRateLimit_NoClientClock has nothing to fake: no time of the client goes over the wire.
func TestRateLimit_NoClientClock(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	for name, construct := range allAlgorithms {
		seen := &spy{}
		l := newLimiter(t, construct, seen.on(client), ratelimit.PerHour(10), ratelimit.Options{})
		allowN(t, l, "k", 3)
		peek(t, l, "k")
		require.NoError(t, l.Refund(t.Context(), "k", 1))
		for _, words := range seen.evals() {
			for _, word := range words[4:] {
				n, err := strconv.ParseInt(word, 10, 64)
				require.NoError(t, err)
				require.LessOrEqual(t, n, time.Hour.Microseconds(), "%s: %v", name, words)
			}
		}
		require.GreaterOrEqual(t, len(seen.evals()), 3)
	}
}

func TestRateLimit_AllowAllIsAtomic(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	opts := ratelimit.Options{Prefix: redistest.Prefix(t)}
	user := newLimiter(t, ratelimit.NewSlidingWindow, client, ratelimit.PerHour(5), opts)
	global := newLimiter(t, ratelimit.NewTokenBucket, client, ratelimit.Per(60, 24*time.Hour), opts)
	var admitted atomic.Int64
	perUser := make([]atomic.Int64, 20)
	var wg sync.WaitGroup
	for w := range 64 {
		wg.Go(func() {
			for i := range 20 {
				u := (w + i) % len(perUser)
				r, err := ratelimit.AllowAll(t.Context(), ratelimit.Request{Limiter: user, Key: strconv.Itoa(u), N: 1}, ratelimit.Request{Limiter: global, Key: "all", N: 1})
				if err != nil {
					t.Error(err)
					return
				}
				if r.Allowed {
					admitted.Add(1)
					perUser[u].Add(1)
				}
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 60, admitted.Load())
	for u := range perUser {
		require.LessOrEqual(t, perUser[u].Load(), int64(5))
		require.Equal(t, 5-perUser[u].Load(), peek(t, user, strconv.Itoa(u)).Remaining, "what was refused by the global limit took nothing from a user's")
	}
}

func TestRateLimit_CallsForOneKeyShareTrips(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr())
	l := newLimiter(t, ratelimit.NewSlidingWindow, server.Client(t, proxy.Through, redistest.OneConnection), ratelimit.PerHour(500), ratelimit.Options{})
	allowN(t, l, "k", 1)
	proxy.Latency(t, 50*time.Millisecond)
	const callers = 200
	var allowed atomic.Int64
	commands := redistest.Commands(t, server, func() {
		var wg sync.WaitGroup
		for range callers {
			wg.Go(func() {
				r, err := l.AllowN(t.Context(), "k", 1)
				if err == nil && r.Allowed {
					allowed.Add(1)
				}
			})
		}
		wg.Wait()
	})
	require.EqualValues(t, callers, allowed.Load())
	require.LessOrEqual(t, commands["evalsha"], int64(5))
	require.EqualValues(t, 500-callers-1, peek(t, l, "k").Remaining)
}

// TestRateLimit_CallsForManyKeysShareTrips has many callers, of more keys than fit into one script, at the same time.
func TestRateLimit_CallsForManyKeysShareTrips(t *testing.T) {
	t.Parallel()
	for name, construct := range allAlgorithms {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t)
			proxy := redistest.NewProxy(t, server.Addr())
			l := newLimiter(t, construct, server.Client(t, proxy.Through, redistest.OneConnection), ratelimit.PerHour(20), ratelimit.Options{DenyCacheSize: -1})
			allowN(t, l, "first", 1)
			proxy.Latency(t, 20*time.Millisecond)
			const keys, callers = 300, 1500
			admitted := make([]atomic.Int64, keys)
			commands := redistest.Commands(t, server, func() {
				var wg sync.WaitGroup
				for w := range callers {
					wg.Go(func() {
						n := int64(1 + w/keys%3*5) // 1, 6, 11, 1, 6: 25 of 20
						r, err := l.AllowN(t.Context(), strconv.Itoa(w%keys), n)
						if err != nil {
							t.Error(err)
						}
						if r.Allowed {
							admitted[w%keys].Add(n)
						}
					})
				}
				wg.Wait()
			})
			t.Logf("%d calls in %d scripts", callers, commands["evalsha"])
			require.Less(t, commands["evalsha"], int64(callers))
			proxy.Restore(t)
			for k := range keys {
				require.Equal(t, 20-admitted[k].Load(), peek(t, l, strconv.Itoa(k)).Remaining)
				require.GreaterOrEqual(t, admitted[k].Load(), int64(14))
			}
		})
	}
}

// TestRateLimit_WhatIsForeignIsReplaced also has callers of other keys share trips with those of foreign ones.
func TestRateLimit_WhatIsForeignIsReplaced(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	for name, construct := range allAlgorithms {
		prefix := redistest.Prefix(t)
		l := newLimiter(t, construct, client, ratelimit.PerHour(10), ratelimit.Options{Prefix: prefix})
		foreign := [][]string{{"SET", "x"}, {"SET", ""}, {"RPUSH", "x"}, {"HSET", "a", "b"}, {"SADD", "x"}, {"SET", strings.Repeat("x", 1000)}}
		for i, words := range foreign {
			do(t, client, limitKey(prefix, name, time.Hour, strconv.Itoa(i)), append([]string{words[0]}, words[1:]...)...)
		}
		for i := range foreign {
			require.EqualValues(t, 10, peek(t, l, strconv.Itoa(i)).Remaining, "%s %v", name, foreign[i])
		}
		var wg sync.WaitGroup
		for w := range 200 {
			wg.Go(func() {
				r, err := l.AllowN(t.Context(), strconv.Itoa(w%10), 3)
				if err != nil || r.Source == ratelimit.SourceFallback {
					t.Error(name, r, err)
				}
			})
		}
		wg.Wait()
		for k := range 10 {
			require.EqualValues(t, 1, peek(t, l, strconv.Itoa(k)).Remaining, name)
			ttl, err := do(t, client, limitKey(prefix, name, time.Hour, strconv.Itoa(k)), "PTTL").AsInt64()
			require.NoError(t, err)
			require.Positive(t, ttl)
		}
	}
}

func TestRateLimit_ACallerThatLeavesCancelsNobodyAndTakesNothing(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(context.Context) (context.Context, context.CancelFunc){
		"cancel": func(ctx context.Context) (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(ctx)
			time.AfterFunc(20*time.Millisecond, cancel)
			return ctx, cancel
		},
		"deadline": func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, 20*time.Millisecond)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t)
			proxy := redistest.NewProxy(t, server.Addr())
			l := newLimiter(t, ratelimit.NewTokenBucket, server.Client(t, proxy.Through, redistest.OneConnection), ratelimit.Per(1000, 24*time.Hour), ratelimit.Options{})
			allowN(t, l, "k", 1)
			proxy.Latency(t, 100*time.Millisecond)
			// The first finds no trip under way, the second leads a batch, the others are in it; every other one leaves.
			var taken, left atomic.Int64
			var wg sync.WaitGroup
			for i := range 40 {
				wg.Go(func() {
					ctx := t.Context()
					leaves := i%2 == 0
					if leaves {
						var cancel context.CancelFunc
						ctx, cancel = end(ctx)
						defer cancel()
					}
					r, err := l.Allow(ctx, "k")
					switch {
					case err == nil && r.Allowed: // the trip was made in the name of others too
						taken.Add(1)
					case leaves && ctx.Err() != nil:
						require.ErrorIs(t, err, ctx.Err())
						left.Add(1)
					default:
						t.Errorf("%+v %v", r, err)
					}
				})
			}
			wg.Wait()
			require.GreaterOrEqual(t, left.Load(), int64(15))
			require.GreaterOrEqual(t, taken.Load(), int64(20))
			require.Eventually(t, func() bool { return peek(t, l, "k").Remaining == 999-taken.Load() }, 10*time.Second, 10*time.Millisecond)
		})
	}
}

func TestRateLimit_DenyCacheSavesTripsAndNeverLies(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t)
	const maxAge = 300 * time.Millisecond
	opts := ratelimit.Options{Prefix: redistest.Prefix(t), DenyCacheMaxAge: time.Hour}
	l := newLimiter(t, ratelimit.NewSlidingWindow, client, ratelimit.PerHour(10), opts)
	short := opts
	short.DenyCacheMaxAge = maxAge
	other := newLimiter(t, ratelimit.NewSlidingWindow, client, ratelimit.PerHour(10), short)
	require.True(t, allowN(t, l, "k", 8).Allowed)
	refused := allowN(t, l, "k", 3)
	require.Empty(t, redistest.Commands(t, server, func() {
		for range 100 {
			r := allowN(t, l, "k", 3+rand.Int64N(7))
			require.False(t, r.Allowed)
			require.Equal(t, ratelimit.SourceDenyCache, r.Source)
			require.EqualValues(t, 2, r.Remaining)
			require.InDelta(t, refused.RetryAfter.Seconds(), r.RetryAfter.Seconds(), 20)
		}
	}))
	// Less may pass, and a tier's limit is another.
	require.True(t, allowN(t, l, "k", 2).Allowed)
	require.True(t, allowN(t, l.With(ratelimit.PerHour(20)), "k", 3).Allowed)
	require.NoError(t, l.Refund(t.Context(), "k", 3))
	// One's own Refund and Reset are seen at once.
	require.False(t, allowN(t, l, "k", 1).Allowed)
	require.NoError(t, l.Refund(t.Context(), "k", 1))
	require.True(t, allowN(t, l, "k", 1).Allowed)
	require.False(t, allowN(t, l, "k", 1).Allowed)
	require.NoError(t, l.Reset(t.Context(), "k"))
	require.True(t, allowN(t, l, "k", 10).Allowed)
	// Another's, after the maximum age.
	began := time.Now()
	require.False(t, allowN(t, other, "k", 1).Allowed)
	require.NoError(t, l.Reset(t.Context(), "k"))
	require.Eventually(t, func() bool { return allowN(t, other, "k", 1).Allowed }, 10*time.Second, time.Millisecond)
	require.Greater(t, time.Since(began), maxAge-10*time.Millisecond)

	// It is bounded, and then forgets rather than refuses.
	opts.DenyCacheSize = 1
	tiny := newLimiter(t, ratelimit.NewFixedWindow, client, ratelimit.PerHour(1), opts)
	for i := range 1000 {
		require.True(t, allowN(t, tiny, strconv.Itoa(i), 1).Allowed)
		require.False(t, allowN(t, tiny, strconv.Itoa(i), 1).Allowed)
	}
	// A refusal that is remembered ends with the window.
	brief := newLimiter(t, ratelimit.NewFixedWindow, client, ratelimit.Per(1, 50*time.Millisecond), opts)
	for range 5 {
		require.Eventually(t, func() bool { return allowN(t, brief, "k", 1).Allowed }, 5*time.Second, time.Millisecond)
	}
}

func TestRateLimit_Wait(t *testing.T) {
	t.Parallel()
	for name, construct := range allAlgorithms {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t)
			ctx := t.Context()
			l := newLimiter(t, construct, server.Client(t), ratelimit.Per(1, 10*time.Millisecond), ratelimit.Options{})
			require.ErrorIs(t, l.WaitN(ctx, "k", 2), ratelimit.ErrExceedsLimit)
			began := time.Now()
			const callers = 40
			commands := redistest.Commands(t, server, func() {
				var wg sync.WaitGroup
				for range callers {
					wg.Go(func() { require.NoError(t, l.Wait(ctx, "k")) })
				}
				wg.Wait()
			})
			took := time.Since(began)
			require.GreaterOrEqual(t, took, (callers-1)*10*time.Millisecond-5*time.Millisecond)
			t.Logf("%d callers in %v, %d round trips", callers, took, commands["evalsha"]+commands["eval"])
			require.LessOrEqual(t, commands["evalsha"], int64(6*callers), "no polling storm")
		})
	}
}

func TestRateLimit_WaitIsInOrderAndObeysItsContext(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	ctx := t.Context()
	l := newLimiter(t, ratelimit.NewSlidingWindow, client, ratelimit.Per(1, 2*time.Second), ratelimit.Options{})
	require.NoError(t, l.Wait(ctx, "k"))

	// Too early a deadline fails at once, whether somebody waits or not.
	tooEarly := func() {
		bounded, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		began := time.Now()
		err := l.Wait(bounded, "k")
		require.ErrorIs(t, err, ratelimit.ErrDeadline)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Less(t, time.Since(began), 700*time.Millisecond)
	}
	tooEarly()
	ended, cancelled := context.WithCancel(ctx)
	cancelled()
	require.ErrorIs(t, l.Wait(ended, "k"), context.Canceled)

	var order []int
	var mu sync.Mutex
	var wg sync.WaitGroup
	leave := make([]context.CancelFunc, 4)
	for i := range leave {
		waiting, cancel := context.WithCancel(ctx)
		leave[i] = cancel
		wg.Go(func() {
			defer cancel()
			err := l.Wait(waiting, "k")
			if i == 1 || i == 3 {
				require.ErrorIs(t, err, context.Canceled)
				return
			}
			require.NoError(t, err)
			mu.Lock()
			order = append(order, i)
			mu.Unlock()
		})
		if i == 0 {
			tooEarly()
		}
		<-time.After(20 * time.Millisecond) // let it join the line
	}
	leave[1]() // in the line
	leave[3]()
	wg.Wait()
	require.Equal(t, []int{0, 2}, order)
	require.Zero(t, peek(t, l, "k").Remaining)

	// The first of the line leaves while it sleeps: the next one's turn comes, and nothing was taken.
	l = newLimiter(t, ratelimit.NewSlidingWindow, client, ratelimit.Per(1, 700*time.Millisecond), ratelimit.Options{})
	require.NoError(t, l.Wait(ctx, "k"))
	first, cancel := context.WithCancel(ctx)
	failed := make(chan error, 1)
	go func() { failed <- l.Wait(first, "k") }()
	<-time.After(50 * time.Millisecond)
	second := make(chan error, 1)
	go func() { second <- l.Wait(ctx, "k") }()
	<-time.After(50 * time.Millisecond)
	cancel()
	require.ErrorIs(t, <-failed, context.Canceled)
	require.NoError(t, <-second)
}

func TestRateLimit_WaitKeepsNothingWhenCancelledUnderWay(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr())
	l := newLimiter(t, ratelimit.NewTokenBucket, server.Client(t, proxy.Through, redistest.OneConnection), ratelimit.Per(100, 30*24*time.Hour), ratelimit.Options{})
	peek(t, l, "k")
	proxy.Latency(t, 100*time.Millisecond)
	var taken [24]int64 // of keys, some alone in their trip and some not
	var wg sync.WaitGroup
	for k := range taken {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
			defer cancel()
			if k%3 > 0 {
				ctx, cancel = context.WithCancel(t.Context())
				time.AfterFunc(30*time.Millisecond, cancel)
			}
			if err := l.Wait(ctx, strconv.Itoa(k)); err == nil {
				taken[k]++
			} else {
				require.ErrorIs(t, err, ctx.Err())
			}
		})
	}
	wg.Wait()
	for k := range taken {
		require.Eventually(t, func() bool { return peek(t, l, strconv.Itoa(k)).Remaining == 100-taken[k] }, 10*time.Second, 10*time.Millisecond)
	}
}

func TestRateLimit_Hooks(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	var infos []ratelimit.DecisionInfo
	l := newLimiter(t, ratelimit.NewFixedWindow, client, ratelimit.PerHour(3), ratelimit.Options{Hooks: ratelimit.Hooks{
		Decision: func(_ context.Context, info ratelimit.DecisionInfo) { infos = append(infos, info) },
	}})
	allowN(t, l, "k", 2)
	allowN(t, l, "k", 2)
	allowN(t, l, "k", 3)
	allowN(t, l, "k", 4)
	_, err := ratelimit.AllowMany(t.Context(), ratelimit.Request{Limiter: l, Key: "k", N: 1})
	require.NoError(t, err)
	_, err = ratelimit.AllowAll(t.Context(), ratelimit.Request{Limiter: l, Key: "k", N: 2})
	require.NoError(t, err)
	var got []string
	for _, i := range infos {
		require.GreaterOrEqual(t, i.Took, time.Duration(0))
		got = append(got, fmt.Sprint(i.N, i.Result.Allowed, i.Result.Source))
	}
	require.Equal(t, []string{
		"2 true redis", "2 false redis", "3 false deny-cache", "4 false limit", "1 true redis", "2 false deny-cache",
	}, got)
	require.True(t, slices.ContainsFunc(infos, func(i ratelimit.DecisionInfo) bool { return i.Took > 0 }))
}
