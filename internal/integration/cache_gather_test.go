package integration

import (
	"context"
	"errors"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"time"

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
