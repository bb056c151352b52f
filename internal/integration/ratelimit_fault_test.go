package integration

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/redispatterns/redispatterns/internal/integration/redistest"
	"github.com/redispatterns/redispatterns/ratelimit"
)

const limitTimeout = 200 * time.Millisecond

// quickDial is an option for clients: while one opens a connection, all callers wait for it.
func quickDial(o *rueidis.ClientOption) { o.Dialer.Timeout = limitTimeout }

// fillUp makes a server refuse what needs memory, and back.
func fillUp(t *testing.T, server *redistest.Server, limit string) {
	admin := server.Client(t)
	require.NoError(t, admin.Do(t.Context(), admin.B().ConfigSet().ParameterValue().ParameterValue("maxmemory", limit).Build()).Error())
}

// TestRateLimit_PoliciesHoldWhileRedisFails holds each policy against each fault: a decision within Timeout, soon
// after within microseconds, and recovery by itself.
func TestRateLimit_PoliciesHoldWhileRedisFails(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]struct {
		begin, end func(*testing.T, *redistest.Server)
	}{
		"killed": {
			func(t *testing.T, s *redistest.Server) { s.Kill(t) },
			func(t *testing.T, s *redistest.Server) { s.Restart(t) },
		},
		"hung": {
			func(t *testing.T, s *redistest.Server) { s.Pause(t) },
			func(t *testing.T, s *redistest.Server) { s.Resume(t) },
		},
		"full": {
			func(t *testing.T, s *redistest.Server) { fillUp(t, s, "1") },
			func(t *testing.T, s *redistest.Server) { fillUp(t, s, "0") },
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t, "--maxmemory-policy", "noeviction")
			client := server.Client(t, quickDial)
			ctx := t.Context()
			var hidden atomic.Int64
			policies := map[ratelimit.FailurePolicy]*ratelimit.Limiter{}
			for _, policy := range []ratelimit.FailurePolicy{ratelimit.ReturnError, ratelimit.Allow, ratelimit.Deny, ratelimit.Local} {
				policies[policy] = newLimiter(t, ratelimit.NewSlidingWindow, client, ratelimit.PerHour(100), ratelimit.Options{
					Timeout: limitTimeout, OnFailure: policy, LocalShare: 0.1, Prefix: redistest.Prefix(t),
					Hooks: ratelimit.Hooks{Error: func(context.Context, error) { hidden.Add(1) }},
				})
				require.True(t, allowN(t, policies[policy], "before", 1).Allowed)
			}
			fault.begin(t, server)
			for policy, l := range policies {
				var took []time.Duration
				var admitted int64
				for range 150 {
					began := time.Now()
					r, err := l.Allow(ctx, "k")
					d := time.Since(began)
					took = append(took, d)
					require.Less(t, d, limitTimeout+500*time.Millisecond)
					if policy == ratelimit.ReturnError {
						require.Error(t, err)
						require.False(t, r.Allowed)
						continue
					}
					require.NoError(t, err)
					require.Equal(t, ratelimit.SourceFallback, r.Source)
					switch policy {
					case ratelimit.Allow:
						require.True(t, r.Allowed)
					case ratelimit.Deny:
						require.False(t, r.Allowed)
						require.Positive(t, r.RetryAfter)
					case ratelimit.Local:
						require.EqualValues(t, 10, r.Limit)
						if r.Allowed {
							admitted++
							require.Equal(t, 10-admitted, r.Remaining)
						} else {
							require.Greater(t, r.RetryAfter, 50*time.Minute)
						}
					}
				}
				if policy == ratelimit.Local {
					require.EqualValues(t, 10, admitted, "its share of 100")
				}
				slices.Sort(took)
				require.Less(t, took[len(took)/2], 5*time.Millisecond, "the median of later calls")
				t.Logf("policy %d: median %v, largest %v", policy, took[len(took)/2], took[len(took)-1])

				// Many callers at once, of one key and of many, are no slower.
				var wg sync.WaitGroup
				began := time.Now()
				for i := range 64 {
					wg.Go(func() {
						_, _ = l.Allow(ctx, "hot")
						_, _ = l.Allow(ctx, strconv.Itoa(i))
						_, _ = ratelimit.AllowMany(ctx, ratelimit.Request{Limiter: l, Key: "a", N: 1}, ratelimit.Request{Limiter: l, Key: "b", N: 1})
					})
				}
				wg.Wait()
				require.Less(t, time.Since(began), 3*limitTimeout+500*time.Millisecond)
				all, err := ratelimit.AllowAll(ctx, ratelimit.Request{Limiter: l, Key: "x", N: 1}, ratelimit.Request{Limiter: l, Key: "y", N: 1})
				require.Equal(t, policy == ratelimit.ReturnError, err != nil)
				require.Equal(t, policy == ratelimit.Allow || policy == ratelimit.Local, all.Allowed)
				if policy == ratelimit.Local { // all or none, here too
					all, err = ratelimit.AllowAll(ctx, ratelimit.Request{Limiter: l, Key: "x", N: 1}, ratelimit.Request{Limiter: l, Key: "k", N: 1})
					require.NoError(t, err)
					require.False(t, all.Allowed)
					require.EqualValues(t, 8, all.Results[0].Remaining+all.Results[1].Remaining-1)
				}
				if name != "full" { // there reads and deletes work
					_, err = l.Peek(ctx, "k")
					require.Error(t, err)
					require.Error(t, l.Refund(ctx, "k", 1))
					require.Error(t, l.Reset(ctx, "k"))
				}
			}
			require.Positive(t, hidden.Load())
			fault.end(t, server)
			for _, l := range policies {
				require.Eventually(t, func() bool {
					r, err := l.Allow(ctx, "after")
					return err == nil && r.Source == ratelimit.SourceRedis
				}, 15*time.Second, 5*time.Millisecond)
			}
		})
	}
}

func TestRateLimit_WaitOutlastsAnOutage(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t, quickDial)
	l := newLimiter(t, ratelimit.NewTokenBucket, client, ratelimit.PerHour(5), ratelimit.Options{Timeout: limitTimeout, OnFailure: ratelimit.Deny})
	require.NoError(t, l.Wait(t.Context(), "k"))
	server.Pause(t)
	bounded, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, l.Wait(bounded, "k"), ratelimit.ErrDeadline)
	waited := make(chan error, 1)
	go func() { waited <- l.Wait(t.Context(), "k") }()
	<-time.After(300 * time.Millisecond)
	server.Resume(t)
	require.NoError(t, <-waited)
}

func TestRateLimit_ACallersOwnDeadlineHolds(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	l := newLimiter(t, ratelimit.NewFixedWindow, server.Client(t), ratelimit.PerHour(100), ratelimit.Options{Timeout: 3 * time.Second})
	allowN(t, l, "k", 1)
	server.Pause(t)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
			defer cancel()
			began := time.Now()
			_, err := l.Allow(ctx, strconv.Itoa(i%2))
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.Less(t, time.Since(began), time.Second)
		})
	}
	wg.Wait()
	server.Resume(t)
	require.Eventually(t, func() bool { _, err := l.Allow(t.Context(), "k"); return err == nil }, 10*time.Second, 10*time.Millisecond)
}

// TestRateLimit_NoCallIsSentTwice loses the replies: what was executed is executed once.
func TestRateLimit_NoCallIsSentTwice(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	direct := server.Client(t)
	proxy := redistest.NewProxy(t, server.Addr())
	opts := ratelimit.Options{Prefix: redistest.Prefix(t), Timeout: limitTimeout}
	l := newLimiter(t, ratelimit.NewFixedWindow, server.Client(t, proxy.Through, redistest.OneConnection, quickDial), ratelimit.PerHour(100), opts)
	watch := newLimiter(t, ratelimit.NewFixedWindow, direct, ratelimit.PerHour(100), ratelimit.Options{Prefix: opts.Prefix})
	allowN(t, l, "k", 1)
	proxy.DropReplies(t)
	_, err := l.AllowN(t.Context(), "k", 10)
	require.Error(t, err)
	proxy.Restore(t)
	require.Eventually(t, func() bool { _, err := l.Peek(t.Context(), "k"); return err == nil }, 10*time.Second, 10*time.Millisecond)
	require.EqualValues(t, 89, peek(t, watch, "k").Remaining, "taken once: it was executed, and not again")
}

// TestRateLimit_StaysExactThrough counts what passes while something happens to the server that loses no data.
func TestRateLimit_StaysExactThrough(t *testing.T) {
	t.Parallel()
	for name, disturb := range map[string]func(context.Context, rueidis.Client) error{
		"SCRIPT FLUSH": func(ctx context.Context, c rueidis.Client) error {
			return c.Do(ctx, c.B().ScriptFlush().Build()).Error()
		},
		"CLIENT PAUSE": func(ctx context.Context, c rueidis.Client) error {
			return c.Do(ctx, c.B().ClientPause().Timeout(20).Build()).Error()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t)
			admin := server.Client(t)
			prefix := redistest.Prefix(t)
			var admitted atomic.Int64
			var wg sync.WaitGroup
			for range 2 {
				l := newLimiter(t, ratelimit.NewSlidingWindow, server.Client(t), ratelimit.PerHour(2000), ratelimit.Options{Prefix: prefix, DenyCacheSize: -1})
				for range 16 {
					wg.Go(func() {
						for range 100 {
							r, err := l.Allow(t.Context(), "k")
							if err != nil {
								t.Error(err)
								return
							}
							if r.Allowed {
								admitted.Add(1)
							}
						}
					})
				}
			}
			for range 20 {
				require.NoError(t, disturb(t.Context(), admin))
				<-time.After(2 * time.Millisecond)
			}
			wg.Wait()
			require.EqualValues(t, 2000, admitted.Load())
		})
	}
}

func TestRateLimit_ConnectionsThatAreCutNeverAddBudget(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	admin := server.Client(t)
	l := newLimiter(t, ratelimit.NewTokenBucket, server.Client(t), ratelimit.Per(500, 24*time.Hour), ratelimit.Options{Timeout: 5 * time.Second, DenyCacheSize: -1})
	var admitted, failed atomic.Int64
	var wg sync.WaitGroup
	done := make(chan struct{})
	for range 16 {
		wg.Go(func() {
			for range 100 {
				r, err := l.Allow(t.Context(), "k")
				switch {
				case err != nil:
					failed.Add(1)
				case r.Allowed:
					admitted.Add(1)
				}
			}
		})
	}
	go func() { wg.Wait(); close(done) }()
	for open := true; open; {
		select {
		case <-done:
			open = false
		case <-time.After(5 * time.Millisecond):
			_ = admin.Do(t.Context(), admin.B().Arbitrary("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes").Build()).Error()
		}
	}
	require.LessOrEqual(t, admitted.Load(), int64(500))
	t.Logf("%d admitted, %d calls failed", admitted.Load(), failed.Load())
}

func TestRateLimit_RecoversFromASentinelFailover(t *testing.T) {
	t.Parallel()
	sentinel := redistest.StartSentinel(t)
	client := sentinel.Client(t, quickDial)
	l := newLimiter(t, ratelimit.NewFixedWindow, client, ratelimit.PerHour(1_000_000), ratelimit.Options{Timeout: limitTimeout, OnFailure: ratelimit.Local})
	allowN(t, l, "k", 1)
	stop := make(chan struct{})
	var slow, calls atomic.Int64
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				began := time.Now()
				r, err := l.Allow(t.Context(), strconv.Itoa(i%4))
				if err != nil || !r.Allowed {
					t.Errorf("%+v %v", r, err)
					return
				}
				calls.Add(1)
				if time.Since(began) > limitTimeout+500*time.Millisecond {
					slow.Add(1)
				}
				<-time.After(100 * time.Microsecond)
			}
		})
	}
	sentinel.KillPrimary(t)
	require.Eventually(t, func() bool {
		r, err := l.Allow(t.Context(), "after")
		return err == nil && r.Source == ratelimit.SourceRedis
	}, 30*time.Second, 10*time.Millisecond)
	close(stop)
	wg.Wait()
	t.Logf("%d calls, %d of them slow", calls.Load(), slow.Load())
	require.Zero(t, slow.Load())
}

// TestRateLimit_ALostNodeLeavesTheOthersKeys kills one primary of a cluster whose others then go on.
func TestRateLimit_ALostNodeLeavesTheOthersKeys(t *testing.T) {
	t.Parallel()
	cluster := redistest.StartCluster(t, 1)
	client := cluster.Client(t, quickDial)
	for _, node := range client.Nodes() {
		set := node.B().ConfigSet().ParameterValue().ParameterValue("cluster-require-full-coverage", "no").Build()
		require.NoError(t, node.Do(t.Context(), set).Error())
	}
	l := newLimiter(t, ratelimit.NewSlidingWindow, client, ratelimit.PerHour(1_000_000), ratelimit.Options{
		Timeout: limitTimeout, OnFailure: ratelimit.Deny, Prefix: "lost-node",
	})
	const keys = 60
	lost := limitKey("lost-node", "sliding", time.Hour, "0")
	owner := func(id int) string {
		key := limitKey("lost-node", "sliding", time.Hour, fmt.Sprint(id))
		get := client.B().Get().Key(key).Build()
		return strconv.Itoa(int(get.Slot()) * 3 / 16384)
	}
	for i := range keys {
		require.True(t, allowN(t, l, strconv.Itoa(i), 1).Allowed)
	}
	var refused, others atomic.Int64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range keys {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				r, err := l.Allow(t.Context(), strconv.Itoa(i))
				if err != nil {
					t.Error(err)
					return
				}
				if !r.Allowed {
					if owner(i) == owner(0) {
						refused.Add(1)
					} else {
						others.Add(1)
					}
				}
				<-time.After(5 * time.Millisecond)
			}
		})
	}
	cluster.Failover(t, lost)
	require.Eventually(t, func() bool {
		r, err := l.Allow(t.Context(), "0")
		return err == nil && r.Source == ratelimit.SourceRedis
	}, 30*time.Second, 10*time.Millisecond)
	close(stop)
	wg.Wait()
	require.Positive(t, refused.Load())
	t.Logf("%d calls refused on the lost node, %d on others", refused.Load(), others.Load())
	require.Less(t, others.Load(), refused.Load()/20)
}
