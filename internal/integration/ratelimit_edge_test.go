package integration

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/redis/rueidis/rueidishook"
	"github.com/stretchr/testify/require"

	"github.com/redispatterns/redispatterns/internal/integration/redistest"
	"github.com/redispatterns/redispatterns/ratelimit"
)

// TestRateLimit_WhatWasTakenCountsForAnyBurst has a bucket's tokens taken under one limit and asked for under others.
func TestRateLimit_WhatWasTakenCountsForAnyBurst(t *testing.T) {
	t.Parallel()
	client, clock := withServerClock(redistest.Shared(t).Client(t), time.Now())
	limit := func(rate, burst int64) ratelimit.Limit {
		return ratelimit.Limit{Rate: rate, Window: 10 * time.Second, Burst: burst}
	}
	big := newLimiter(t, ratelimit.NewTokenBucket, client, limit(100, 100), ratelimit.Options{DenyCacheSize: -1})
	small := big.With(limit(100, 5))

	require.True(t, allowN(t, big, "k", 100).Allowed)
	r := allowN(t, small, "k", 1)
	require.False(t, r.Allowed, "100 were taken")
	require.Zero(t, r.Remaining)
	require.Equal(t, 9600*time.Millisecond, r.RetryAfter)
	clock.advance(r.RetryAfter - time.Microsecond)
	require.False(t, allowN(t, small, "k", 1).Allowed)
	clock.advance(time.Microsecond)
	require.True(t, allowN(t, small, "k", 1).Allowed)
	require.EqualValues(t, 95, peek(t, big, "k").Remaining, "96 had dripped in")

	// Units that are given back are as many as are given, whoever gives them.
	require.True(t, allowN(t, big, "refund", 100).Allowed)
	require.NoError(t, small.Refund(t.Context(), "refund", 5))
	require.EqualValues(t, 5, peek(t, big, "refund").Remaining)
	require.True(t, allowN(t, small, "grown", 3).Allowed)
	require.EqualValues(t, 97, peek(t, big, "grown").Remaining)

	// However long it takes until a slow limit has forgotten what was taken under a fast one.
	fast := ratelimit.Limit{Rate: 1e12, Window: 366 * 24 * time.Hour}
	slow := ratelimit.Limit{Rate: 1, Window: 366 * 24 * time.Hour}
	l := newLimiter(t, ratelimit.NewTokenBucket, client, fast, ratelimit.Options{DenyCacheSize: -1})
	require.True(t, allowN(t, l, "k", 1e12).Allowed)
	require.NoError(t, l.With(slow).Refund(t.Context(), "k", 1))
	r = allowN(t, l.With(slow), "k", 1)
	require.False(t, r.Allowed)
	require.Greater(t, r.RetryAfter, 140*366*24*time.Hour)
	require.EqualValues(t, 1, peek(t, l, "k").Remaining)
}

// TestRateLimit_NumbersThatAreForeignAreReplaced is about what Lua takes for a number and INCRBY does not.
func TestRateLimit_NumbersThatAreForeignAreReplaced(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	prefix := redistest.Prefix(t)
	l := newLimiter(t, ratelimit.NewFixedWindow, client, ratelimit.PerHour(10), ratelimit.Options{Prefix: prefix})
	for i, value := range []string{"12.5", "5.0", "0x10", " 5", "5 ", "007", "1e1", "nan", "-nan", "inf", "-5", "1e300", "99999999999999999999"} {
		id := strconv.Itoa(i)
		key := limitKey(prefix, "fixed", time.Hour, id)
		do(t, client, key, "SET", value)
		require.EqualValues(t, 10, peek(t, l, id).Remaining, "%q", value)
		require.NoError(t, l.Refund(t.Context(), id, 1), "%q", value)
		require.EqualValues(t, 9, allowN(t, l, id, 1).Remaining, "%q", value)
		require.EqualValues(t, 8, allowN(t, l, id, 1).Remaining, "%q", value)
		ttl, err := do(t, client, key, "PTTL").AsInt64()
		require.NoError(t, err)
		require.Positive(t, ttl, "%q", value)
	}
}

// slotsDown is a hook that fails what is for the first quarter of a cluster's slots.
type slotsDown struct {
	rueidishook.Hook
	failed atomic.Int64
}

func (h *slotsDown) Do(client rueidis.Client, ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	if cmd.Slot() < 4096 {
		h.failed.Add(1)
		ended, cancel := context.WithDeadline(ctx, time.Now())
		defer cancel()
		ctx = ended
	}
	return client.Do(ctx, cmd)
}

// TestRateLimit_ProbesOfALostNodeAreNoNewsOfOthers asks for keys of a node that is gone and for hardly any other.
func TestRateLimit_ProbesOfALostNodeAreNoNewsOfOthers(t *testing.T) {
	t.Parallel()
	direct := redistest.SharedCluster(t).Client(t)
	hook := &slotsDown{}
	prefix := redistest.Prefix(t)
	l := newLimiter(t, ratelimit.NewFixedWindow, rueidishook.WithHook(direct, hook), ratelimit.PerHour(1_000_000), ratelimit.Options{
		Prefix: prefix, Timeout: 300 * time.Millisecond,
	})
	slot := func(id string) uint16 {
		get := direct.B().Get().Key(limitKey(prefix, "fixed", time.Hour, id)).Build()
		return get.Slot()
	}
	find := func(from, to uint16) string {
		for i := 0; ; i++ {
			if s := slot(strconv.Itoa(i)); s >= from && s < to {
				return strconv.Itoa(i)
			}
		}
	}
	lost, well := find(0, 4096), find(8192, 16384)
	allowN(t, l, well, 1)
	require.Eventually(t, func() bool {
		_, err := l.Allow(t.Context(), lost)
		require.Error(t, err)
		return hook.failed.Load() >= 3+7 // calls and probes, for more than two Timeouts
	}, 10*time.Second, time.Millisecond)
	_, err := l.Allow(t.Context(), lost)
	require.ErrorIs(t, err, ratelimit.ErrUnavailable)
	require.True(t, allowN(t, l, well, 1).Allowed)
}

// holder is a hook that keeps replies back while it is on.
type holder struct {
	rueidishook.Hook
	on       atomic.Bool
	held     chan struct{} // gets one for each, of the first hundred
	release  chan struct{} // takes one for each, or is closed
	finished atomic.Int64
}

func newHolder() *holder {
	return &holder{held: make(chan struct{}, 100), release: make(chan struct{})}
}

func (h *holder) Do(client rueidis.Client, ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	hold := h.on.Load()
	r := client.Do(ctx, cmd)
	if hold {
		select {
		case h.held <- struct{}{}:
		default: // nobody counts so many
		}
		<-h.release
	}
	h.finished.Add(1)
	return r
}

// warm has Redis know the script of l.
func (h *holder) warm(t *testing.T, l *ratelimit.Limiter) {
	t.Helper()
	allowN(t, l, "warm", 1)
	h.on.Store(true)
}

// notHeld fails the test if something takes so long that it waits for what is held.
func notHeld(t *testing.T, done <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(7 * time.Second):
		require.Fail(t, what)
	}
}

// TestRateLimit_GivesBackToNothingElse has a caller leave between Redis' decision and its answer, and others take units
// before those of the first are given back.
func TestRateLimit_GivesBackToNothingElse(t *testing.T) {
	t.Parallel()
	const ms = time.Millisecond
	direct := redistest.Shared(t).Client(t)
	for name, c := range map[string]struct {
		algorithm     string
		rate          int64
		resolution    int
		taken         int64         // by the caller that leaves
		after         time.Duration // of that
		others        int64         // units that others take then
		before, given int64         // what is left then, and more by giving back
	}{
		"fixed, at once":                      {algorithm: "fixed", rate: 2, taken: 1, before: 1, given: 1},
		"fixed, same window":                  {algorithm: "fixed", rate: 2, taken: 1, after: 60 * ms, others: 1, before: 0, given: 1},
		"fixed, next window":                  {algorithm: "fixed", rate: 2, taken: 1, after: 150 * ms, others: 2, before: 0, given: 0},
		"fixed, next window, not begun":       {algorithm: "fixed", rate: 2, taken: 2, after: 150 * ms, before: 2, given: 0},
		"sliding, at once":                    {algorithm: "sliding", rate: 2, taken: 1, before: 1, given: 1},
		"sliding, an older entry":             {algorithm: "sliding", rate: 3, taken: 2, after: 60 * ms, others: 1, before: 0, given: 2},
		"sliding, the same step":              {algorithm: "sliding", rate: 3, resolution: 1, taken: 2, others: 1, before: 0, given: 2},
		"sliding, an entry that has ended":    {algorithm: "sliding", rate: 2, taken: 1, after: 100 * ms, others: 2, before: 0, given: 0},
		"approximate, at once":                {algorithm: "approximate", rate: 4, taken: 2, before: 2, given: 2},
		"approximate, same window":            {algorithm: "approximate", rate: 4, taken: 2, after: 60 * ms, others: 2, before: 0, given: 2},
		"approximate, as the window before":   {algorithm: "approximate", rate: 4, taken: 2, after: 150 * ms, others: 3, before: 0, given: 1},
		"approximate, window before the last": {algorithm: "approximate", rate: 4, taken: 2, after: 210 * ms, others: 4, before: 0, given: 0},
		"bucket, at once":                     {algorithm: "bucket", rate: 4, taken: 2, before: 2, given: 2},
		"bucket, a part has dripped in":       {algorithm: "bucket", rate: 4, taken: 2, after: 24 * ms, before: 2, given: 2},
		"bucket, one has dripped in":          {algorithm: "bucket", rate: 4, taken: 2, after: 25 * ms, others: 3, before: 0, given: 1},
		"bucket, was full":                    {algorithm: "bucket", rate: 4, taken: 2, after: 50 * ms, others: 4, before: 0, given: 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// At the beginning of a step.
			clocked, clock := withServerClock(direct, time.Now().Truncate(time.Second).Add(time.Second))
			hold := newHolder()
			limit := ratelimit.Per(c.rate, 100*ms)
			opts := ratelimit.Options{Prefix: redistest.Prefix(t), Resolution: c.resolution, DenyCacheSize: -1}
			l := newLimiter(t, allAlgorithms[c.algorithm], rueidishook.WithHook(clocked, hold), limit, opts)
			others := newLimiter(t, allAlgorithms[c.algorithm], clocked, limit, opts)

			hold.warm(t, l)
			ctx, leave := context.WithTimeout(t.Context(), 5*time.Second) // less than Timeout: not to be waited for
			defer leave()
			failed := make(chan error)
			go func() {
				_, err := l.AllowN(ctx, "k", c.taken)
				failed <- err
			}()
			<-hold.held
			hold.on.Store(false)
			leave()
			require.ErrorIs(t, <-failed, context.Canceled)
			clock.advance(c.after)
			if c.others > 0 {
				require.True(t, allowN(t, others, "k", c.others).Allowed)
			}
			require.Equal(t, c.before, peek(t, others, "k").Remaining)
			sent := hold.finished.Load()
			close(hold.release)
			require.Eventually(t, func() bool { return hold.finished.Load() >= sent+2 }, 10*time.Second, ms) // and gives back
			require.Equal(t, c.before+c.given, peek(t, others, "k").Remaining)
			if name == "sliding, an older entry" { // the others' unit counts for as long as it does
				require.True(t, allowN(t, others, "k", 2).Allowed)
				clock.advance(99 * ms)
				require.False(t, allowN(t, others, "k", 1).Allowed)
				clock.advance(ms)
				require.True(t, allowN(t, others, "k", 3).Allowed)
			}
		})
	}
}

// TestRateLimit_ARunThatPassesInPartWaitsForTheOldestCall has calls of one key come together, and begin a new entry of the
// window while there is just one.
func TestRateLimit_ARunThatPassesInPartWaitsForTheOldestCall(t *testing.T) {
	t.Parallel()
	clocked, clock := withServerClock(redistest.Shared(t).Client(t), time.Now())
	hold := newHolder()
	l := newLimiter(t, ratelimit.NewSlidingWindow, rueidishook.WithHook(clocked, hold), ratelimit.PerMinute(10), ratelimit.Options{DenyCacheSize: -1})
	hold.warm(t, l)
	results := make(chan ratelimit.Result, 21)
	allow := func() {
		r, err := l.Allow(t.Context(), "k")
		if err != nil {
			t.Error(err)
		}
		results <- r
	}
	go allow()
	<-hold.held
	hold.on.Store(false)
	clock.advance(50 * time.Second)
	for range 20 {
		go allow()
	}
	require.NoError(t, after(t.Context(), 50*time.Millisecond)) // let them join
	close(hold.release)
	admitted := 0
	for range cap(results) {
		if r := <-results; r.Allowed {
			admitted++
		} else {
			require.Equal(t, 10*time.Second, r.RetryAfter)
		}
	}
	require.Equal(t, 10, admitted)
	clock.advance(10*time.Second - time.Microsecond)
	require.False(t, allowN(t, l, "k", 1).Allowed)
	clock.advance(time.Microsecond)
	require.True(t, allowN(t, l, "k", 1).Allowed)
}

// TestRateLimit_ALeaderDoesNotWaitForWhatOthersAreGivenBack holds the trip that gives back.
func TestRateLimit_ALeaderDoesNotWaitForWhatOthersAreGivenBack(t *testing.T) {
	t.Parallel()
	hold := newHolder()
	client := rueidishook.WithHook(redistest.Shared(t).Client(t), hold)
	l := newLimiter(t, ratelimit.NewFixedWindow, client, ratelimit.PerHour(1000), ratelimit.Options{})
	hold.warm(t, l)
	var wg sync.WaitGroup
	allow := func(ctx context.Context) <-chan struct{} {
		done := make(chan struct{})
		wg.Go(func() {
			defer close(done)
			_, err := l.Allow(ctx, "k")
			require.ErrorIs(t, err, ctx.Err())
		})
		<-time.After(50 * time.Millisecond) // let it join
		return done
	}
	first := allow(t.Context())
	<-hold.held
	leader := allow(t.Context())
	ctx, leave := context.WithCancel(t.Context())
	const leaving = 20
	gone := make([]<-chan struct{}, leaving)
	for i := range gone {
		gone[i] = allow(ctx)
	}
	hold.release <- struct{}{}
	notHeld(t, first, "its trip is over")
	<-hold.held // the trip of the leader and those that leave
	leave()
	for _, done := range gone {
		notHeld(t, done, "it has left")
	}
	before := hold.finished.Load()
	hold.release <- struct{}{}
	<-hold.held // what gives back
	notHeld(t, leader, "its trip is over, but not that which gives back")
	hold.on.Store(false)
	close(hold.release)
	wg.Wait()
	require.Eventually(t, func() bool { return hold.finished.Load() == before+2 }, 10*time.Second, time.Millisecond, "in one trip")
	require.EqualValues(t, 998, peek(t, l, "k").Remaining)
}

// TestRateLimit_AFullBatchObeysDeadlines has more callers of different keys than fit into the scripts under way and the
// next ones.
func TestRateLimit_AFullBatchObeysDeadlines(t *testing.T) {
	t.Parallel()
	hold := newHolder()
	client := rueidishook.WithHook(redistest.Shared(t).Client(t), hold)
	l := newLimiter(t, ratelimit.NewFixedWindow, client, ratelimit.PerHour(10), ratelimit.Options{})
	hold.warm(t, l)
	const callers = 1500
	done := make(chan struct{})
	go func() {
		defer close(done)
		var wg sync.WaitGroup
		for i := range callers {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
				defer cancel()
				if r, err := l.Allow(ctx, strconv.Itoa(i)); !errors.Is(err, context.DeadlineExceeded) {
					t.Error(r, err)
				}
			})
		}
		wg.Wait()
	}()
	notHeld(t, done, "all have left")
	hold.on.Store(false)
	close(hold.release)
	for i := range callers {
		require.Eventually(t, func() bool { return peek(t, l, strconv.Itoa(i)).Remaining == 10 }, 10*time.Second, time.Millisecond)
	}
}

// TestRateLimit_ARefusalThatIsOlderThanARefundIsForgotten holds the refusal back until there is room again.
func TestRateLimit_ARefusalThatIsOlderThanARefundIsForgotten(t *testing.T) {
	t.Parallel()
	for name, makeRoom := range map[string]func(context.Context, *ratelimit.Limiter) error{
		"Refund": func(ctx context.Context, l *ratelimit.Limiter) error { return l.Refund(ctx, "k", 1) },
		"Reset":  func(ctx context.Context, l *ratelimit.Limiter) error { return l.Reset(ctx, "k") },
	} {
		hold := newHolder()
		client := rueidishook.WithHook(redistest.Shared(t).Client(t), hold)
		l := newLimiter(t, ratelimit.NewSlidingWindow, client, ratelimit.PerHour(1), ratelimit.Options{DenyCacheMaxAge: time.Hour, Prefix: redistest.Prefix(t)})
		require.True(t, allowN(t, l, "k", 1).Allowed)
		hold.on.Store(true)
		refused := make(chan ratelimit.Result)
		go func() {
			r, _ := l.Allow(t.Context(), "k")
			refused <- r
		}()
		<-hold.held
		hold.on.Store(false)
		require.NoError(t, makeRoom(t.Context(), l))
		close(hold.release)
		require.Equal(t, ratelimit.SourceRedis, (<-refused).Source)
		require.True(t, allowN(t, l, "k", 1).Allowed, name)
	}
}

func TestRateLimit_AllowAllTakesNothingForACallerThatLeaves(t *testing.T) {
	t.Parallel()
	hold := newHolder()
	client := rueidishook.WithHook(redistest.Shared(t).Client(t), hold)
	prefix := redistest.Prefix(t)
	var requests []ratelimit.Request
	for name, construct := range allAlgorithms {
		l := newLimiter(t, construct, client, ratelimit.PerHour(10), ratelimit.Options{Prefix: prefix})
		requests = append(requests, ratelimit.Request{Limiter: l, Key: name, N: 3})
	}
	for range 2 { // at first Redis may not have the script
		r, err := ratelimit.AllowAll(t.Context(), requests...)
		require.NoError(t, err)
		require.True(t, r.Allowed)
	}
	hold.on.Store(true)
	ctx, leave := context.WithTimeout(t.Context(), 5*time.Second) // less than Timeout: not to be waited for
	var failed error
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, failed = ratelimit.AllowAll(ctx, requests...)
	}()
	<-hold.held
	hold.on.Store(false)
	for _, r := range requests {
		require.EqualValues(t, 1, peek(t, r.Limiter, r.Key).Remaining, "Redis has decided")
	}
	leave()
	notHeld(t, gone, "it has left")
	require.ErrorIs(t, failed, context.Canceled)
	close(hold.release)
	for _, r := range requests {
		require.Eventually(t, func() bool { return peek(t, r.Limiter, r.Key).Remaining == 4 }, 10*time.Second, time.Millisecond)
	}
	_, err := ratelimit.AllowAll(ctx, requests...)
	require.ErrorIs(t, err, context.Canceled)
	require.EqualValues(t, 4, peek(t, requests[0].Limiter, requests[0].Key).Remaining)
}
