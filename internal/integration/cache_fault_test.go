package integration

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
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

	"github.com/redispatterns/redispatterns/cache"
	"github.com/redispatterns/redispatterns/internal/integration/redistest"
)

const (
	faultOpTimeout = 200 * time.Millisecond
	faultLoad      = 20 * time.Millisecond
	faultSlack     = 500 * time.Millisecond // what a busy machine may add
)

// fetchTimed fetches key with a load that takes faultLoad, and requires its value within OpTimeout and that.
func fetchTimed(t *testing.T, c *cache.Cache[string, string], key string) {
	t.Helper()
	began := time.Now()
	v, err := c.Fetch(t.Context(), key, func(ctx context.Context, key string) (string, error) {
		return "loaded " + key, after(ctx, faultLoad)
	})
	require.NoError(t, err)
	require.Equal(t, "loaded "+key, v)
	require.Less(t, time.Since(began), faultOpTimeout+faultLoad+faultSlack)
}

// overhead is what a Fetch costs beside its load: the median of 101 keys.
func overhead(t *testing.T, c *cache.Cache[string, string]) time.Duration {
	t.Helper()
	var took []time.Duration
	for i := range 101 {
		began := time.Now()
		v, err := c.Fetch(t.Context(), "quick"+strconv.Itoa(i), func(context.Context, string) (string, error) { return "v", nil })
		took = append(took, time.Since(began))
		require.NoError(t, err)
		require.Equal(t, "v", v)
	}
	slices.Sort(took)
	return took[len(took)/2]
}

func TestCache_GoesOnWhileRedisIsDown(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]struct {
		begin, end func(*redistest.Server, testing.TB)
	}{
		"killed": {(*redistest.Server).Kill, (*redistest.Server).Restart},
		"hung":   {(*redistest.Server).Pause, (*redistest.Server).Resume},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t)
			ctx := t.Context()
			prefix := redistest.Prefix(t)
			client := server.Client(t)
			opts := cache.Options[string, string]{OpTimeout: faultOpTimeout}
			c := newCache(t, client, prefix, opts)
			opts.FailClosed = true
			closed := newCache(t, client, prefix, opts)
			fetchTimed(t, c, "before")
			fault.begin(server, t)
			fetchTimed(t, c, "first")
			began := time.Now()
			_, err := closed.Fetch(ctx, "k", noLoad)
			require.Error(t, err)
			require.NotContains(t, err.Error(), "load was called")
			many, err := closed.FetchMany(ctx, []string{"a", "b"}, noLoadMany)
			require.Error(t, err)
			require.NotContains(t, err.Error(), "load was called")
			require.Empty(t, many)
			_, _, err = closed.Get(ctx, "k")
			require.Error(t, err)
			require.Less(t, time.Since(began), 3*faultOpTimeout+faultSlack)
			_, err = closed.Fetch(ctx, "k", noLoad)
			require.ErrorIs(t, err, cache.ErrUnavailable, "it does not even ask by now")

			// At most two more of c's callers pay, then nobody does: not those who come one after the other,
			// not 64 at a time.
			fetchTimed(t, c, "second")
			fetchTimed(t, c, "third")
			require.GreaterOrEqual(t, c.Stats().Unavailable, uint64(3))
			cost := overhead(t, c)
			t.Logf("a Fetch with the breaker open costs %v beside its load", cost)
			require.Less(t, cost, 5*time.Millisecond)
			var wg sync.WaitGroup
			var loads atomic.Int64
			for range 64 {
				wg.Go(func() {
					v, err := c.Fetch(ctx, "shared", func(ctx context.Context, _ string) (string, error) {
						loads.Add(1)
						return "v", after(ctx, faultLoad)
					})
					require.NoError(t, err)
					require.Equal(t, "v", v)
				})
			}
			wg.Wait()
			require.LessOrEqual(t, loads.Load(), int64(2), "loads are still shared within the process")

			// Invalidations do not pretend.
			bounded, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			require.Error(t, c.Delete(bounded, "k"))
			require.Error(t, c.Invalidate(bounded))
			require.Error(t, c.Set(bounded, "k", "v"))
			_, _, err = c.Get(ctx, "k")
			require.ErrorIs(t, err, cache.ErrUnavailable)

			// Recovery is automatic, and what was loaded meanwhile is not all written then.
			fault.end(server, t)
			require.Eventually(t, func() bool {
				_, _, err := c.Get(ctx, "recovered?")
				return err == nil
			}, 10*time.Second, time.Millisecond)
			for i := range 101 {
				require.False(t, exists(t, client, entryKey(prefix, "quick"+strconv.Itoa(i))))
			}
			require.Eventually(t, func() bool {
				fetchTimed(t, c, "after")
				return exists(t, client, entryKey(prefix, "after"))
			}, 10*time.Second, time.Millisecond)
		})
	}
}

func TestCache_ACallersOwnDeadlineHolds(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client, prefix := server.Client(t), redistest.Prefix(t)
	last := newCache(t, client, prefix, cache.Options[string, string]{OpTimeout: time.Second})
	fetchTimed(t, last, "before")
	server.Pause(t)
	for name, end := range map[string]func() (context.Context, context.CancelFunc){
		"deadline": func() (context.Context, context.CancelFunc) {
			return context.WithTimeout(t.Context(), 30*time.Millisecond)
		},
		"cancel": func() (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(30*time.Millisecond, cancel)
			return ctx, cancel
		},
	} {
		for op, f := range map[string]func(context.Context, *cache.Cache[string, string]) error{
			"fetch": func(ctx context.Context, c *cache.Cache[string, string]) error {
				_, err := c.Fetch(ctx, "k", noLoad)
				return err
			},
			"fetch many": func(ctx context.Context, c *cache.Cache[string, string]) error {
				_, err := c.FetchMany(ctx, []string{"k"}, noLoadMany)
				return err
			},
			"get": func(ctx context.Context, c *cache.Cache[string, string]) error {
				_, _, err := c.Get(ctx, "k")
				return err
			},
			"get many": func(ctx context.Context, c *cache.Cache[string, string]) error {
				_, err := c.GetMany(ctx, []string{"k"})
				return err
			},
			"set":        func(ctx context.Context, c *cache.Cache[string, string]) error { return c.Set(ctx, "k", "v") },
			"delete":     func(ctx context.Context, c *cache.Cache[string, string]) error { return c.Delete(ctx, "k") },
			"invalidate": func(ctx context.Context, c *cache.Cache[string, string]) error { return c.Invalidate(ctx) },
		} {
			// One each: a read whose caller has left goes on until OpTimeout, and then tells the breaker.
			c := newCache(t, client, prefix, cache.Options[string, string]{OpTimeout: time.Second})
			ctx, cancel := end()
			began := time.Now()
			err := f(ctx, c)
			cancel()
			require.Error(t, err, "%s %s", name, op)
			require.True(t, errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled), "%s %s: %v", name, op, err)
			most := faultSlack
			if op != "fetch" && op != "get" {
				most += time.Second // rueidis may notice it at OpTimeout only, or wait so long for a connection that another opens
			}
			require.Less(t, time.Since(began), most, "%s %s", name, op)
		}
	}
	server.Resume(t)
	require.Eventually(t, func() bool {
		_, _, err := last.Get(t.Context(), "before") // what was sent meanwhile is executed: it may be gone
		return err == nil
	}, 10*time.Second, time.Millisecond)
}

func TestCache_ServesHitsAndLoadsWhileRedisRefusesWrites(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(*testing.T) (s *redistest.Server, refuse, accept func()){
		"full": func(t *testing.T) (*redistest.Server, func(), func()) {
			s := redistest.Start(t, "--maxmemory-policy", "noeviction")
			admin := s.Client(t)
			set := func(limit string) func() {
				return func() {
					require.NoError(t, admin.Do(t.Context(), admin.B().ConfigSet().ParameterValue().ParameterValue("maxmemory", limit).Build()).Error())
				}
			}
			return s, set("1"), set("0")
		},
		"read-only": func(t *testing.T) (*redistest.Server, func(), func()) {
			s := redistest.Start(t)
			admin := s.Client(t)
			return s, func() {
					require.NoError(t, admin.Do(t.Context(), admin.B().Replicaof().Host("127.0.0.1").Port(1).Build()).Error())
				}, func() {
					require.NoError(t, admin.Do(t.Context(), admin.B().Replicaof().No().One().Build()).Error())
				}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server, refuse, accept := start(t)
			client := server.Client(t)
			ctx := t.Context()
			prefix := redistest.Prefix(t)
			c := newCache(t, client, prefix, cache.Options[string, string]{OpTimeout: faultOpTimeout})
			failClosed := newCache(t, client, prefix, cache.Options[string, string]{OpTimeout: faultOpTimeout, FailClosed: true})
			fetchTimed(t, c, "hit")
			refuse()
			for range 10 {
				v, err := c.Fetch(ctx, "hit", noLoad)
				require.NoError(t, err)
				require.Equal(t, "loaded hit", v)
				fetchTimed(t, c, "miss")
			}
			require.Less(t, overhead(t, c), 10*time.Millisecond)
			require.Error(t, c.Set(ctx, "k", "v"))
			_, err := failClosed.Fetch(ctx, "miss", noLoad)
			require.Error(t, err)
			require.NotContains(t, err.Error(), "load was called")
			v, err := failClosed.Fetch(ctx, "hit", noLoad)
			require.NoError(t, err)
			require.Equal(t, "loaded hit", v)
			if name == "full" { // deletes need no memory
				require.NoError(t, c.Delete(ctx, "hit"))
				_, ok, err := c.Get(ctx, "hit")
				require.NoError(t, err)
				require.False(t, ok)
				require.NoError(t, c.Invalidate(ctx))
			} else {
				require.Error(t, c.Delete(ctx, "hit"))
			}
			accept()
			require.Eventually(t, func() bool {
				fetchTimed(t, c, "after")
				return exists(t, client, entryKey(prefix, "after"))
			}, 10*time.Second, time.Millisecond)
		})
	}
}

// TestCache_LostRepliesLoseNothing: requests arrive, replies do not.
func TestCache_LostRepliesLoseNothing(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	direct := server.Client(t)
	proxy := redistest.NewProxy(t, server.Addr())
	ctx := t.Context()
	prefix := redistest.Prefix(t)
	c := newCache(t, server.Client(t, proxy.Through, redistest.OneConnection), prefix, cache.Options[string, string]{OpTimeout: faultOpTimeout, LeaseTTL: time.Second})
	other := newCache(t, direct, prefix, cache.Options[string, string]{LeaseTTL: time.Second})

	fetchTimed(t, c, "the scripts are known after this")

	// The reply to the store is lost: the value is there, and the caller has it.
	v, err := c.Fetch(ctx, "store", func(context.Context, string) (string, error) {
		proxy.DropReplies(t)
		return "v", nil
	})
	require.NoError(t, err)
	require.Equal(t, "v", v)
	proxy.Restore(t)
	require.Eventually(t, func() bool {
		v, ok, err := other.Get(ctx, "store")
		return err == nil && ok && v == "v"
	}, 10*time.Second, time.Millisecond)

	// The reply to the lease is lost: the caller loads without one and stores nothing; the lease that nobody
	// knows of ends by itself.
	require.Eventually(t, func() bool { _, _, err := c.Get(ctx, "again?"); return err == nil }, 10*time.Second, time.Millisecond)
	proxy.DropReplies(t)
	fetchTimed(t, c, "lease")
	proxy.Restore(t)
	v, err = other.Fetch(ctx, "lease", newSource("other's").load)
	require.NoError(t, err)
	require.Equal(t, "other's", v)

	// A black hole in the middle of a load.
	require.Eventually(t, func() bool { _, _, err := c.Get(ctx, "again?"); return err == nil }, 10*time.Second, time.Millisecond)
	began := time.Now()
	v, err = c.Fetch(ctx, "hole", func(context.Context, string) (string, error) {
		proxy.BlackHole(t)
		return "v", nil
	})
	require.NoError(t, err)
	require.Equal(t, "v", v)
	require.Less(t, time.Since(began), faultOpTimeout+faultSlack)
	proxy.Restore(t)
	v, err = other.Fetch(ctx, "hole", newSource("other's").load)
	require.NoError(t, err)
	require.Contains(t, []string{"v", "other's"}, v)

	// Connections that are cut are opened anew.
	proxy.Cut(t)
	fetchTimed(t, c, "cut")
	proxy.Restore(t)
	require.Eventually(t, func() bool {
		fetchTimed(t, c, "cut")
		return exists(t, direct, entryKey(prefix, "cut"))
	}, 10*time.Second, time.Millisecond)

	// Slow is not down.
	proxy.Latency(t, faultOpTimeout/4)
	errorsBefore := c.Stats().Errors
	v, err = c.Fetch(ctx, "cut", noLoad)
	require.NoError(t, err)
	require.Equal(t, "loaded cut", v)
	require.Equal(t, errorsBefore, c.Stats().Errors)
}

// TestCache_ACallerThatLeavesWhileItsLeaseIsTakenHoldsNobodyUp: Redis has given the lease, the reply is under way.
func TestCache_ACallerThatLeavesWhileItsLeaseIsTakenHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	direct := server.Client(t)
	proxy := redistest.NewProxy(t, server.Addr())
	prefix := redistest.Prefix(t)
	opts := cache.Options[string, string]{LeaseTTL: time.Hour}
	pipelining := func(o *rueidis.ClientOption) { o.AlwaysPipelining = true } // as when there is much to do: callers leave at once
	c := newCache(t, server.Client(t, proxy.Through, redistest.OneConnection, pipelining), prefix, opts)
	other := newCache(t, direct, prefix, opts)
	for _, c := range []*cache.Cache[string, string]{c, other} {
		_, err := c.Fetch(t.Context(), "the scripts are known after this", newSource("v").load)
		require.NoError(t, err)
	}
	lease := entryKey(prefix, "k") + ":l"
	proxy.Latency(t, 500*time.Millisecond)
	ctx, leave := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	var loads atomic.Int64
	go func() {
		_, err := c.Fetch(ctx, "k", func(ctx context.Context, _ string) (string, error) {
			loads.Add(1)
			return "", ctx.Err()
		})
		failed <- err
	}()
	require.Eventually(t, func() bool { return exists(t, direct, lease) }, 10*time.Second, time.Millisecond)
	leave()
	require.ErrorIs(t, <-failed, context.Canceled)
	bounded, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	v, err := other.Fetch(bounded, "k", newSource("other's").load)
	require.NoError(t, err)
	require.Equal(t, "other's", v)
	require.NoError(t, c.Close(bounded))
	require.Zero(t, loads.Load(), "nobody waited for it")
}

// repliesLost is a hook that lets a proxy swallow the replies to the first scripts.
type repliesLost struct {
	rueidishook.Hook
	lose, restore func()
	done          atomic.Bool
}

func (h *repliesLost) DoMulti(client rueidis.Client, ctx context.Context, multi ...rueidis.Completed) []rueidis.RedisResult {
	if strings.HasPrefix(multi[0].Commands()[0], "EVAL") && !h.done.Swap(true) {
		h.lose()
		defer h.restore()
	}
	return client.DoMulti(ctx, multi...)
}

func (h *repliesLost) Do(client rueidis.Client, ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	return client.Do(ctx, cmd)
}

// TestCache_ALeaseThatIsNotHeardOfIsGivenBack: requests arrive, the reply to the lease does not.
func TestCache_ALeaseThatIsNotHeardOfIsGivenBack(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	direct := server.Client(t)
	proxy := redistest.NewProxy(t, server.Addr())
	prefix := redistest.Prefix(t)
	hook := &repliesLost{lose: func() { proxy.DropReplies(t) }, restore: func() { proxy.Restore(t) }}
	through := server.Client(t, proxy.Through, redistest.OneConnection)
	c := newCache(t, rueidishook.WithHook(through, hook), prefix, cache.Options[string, string]{OpTimeout: faultOpTimeout, LeaseTTL: time.Hour})
	warm := newCache(t, direct, prefix, cache.Options[string, string]{LeaseTTL: time.Hour})
	failing := func(context.Context, string) (string, error) { return "", errors.New("down") }
	for range 2 { // a lease, and one that is given back
		_, err := warm.Fetch(t.Context(), "the scripts are known after this", failing)
		require.ErrorContains(t, err, "down")
	}
	var v string
	began := time.Now()
	commands := redistest.Commands(t, server, func() {
		var err error
		v, err = c.Fetch(t.Context(), "k", newSource("v").load)
		require.NoError(t, err)
	})
	require.Equal(t, "v", v, "it loads without a lease")
	require.GreaterOrEqual(t, time.Since(began), faultOpTimeout*7/8, "the reply was lost")
	require.GreaterOrEqual(t, commands["evalsha"], int64(2), "the stamp and the lease")
	lease := entryKey(prefix, "k") + ":l"
	require.Eventually(t, func() bool { return !exists(t, direct, lease) }, 10*time.Second, time.Millisecond)
}

func TestCache_ScriptsAndConnectionsMayVanish(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	admin := server.Client(t)
	ctx := t.Context()
	prefix := redistest.Prefix(t)
	c := newCache(t, server.Client(t), prefix, cache.Options[string, string]{})
	flush := func() {
		require.NoError(t, admin.Do(ctx, admin.B().ScriptFlush().Sync().Build()).Error())
	}
	kill := func() {
		require.NoError(t, admin.Do(ctx, admin.B().ClientKill().TypeNormal().SkipmeYes().Build()).Error())
	}
	for i, vanish := range []func(){flush, kill, flush, kill} {
		key := strconv.Itoa(i)
		vanish()
		v, err := c.Fetch(ctx, key, func(context.Context, string) (string, error) {
			vanish()
			return "v" + key, nil
		})
		require.NoError(t, err)
		require.Equal(t, "v"+key, v)
		v, ok, err := c.Get(ctx, key)
		require.NoError(t, err)
		require.True(t, ok, "stored all the same")
		require.Equal(t, "v"+key, v)
		vanish()
		require.NoError(t, c.Set(ctx, key, "set"))
		vanish()
		v, err = c.Fetch(ctx, key, noLoad)
		require.NoError(t, err)
		require.Equal(t, "set", v)
	}
	require.Zero(t, c.Stats().Errors)
}

// TestCache_OneNodeOfAClusterIsLost: the keys of the others go on being served from the cache.
func TestCache_OneNodeOfAClusterIsLost(t *testing.T) {
	t.Parallel()
	cluster := redistest.StartCluster(t, 1)
	client := cluster.Client(t)
	ctx := t.Context()
	prefix := redistest.Prefix(t)
	c := newCache(t, client, prefix, cache.Options[string, string]{OpTimeout: faultOpTimeout})
	want := map[string]string{}
	for i := range 60 {
		want["id"+strconv.Itoa(i)] = "v" + strconv.Itoa(i)
	}
	ids := make([]string, 0, len(want))
	for id := range want {
		ids = append(ids, id)
	}
	require.NoError(t, c.SetMany(ctx, want))
	for _, node := range client.Nodes() { // by default the nodes that are left refuse everything
		require.NoError(t, node.Do(ctx, node.B().ConfigSet().ParameterValue().ParameterValue("cluster-require-full-coverage", "no").Build()).Error())
	}
	reload := func(context.Context, []string) (map[string]string, error) { return want, nil } //nolint:unparam // a load may fail
	var mu sync.Mutex
	fewest, complete := len(ids), true
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			found, err := c.GetMany(ctx, ids)
			mu.Lock()
			if err != nil {
				fewest = min(fewest, len(found))
			}
			mu.Unlock()
			all, err := c.FetchMany(ctx, ids, reload)
			mu.Lock()
			complete = complete && err == nil && len(all) == len(ids)
			mu.Unlock()
		}
	})
	cluster.Failover(t, entryKey(prefix, "id0"))
	require.Eventually(t, func() bool {
		found, err := c.GetMany(ctx, ids)
		return err == nil && len(found) > 0
	}, 20*time.Second, 10*time.Millisecond)
	close(stop)
	wg.Wait()
	require.True(t, complete, "FetchMany returned everything all the time")
	t.Logf("while a third of the slots was gone, GetMany found at least %d of %d", fewest, len(ids))
	require.Positive(t, fewest, "hits survive a failing slot")
	require.Eventually(t, func() bool {
		_, err := c.FetchMany(ctx, ids, reload)
		require.NoError(t, err)
		found, err := c.GetMany(ctx, ids)
		return err == nil && len(found) == len(ids)
	}, 20*time.Second, 10*time.Millisecond)
}

func TestCache_AWholeClusterThatIsGoneIsNoticedSoon(t *testing.T) {
	t.Parallel()
	cluster := redistest.StartCluster(t, 0)
	holes := map[string]*redistest.Proxy{}
	for _, addr := range cluster.Addrs() {
		holes[addr] = redistest.NewProxy(t, addr)
	}
	client := cluster.Client(t, func(o *rueidis.ClientOption) {
		o.DialCtxFn = func(ctx context.Context, addr string, d *net.Dialer, _ *tls.Config) (net.Conn, error) {
			return d.DialContext(ctx, "tcp", holes[addr].Addr())
		}
	})
	c := newCache(t, client, redistest.Prefix(t), cache.Options[string, string]{OpTimeout: faultOpTimeout})
	fetchTimed(t, c, "before")
	for _, p := range holes {
		p.BlackHole(t)
	}
	slow := 0
	for i := range 300 { // of all 64 ranges of slots
		began := time.Now()
		_, err := c.Fetch(t.Context(), "id"+strconv.Itoa(i), newSource("v").load)
		require.NoError(t, err)
		if time.Since(began) > faultOpTimeout/2 {
			slow++
		}
	}
	require.LessOrEqual(t, slow, 6)
}

func TestCache_SentinelFailover(t *testing.T) {
	t.Parallel()
	sentinel := redistest.StartSentinel(t)
	ctx := t.Context()
	c := newCache(t, sentinel.Client(t), redistest.Prefix(t), cache.Options[string, string]{OpTimeout: faultOpTimeout})
	fetchTimed(t, c, "before")
	for _, fail := range []func(testing.TB){sentinel.Failover, sentinel.KillPrimary} {
		fail(t)
		fetchTimed(t, c, "during")
		require.Eventually(t, func() bool {
			return c.Set(ctx, "after", "v") == nil
		}, 20*time.Second, 10*time.Millisecond)
		require.Eventually(t, func() bool {
			v, err := c.Fetch(ctx, "after", newSource("loaded").load)
			require.NoError(t, err)
			return v == "v"
		}, 20*time.Second, 10*time.Millisecond)
	}
}

// TestCache_EvictionOnlyCostsLoads: under allkeys-lru Redis throws away leases, stamps and entries.
func TestCache_EvictionOnlyCostsLoads(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, "--maxmemory", "3mb", "--maxmemory-policy", "allkeys-lru")
	client := server.Client(t)
	ctx := t.Context()
	c := newCache(t, client, redistest.Prefix(t), cache.Options[string, string]{})
	filling := strings.Repeat("x", 4<<10)
	var truth atomic.Int64
	for i := range 2000 {
		truth.Store(int64(i))
		require.NoError(t, c.Segment("s").Invalidate(ctx))
		v, err := c.Segment("s").Fetch(ctx, "k", func(context.Context, string) (string, error) { return strconv.FormatInt(truth.Load(), 10), nil })
		require.NoError(t, err)
		require.Equal(t, strconv.Itoa(i), v)
		require.NoError(t, c.Set(ctx, "fill"+strconv.Itoa(i), filling))
	}
	info, err := client.Do(ctx, client.B().Info().Section("stats").Build()).ToString()
	require.NoError(t, err)
	require.NotContains(t, info, "evicted_keys:0\r\n", "the test must make Redis evict")
}

// TestCache_NoOldValueFromALoadWithoutALease: a load that lost its lease, or never had one, may be overtaken
// unseen; those who come after the delete must not get its value.
func TestCache_NoOldValueFromALoadWithoutALease(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]func(t *testing.T, s *redistest.Server, admin rueidis.Client) (heal func()){
		"lease evicted": func(t *testing.T, _ *redistest.Server, _ rueidis.Client) func() { return func() {} },
		"full": func(t *testing.T, _ *redistest.Server, admin rueidis.Client) func() {
			limit := func(n string) {
				require.NoError(t, admin.Do(t.Context(), admin.B().ConfigSet().ParameterValue().ParameterValue("maxmemory", n).Build()).Error())
			}
			limit("1")
			return func() { limit("0") }
		},
		"hung": func(t *testing.T, s *redistest.Server, _ rueidis.Client) func() {
			s.Pause(t)
			return func() { s.Resume(t) }
		},
	} {
		for how, remove := range map[string]func(c *cache.Cache[string, string]) error{
			"delete":     func(c *cache.Cache[string, string]) error { return c.Delete(context.Background(), "k") },
			"invalidate": func(c *cache.Cache[string, string]) error { return c.Invalidate(context.Background()) },
		} {
			t.Run(name+" "+how, func(t *testing.T) {
				t.Parallel()
				server := redistest.Start(t, "--maxmemory-policy", "noeviction")
				admin := server.Client(t)
				ctx := t.Context()
				prefix := redistest.Prefix(t)
				opts := cache.Options[string, string]{OpTimeout: 100 * time.Millisecond}
				here := newCache(t, server.Client(t), prefix, opts)
				opts.OpTimeout = 5 * time.Second
				elsewhere := newCache(t, admin, prefix, opts)
				_, err := here.Fetch(ctx, "connect", newSource("v").load)
				require.NoError(t, err)
				heal := lose(t, server, admin)
				started, release := make(chan struct{}), make(chan struct{})
				first := make(chan string, 1)
				go func() {
					v, _ := here.Fetch(ctx, "k", func(context.Context, string) (string, error) {
						close(started)
						<-release
						return "old", nil
					})
					first <- v
				}()
				<-started
				heal()
				if name == "lease evicted" {
					do(t, admin, entryKey(prefix, "k")+":l", "DEL")
				}
				require.Eventually(t, func() bool { // also for the breaker to close
					_, _, err := here.Get(ctx, "k")
					return err == nil && remove(elsewhere) == nil
				}, 10*time.Second, time.Millisecond)
				later := make(chan string, 5)
				for range cap(later) {
					go func() {
						v, _ := here.Fetch(ctx, "k", newSource("new").load)
						later <- v
					}()
				}
				close(release)
				require.Equal(t, "old", <-first)
				for range cap(later) {
					require.Equal(t, "new", <-later)
				}
			})
		}
	}
}

func TestCache_ShortDeadlinesOpenTheBreakerToo(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	c := newCache(t, server.Client(t), redistest.Prefix(t), cache.Options[string, string]{OpTimeout: faultOpTimeout})
	fetchTimed(t, c, "before")
	server.Pause(t)
	lookups := 0
	for range 20 {
		ctx, cancel := context.WithTimeout(t.Context(), faultOpTimeout/2)
		_, err := c.Fetch(ctx, "k", newSource("v").load)
		cancel()
		if err == nil {
			server.Resume(t)
			return
		}
		lookups++
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.LessOrEqual(t, c.Stats().Misses, uint64(1+2*lookups), "it does not spin")
	}
	require.FailNow(t, "no call was spared of a Redis that hangs")
}
