package integration

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/redis/rueidis/rueidishook"
	"github.com/stretchr/testify/require"

	"github.com/redispatterns/redispatterns/cache"
	"github.com/redispatterns/redispatterns/internal/integration/redistest"
)

// cacheChild fetches one key from many goroutines, as another process. Its load counts itself in Redis.
func cacheChild() error {
	ctx := context.Background()
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{os.Getenv("CHILD_ADDR")}})
	if err != nil {
		return err
	}
	defer client.Close()
	prefix := os.Getenv("CHILD_PREFIX")
	leaseTTL, err := time.ParseDuration(os.Getenv("CHILD_LEASE"))
	if err != nil {
		return err
	}
	takes, err := time.ParseDuration(os.Getenv("CHILD_LOAD"))
	if err != nil {
		return err
	}
	c, err := cache.New(client, prefix, cache.Options[string, string]{
		TTL: time.Minute, LeaseTTL: leaseTTL, OpTimeout: 5 * time.Second, Codec: cache.String(),
	})
	if err != nil {
		return err
	}
	fmt.Println("ready")
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return err
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failed error // the first of them
	for range 200 {
		wg.Go(func() {
			v, err := c.Fetch(ctx, "k", func(ctx context.Context, _ string) (string, error) {
				if err := client.Do(ctx, client.B().Incr().Key(prefix+"loads").Build()).Error(); err != nil {
					return "", err
				}
				fmt.Println("loading")
				return "value", after(ctx, takes)
			})
			if err == nil && v != "value" {
				err = fmt.Errorf("fetched %q", v)
			}
			mu.Lock()
			defer mu.Unlock()
			failed = cmp.Or(failed, err)
		})
	}
	wg.Wait()
	return failed
}

// process is a cacheChild under control.
type process struct {
	wait   func() error
	signal func(os.Signal)
	start  func()
	line   func() string
}

func startCacheChild(t *testing.T, server *redistest.Server, prefix string, lease, load time.Duration) process {
	t.Helper()
	cmd := child(t, "cache", "CHILD_ADDR="+server.Addr(), "CHILD_PREFIX="+prefix, "CHILD_LEASE="+lease.String(), "CHILD_LOAD="+load.String())
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	lines := bufio.NewScanner(stdout)
	p := process{
		wait:   cmd.Wait,
		signal: func(s os.Signal) { require.NoError(t, cmd.Process.Signal(s)) },
		start:  func() { _, err := stdin.Write([]byte("\n")); require.NoError(t, err) },
		line:   func() string { lines.Scan(); return lines.Text() },
	}
	require.Equal(t, "ready", p.line())
	return p
}

func loadsOf(t *testing.T, client rueidis.Client, prefix string) int64 {
	t.Helper()
	n, err := do(t, client, prefix+"loads", "GET").AsInt64()
	require.NoError(t, err)
	return n
}

func TestCache_TwoProcessesOf200GoroutinesLoadOnce(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	client := server.Client(t)
	rounds := 3
	if soak() {
		rounds = 30
	}
	for range rounds {
		prefix := redistest.Prefix(t)
		a := startCacheChild(t, server, prefix, 10*time.Second, 200*time.Millisecond)
		b := startCacheChild(t, server, prefix, 10*time.Second, 200*time.Millisecond)
		a.start()
		b.start()
		require.NoError(t, a.wait())
		require.NoError(t, b.wait())
		require.EqualValues(t, 1, loadsOf(t, client, prefix))
	}
}

func TestCache_ALoadLongerThanItsLeaseIsNotRepeated(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	client := server.Client(t)
	prefix := redistest.Prefix(t)
	a := startCacheChild(t, server, prefix, 600*time.Millisecond, 3*time.Second)
	b := startCacheChild(t, server, prefix, 600*time.Millisecond, 3*time.Second)
	a.start()
	b.start()
	require.NoError(t, a.wait())
	require.NoError(t, b.wait())
	require.EqualValues(t, 1, loadsOf(t, client, prefix))
}

func TestCache_AKilledLoaderHoldsOthersUpForItsLeaseOnly(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	client := server.Client(t)
	prefix := redistest.Prefix(t)
	a := startCacheChild(t, server, prefix, 500*time.Millisecond, time.Hour)
	a.start()
	require.Equal(t, "loading", a.line())
	a.signal(syscall.SIGKILL)
	require.Error(t, a.wait())
	c := newCache(t, client, prefix, cache.Options[string, string]{})
	began := time.Now()
	v, err := c.Fetch(t.Context(), "k", newSource("value").load)
	require.NoError(t, err)
	require.Equal(t, "value", v)
	require.Less(t, time.Since(began), 5*time.Second)
}

func TestCache_AStoppedLoaderThatWakesUpDoesNotOverwrite(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	client := server.Client(t)
	prefix := redistest.Prefix(t)
	a := startCacheChild(t, server, prefix, 300*time.Millisecond, 600*time.Millisecond)
	a.start()
	require.Equal(t, "loading", a.line())
	a.signal(syscall.SIGSTOP)
	c := newCache(t, client, prefix, cache.Options[string, string]{})
	v, err := c.Fetch(t.Context(), "k", newSource("newer").load)
	require.NoError(t, err)
	require.Equal(t, "newer", v, "once the lease of the stopped process has ended")
	a.signal(syscall.SIGCONT)
	// It fails if some of its callers came late enough to get the newer value, which it does not know of.
	if err := a.wait(); err != nil {
		var exit *exec.ExitError
		require.ErrorAs(t, err, &exit)
	}
	v, err = c.Fetch(t.Context(), "k", noLoad)
	require.NoError(t, err)
	require.Equal(t, "newer", v)
}

func TestCache_FailingLoadIsShared(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	prefix := redistest.Prefix(t)
	c := newCache(t, client, prefix, cache.Options[string, string]{})
	_, err := c.Fetch(t.Context(), "connect first", newSource("").load)
	require.NoError(t, err)
	failure := errors.New("down")
	var loads atomic.Int64
	var wg sync.WaitGroup
	began := time.Now()
	var slowest atomic.Int64
	for range 20 {
		wg.Go(func() {
			_, err := c.Fetch(t.Context(), "k", func(ctx context.Context, _ string) (string, error) {
				loads.Add(1)
				return "", errors.Join(failure, after(ctx, 100*time.Millisecond))
			})
			require.ErrorIs(t, err, failure)
			for took := int64(time.Since(began)); ; {
				if old := slowest.Load(); took <= old || slowest.CompareAndSwap(old, took) {
					break
				}
			}
		})
	}
	wg.Wait()
	t.Logf("20 callers of a failing load of 100ms: %d load, %v", loads.Load(), time.Duration(slowest.Load()))
	require.EqualValues(t, 1, loads.Load())
	require.Less(t, time.Duration(slowest.Load()), 500*time.Millisecond, "150ms on a machine of its own")
	require.False(t, exists(t, client, entryKey(prefix, "k")+":l"))
	v, err := c.Fetch(t.Context(), "k", newSource("up again").load)
	require.NoError(t, err)
	require.Equal(t, "up again", v, "the failure was not cached")
}

func TestCache_APanickingLoadReachesAllAndLeavesNoLease(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	cause := errors.New("cause")
	for name, die := range map[string]func(){
		"panic":  func() { panic("boom") },
		"error":  func() { panic(cause) },
		"nil":    func() { panic(nil) },
		"goexit": runtime.Goexit,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			prefix := redistest.Prefix(t)
			c := newCache(t, client, prefix, cache.Options[string, string]{})
			var wg sync.WaitGroup
			started, release := make(chan struct{}), make(chan struct{})
			fetch := func() {
				_, err := c.Fetch(t.Context(), "k", func(context.Context, string) (string, error) {
					close(started)
					<-release
					die()
					return "", nil
				})
				var panicked *cache.PanicError
				require.ErrorAs(t, err, &panicked)
				require.Contains(t, string(panicked.Stack), "cache_load_test.go")
				require.Equal(t, name == "error", errors.Is(err, cause))
			}
			wg.Go(fetch)
			<-started
			for range 10 {
				wg.Go(fetch)
			}
			require.Eventually(t, func() bool { return c.Stats().Shared == 10 }, 10*time.Second, time.Millisecond)
			close(release)
			wg.Wait()
			require.False(t, exists(t, client, entryKey(prefix, "k")+":l"))
			v, err := c.Fetch(t.Context(), "k", newSource("fine").load)
			require.NoError(t, err)
			require.Equal(t, "fine", v)

			require.NoError(t, c.Delete(t.Context(), "k"))
			_, err = c.FetchMany(t.Context(), []string{"k", "l"}, func(context.Context, []string) (map[string]string, error) {
				die()
				return nil, nil
			})
			var panicked *cache.PanicError
			require.ErrorAs(t, err, &panicked)
		})
	}
}

func TestCache_APanickingCodecIsAPanickingLoad(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	c := newCache(t, client, redistest.Prefix(t), cache.Options[string, string]{Codec: cache.Func(
		func(string) ([]byte, error) { panic("boom") }, func(b []byte) (string, error) { return string(b), nil },
	)})
	_, err := c.Fetch(t.Context(), "k", newSource("v").load)
	var panicked *cache.PanicError
	require.ErrorAs(t, err, &panicked)
}

func TestCache_WaitersLeaveAndTheLastOneEndsTheLoad(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	prefix := redistest.Prefix(t)
	c := newCache(t, client, prefix, cache.Options[string, string]{})
	type key struct{}
	started, ended := make(chan context.Context, 1), make(chan error, 1)
	load := func(ctx context.Context, _ string) (string, error) {
		started <- ctx
		<-ctx.Done()
		ended <- ctx.Err()
		return "", ctx.Err()
	}
	first, leaveFirst := context.WithCancel(context.WithValue(t.Context(), key{}, "trace"))
	second, leaveSecond := context.WithCancel(t.Context())
	results := make(chan error, 2)
	go func() { _, err := c.Fetch(first, "k", load); results <- err }()
	loadCtx := <-started
	require.Equal(t, "trace", loadCtx.Value(key{}), "the load sees the values of the first caller's context")
	go func() { _, err := c.Fetch(second, "k", load); results <- err }()
	require.Eventually(t, func() bool { return c.Stats().Shared == 1 }, 10*time.Second, time.Millisecond)

	leaveFirst()
	require.ErrorIs(t, <-results, context.Canceled)
	require.NoError(t, loadCtx.Err(), "somebody still waits")
	leaveSecond()
	require.ErrorIs(t, <-results, context.Canceled)
	require.ErrorIs(t, <-ended, context.Canceled)
	// Whoever comes now is not held up.
	v, err := c.Fetch(t.Context(), "k", newSource("v").load)
	require.NoError(t, err)
	require.Equal(t, "v", v)
}

func TestCache_AWaiterForAnotherProcessLeavesAtOnce(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	prefix := redistest.Prefix(t)
	holder := newCache(t, client, prefix, cache.Options[string, string]{})
	waiter := newCache(t, client, prefix, cache.Options[string, string]{})
	started, release := make(chan struct{}), make(chan struct{})
	result := make(chan error, 1)
	go func() {
		_, err := holder.Fetch(t.Context(), "k", func(context.Context, string) (string, error) {
			close(started)
			<-release
			return "v", nil
		})
		result <- err
	}()
	<-started
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := waiter.Fetch(ctx, "k", noLoad)
	left := time.Now()
	require.ErrorIs(t, err, context.DeadlineExceeded)
	deadline, _ := ctx.Deadline()
	require.Less(t, left.Sub(deadline), time.Second)
	// One who stays is served.
	served := make(chan error, 1)
	go func() {
		v, err := waiter.Fetch(t.Context(), "k", noLoad)
		if err == nil && v != "v" {
			err = fmt.Errorf("got %q", v)
		}
		served <- err
	}()
	close(release)
	require.NoError(t, <-served)
	require.NoError(t, <-result)
}

func TestCache_LoadTimeoutFreesCallersOfALoadThatDoesNotHeedIt(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	prefix := redistest.Prefix(t)
	c := newCache(t, client, prefix, cache.Options[string, string]{LoadTimeout: 50 * time.Millisecond})
	release := make(chan struct{})
	_, err := c.Fetch(t.Context(), "k", func(context.Context, string) (string, error) { <-release; return "late", nil })
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.False(t, exists(t, client, entryKey(prefix, "k")+":l"))
	v, err := c.Fetch(t.Context(), "k", newSource("v").load)
	require.NoError(t, err)
	require.Equal(t, "v", v)
	close(release)
	require.NoError(t, c.Close(t.Context()))
	stored, err := do(t, client, entryKey(prefix, "k"), "GET").ToString()
	require.NoError(t, err)
	require.True(t, strings.HasSuffix(stored, "v"))
	require.False(t, strings.HasSuffix(stored, "late"))
}

func TestCache_FetchAndFetchManyShareLoads(t *testing.T) {
	t.Parallel()
	redistest.EachTarget(t, func(t *testing.T, client rueidis.Client) {
		c := newCache(t, client, redistest.Prefix(t), cache.Options[string, string]{})
		require.NoError(t, c.Set(t.Context(), "hit", "cached"))
		started, release := make(chan struct{}), make(chan struct{})
		one := make(chan error, 1)
		go func() {
			_, err := c.Fetch(t.Context(), "b", func(context.Context, string) (string, error) {
				close(started)
				<-release
				return "B of Fetch", nil
			})
			one <- err
		}()
		<-started
		asked := make(chan []string, 1)
		many := make(chan error, 1)
		failure := errors.New("down")
		go func() {
			values, err := c.FetchMany(t.Context(), []string{"hit", "a", "b", "c"}, func(_ context.Context, keys []string) (map[string]string, error) {
				asked <- keys
				return nil, failure
			})
			if len(values) != 2 || values["hit"] != "cached" || values["b"] != "B of Fetch" {
				err = fmt.Errorf("got %v, %w", values, err)
			}
			many <- err
		}()
		require.Equal(t, []string{"a", "c"}, <-asked)
		close(release)
		require.NoError(t, <-one)
		err := <-many
		require.ErrorIs(t, err, failure)
		require.Equal(t, "cache: fetch many: down", err.Error(), "hits and other loads' values survive; the failure is told once")
	})
}

// TestCache_OverlappingBatchesDoNotWaitInACircle has callers whose batches share keys in all orders.
func TestCache_OverlappingBatchesDoNotWaitInACircle(t *testing.T) {
	t.Parallel()
	redistest.EachTarget(t, func(t *testing.T, client rueidis.Client) {
		prefix := redistest.Prefix(t)
		caches := []*cache.Cache[string, string]{
			newCache(t, client, prefix, cache.Options[string, string]{}), newCache(t, client, prefix, cache.Options[string, string]{}),
		}
		var loads atomic.Int64
		var wg sync.WaitGroup
		for i := range 40 {
			wg.Go(func() {
				var keys []string
				for _, k := range rand.Perm(30)[:10] {
					keys = append(keys, strconv.Itoa(k))
				}
				values, err := caches[i%2].FetchMany(t.Context(), keys, func(ctx context.Context, keys []string) (map[string]string, error) {
					loads.Add(int64(len(keys)))
					values := map[string]string{}
					for _, k := range keys {
						values[k] = "v" + k
					}
					return values, after(ctx, 5*time.Millisecond)
				})
				require.NoError(t, err)
				require.Len(t, values, 10)
				for k, v := range values {
					require.Equal(t, "v"+k, v)
				}
			})
		}
		wg.Wait()
		require.LessOrEqual(t, loads.Load(), int64(30), "each key once")
	})
}

func TestCache_ALoadOvertakenByAWriteIsReturnedButNotStored(t *testing.T) {
	t.Parallel()
	redistest.EachTarget(t, func(t *testing.T, client rueidis.Client) {
		ctx := t.Context()
		for name, overtake := range map[string]func(c *cache.Cache[string, string]) error{
			"delete":     func(c *cache.Cache[string, string]) error { return c.Delete(ctx, "k") },
			"invalidate": func(c *cache.Cache[string, string]) error { return c.Invalidate(ctx) },
			"set":        func(c *cache.Cache[string, string]) error { return c.Set(ctx, "k", "new") },
			"set many": func(c *cache.Cache[string, string]) error {
				return c.SetMany(ctx, map[string]string{"k": "new", "l": "x"})
			},
		} {
			for _, where := range []string{"here", "elsewhere"} {
				prefix := redistest.Prefix(t)
				here := newCache(t, client, prefix, cache.Options[string, string]{})
				writer := here
				if where == "elsewhere" {
					writer = newCache(t, client, prefix, cache.Options[string, string]{})
				}
				v, err := here.Fetch(ctx, "k", func(context.Context, string) (string, error) {
					require.NoError(t, overtake(writer))
					// Whoever comes now, here, gets what is true now and does not wait for the old load, which
					// waits for this.
					if where == "here" || name != "delete" {
						v, err := here.Fetch(ctx, "k", newSource("new").load)
						require.NoError(t, err)
						require.Equal(t, "new", v)
					}
					return "old", nil
				})
				require.NoError(t, err)
				require.Equal(t, "old", v, "%s %s: the caller gets its value", name, where)
				v, err = here.Fetch(ctx, "k", newSource("new").load)
				require.NoError(t, err)
				require.Equal(t, "new", v, "%s %s", name, where)
			}
		}
	})
}

// TestCache_ALaterCallerDoesNotGetAnOvertakenValue is about those who join a load of their own process after
// another process has deleted the key: they cannot know until the load ends.
func TestCache_ALaterCallerDoesNotGetAnOvertakenValue(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	ctx := t.Context()
	prefix := redistest.Prefix(t)
	here := newCache(t, client, prefix, cache.Options[string, string]{})
	elsewhere := newCache(t, client, prefix, cache.Options[string, string]{})
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
	require.NoError(t, elsewhere.Delete(ctx, "k"))
	later := make(chan string, 10)
	src := newSource("new")
	for range cap(later) {
		go func() {
			v, _ := here.Fetch(ctx, "k", src.load)
			later <- v
		}()
	}
	require.Eventually(t, func() bool { return here.Stats().Shared == uint64(cap(later)) }, 10*time.Second, time.Millisecond)
	close(release)
	require.Equal(t, "old", <-first)
	for range cap(later) {
		require.Equal(t, "new", <-later)
	}
	require.EqualValues(t, 1, src.loads.Load())
}

// lateGet is a hook before GETs of an entry.
type lateGet struct {
	rueidishook.Hook
	entry  string
	before func()
}

func (h *lateGet) Do(client rueidis.Client, ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	if words := cmd.Commands(); words[0] == "GET" && words[1] == h.entry {
		h.before()
	}
	return client.Do(ctx, cmd)
}

func (h *lateGet) DoMulti(client rueidis.Client, ctx context.Context, multi ...rueidis.Completed) []rueidis.RedisResult {
	return client.DoMulti(ctx, multi...)
}

// TestCache_WhatIsReloadedAfterAnInvalidateIsNotLoadedAgain by a process that read it with the stamp from before.
func TestCache_WhatIsReloadedAfterAnInvalidateIsNotLoadedAgain(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	prefix := redistest.Prefix(t)
	hook := &lateGet{}
	c := newCache(t, rueidishook.WithHook(client, hook), prefix, cache.Options[string, string]{})
	elsewhere := newCache(t, client, prefix, cache.Options[string, string]{})
	reached, id := false, ""
	hook.before = func() {
		reached = true
		require.NoError(t, elsewhere.Invalidate(t.Context()))
		v, err := elsewhere.Fetch(t.Context(), id, newSource("reloaded").load)
		require.NoError(t, err)
		require.Equal(t, "reloaded", v)
	}
	for i := 0; !reached; i++ { // until c remembers the stamp when it asks for the entry
		require.Less(t, i, 1000)
		_, _, err := c.Get(t.Context(), "other"+strconv.Itoa(i))
		require.NoError(t, err)
		id = "k" + strconv.Itoa(i)
		hook.entry = entryKey(prefix, id)
		v, err := c.Fetch(t.Context(), id, newSource("loaded again").load)
		require.NoError(t, err)
		if reached {
			require.Equal(t, "reloaded", v)
		}
	}
}

// TestCache_NoStaleFill plays random schedules of loads, updates followed by Delete, Set or Invalidate, and
// evictions of bookkeeping keys, on caches of several processes, against an oracle: the version a key had
// when an update was over. No Fetch or Get that begins later may return an older one.
func TestCache_NoStaleFill(t *testing.T) {
	t.Parallel()
	schedules := 10_000
	if testing.Short() {
		schedules = 1000
	}
	if soak() {
		schedules = 100_000
	}
	server := redistest.Shared(t)
	clients := []rueidis.Client{server.Client(t), server.Client(t), redistest.SharedCluster(t).Client(t), redistest.SharedCluster(t).Client(t)}
	var fetched, refused atomic.Uint64
	next := make(chan int)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for seed := range next {
				pair := clients[:2]
				if seed%4 == 0 {
					pair = clients[2:]
				}
				n, r := playSchedule(t, pair, redistest.Prefix(t), uint64(seed))
				fetched.Add(n)
				refused.Add(r)
			}
		})
	}
	for seed := range schedules {
		if t.Failed() {
			break
		}
		next <- seed
	}
	close(next)
	wg.Wait()
	t.Logf("%d schedules, %d values read, %d fills refused", schedules, fetched.Load(), refused.Load())
	require.Greater(t, refused.Load(), uint64(schedules/50), "the schedules must make fills and updates meet")
}

func playSchedule(t *testing.T, clients []rueidis.Client, prefix string, seed uint64) (fetched, refused uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	ctx := t.Context()
	opts := cache.Options[string, string]{TTL: time.Minute, Codec: cache.String(), OpTimeout: 20 * time.Second, NegativeTTL: time.Minute}
	if rng.IntN(3) == 0 {
		opts.StaleTTL = 10 * time.Second
	}
	var caches []*cache.Cache[string, string]
	for _, client := range clients {
		c, err := cache.New(client, prefix, opts)
		require.NoError(t, err)
		caches = append(caches, c, c.Segment("s"))
	}
	// Truth, per segment and key: what the source says now, and the version whose update is over.
	type cell struct {
		update      sync.Mutex // updates of one key come one after the other
		now, settle atomic.Int64
	}
	var cells [2][2]cell
	var wg sync.WaitGroup
	for range 3 + rng.IntN(3) {
		rng := rand.New(rand.NewPCG(rng.Uint64(), 2))
		wg.Go(func() {
			for range 4 {
				seg, k := rng.IntN(2), rng.IntN(2)
				c := caches[2*rng.IntN(2)+seg]
				key := strconv.Itoa(k)
				work := rng.IntN(30)
				read := func(cell *cell) (string, error) {
					v := cell.now.Load()
					for range work {
						runtime.Gosched()
					}
					if work%7 == 6 {
						_ = after(ctx, time.Duration(work)*20*time.Microsecond) // the test's context does not end
					}
					if v%5 == 4 {
						return "", cache.ErrNotFound // now and then there is no value
					}
					return strconv.FormatInt(v, 10), nil
				}
				check := func(least int64, v string, err error) {
					if errors.Is(err, cache.ErrNotFound) {
						return
					}
					require.NoError(t, err)
					got, err := strconv.ParseInt(v, 10, 64)
					require.NoError(t, err)
					require.GreaterOrEqual(t, got, least, "seed %d: a value from before an update that was over", seed)
				}
				switch op := rng.IntN(10); {
				case op < 5:
					cell := &cells[seg][k]
					least := cell.settle.Load()
					v, err := c.Fetch(ctx, key, func(context.Context, string) (string, error) { return read(cell) })
					check(least, v, err)
				case op < 6:
					least := [2]int64{cells[seg][0].settle.Load(), cells[seg][1].settle.Load()}
					values, err := c.FetchMany(ctx, []string{"0", "1"}, func(_ context.Context, keys []string) (map[string]string, error) {
						values := map[string]string{}
						for _, k := range keys {
							i, _ := strconv.Atoi(k)
							if v, err := read(&cells[seg][i]); err == nil {
								values[k] = v
							}
						}
						return values, nil
					})
					require.NoError(t, err)
					for k, v := range values {
						i, _ := strconv.Atoi(k)
						check(least[i], v, nil)
					}
				case op < 9:
					cell := &cells[seg][k]
					cell.update.Lock()
					v := cell.now.Add(1)
					switch rng.IntN(3) {
					case 0:
						require.NoError(t, c.Delete(ctx, key))
					case 1:
						if v%5 == 4 {
							require.NoError(t, c.Delete(ctx, key))
						} else {
							require.NoError(t, c.Set(ctx, key, strconv.FormatInt(v, 10)))
						}
					case 2:
						require.NoError(t, c.Invalidate(ctx))
					}
					cell.settle.Store(v)
					cell.update.Unlock()
				default: // Redis evicts something
					segment := []string{"", "s"}[seg]
					name := []string{prefix + "::" + segment + ":{" + key + "}:l", prefix + "::" + segment + ":{" + key + "}", prefix + ":" + segment + ":{0}:s"}[rng.IntN(3)]
					require.NoError(t, clients[0].Do(ctx, clients[0].B().Del().Key(name).Build()).Error())
				}
			}
		})
	}
	wg.Wait()
	for _, c := range []*cache.Cache[string, string]{caches[0], caches[2]} {
		require.NoError(t, c.Close(ctx))
		stats := c.Stats()
		fetched += stats.Hits + stats.Misses + stats.Stale
		refused += stats.Refused
	}
	return fetched, refused
}

func TestCache_ABatchLoadThatFailsWithNotFoundHasFailed(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	c := newCache(t, client, redistest.Prefix(t), cache.Options[string, string]{NegativeTTL: time.Minute})
	inner := fmt.Errorf("another cache: %w", cache.ErrNotFound)
	_, err := c.FetchMany(t.Context(), []string{"a", "b"}, func(context.Context, []string) (map[string]string, error) { return nil, inner })
	require.ErrorIs(t, err, inner)
	_, err = c.FetchMany(t.Context(), []string{"a", "b"}, func(context.Context, []string) (map[string]string, error) { panic(inner) })
	var panicked *cache.PanicError
	require.ErrorAs(t, err, &panicked)
	_, ok, err := c.Get(t.Context(), "a")
	require.NoError(t, err, "nothing was remembered")
	require.False(t, ok)
}

// TestCache_APanickingDecodeIsAMiss, also where it runs on a goroutine of the cache.
func TestCache_APanickingDecodeIsAMiss(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	prefix := redistest.Prefix(t)
	holder := newCache(t, client, prefix, cache.Options[string, string]{})
	c := newCache(t, client, prefix, cache.Options[string, string]{Codec: cache.Func(
		func(s string) ([]byte, error) { return []byte("!" + s), nil },
		func(b []byte) (string, error) {
			if b[0] != '!' {
				panic("boom")
			}
			return string(b[1:]), nil
		},
	)})
	started, release, held := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		_, err := holder.Fetch(t.Context(), "k", func(context.Context, string) (string, error) {
			close(started)
			<-release
			return "v", nil
		})
		held <- err
	}()
	<-started
	result := make(chan string, 1)
	go func() {
		v, _ := c.Fetch(t.Context(), "k", newSource("repaired").load)
		result <- v
	}()
	require.Eventually(t, func() bool { return c.Stats().Misses == 1 }, 10*time.Second, time.Millisecond)
	close(release)
	require.NoError(t, <-held)
	require.Equal(t, "repaired", <-result)
	require.Positive(t, c.Stats().Errors)
}
