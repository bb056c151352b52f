package integration

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/redispatterns/redispatterns/internal/integration/redistest"
)

const (
	soon  = 20 * time.Second      // for what must happen
	tick  = 20 * time.Millisecond // how often to look
	brief = 200 * time.Millisecond
)

func TestHarness_EveryTargetAnswers(t *testing.T) {
	t.Parallel()
	redistest.EachTarget(t, func(t *testing.T, client rueidis.Client) {
		key := redistest.Prefix(t) + ":k"
		require.NoError(t, set(t.Context(), client, key, "v"))
		got, err := get(t.Context(), client, key)
		require.NoError(t, err)
		require.Equal(t, "v", got)
	})
}

func TestHarness_KindsAreWhatTheySay(t *testing.T) {
	t.Parallel()
	for kind, want := range map[redistest.Kind]string{
		redistest.Redis70: "redis_version:7.0.", redistest.Redis8: "redis_version:8.", redistest.Valkey8: "valkey_version:8.",
	} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			client := redistest.SharedKind(t, kind).Client(t)
			info, err := client.Do(t.Context(), client.B().Info().Section("server").Build()).ToString()
			require.NoError(t, err)
			require.Contains(t, info, "\n"+want)
		})
	}
}

func TestHarness_SharedIsOneServer(t *testing.T) {
	t.Parallel()
	shared, again, dedicated := redistest.Shared(t), redistest.Shared(t), redistest.Start(t)
	require.Equal(t, shared.Addr(), again.Addr())
	require.NotEqual(t, shared.Addr(), dedicated.Addr())
}

func TestHarness_PrefixIsUnique(t *testing.T) {
	t.Parallel()
	var (
		mu   sync.Mutex
		seen = map[string]bool{}
		wg   sync.WaitGroup
	)
	for range 50 {
		wg.Go(func() {
			for range 100 {
				p := redistest.Prefix(t)
				mu.Lock()
				seen[p] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	require.Len(t, seen, 5000)
	for p := range seen {
		require.Regexp(t, `^[0-9a-z-]{1,24}$`, p)
	}
}

func TestHarness_ArgumentsReachTheServer(t *testing.T) {
	t.Parallel()
	client := redistest.Start(t, "--maxmemory", "5mb", "--maxmemory-policy", "noeviction").Client(t)
	config, err := client.Do(t.Context(), client.B().ConfigGet().Parameter("maxmemory*", "save", "appendonly").Build()).AsStrMap()
	require.NoError(t, err)
	require.Equal(t, "5242880", config["maxmemory"])
	require.Equal(t, "noeviction", config["maxmemory-policy"])
	require.Empty(t, config["save"])
	require.Equal(t, "no", config["appendonly"])
}

func TestHarness_FailedStartShowsTheServersLog(t *testing.T) {
	t.Parallel()
	redistest.Start(t) // can
	tb := &recorder{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		redistest.Start(tb, "--no-such-option", "yes")
	}()
	<-done
	require.Contains(t, tb.failure, "no-such-option")
}

// recorder keeps the message of a test that ends itself, in a goroutine of its own.
type recorder struct {
	testing.TB
	failure string
}

func (r *recorder) Fatal(args ...any) {
	r.failure = fmt.Sprint(args...)
	runtime.Goexit()
}

func TestHarness_KillAndRestart(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]struct {
		args []string
		keep bool
	}{
		"without persistence": {nil, false},
		"with AOF":            {[]string{"--appendonly", "yes", "--appendfsync", "always"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t, want.args...)
			client, addr := server.Client(t), server.Addr()
			require.NoError(t, set(t.Context(), client, "k", "v"))
			before := runID(t, client)

			server.Kill(t)
			require.Error(t, set(t.Context(), client, "k", "v"))
			require.Error(t, set(t.Context(), client, "k", "v"), "a killed server stays dead")
			server.Kill(t) // is not an error

			server.Restart(t)
			require.Equal(t, addr, server.Addr())
			var got string
			require.Eventually(t, func() (ok bool) {
				var err error
				got, err = get(t.Context(), client, "k")
				return err == nil || rueidis.IsRedisNil(err)
			}, soon, tick)
			require.Equal(t, want.keep, got == "v")
			after := runID(t, server.Client(t)) // client may have other connections that are dead
			require.NotEqual(t, before, after)

			server.Restart(t) // kills first
			require.NotEqual(t, after, runID(t, server.Client(t)))
		})
	}
}

func TestHarness_PauseAndResume(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t, redistest.OneConnection)
	require.NoError(t, set(t.Context(), client, "k", "old"))

	server.Pause(t)
	ctx, cancel := context.WithTimeout(t.Context(), brief)
	defer cancel()
	require.ErrorIs(t, set(ctx, client, "k", "new"), context.DeadlineExceeded)

	server.Resume(t)
	// The command was sent: it is executed although nobody waits for it.
	require.Eventually(t, func() bool {
		got, err := get(t.Context(), client, "k")
		return err == nil && got == "new"
	}, soon, tick)
}

//nolint:tparallel // what comes after the subtest looks at what it left
func TestHarness_ServersOfTestsAreGoneAfterwards(t *testing.T) {
	t.Parallel()
	var addr string
	t.Run("test", func(t *testing.T) {
		server := redistest.Start(t)
		addr = server.Addr()
		server.Pause(t) // must not hold up the end
	})
	_, err := net.DialTimeout("tcp", addr, time.Second)
	require.Error(t, err)
}

func TestHarness_CommandsCountsExactly(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	require.NoError(t, set(t.Context(), server.Client(t), "k", "before"))
	script := rueidis.NewLuaScript(`redis.call('SET', KEYS[1], 1) return redis.call('GET', KEYS[1])`)
	counts := redistest.Commands(t, server, func() {
		client := server.Client(t)
		for range 3 {
			require.NoError(t, set(t.Context(), client, "k", "v"))
		}
		require.NoError(t, client.Do(t.Context(), client.B().ConfigGet().Parameter("save").Build()).Error())
		require.NoError(t, script.Exec(t.Context(), client, []string{"k"}, nil).Error())
		require.NoError(t, script.Exec(t.Context(), client, []string{"k"}, nil).Error())
	})
	require.Equal(t, map[string]int64{"set": 5, "get": 2, "config|get": 1, "evalsha": 2, "eval": 1}, counts)
	require.Empty(t, redistest.Commands(t, server, func() {}))
}

func TestHarness_ClusterHasThreePrimaries(t *testing.T) {
	t.Parallel()
	cluster := redistest.SharedCluster(t)
	require.Len(t, cluster.Addrs(), 3)
	client := cluster.Client(t)
	require.Equal(t, rueidis.ClientModeCluster, client.Mode())
	require.Len(t, client.Nodes(), 3)

	prefix := redistest.Prefix(t)
	var sets, gets rueidis.Commands
	for i := range 100 {
		key := prefix + ":" + strconv.Itoa(i)
		sets = append(sets, client.B().Set().Key(key).Value(strconv.Itoa(i)).ExSeconds(60).Build())
		gets = append(gets, client.B().Get().Key(key).Build())
	}
	for _, r := range client.DoMulti(t.Context(), sets...) {
		require.NoError(t, r.Error())
	}
	for i, r := range client.DoMulti(t.Context(), gets...) {
		got, err := r.AsInt64()
		require.NoError(t, err)
		require.EqualValues(t, i, got)
	}
	for addr, node := range client.Nodes() {
		n, err := node.Do(t.Context(), node.B().Dbsize().Build()).AsInt64()
		require.NoError(t, err)
		require.Positive(t, n, addr)
	}
}

func TestHarness_ClusterFailover(t *testing.T) {
	t.Parallel()
	cluster := redistest.StartCluster(t, 1)
	require.Len(t, cluster.Addrs(), 6)
	client := cluster.Client(t)
	for _, key := range []string{"a", "b"} { // of different primaries
		require.NoError(t, set(t.Context(), client, key, "v"))
		old := runIDOf(t, client, key)
		waitReplicated(t, cluster.Client(t), key)

		cluster.Failover(t, key)
		requireMoves(t, client, old, key)
	}
}

func TestHarness_SentinelKillPrimary(t *testing.T) {
	t.Parallel()
	sentinel := redistest.StartSentinel(t)
	client := sentinel.Client(t)
	before := runID(t, client)
	require.NoError(t, set(t.Context(), client, "k", "v"))
	waitReplicated(t, sentinel.Client(t), "k")

	sentinel.KillPrimary(t)
	requireMoves(t, client, before, "k")
}

func TestHarness_SentinelFailover(t *testing.T) {
	t.Parallel()
	sentinel := redistest.StartSentinel(t)
	client := sentinel.Client(t)
	require.NoError(t, set(t.Context(), client, "k", "v"))
	for range 2 { // there and back
		before := runID(t, client)
		sentinel.Failover(t)
		requireMoves(t, client, before, "k")
	}
}

func TestHarness_ProxyLatency(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	proxy := redistest.NewProxy(t, server.Addr())
	client, key := server.Client(t, proxy.Through), redistest.Prefix(t)
	require.NoError(t, set(t.Context(), client, key, "v"))

	proxy.Latency(t, brief)
	begin := time.Now()
	require.NoError(t, set(t.Context(), client, key, "v"))
	require.GreaterOrEqual(t, time.Since(begin), brief)

	proxy.Restore(t)
	require.Eventually(t, func() bool {
		begin := time.Now()
		return set(t.Context(), client, key, "v") == nil && time.Since(begin) < brief
	}, soon, tick)
}

func TestHarness_ProxyDropReplies(t *testing.T) {
	t.Parallel()
	testSilence(t, (*redistest.Proxy).DropReplies, "new")
}

func TestHarness_ProxyBlackHole(t *testing.T) {
	t.Parallel()
	testSilence(t, (*redistest.Proxy).BlackHole, "old")
}

// testSilence sends a write that gets no reply, and looks at the server for what became of it.
func testSilence(t *testing.T, verb func(*redistest.Proxy, testing.TB), want string) {
	t.Helper()
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr())
	client, direct := server.Client(t, proxy.Through, redistest.OneConnection), server.Client(t)
	require.NoError(t, set(t.Context(), client, "k", "old"))

	verb(proxy, t)
	ctx, cancel := context.WithTimeout(t.Context(), brief)
	defer cancel()
	require.ErrorIs(t, set(ctx, client, "k", "new"), context.DeadlineExceeded)
	conn, err := net.Dial("tcp", proxy.Addr())
	require.NoError(t, err, "new connections are accepted")
	require.NoError(t, conn.Close())
	got, err := get(t.Context(), direct, "k")
	require.NoError(t, err)
	require.Equal(t, want, got)

	proxy.Restore(t)
	requireContinues(t, client, "k")
}

func TestHarness_ProxyCut(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	proxy := redistest.NewProxy(t, server.Addr())
	client, key := server.Client(t, proxy.Through), redistest.Prefix(t)
	require.NoError(t, set(t.Context(), client, key, "v"))
	conn, err := net.Dial("tcp", proxy.Addr())
	require.NoError(t, err)
	defer conn.Close() //nolint:errcheck // closed by the peer already

	proxy.Cut(t)
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(soon)))
	_, err = conn.Read(make([]byte, 1))
	require.Error(t, err)
	require.NotErrorIs(t, err, context.DeadlineExceeded)
	_, err = net.Dial("tcp", proxy.Addr())
	require.Error(t, err)
	require.Error(t, set(t.Context(), client, key, "v"))

	proxy.Restore(t)
	requireContinues(t, client, key)
}

func set(ctx context.Context, client rueidis.Client, key, value string) error {
	return client.Do(ctx, client.B().Set().Key(key).Value(value).ExSeconds(600).Build()).Error()
}

func get(ctx context.Context, client rueidis.Client, key string) (string, error) {
	return client.Do(ctx, client.B().Get().Key(key).Build()).ToString()
}

// requireContinues waits until the client writes again, and reads what it wrote.
func requireContinues(t *testing.T, client rueidis.Client, key string) {
	t.Helper()
	value := redistest.Prefix(t)
	require.Eventually(t, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if set(ctx, client, key, value) != nil {
			return false
		}
		got, err := get(ctx, client, key)
		return err == nil && got == value
	}, soon, tick)
}

func waitReplicated(t *testing.T, client rueidis.Client, key string) {
	t.Helper()
	err := client.Dedicated(func(c rueidis.DedicatedClient) error {
		require.NoError(t, c.Do(t.Context(), c.B().Set().Key(key).Value("v").Build()).Error())
		n, err := c.Do(t.Context(), c.B().Wait().Numreplicas(1).Timeout(5000).Build()).AsInt64()
		require.EqualValues(t, 1, n)
		return err
	})
	require.NoError(t, err)
}

func runID(t *testing.T, client rueidis.Client) string {
	t.Helper()
	return runIDOf(t, client, "k")
}

// runIDOf returns the run id of the server that answers for a key: INFO itself may go to any node of a cluster.
func runIDOf(t *testing.T, client rueidis.Client, key string) string {
	t.Helper()
	id, err := askRunID(t.Context(), client, key)
	require.NoError(t, err)
	return id
}

func askRunID(ctx context.Context, client rueidis.Client, key string) (string, error) {
	script := `return redis.call('INFO', 'server')`
	info, err := client.Do(ctx, client.B().Eval().Script(script).Numkeys(1).Key(key).Build()).ToString()
	if err != nil {
		return "", err
	}
	_, after, ok := strings.Cut(info, "run_id:")
	if !ok {
		return "", errors.New("no run_id")
	}
	return strings.TrimSpace(strings.SplitN(after, "\n", 2)[0]), nil
}

// requireMoves waits until the client asks another server than that of a run id: Sentinel may leave a primary that it has replaced a
// primary for ten seconds more. And it writes there.
func requireMoves(t *testing.T, client rueidis.Client, before, key string) {
	t.Helper()
	require.Eventually(t, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		id, err := askRunID(ctx, client, key)
		return err == nil && id != before
	}, soon, tick)
	requireContinues(t, client, key)
}
