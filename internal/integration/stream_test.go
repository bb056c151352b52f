package integration

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/redispatterns/redispatterns/internal/integration/redistest"
	"github.com/redispatterns/redispatterns/stream"
)

const streamLease = 600 * time.Millisecond

func newStream(t *testing.T, client rueidis.Client, key string) *stream.Stream[int] {
	t.Helper()
	s, err := stream.New(client, key, stream.Options[int]{})
	require.NoError(t, err)
	return s
}

// streamRun is a Run in the background.
type streamRun struct {
	stop context.CancelFunc
	done chan error
}

// runStream runs a group until the end of the test at the latest.
func runStream(t *testing.T, g *stream.Group[int], h stream.Handler[int]) *streamRun {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	r := &streamRun{stop, make(chan error, 1)}
	go func() { r.done <- g.Run(ctx, h) }()
	t.Cleanup(func() {
		stop()
		select {
		case err := <-r.done:
			r.done <- err
		case <-time.After(20 * time.Second):
			t.Error("Run did not return")
		}
	})
	return r
}

// end stops a Run and returns what it returned.
func (r *streamRun) end(t *testing.T) error {
	t.Helper()
	r.stop()
	select {
	case err := <-r.done:
		r.done <- err
		return err
	case <-time.After(20 * time.Second):
		require.Fail(t, "Run did not return")
		return nil
	}
}

// streamCounts counts how often each value was handled.
type streamCounts struct {
	mu sync.Mutex
	n  map[int]int
}

func (c *streamCounts) add(v int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = map[int]int{}
	}
	c.n[v]++
	return c.n[v]
}

func (c *streamCounts) of(v int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n[v]
}

func (c *streamCounts) handled() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.n)
}

// extra returns how many were handled more than once, each time counted.
func (c *streamCounts) extra() (extra int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.n {
		extra += n - 1
	}
	return extra
}

func (c *streamCounts) handle(_ context.Context, m *stream.Message[int]) error {
	c.add(m.Value)
	return nil
}

func publishMany(t *testing.T, s *stream.Stream[int], from, to int) []stream.ID {
	t.Helper()
	values := make([]int, 0, to-from)
	for v := from; v < to; v++ {
		values = append(values, v)
	}
	ids, err := s.PublishBatch(t.Context(), values)
	require.NoError(t, err)
	return ids
}

// requireDrained waits until the group has everything handled and nothing pending.
func requireDrained(t *testing.T, g *stream.Group[int], within time.Duration) {
	t.Helper()
	require.Eventually(t, func() bool {
		info, err := g.Info(t.Context())
		return err == nil && info.Pending == 0 && (info.Lag == 0 || !info.LagKnown)
	}, within, 5*time.Millisecond)
}

func streamDead[T any](t *testing.T, g *stream.Group[T]) (dead []*stream.DeadMessage[T]) {
	t.Helper()
	for d, err := range g.Dead(t.Context()) {
		require.NoError(t, err)
		dead = append(dead, d)
	}
	return dead
}

var quickly = func(int) time.Duration { return time.Millisecond }

// All that a user does first, on everything that it must work on.
func TestStream_Everywhere(t *testing.T) {
	t.Parallel()
	redistest.EachTarget(t, func(t *testing.T, client rueidis.Client) {
		ctx := t.Context()
		// Two streams of different slots in one process.
		prefix := redistest.Prefix(t)
		var wg sync.WaitGroup
		for _, key := range []string{prefix + ":a", "{" + prefix + "}:b"} {
			s := newStream(t, client, key)
			g := s.Group("workers", stream.GroupOptions[int]{Lease: streamLease, Backoff: quickly, MaxAttempts: 3})
			var counts streamCounts
			r := runStream(t, g, func(_ context.Context, m *stream.Message[int]) error {
				n := counts.add(m.Value)
				switch {
				case m.Value == 7 && m.Redriven:
					return nil
				case m.Value == 7:
					return errors.New("bad luck")
				case m.Value == 8 && n < 3:
					return errors.New("not yet")
				case m.Value == 9 && m.Headers["from"] != "test":
					return errors.New("no header")
				}
				return nil
			})
			wg.Go(func() {
				publishMany(t, s, 0, 9)
				id, err := s.Publish(ctx, 9, stream.Header("from", "test"))
				require.NoError(t, err)
				require.WithinDuration(t, time.Now(), id.Time(), time.Minute)
				first, err := s.Publish(ctx, 10, stream.IdempotencyKey("ten"))
				require.NoError(t, err)
				again, err := s.Publish(ctx, 11, stream.IdempotencyKey("ten"))
				require.NoError(t, err)
				require.Equal(t, first, again)
				id, err = s.Publish(ctx, 12, stream.Delay(50*time.Millisecond), stream.Header("x", "y"))
				require.NoError(t, err)
				require.Empty(t, id)
				require.Eventually(t, func() bool { return counts.of(12) == 1 && counts.of(7) == 3 && counts.of(8) == 3 }, 10*time.Second, time.Millisecond)
				requireDrained(t, g, 10*time.Second)
				require.Equal(t, 1, counts.of(9))
				require.Equal(t, 1, counts.of(10))
				require.Zero(t, counts.of(11))

				dead := streamDead(t, g)
				require.Len(t, dead, 1)
				require.Equal(t, "bad luck", dead[0].Reason)
				require.Equal(t, 3, dead[0].Attempts)
				require.Equal(t, 7, dead[0].Value)
				n, err := g.Redrive(ctx)
				require.NoError(t, err)
				require.Equal(t, 1, n)
				require.Eventually(t, func() bool { return counts.of(7) == 4 }, 10*time.Second, time.Millisecond)
				require.NoError(t, r.end(t))

				var values []int
				for m, err := range s.Range(ctx, "", "") {
					require.NoError(t, err)
					values = append(values, m.Value)
				}
				require.Equal(t, []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 7}, values)
				info, err := g.Info(ctx)
				require.NoError(t, err)
				require.Empty(t, info.Consumers, "who leaves is gone")
				trimmed, err := s.TrimAcked(ctx)
				require.NoError(t, err)
				require.Equal(t, int64(12), trimmed)
				stats := g.Stats()
				require.Equal(t, uint64(13), stats.Received)
				require.Equal(t, uint64(1), stats.Dead)
				require.Zero(t, stats.InFlight)
				require.Zero(t, stats.Lost)
			})
		}
		wg.Wait()
	})
}

// A handler that takes ten leases runs once, and so do those that wait behind it.
func TestStream_ASlowHandlerRunsOnce(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	s := newStream(t, client, redistest.Prefix(t))
	const lease = 500 * time.Millisecond
	opts := stream.GroupOptions[int]{Lease: lease, Workers: 1}
	var counts streamCounts
	begun := make(chan struct{}, 10)
	var groups []*stream.Group[int]
	publishMany(t, s, 0, 3)
	for i := range 3 {
		g := s.Group("g", opts)
		groups = append(groups, g)
		runStream(t, g, func(ctx context.Context, m *stream.Message[int]) error {
			counts.add(m.Value)
			if m.Value == 0 {
				begun <- struct{}{}
				return after(ctx, 10*lease)
			}
			return nil
		})
		if i == 0 {
			<-begun // it has the others behind it
		}
	}
	require.Eventually(t, func() bool { return counts.handled() == 3 }, 20*time.Second, 5*time.Millisecond)
	requireDrained(t, groups[0], 5*time.Second)
	require.Zero(t, counts.extra())
	for _, g := range groups {
		require.Zero(t, g.Stats().Lost)
		require.Zero(t, g.Stats().Claimed)
	}
}

// What has not begun is handed over within half a lease, what is at work is finished, and the attempts do not change.
func TestStream_AGracefulStopHandsOver(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	s := newStream(t, client, redistest.Prefix(t))
	const lease = 2 * time.Second
	opts := stream.GroupOptions[int]{Lease: lease, Workers: 2, Consumer: "first"}
	publishMany(t, s, 0, 6)
	var counts streamCounts
	begun, finish := make(chan struct{}, 10), make(chan struct{})
	first := s.Group("g", opts)
	r := runStream(t, first, func(_ context.Context, m *stream.Message[int]) error {
		counts.add(m.Value)
		begun <- struct{}{}
		<-finish
		return nil
	})
	<-begun
	<-begun
	var mu sync.Mutex
	attempts := map[int]int{}
	peer := s.Group("g", opts)
	runStream(t, peer, func(_ context.Context, m *stream.Message[int]) error {
		counts.add(m.Value)
		mu.Lock()
		defer mu.Unlock()
		attempts[m.Value] = m.Attempt
		return nil
	})
	stopped := time.Now()
	r.stop()
	require.Eventually(t, func() bool { return counts.handled() == 6 }, 5*time.Second, time.Millisecond)
	require.Less(t, time.Since(stopped), lease/2)
	close(finish)
	require.NoError(t, r.end(t))
	requireDrained(t, peer, 5*time.Second)
	require.Zero(t, counts.extra())
	mu.Lock()
	defer mu.Unlock()
	require.Equal(t, map[int]int{2: 1, 3: 1, 4: 1, 5: 1}, attempts)
	for e, err := range peer.Pending(t.Context()) {
		require.NoError(t, err)
		require.Fail(t, "pending", e)
	}
}

// What waits for its next attempt is handed over as it is: no attempt is forgotten, and nobody is to handle it earlier.
func TestStream_AGracefulStopKeepsAttempts(t *testing.T) {
	t.Parallel()
	s := newStream(t, redistest.Shared(t).Client(t), redistest.Prefix(t))
	g := s.Group("g", stream.GroupOptions[int]{Backoff: func(int) time.Duration { return time.Minute }})
	r := runStream(t, g, func(context.Context, *stream.Message[int]) error { return errors.New("not yet") })
	publishMany(t, s, 0, 1)
	require.Eventually(t, func() bool { return g.Stats().Retries == 1 }, 5*time.Second, time.Millisecond)
	require.NoError(t, r.end(t))
	n := 0
	for e, err := range g.Pending(t.Context()) {
		require.NoError(t, err)
		require.Equal(t, 1, e.Attempts)
		require.Less(t, e.Idle, 10*time.Second)
		n++
	}
	require.Equal(t, 1, n)
}

// Run returns at once from an empty stream, with any client, and in bounded time from a handler that does not.
func TestStream_RunReturns(t *testing.T) {
	t.Parallel()
	for name, opt := range map[string]func(*rueidis.ClientOption){
		"as it is":           func(*rueidis.ClientOption) {},
		"without pipelining": func(o *rueidis.ClientOption) { o.DisableAutoPipelining = true },
		"RESP2":              func(o *rueidis.ClientOption) { o.AlwaysRESP2, o.DisableCache = true, true },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client := redistest.Shared(t).Client(t, opt)
			s := newStream(t, client, redistest.Prefix(t))
			g := s.Group("g", stream.GroupOptions[int]{})
			var counts streamCounts
			r := runStream(t, g, counts.handle)
			requireResumes(t, s, &counts, 1)
			require.Eventually(t, func() bool { return g.Stats().Acked == 1 }, 5*time.Second, time.Millisecond)
			require.NoError(t, after(t.Context(), 50*time.Millisecond)) // reading waits
			began := time.Now()
			require.NoError(t, r.end(t))
			require.Less(t, time.Since(began), 500*time.Millisecond)
			info, err := g.Info(t.Context())
			require.NoError(t, err)
			require.Empty(t, info.Consumers)
		})
	}
	t.Run("a handler that heeds its context", func(t *testing.T) {
		t.Parallel()
		s := newStream(t, redistest.Shared(t).Client(t), redistest.Prefix(t))
		g := s.Group("g", stream.GroupOptions[int]{DrainTimeout: 50 * time.Millisecond})
		begun := make(chan struct{})
		var cause error
		r := runStream(t, g, func(ctx context.Context, _ *stream.Message[int]) error {
			close(begun)
			<-ctx.Done()
			cause = context.Cause(ctx)
			return ctx.Err()
		})
		publishMany(t, s, 0, 1)
		<-begun
		require.NoError(t, r.end(t))
		require.ErrorIs(t, cause, stream.ErrStopping)
		pending := 0
		for e, err := range g.Pending(t.Context()) {
			require.NoError(t, err)
			require.Zero(t, e.Attempts, "it did not fail by itself")
			require.GreaterOrEqual(t, e.Idle, 30*time.Second, "it is handed over")
			pending++
		}
		require.Equal(t, 1, pending, "who has left keeps it until somebody takes it over")
	})
	t.Run("one that does not", func(t *testing.T) {
		t.Parallel()
		s := newStream(t, redistest.Shared(t).Client(t), redistest.Prefix(t))
		g := s.Group("g", stream.GroupOptions[int]{DrainTimeout: 50 * time.Millisecond})
		begun, finish := make(chan struct{}), make(chan struct{})
		r := runStream(t, g, func(context.Context, *stream.Message[int]) error {
			close(begun)
			<-finish
			return nil
		})
		defer close(finish)
		publishMany(t, s, 0, 1)
		<-begun
		began := time.Now()
		require.ErrorIs(t, r.end(t), stream.ErrUnfinished)
		require.Less(t, time.Since(began), 3*time.Second)
	})
}
