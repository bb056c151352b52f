package integration

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/redis/rueidis/rueidishook"
	"github.com/stretchr/testify/require"

	"github.com/redispatterns/redispatterns/cache"
	"github.com/redispatterns/redispatterns/internal/integration/redistest"
)

// gathering returns a cache whose Redis is 5ms away and has "v0" under "0" and so on.
func gathering(t *testing.T, n int, opts cache.Options[string, string]) (*cache.Cache[string, string], *redistest.Server) {
	t.Helper()
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr())
	c := newCache(t, server.Client(t, proxy.Through), redistest.Prefix(t), opts)
	values := map[string]string{}
	for i := range n {
		values[strconv.Itoa(i)] = "v" + strconv.Itoa(i)
	}
	require.NoError(t, c.SetMany(t.Context(), values))
	proxy.Latency(t, 5*time.Millisecond)
	return c, server
}

func TestCache_ManyReadersShareRoundTrips(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string]cache.Options[string, string]{"plain": {}, "stale": {StaleTTL: time.Minute}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const readers, each = 256, 20
			c, server := gathering(t, 500, opts)
			calls := redistest.Commands(t, server, func() {
				var all sync.WaitGroup
				for r := range readers {
					all.Go(func() {
						ctx := context.Background()
						if r%2 == 0 {
							ctx = t.Context() // one that may end early
						}
						for i := range each {
							key := strconv.Itoa((r*7 + i*31) % 500)
							if v, err := c.Fetch(ctx, key, noLoad); err != nil || v != "v"+key {
								t.Errorf("of %s: %q, %v", key, v, err)
							}
						}
					})
				}
				all.Wait()
			})
			// Four at a time; each other round trip is for many.
			require.Less(t, calls["get"]+calls["mget"], int64(readers*each/10))
			require.Positive(t, calls["mget"])
		})
	}
}

func TestCache_ReadersWhoLeaveDisturbNobody(t *testing.T) {
	t.Parallel()
	c, _ := gathering(t, 100, cache.Options[string, string]{})
	var all sync.WaitGroup
	for range 100 {
		all.Go(func() {
			for range 50 {
				key := strconv.Itoa(rand.N(100))
				ctx, cancel := context.Background(), context.CancelFunc(func() {})
				if rand.N(2) == 0 {
					ctx, cancel = context.WithTimeout(ctx, rand.N(15*time.Millisecond))
				}
				v, err := c.Fetch(ctx, key, noLoad)
				cancel()
				if ended := v == "" && errors.Is(err, context.DeadlineExceeded); v != "v"+key && !ended {
					t.Errorf("of %s: %q, %v", key, v, err)
				}
			}
		})
	}
	all.Wait()
}

// However many read at the time, a Redis that hangs delays each by one OpTimeout, and who is cancelled, not at all.
func TestCache_AHangingRedisDelaysManyReadersNoLongerThanOne(t *testing.T) {
	t.Parallel()
	const opTimeout = time.Second
	server := redistest.Start(t)
	c := newCache(t, server.Client(t), redistest.Prefix(t), cache.Options[string, string]{OpTimeout: opTimeout})
	patient := newCache(t, server.Client(t), redistest.Prefix(t), cache.Options[string, string]{OpTimeout: time.Minute})
	require.NoError(t, c.Set(t.Context(), "k", "v"))
	require.NoError(t, patient.Set(t.Context(), "k", "v"))

	server.Pause(t)
	var all sync.WaitGroup
	for range 300 {
		all.Go(func() {
			began := time.Now()
			v, err := c.Fetch(context.Background(), "k", func(context.Context, string) (string, error) { return "loaded", nil })
			if took := time.Since(began); err != nil || v != "loaded" || took > opTimeout+faultSlack {
				t.Errorf("%q, %v after %v", v, err, took)
			}
		})
	}
	ctx, cancel := context.WithCancel(context.Background())
	for range 300 {
		all.Go(func() {
			_, _, err := patient.Get(ctx, "k")
			if !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
	}
	time.AfterFunc(20*time.Millisecond, cancel)
	began := time.Now()
	all.Wait()
	require.Less(t, time.Since(began), opTimeout+2*faultSlack)
	require.Zero(t, patient.Stats().Errors, "that callers leave says nothing about Redis")

	server.Resume(t)
	for _, c := range []*cache.Cache[string, string]{c, patient} {
		require.Eventually(t, func() bool {
			v, ok, err := c.Get(t.Context(), "k")
			return err == nil && ok && v == "v"
		}, 10*time.Second, 10*time.Millisecond, "round trips are to be had again")
	}
}

// More readers than the round trips under way have room for wait for nobody: a far Redis is no slow one.
func TestCache_ManyMoreReadersThanARoundTripHolds(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr())
	c := newCache(t, server.Client(t, proxy.Through), redistest.Prefix(t), cache.Options[string, string]{OpTimeout: time.Second})
	require.NoError(t, c.Set(t.Context(), "k", "v"))
	proxy.Latency(t, 200*time.Millisecond)
	var all sync.WaitGroup
	for range 5000 { // four trips of 128 in 200ms would take more than 1.5s
		all.Go(func() {
			if v, ok, err := c.Get(context.Background(), "k"); err != nil || !ok || v != "v" {
				t.Errorf("%q, %v, %v", v, ok, err)
			}
		})
	}
	all.Wait()
}

// Who finds four slow round trips under way has all of OpTimeout for its own, whether it comes early or late.
func TestCache_ALateReaderHasItsOwnTime(t *testing.T) {
	t.Parallel()
	const opTimeout = 4 * time.Second
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr())
	pipelining := func(o *rueidis.ClientOption) { o.AlwaysPipelining = true } // or those of the early would wait for each other
	client := server.Client(t, proxy.Through, redistest.OneConnection, pipelining)
	c := newCache(t, client, redistest.Prefix(t), cache.Options[string, string]{OpTimeout: opTimeout})
	require.NoError(t, c.Set(t.Context(), "k", "v"))
	proxy.Latency(t, opTimeout*6/10)
	get := func() error {
		_, ok, err := c.Get(context.Background(), "k")
		if err == nil && !ok {
			err = errors.New("not there")
		}
		return err
	}
	early, late := make(chan error, 5), make(chan error, 1)
	for range cap(early) {
		go func() { early <- get() }()
	}
	time.AfterFunc(opTimeout*5/10, func() { late <- get() })
	for range cap(early) { // four are under way at once, and the fifth, for which it is soon too late to wait, alone
		require.NoError(t, <-early)
	}
	require.NoError(t, <-late)
}

// That Redis is not asked after it failed costs no wait for those who still ask it.
func TestCache_NobodyQueuesBehindAnOpenBreaker(t *testing.T) {
	t.Parallel()
	const opTimeout = 2 * time.Second
	server := redistest.Start(t)
	c := newCache(t, server.Client(t), redistest.Prefix(t), cache.Options[string, string]{OpTimeout: opTimeout})
	other := c.Segment("other")
	server.Pause(t)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() { _, _, _ = other.Get(context.Background(), "k") })
	}
	timer := time.NewTimer(opTimeout / 2)
	<-timer.C
	for range 4 {
		all.Go(func() { _, _, _ = c.Get(context.Background(), "k") })
	}
	require.Eventually(t, func() bool {
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		_, _, err := c.Get(ctx, "k")
		return errors.Is(err, cache.ErrUnavailable) && time.Since(began) < opTimeout/10
	}, opTimeout*3/4, opTimeout/50)
	all.Wait()
	server.Resume(t)
}

type brokenOnce struct {
	rueidishook.Hook
	how *atomic.Pointer[func()]
}

func (h brokenOnce) Do(c rueidis.Client, ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	if f := h.how.Load(); f != nil {
		(*f)()
	}
	return c.Do(ctx, cmd)
}

func (h brokenOnce) DoMulti(c rueidis.Client, ctx context.Context, cmds ...rueidis.Completed) []rueidis.RedisResult {
	return c.DoMulti(ctx, cmds...)
}

func TestCache_AWrappedClientMayPanic(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]func(){"panic": func() { panic("a hook of the client") }, "goexit": runtime.Goexit} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var how atomic.Pointer[func()]
			client := rueidishook.WithHook(redistest.Shared(t).Client(t), brokenOnce{how: &how})
			c := newCache(t, client, redistest.Prefix(t), cache.Options[string, string]{})
			require.NoError(t, c.Set(t.Context(), "k", "v"))
			how.Store(&f)
			for range 10 {
				_, _, err := c.Get(t.Context(), "k")
				var panicked *cache.PanicError
				require.ErrorAs(t, err, &panicked)
			}
			how.Store(nil)
			for range 10 {
				v, _, err := c.Get(t.Context(), "k")
				require.NoError(t, err)
				require.Equal(t, "v", v)
			}
		})
	}
}
