package integration

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/redis/rueidis/rueidishook"
	"github.com/stretchr/testify/require"

	"github.com/redispatterns/redispatterns/internal/integration/redistest"
	"github.com/redispatterns/redispatterns/lock"
)

// gate counts commands, and while it is shut keeps those for which shut reports true until they are let through. The one
// who sent them gets the end of its patience; they arrive all the same.
type gate struct {
	redistest.PassThrough
	sent *atomic.Int64
	shut func(args []string) bool
	open chan struct{}
	wg   *sync.WaitGroup
	came func(rueidis.RedisResult) // is told the replies to them, if it is set
}

func (g gate) Do(client rueidis.Client, ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	g.sent.Add(1)
	if !g.shut(cmd.Commands()) {
		return client.Do(ctx, cmd)
	}
	late := client.B().Arbitrary(slices.Clone(cmd.Commands())...).Build()
	got := make(chan rueidis.RedisResult, 1)
	g.wg.Go(func() {
		<-g.open
		r := client.Do(context.WithoutCancel(ctx), late)
		if g.came != nil {
			g.came(r)
		}
		got <- r
	})
	select {
	case r := <-got:
		return r
	case <-ctx.Done():
		return client.Do(ctx, cmd) // which is not sent
	}
}

func names(n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = "name" + strconv.Itoa(i)
	}
	return names
}

// Locks and unlocks of different names that come at a time share round trips: four are under way, and the rest go in one.
func TestLock_ManyAtATimeShareRoundTrips(t *testing.T) {
	t.Parallel()
	var held atomic.Bool
	g := gate{sent: &atomic.Int64{}, open: make(chan struct{}), wg: &sync.WaitGroup{}, shut: func([]string) bool { return held.Load() }}
	shared := redistest.Shared(t)
	l := newLocker(t, rueidishook.WithHook(shared.Client(t), g), lock.Options{Prefix: redistest.Prefix(t)})
	require.NoError(t, acquire(t, l, "warm up").Unlock(t.Context()))
	const n = 40
	all := names(n)
	held.Store(true)
	g.sent.Store(0)
	got := make([]<-chan acquisition, n)
	for i, name := range all {
		got[i] = lockInBackground(t, l, name)
	}
	require.Eventually(t, func() bool { return g.sent.Load() == 4 }, 5*time.Second, time.Millisecond)
	require.NoError(t, after(t.Context(), 20*time.Millisecond))
	require.Equal(t, int64(4), g.sent.Load())
	held.Store(false)
	close(g.open)
	locks, fences := make([]*lock.Lock, n), map[int64]int{}
	for i := range got {
		a := <-got[i]
		require.NoError(t, a.err)
		require.NoError(t, a.Err())
		locks[i] = a.Lock
		fences[a.Fence()]++
	}
	require.LessOrEqual(t, g.sent.Load(), int64(9), "four, then at most one for each that ends, and a script that is not known")
	var wg sync.WaitGroup
	for _, lk := range locks {
		wg.Go(func() {
			if err := lk.Unlock(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	direct := newLocker(t, shared.Client(t), lock.Options{Prefix: redistest.Prefix(t)})
	for _, name := range all {
		requireFree(t, direct, name)
	}
}

// What waits for others to go with is not sent if its caller has gone, and a release hands the lock on all the same.
func TestLock_ManyAtATimeWait(t *testing.T) {
	t.Parallel()
	var held, sawGone atomic.Bool
	g := gate{sent: &atomic.Int64{}, open: make(chan struct{}), wg: &sync.WaitGroup{}, shut: func(args []string) bool {
		// A release has three keys and two arguments: that is how it is given up.
		if len(args) != 8 && slices.ContainsFunc(args, func(a string) bool { return strings.HasSuffix(a, "{gone}") }) {
			sawGone.Store(true)
		}
		return held.Load()
	}}
	shared, opts := redistest.Shared(t), lock.Options{Prefix: redistest.Prefix(t)}
	l, other := newLocker(t, rueidishook.WithHook(shared.Client(t), g), opts), newLocker(t, shared.Client(t), opts)
	lk := acquire(t, l, "name")
	waiting := lockInBackground(t, other, "name")
	requireWaiting(t, other, "name", 1)
	held.Store(true)
	g.sent.Store(0)
	var got [4]<-chan acquisition
	for i := range got {
		got[i] = lockInBackground(t, l, names(4)[i])
	}
	require.Eventually(t, func() bool { return g.sent.Load() == 4 }, 5*time.Second, time.Millisecond)
	unlocked := make(chan error, 1)
	go func() { unlocked <- lk.Unlock(t.Context()) }()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := l.Lock(ctx, "gone")
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Empty(t, unlocked)
	held.Store(false)
	began := time.Now()
	close(g.open)
	require.NoError(t, <-unlocked)
	next := <-waiting
	require.NoError(t, next.err)
	require.Less(t, next.at.Sub(began), recovery)
	require.NoError(t, next.Unlock(t.Context()))
	for i := range got {
		a := <-got[i]
		require.NoError(t, a.err)
		require.NoError(t, a.Unlock(t.Context()))
	}
	require.False(t, sawGone.Load())
}

// What gathers meets locks that are held, waited for, lost, given up, and keys that are something else.
func TestLock_ManyAtATimeExclude(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr())
	proxy.Latency(t, time.Millisecond)
	prefix := redistest.Prefix(t)
	admin := server.Client(t)
	const foreign = "foreign"
	send(t, admin, "HSET", lockKey(prefix, foreign), "field", "value")
	all := names(48)
	sections := make([]section, len(all))
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	var refused, givenUp, tried atomic.Int64
	for range 2 {
		l := newLocker(t, server.Client(t, proxy.Through), lock.Options{Prefix: prefix})
		for range 64 {
			wg.Go(func() {
				for ctx.Err() == nil {
					var lk *lock.Lock
					var err error
					var heldBy *lock.HeldError
					i := rand.N(len(all))
					switch rand.N(20) {
					case 0:
						_, err = l.Lock(ctx, foreign)
						if err == nil || ctx.Err() == nil && errors.Is(err, lock.ErrLost) {
							t.Error("expected WRONGTYPE, got", err)
						}
						refused.Add(1)
						continue
					case 1:
						brief, done := context.WithTimeout(ctx, rand.N(3*time.Millisecond))
						lk, err = l.Lock(brief, all[i])
						done()
						if errors.Is(err, context.DeadlineExceeded) {
							givenUp.Add(1)
							continue
						}
					case 2:
						lk, err = l.TryLock(ctx, all[i])
						if errors.As(err, &heldBy) {
							tried.Add(1)
							continue
						}
					default:
						lk, err = l.Lock(ctx, all[i])
					}
					if ctx.Err() != nil && err != nil {
						return
					}
					if !errors.Is(err, nil) {
						t.Error(err)
						return
					}
					if err := sections[i].enter(lk.Fence(), func() {}); err != nil {
						t.Error(err)
						return
					}
					if err := lk.Unlock(ctx); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
	}
	wg.Wait()
	var entered int64
	for i := range sections {
		entered += sections[i].entered.Load()
	}
	t.Log(entered, "entered,", refused.Load(), "refused,", givenUp.Load(), "given up,", tried.Load(), "held by another")
	require.Greater(t, entered, int64(100))
	for _, n := range []*atomic.Int64{&refused, &givenUp, &tried} {
		require.Positive(t, n.Load())
	}
	direct := newLocker(t, admin, lock.Options{Prefix: prefix})
	began := time.Now()
	for _, name := range all {
		requireFree(t, direct, name)
	}
	require.Less(t, time.Since(began), 2*recovery)
}

// What waits for others to go with must not be sent once its caller has gone.
func TestLock_ManyAtATimeGiveUp(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr())
	const ttl = 2 * time.Second
	l := newLocker(t, server.Client(t, proxy.Through), lock.Options{TTL: ttl})
	direct := newLocker(t, server.Client(t), lock.Options{TTL: ttl})
	all := names(100)
	held := make([]*lock.Lock, 20)
	for i := range held {
		held[i] = acquire(t, l, "held"+strconv.Itoa(i))
	}
	proxy.BlackHole(t)
	began := time.Now()
	var wg sync.WaitGroup
	for i, name := range all {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*20*time.Millisecond)
			defer cancel()
			_, err := l.Lock(ctx, name)
			if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, lock.ErrSlow) {
				t.Error("expected a time-out, got", err)
			}
		})
	}
	for _, lk := range held {
		wg.Go(func() {
			if lk.Unlock(t.Context()) == nil {
				t.Error("nobody can have heard of the release")
			}
		})
	}
	wg.Wait()
	require.Less(t, time.Since(began), 2*ttl+recovery)
	proxy.Restore(t)
	began = time.Now()
	for _, name := range all {
		requireFree(t, direct, name)
	}
	require.Less(t, time.Since(began), recovery)
	require.NoError(t, acquire(t, l, all[0]).Unlock(t.Context()))
}

// On a full server what is released goes, and who comes is told.
func TestLock_ManyAtATimeOnAFullServer(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, "--maxmemory-policy", "noeviction")
	proxy := redistest.NewProxy(t, server.Addr())
	proxy.Latency(t, 2*time.Millisecond)
	l := newLocker(t, server.Client(t, proxy.Through), lock.Options{})
	all := names(30)
	held := make([]*lock.Lock, len(all))
	for i, name := range all {
		held[i] = acquire(t, l, name)
	}
	admin := server.Client(t)
	send(t, admin, "CONFIG", "SET", "maxmemory", "1")
	var wg sync.WaitGroup
	for i, lk := range held {
		wg.Go(func() {
			if err := lk.Unlock(t.Context()); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			if _, err := l.Lock(t.Context(), "new"+strconv.Itoa(i)); err == nil || !strings.Contains(err.Error(), "OOM") {
				t.Error("expected OOM, got", err)
			}
		})
	}
	wg.Wait()
	direct := newLocker(t, admin, lock.Options{})
	for _, name := range all {
		requireFree(t, direct, name)
	}
	send(t, admin, "CONFIG", "SET", "maxmemory", "0")
	require.NoError(t, acquire(t, l, all[0]).Unlock(t.Context()))
}

// The command that acquires may come after the one that gives it up, on another connection.
func TestLock_AGivenUpCommandComesLate(t *testing.T) {
	t.Parallel()
	var shut atomic.Bool
	var fence string
	g := gate{
		sent: &atomic.Int64{}, open: make(chan struct{}), wg: &sync.WaitGroup{},
		shut: func([]string) bool { return shut.CompareAndSwap(true, false) },
		came: func(r rueidis.RedisResult) { fence, _ = r.ToString() },
	}
	prefix := redistest.Prefix(t)
	shared := redistest.Shared(t)
	l := newLocker(t, rueidishook.WithHook(shared.Client(t), g), lock.Options{Prefix: prefix})
	direct := newLocker(t, shared.Client(t), lock.Options{Prefix: prefix})
	require.NoError(t, acquire(t, l, "name").Unlock(t.Context()))
	shut.Store(true)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	g.sent.Store(0)
	_, err := l.Lock(ctx, "name")
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Eventually(t, func() bool { return g.sent.Load() >= 2 }, 5*time.Second, time.Millisecond, "it is given up")
	require.NoError(t, after(t.Context(), 10*time.Millisecond))
	close(g.open)
	g.wg.Wait()
	require.NotEmpty(t, fence, "it has locked")
	began := time.Now()
	requireFree(t, direct, "name")
	require.Less(t, time.Since(began), recovery)
}

// slowly delays commands for as long as delay says, and honours the ctx, as a dial or a limiter does: what is late is not sent.
type slowly struct {
	redistest.PassThrough
	delay func(args []string) time.Duration
}

func (s slowly) Do(client rueidis.Client, ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	if d := s.delay(cmd.Commands()); d > 0 {
		select {
		case <-time.After(d):
		case <-ctx.Done():
		}
	}
	return client.Do(ctx, cmd)
}

func isGathered(args []string) bool { return args[0] == "EVALSHA" && args[2] != "3" }

func mentions(args []string, sub string) bool {
	return slices.ContainsFunc(args, func(a string) bool { return strings.Contains(a, sub) })
}

// A command that takes others along is sent late, after its caller has given up: it locks for nobody.
func TestLock_ManyAtATimeComeLate(t *testing.T) {
	t.Parallel()
	const ( // of the first four, and of the one that the next goes in
		first  = 100 * time.Millisecond
		second = 1300 * time.Millisecond // later than the last time that what was given up is released
	)
	var on atomic.Bool
	h := slowly{delay: func(args []string) time.Duration {
		switch {
		case on.Load() && mentions(args, "{first"):
			return first
		case on.Load() && mentions(args, "{victim") && isGathered(args):
			return second
		}
		return 0
	}}
	shared, opts := redistest.Shared(t), lock.Options{Prefix: redistest.Prefix(t)}
	l, direct := newLocker(t, rueidishook.WithHook(shared.Client(t), h), opts), newLocker(t, shared.Client(t), opts)
	require.NoError(t, acquire(t, l, "warm up").Unlock(t.Context()))
	on.Store(true)
	for i := range 4 {
		lockInBackground(t, l, "first"+strconv.Itoa(i))
	}
	require.NoError(t, after(t.Context(), first/2))
	ctx, cancel := context.WithTimeout(t.Context(), 3*first)
	defer cancel()
	_, err := l.Lock(ctx, "victim")
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NoError(t, after(t.Context(), second))
	began := time.Now()
	lk := acquire(t, direct, "victim")
	require.Less(t, time.Since(began), recovery)
	require.NoError(t, lk.Unlock(t.Context()))
}

// The caller does not give up: it asks again with the same token, holds and releases, and then the gathered command comes.
func TestLock_ManyAtATimeAreAskedOnce(t *testing.T) {
	t.Parallel()
	var on atomic.Bool
	h := slowly{delay: func(args []string) time.Duration {
		switch {
		case !on.Load():
			return 0
		case mentions(args, "{first"):
			return 1500 * time.Millisecond
		case mentions(args, "{victim") && isGathered(args):
			return 1500 * time.Millisecond
		}
		return 0
	}}
	shared, opts := redistest.Shared(t), lock.Options{Prefix: redistest.Prefix(t)}
	l := newLocker(t, rueidishook.WithHook(shared.Client(t), h), opts)
	direct := newLocker(t, shared.Client(t), opts)
	require.NoError(t, acquire(t, l, "warm up").Unlock(t.Context()))
	on.Store(true)
	for i := range 4 {
		lockInBackground(t, l, "first"+strconv.Itoa(i))
	}
	require.NoError(t, after(t.Context(), 50*time.Millisecond))
	began := time.Now()
	lk := acquire(t, l, "victim")
	t.Log("acquired after", time.Since(began))
	_ = lk.Unlock(t.Context())
	t.Log("unlocked after", time.Since(began))
	require.NoError(t, after(t.Context(), 3200*time.Millisecond-time.Since(began)))
	began = time.Now()
	lk = acquire(t, direct, "victim")
	require.Less(t, time.Since(began), time.Second)
	require.NoError(t, lk.Unlock(t.Context()))
}

// One name that the user has no right to refuses the others of its script.
func TestLock_ManyAtATimeAreRefusedEachByItself(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	admin := server.Client(t)
	send(t, admin, "ACL", "SETUSER", "u", "on", ">p", "+@all", "&*", "~lock:{name*")
	proxy := redistest.NewProxy(t, server.Addr())
	proxy.Latency(t, 2*time.Millisecond)
	client := server.Client(t, proxy.Through, func(o *rueidis.ClientOption) { o.Username, o.Password = "u", "p" })
	l := newLocker(t, client, lock.Options{})
	lk := acquire(t, l, "name")
	require.NoError(t, lk.Unlock(t.Context()))
	_, err := l.Lock(t.Context(), "other")
	require.ErrorContains(t, err, "NOPERM")
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	var wg sync.WaitGroup
	var ok, locks, unlocks atomic.Int64
	for i := range 40 {
		wg.Go(func() {
			for ctx.Err() == nil {
				if i < 2 {
					_, _ = l.Lock(ctx, "other"+strconv.Itoa(i))
					continue
				}
				lk, err := l.Lock(ctx, "name"+strconv.Itoa(i))
				if err != nil {
					if ctx.Err() == nil {
						locks.Add(1)
					}
					continue
				}
				if lk.Unlock(ctx) != nil {
					unlocks.Add(1)
				}
				ok.Add(1)
			}
		})
	}
	wg.Wait()
	t.Log(ok.Load(), "ok", locks.Load(), "locks refused", unlocks.Load(), "unlocks failed")
	require.Zero(t, locks.Load()+unlocks.Load())
}

// Four calls that are stuck keep up all others, and make releases fail.
func TestLock_ManyAtATimeAreNotKeptUp(t *testing.T) {
	t.Parallel()
	var on atomic.Bool
	h := slowly{delay: func(args []string) time.Duration {
		if on.Load() && mentions(args, "{stuck") {
			return time.Minute
		}
		return 0
	}}
	l := newLocker(t, rueidishook.WithHook(redistest.Shared(t).Client(t), h), lock.Options{Prefix: redistest.Prefix(t)})
	lk := acquire(t, l, "healthy")
	on.Store(true)
	for i := range 4 {
		lockInBackground(t, l, "stuck"+strconv.Itoa(i))
	}
	require.NoError(t, after(t.Context(), 50*time.Millisecond))
	began := time.Now()
	got := lockInBackground(t, l, "healthy2")
	err := lk.Unlock(t.Context())
	t.Log("unlock after", time.Since(began), err)
	a := <-got
	t.Log("lock after", a.at.Sub(began), a.err)
	on.Store(false)
	require.NoError(t, err)
	require.Less(t, a.at.Sub(began), time.Second)
}

// A long round trip that is well within the bounds of one command.
func TestLock_ManyAtATimeFarAway(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr())
	client := server.Client(t, proxy.Through)
	l := newLocker(t, client, lock.Options{TTL: 30 * time.Second})
	pairs := func() (failed int64) {
		var wg sync.WaitGroup
		var n atomic.Int64
		for _, name := range names(40) {
			wg.Go(func() {
				lk, err := l.Lock(t.Context(), name)
				if err == nil {
					err = lk.Unlock(t.Context())
				}
				if err != nil {
					t.Log(err)
					n.Add(1)
				}
			})
		}
		wg.Wait()
		return n.Load()
	}
	// Or the server does not know the scripts, those of locks that are taken alone too, which takes a round trip more.
	require.NoError(t, acquire(t, l, "alone").Unlock(t.Context()))
	require.Zero(t, pairs())
	proxy.Latency(t, 1100*time.Millisecond)
	for again := 2; pairs() != 0; again-- { // a busy machine may be late by what is left to the bound
		require.Positive(t, again)
	}
}

// A wrapped client that panics, or ends its goroutine, fails who was under way and nobody else.
func TestLock_ManyAtATimeSurviveTheClient(t *testing.T) {
	t.Parallel()
	for name, breaks := range map[string]func(){"panic": func() { panic("a hook") }, "exit": runtime.Goexit} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var on atomic.Bool
			h := slowly{delay: func(args []string) time.Duration {
				if on.Load() && isGathered(args) {
					breaks()
				}
				return 20 * time.Millisecond
			}}
			l := newLocker(t, rueidishook.WithHook(redistest.Shared(t).Client(t), h), lock.Options{Prefix: redistest.Prefix(t)})
			round := func() {
				var all []<-chan acquisition
				for _, name := range names(12) {
					all = append(all, lockInBackground(t, l, name))
				}
				for _, got := range all {
					a := <-got
					require.NoError(t, a.err, "it is asked again")
					if err := a.Unlock(t.Context()); !on.Load() {
						require.NoError(t, err)
					}
				}
			}
			on.Store(true)
			for range 5 {
				round()
			}
			on.Store(false)
			began := time.Now()
			round()
			require.Less(t, time.Since(began), recovery)
		})
	}
}
