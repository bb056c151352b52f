package integration

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
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
	"github.com/redispatterns/redispatterns/stream"
)

// MaxLen holds for each way of publishing now, about: whole nodes of entries are removed, 100 in each, and a batch is
// trimmed every 64.
func TestStream_MaxLen(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	key := redistest.Prefix(t)
	s, err := stream.New(client, key, stream.Options[int]{MaxLen: 300})
	require.NoError(t, err)
	requireBounded := func(most int64) {
		t.Helper()
		n, err := client.Do(t.Context(), client.B().Xlen().Key(key).Build()).AsInt64()
		require.NoError(t, err)
		require.GreaterOrEqual(t, n, int64(300))
		require.LessOrEqual(t, n, most)
	}
	for range 5 {
		publishMany(t, s, 0, 1030)
		requireBounded(300 + 100 + 64)
	}
	for range 200 {
		_, err = s.Publish(t.Context(), 1)
		require.NoError(t, err)
	}
	requireBounded(300 + 100)
	for v := range 200 {
		_, err = s.Publish(t.Context(), 1, stream.IdempotencyKey(strconv.Itoa(v)))
		require.NoError(t, err)
	}
	requireBounded(300 + 100)
}

// However handling fails, it is tried exactly MaxAttempts times, and the dead letter has what the entry had. Others are not
// affected.
func TestStream_DeadLetters(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	key := redistest.Prefix(t)
	s := newStream(t, client, key)
	const attempts = 3
	var mu sync.Mutex
	var outcomes []stream.Done
	g := s.Group("g", stream.GroupOptions[int]{MaxAttempts: attempts, Backoff: quickly, Lease: streamLease, Hooks: stream.Hooks{
		Done: func(_ context.Context, d stream.Done) {
			mu.Lock()
			defer mu.Unlock()
			outcomes = append(outcomes, d)
		},
	}})
	other := s.Group("other", stream.GroupOptions[int]{Lease: streamLease, Backoff: quickly})
	var counts, others streamCounts
	var healed atomic.Bool
	runStream(t, other, others.handle)
	runStream(t, g, func(_ context.Context, m *stream.Message[int]) error {
		n := counts.add(m.Value)
		if m.Attempt != n && !m.Redriven {
			return fmt.Errorf("attempt %d is called %d", n, m.Attempt)
		}
		if healed.Load() {
			return nil
		}
		switch m.Value {
		case 1:
			return errors.New("an error")
		case 2:
			panic("a panic")
		case 3:
			runtime.Goexit()
		case 4:
			return stream.DeadLetter(errors.New("at once"))
		case 5:
			return stream.Drop(errors.New("never mind"))
		case 6:
			if n <= 2*attempts {
				return stream.RetryAfter(time.Millisecond, nil)
			}
		}
		return nil
	})
	publishMany(t, s, 0, 6)
	raw, err := client.Do(t.Context(), client.B().Xadd().Key(key).Id("*").FieldValue().FieldValue("b", "2").FieldValue("a", "1").FieldValue("a", "\xff").Build()).ToString()
	require.NoError(t, err)
	publishMany(t, s, 10, 30)
	requireDrained(t, g, 10*time.Second)
	reasons := map[string]*stream.DeadMessage[int]{}
	for _, d := range streamDead(t, g) {
		reasons[strings.Split(d.Reason, "\n")[0]] = d
	}
	require.Len(t, reasons, 5, reasons)
	for reason, want := range map[string]int{"an error": 1, "stream: handler panicked: a panic": 2, "stream: handler ended its goroutine": 3} {
		require.Contains(t, reasons, reason)
		require.Equal(t, attempts, reasons[reason].Attempts)
		require.Equal(t, want, reasons[reason].Value)
		require.Equal(t, attempts, counts.of(want))
		require.Equal(t, []string{"data", strconv.Itoa(want)}, reasons[reason].Fields)
	}
	require.Equal(t, 1, reasons["at once"].Attempts)
	require.Equal(t, 1, counts.of(5))
	for reason, d := range reasons {
		if d.Err == nil {
			continue
		}
		require.Contains(t, reason, "decode")
		require.Equal(t, stream.ID(raw), d.Original)
		require.Equal(t, []string{"b", "2", "a", "1", "a", "\xff"}, d.Fields)
		require.Equal(t, attempts, d.Attempts)
	}
	for v := 10; v < 30; v++ {
		require.Equal(t, 1, counts.of(v))
	}
	require.Equal(t, uint64(1), g.Stats().Dropped)
	require.Eventually(t, func() bool { return g.Stats().Dead == 5 }, 5*time.Second, time.Millisecond)

	// Redriven once, for this group alone.
	healed.Store(true)
	before := others.handled()
	ids := []stream.ID{reasons["an error"].ID, reasons["at once"].ID}
	var moved atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			n, err := g.Redrive(t.Context(), ids...)
			require.NoError(t, err)
			moved.Add(int64(n))
		})
	}
	wg.Wait()
	require.Equal(t, int64(2), moved.Load())
	n, err := g.Redrive(t.Context())
	require.NoError(t, err)
	require.Equal(t, 3, n)
	require.Eventually(t, func() bool { return counts.of(1) == attempts+1 && counts.of(4) == 2 }, 5*time.Second, time.Millisecond)
	// The raw one cannot be decoded again. It keeps its fields, and is not marked twice.
	require.Eventually(t, func() bool { return len(streamDead(t, g)) == 1 }, 5*time.Second, time.Millisecond)
	requireDrained(t, g, 5*time.Second)
	requireDrained(t, other, 5*time.Second)
	require.Equal(t, before, others.handled())
	require.Equal(t, uint64(5), other.Stats().Skipped)
	require.Equal(t, 1, others.of(1))
	_, err = g.Redrive(t.Context())
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		dead := streamDead(t, g)
		return len(dead) == 1 && slices.Equal(dead[0].Fields, []string{"_redrive", "g", "b", "2", "a", "1", "a", "\xff"})
	}, 5*time.Second, time.Millisecond)
	n, err = g.Redrive(t.Context(), "1-1")
	require.NoError(t, err)
	require.Zero(t, n)
	_, err = g.Redrive(t.Context(), "x")
	require.Error(t, err)
	mu.Lock()
	defer mu.Unlock()
	count := map[stream.Outcome]int{}
	for _, d := range outcomes {
		if d.Outcome != stream.Acked {
			count[d.Outcome]++
		}
	}
	require.Equal(t, 1, count[stream.Dropped])
	require.Equal(t, 5+2, count[stream.Dead])
}

// With 16 workers and failures, those of a key come one after the other and in order.
func TestStream_OrderPerKey(t *testing.T) {
	t.Parallel()
	s := newStream(t, redistest.Shared(t).Client(t), redistest.Prefix(t))
	const keys, each = 20, 100
	// The lease bounds reads: one that is given up on a busy machine, and executed later, would break the order.
	opts := stream.GroupOptions[int]{Workers: 16, Lease: 20 * time.Second, MaxAttempts: -1, Backoff: quickly, Key: func(v int) string { return strconv.Itoa(v % keys) }}
	g := s.Group("g", opts)
	var at [keys]atomic.Int64
	var next [keys]atomic.Int64
	var together, wrong, most atomic.Int64
	handle := func(_ context.Context, m *stream.Message[int]) error {
		k, n := m.Value%keys, int64(m.Value/keys)
		if at[k].Add(1) != 1 {
			together.Add(1)
		}
		defer at[k].Add(-1)
		running := int64(0)
		for i := range at {
			running += at[i].Load()
		}
		most.Store(max(most.Load(), running))
		runtime.Gosched()
		if rand.IntN(10) == 0 {
			return errors.New("again")
		}
		if rand.IntN(20) == 0 {
			return stream.RetryAfter(time.Millisecond, nil)
		}
		if !next[k].CompareAndSwap(n, n+1) {
			wrong.Add(1)
		}
		return nil
	}
	publishMany(t, s, 0, keys*each/2)
	runStream(t, g, handle)
	publishMany(t, s, keys*each/2, keys*each)
	requireDrained(t, g, 20*time.Second)
	require.Zero(t, together.Load())
	require.Zero(t, wrong.Load())
	for k := range next {
		require.Equal(t, int64(each), next[k].Load())
	}
	require.Greater(t, most.Load(), int64(1), "different keys are handled at once")
}

// streamLossyConn loses the reply to a read of a group, if it is told to, and with it itself. Looking for what was lost
// takes it long.
type streamLossyConn struct {
	net.Conn
	reads atomic.Bool
	lose  *atomic.Int32
}

func (c *streamLossyConn) Write(b []byte) (int, error) {
	c.reads.Store(strings.Contains(string(b), "XREADGROUP"))
	if strings.Contains(string(b), "XPENDING") {
		if err := after(context.Background(), 300*time.Millisecond); err != nil {
			return 0, err
		}
	}
	return c.Conn.Write(b)
}

func (c *streamLossyConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err == nil && c.reads.Load() && n > 200 && c.lose.Add(-1) >= 0 {
		_ = c.Close()
		return 0, net.ErrClosed
	}
	return n, err
}

// Entries in replies that were lost come before those that are read after them.
func TestStream_OrderPerKeyOverLostReplies(t *testing.T) {
	t.Parallel()
	var lose atomic.Int32
	client := redistest.Shared(t).Client(t, func(o *rueidis.ClientOption) {
		o.DialCtxFn = func(ctx context.Context, addr string, d *net.Dialer, _ *tls.Config) (net.Conn, error) {
			conn, err := d.DialContext(ctx, "tcp", addr)
			return &streamLossyConn{Conn: conn, lose: &lose}, err
		}
	})
	s := newStream(t, client, redistest.Prefix(t))
	const keys, each = 10, 200
	g := s.Group("g", stream.GroupOptions[int]{
		Workers: 8, Batch: 50, MaxAttempts: -1, Backoff: quickly, Lease: 10 * time.Second, Key: func(v int) string { return strconv.Itoa(v % keys) },
	})
	var next [keys]atomic.Int64
	var wrong atomic.Int64
	runStream(t, g, func(_ context.Context, m *stream.Message[int]) error {
		if !next[m.Value%keys].CompareAndSwap(int64(m.Value/keys), int64(m.Value/keys)+1) {
			wrong.Add(1)
		}
		return nil
	})
	const part = keys * each / 4
	for i := range 4 {
		lose.Store(int32((i + 1) % 2)) // every other time
		publishMany(t, s, i*part, (i+1)*part)
		requireDrained(t, g, 20*time.Second)
		require.LessOrEqual(t, lose.Load(), int32(0), "none was lost")
	}
	require.Zero(t, wrong.Load())
	for k := range next {
		require.Equal(t, int64(each), next[k].Load())
	}
}

// Messages of one batch with a delay come in its order, although many are added within a millisecond.
func TestStream_DelayedOnesKeepTheirOrder(t *testing.T) {
	t.Parallel()
	s := newStream(t, redistest.Shared(t).Client(t), redistest.Prefix(t))
	// So that Redis knows the script: one that it learns in the midst of a batch begins with those that come after that.
	_, err := s.Publish(t.Context(), -1, stream.Delay(time.Millisecond))
	require.NoError(t, err)
	want := []int{-1}
	for v := range 300 {
		want = append(want, v)
	}
	_, err = s.PublishBatch(t.Context(), want[1:], stream.Delay(100*time.Millisecond))
	require.NoError(t, err)
	got := make(chan int, len(want))
	runStream(t, s.Group("g", stream.GroupOptions[int]{Workers: 1}), func(_ context.Context, m *stream.Message[int]) error {
		got <- m.Value
		return nil
	})
	for _, v := range want {
		select {
		case next := <-got:
			require.Equal(t, v, next)
		case <-time.After(10 * time.Second):
			require.Fail(t, "not published")
		}
	}
}

// A batch that fails is handled again one by one; the bad one alone is dead.
func TestStream_RunBatch(t *testing.T) {
	t.Parallel()
	s := newStream(t, redistest.Shared(t).Client(t), redistest.Prefix(t))
	g := s.Group("g", stream.GroupOptions[int]{Workers: 4, Batch: 50, MaxAttempts: 3, Backoff: quickly, Lease: streamLease})
	publishMany(t, s, 0, 1000)
	var counts streamCounts
	var largest atomic.Int64
	var mu sync.Mutex
	bad := 0
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- g.RunBatch(ctx, func(_ context.Context, ms []*stream.Message[int]) error {
			largest.Store(max(largest.Load(), int64(len(ms))))
			for _, m := range ms {
				if m.Value == 500 {
					mu.Lock()
					defer mu.Unlock()
					bad++
					return errors.New("bad")
				}
			}
			for _, m := range ms {
				counts.add(m.Value)
			}
			return nil
		})
	}()
	require.Eventually(t, func() bool { return counts.handled() == 999 }, 10*time.Second, time.Millisecond)
	requireDrained(t, g, 5*time.Second)
	stop()
	require.NoError(t, <-done)
	require.Zero(t, counts.extra())
	require.Greater(t, largest.Load(), int64(5))
	require.LessOrEqual(t, largest.Load(), int64(50))
	require.Equal(t, 3, bad)
	require.Len(t, streamDead(t, g), 1)
}

// A consumer that stops hands over what it was to handle one by one and has not begun, while a handler is at work.
func TestStream_RunBatchHandsOver(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	key := redistest.Prefix(t)
	s := newStream(t, client, key)
	const n = 20
	streamGhosts(t, client, key, s, n)
	opts := stream.GroupOptions[int]{Lease: streamLease}
	begun, finish := make(chan int, n), make(chan struct{})
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- s.Group("g", opts).RunBatch(ctx, func(_ context.Context, ms []*stream.Message[int]) error {
			begun <- ms[0].Value
			<-finish
			return nil
		})
	}()
	first := <-begun
	stop()
	var counts streamCounts
	g := s.Group("g", opts)
	runStream(t, g, counts.handle)
	require.Eventually(t, func() bool { return counts.handled() == n-1 }, 5*time.Second, time.Millisecond)
	require.Zero(t, counts.of(first))
	close(finish)
	require.NoError(t, <-done)
	requireDrained(t, g, 5*time.Second)
	require.Zero(t, counts.of(first))
	require.Zero(t, counts.extra())
	require.Empty(t, begun)
}

func TestStream_PauseAndResume(t *testing.T) {
	t.Parallel()
	s := newStream(t, redistest.Shared(t).Client(t), redistest.Prefix(t))
	var order []string
	wrap := func(name string) func(stream.Handler[int]) stream.Handler[int] {
		return func(next stream.Handler[int]) stream.Handler[int] {
			return func(ctx context.Context, m *stream.Message[int]) error {
				order = append(order, name)
				return next(ctx, m)
			}
		}
	}
	g := s.Group("g", stream.GroupOptions[int]{Workers: 1, Lease: streamLease, Middleware: []func(stream.Handler[int]) stream.Handler[int]{wrap("outer"), wrap("inner")}})
	var counts streamCounts
	r := runStream(t, g, counts.handle)
	requireResumes(t, s, &counts, 1)
	require.Eventually(t, func() bool { return g.Stats().Acked == 1 }, 5*time.Second, time.Millisecond)
	for range 5 {
		g.Pause()
		g.Pause()
		publishMany(t, s, 2, 4)
		before := g.Stats().Acked
		require.NoError(t, after(t.Context(), 50*time.Millisecond))
		require.Equal(t, before, g.Stats().Acked)
		g.Resume()
		g.Resume()
		require.Eventually(t, func() bool { return g.Stats().Acked == before+2 }, 5*time.Second, time.Millisecond)
	}
	g.Pause()
	require.NoError(t, r.end(t), "while it is paused")
	require.Equal(t, []string{"outer", "inner"}, order[:2])
}

// Entries that are deleted while they are pending are counted, and do not stay.
func TestStream_DeletedEntriesDrain(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	key := redistest.Prefix(t)
	s := newStream(t, client, key)
	ids := publishMany(t, s, 0, 10)
	// Delivered to somebody who is gone, a retry that waits, and one at work.
	streamAdmin(t, client, "XGROUP", "CREATE", key, "g", "0")
	streamAdmin(t, client, "XREADGROUP", "GROUP", "g", "gone", "COUNT", "5", "STREAMS", key, ">")
	streamAdmin(t, client, "XDEL", key, string(ids[0]), string(ids[1]), string(ids[2]))
	var counts streamCounts
	var once sync.Once
	finish := make(chan struct{})
	g := s.Group("g", stream.GroupOptions[int]{Lease: 2 * streamLease, Backoff: func(int) time.Duration { return 500 * time.Millisecond }})
	runStream(t, g, func(_ context.Context, m *stream.Message[int]) error {
		counts.add(m.Value)
		switch m.Value {
		case 7:
			var err error
			once.Do(func() { err = errors.New("later") })
			return err
		case 8:
			<-finish
		}
		return nil
	})
	require.Eventually(t, func() bool { return counts.of(7) == 1 && counts.of(8) == 1 }, 5*time.Second, time.Millisecond)
	streamAdmin(t, client, "XDEL", key, string(ids[7]), string(ids[8]))
	close(finish)
	requireDrained(t, g, 5*time.Second)
	// They are acknowledged before they are counted.
	require.Eventually(t, func() bool { return g.Stats().Deleted == 4 }, 5*time.Second, time.Millisecond)
	require.Equal(t, 7, counts.handled())
	require.Equal(t, 1, counts.of(7))
	require.Empty(t, streamDead(t, g))
	info, err := g.Info(t.Context())
	require.NoError(t, err)
	require.Equal(t, int64(0), info.Pending)
}

// TrimAcked against what each group has acknowledged, in random histories.
func TestStream_TrimAckedKeepsWhatIsNotAcknowledged(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	rounds := 30
	if soak() {
		rounds = 1000
	}
	for i := range rounds {
		rnd := rand.New(rand.NewPCG(uint64(i), 7))
		key := redistest.Prefix(t)
		s := newStream(t, client, key)
		n := 1 + rnd.IntN(300)
		ids := publishMany(t, s, 0, n)
		removed, err := s.TrimAcked(t.Context())
		require.NoError(t, err)
		require.Zero(t, removed, "there is no group")
		keep := n // the first that must stay
		for group := range 1 + rnd.IntN(3) {
			name := strconv.Itoa(group)
			streamAdmin(t, client, "XGROUP", "CREATE", key, name, "0")
			delivered := rnd.IntN(n + 1)
			if delivered > 0 {
				streamAdmin(t, client, "XREADGROUP", "GROUP", name, "c", "COUNT", strconv.Itoa(delivered), "STREAMS", key, ">")
			}
			first := delivered
			for k := range delivered {
				if rnd.IntN(8) == 0 {
					first = min(first, k)
					continue
				}
				streamAdmin(t, client, "XACK", key, name, string(ids[k]))
			}
			keep = min(keep, first)
		}
		removed, err = s.TrimAcked(t.Context())
		require.NoError(t, err)
		left := map[int]bool{}
		for m, err := range s.Range(t.Context(), "", "") {
			require.NoError(t, err)
			left[m.Value] = true
		}
		for v := keep; v < n; v++ {
			require.True(t, left[v], "round %d: %d of %d is gone, %d is the first to stay", i, v, n, keep)
		}
		require.Equal(t, int64(n-len(left)), removed)
		require.GreaterOrEqual(t, removed, int64(keep-1), "no more than the last one stays")
		streamAdmin(t, client, "DEL", key)
	}
}

func TestStream_DeleteOnAck(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	key := redistest.Prefix(t)
	s := newStream(t, client, key)
	var told atomic.Int64
	opts := stream.GroupOptions[int]{DeleteOnAck: true, Lease: streamLease, Hooks: stream.Hooks{Error: func(_ context.Context, op string, err error) {
		if op == stream.OpAck && errors.Is(err, stream.ErrSecondGroup) {
			told.Add(1)
		}
	}}}
	g := s.Group("g", opts)
	var counts streamCounts
	r := runStream(t, g, counts.handle)
	publishMany(t, s, 0, 1000)
	require.Eventually(t, func() bool { return counts.handled() == 1000 }, 5*time.Second, time.Millisecond)
	requireDrained(t, g, 5*time.Second)
	length := func() int64 {
		n, err := client.Do(t.Context(), client.B().Xlen().Key(key).Build()).AsInt64()
		require.NoError(t, err)
		return n
	}
	require.Zero(t, length())
	// A second one, that needs them too, comes.
	streamAdmin(t, client, "XGROUP", "CREATE", key, "second", "0")
	publishMany(t, s, 1000, 1010)
	require.Eventually(t, func() bool { return counts.handled() == 1010 }, 5*time.Second, time.Millisecond)
	requireDrained(t, g, 5*time.Second)
	require.Equal(t, int64(10), length())
	require.Positive(t, told.Load())
	require.NoError(t, r.end(t))
	require.ErrorIs(t, g.Run(t.Context(), counts.handle), stream.ErrSecondGroup)
}

// Consumers that are gone are removed when they have nothing pending, and not before.
func TestStream_DeadConsumersAreRemoved(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	key := redistest.Prefix(t)
	s := newStream(t, client, key)
	publishMany(t, s, 0, 3)
	streamAdmin(t, client, "XGROUP", "CREATE", key, "g", "0")
	streamAdmin(t, client, "XGROUP", "CREATECONSUMER", key, "g", "empty")
	streamAdmin(t, client, "XREADGROUP", "GROUP", "g", "gone", "COUNT", "3", "STREAMS", key, ">")
	g := s.Group("g", stream.GroupOptions[int]{Lease: 150 * time.Millisecond})
	var counts streamCounts
	runStream(t, g, counts.handle)
	require.Eventually(t, func() bool { return counts.handled() == 3 }, 5*time.Second, time.Millisecond)
	require.Eventually(t, func() bool {
		info, err := g.Info(t.Context())
		return err == nil && len(info.Consumers) == 1 && info.Consumers[0].Name != "gone"
	}, 10*time.Second, 10*time.Millisecond)
	requireResumes(t, s, &counts, 4)
	require.Zero(t, counts.extra())
}

func TestStream_InfoAndPending(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	key := redistest.Prefix(t)
	s := newStream(t, client, key)
	g := s.Group("g", stream.GroupOptions[int]{Workers: 1, MaxInFlight: 2, Consumer: "me", Lease: 5 * time.Second})
	_, err := g.Info(t.Context())
	require.Error(t, err)
	for _, err := range g.Pending(t.Context()) {
		require.ErrorIs(t, err, stream.ErrNoGroup)
	}
	ids := publishMany(t, s, 0, 10)
	_, err = g.Info(t.Context())
	require.ErrorIs(t, err, stream.ErrNoGroup)
	require.Empty(t, streamDead(t, g))
	begun, finish := make(chan struct{}, 10), make(chan struct{})
	runStream(t, g, func(context.Context, *stream.Message[int]) error {
		begun <- struct{}{}
		<-finish
		return nil
	})
	<-begun
	_, err = s.Publish(t.Context(), 1, stream.Delay(time.Hour))
	require.NoError(t, err)
	var info stream.GroupInfo
	require.Eventually(t, func() bool {
		info, err = g.Info(t.Context())
		return err == nil && info.Pending == 2
	}, 5*time.Second, time.Millisecond)
	require.True(t, info.LagKnown)
	require.Equal(t, int64(8), info.Lag)
	require.Equal(t, ids[0], info.Oldest)
	require.Equal(t, int64(1), info.Delayed)
	require.Len(t, info.Consumers, 1)
	require.True(t, strings.HasPrefix(info.Consumers[0].Name, "me-"))
	require.Equal(t, int64(2), info.Consumers[0].Pending)
	require.Equal(t, int64(1), g.Stats().Running)
	require.Equal(t, int64(2), g.Stats().InFlight)
	n := 0
	for e, err := range g.Pending(t.Context()) {
		require.NoError(t, err)
		require.Equal(t, stream.PendingEntry{ID: ids[n], Consumer: info.Consumers[0].Name, Idle: e.Idle, Attempts: 1}, e)
		n++
	}
	require.Equal(t, 2, n)
	streamAdmin(t, client, "XDEL", key, string(ids[5])) // in the midst of what was not delivered
	info, err = g.Info(t.Context())
	require.NoError(t, err)
	require.False(t, info.LagKnown)
	close(finish)
	requireDrained(t, g, 5*time.Second)
}

type streamOrder struct {
	Item  string  `stream:"item"`
	Count uint8   `stream:"count"`
	Price float64 `stream:"price"`
	Due   time.Time
	Note  []byte
	local int
}

// Other languages write and read the fields of a struct.
func TestStream_FieldsOfAStruct(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	key := redistest.Prefix(t)
	s, err := stream.New(client, key, stream.Options[streamOrder]{Codec: stream.Fields[streamOrder]()})
	require.NoError(t, err)
	order := streamOrder{Item: "pear", Count: 3, Price: 0.1, Due: time.Unix(1e9, 5).UTC(), Note: []byte("\xff")}
	_, err = s.Publish(t.Context(), order, stream.Header("h", "v"))
	require.NoError(t, err)
	streamAdmin(t, client, "XADD", key, "*", "count", "7", "item", "plum", "unknown", "x")
	streamAdmin(t, client, "XADD", key, "*", "count", "300")
	var got []streamOrder
	var broken int
	for m, err := range s.Range(t.Context(), "", "") {
		var wrong *stream.DecodeError
		if errors.As(err, &wrong) {
			broken++
			require.NotEmpty(t, m.ID)
			require.NotContains(t, err.Error(), "300")
			continue
		}
		require.NoError(t, err)
		got = append(got, m.Value)
	}
	require.Equal(t, []streamOrder{order, {Item: "plum", Count: 7}}, got)
	require.Equal(t, 1, broken)
	require.Zero(t, got[0].local)
}

// Tail begins after an id, and ends with an error that waiting does not mend.
func TestStream_Tail(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	key := redistest.Prefix(t)
	s := newStream(t, client, key)
	ids := publishMany(t, s, 0, 250)
	for from, want := range map[stream.ID]int{"": 0, ids[9]: 10} {
		v := want
		for m, err := range s.Tail(t.Context(), from) {
			require.NoError(t, err)
			require.Equal(t, v, m.Value)
			if v++; v == 250 {
				break
			}
		}
	}
	for _, err := range s.Tail(t.Context(), "nonsense") {
		require.Error(t, err)
	}
	streamAdmin(t, client, "XADD", key, "*", "x", "y")
	last, err := s.Publish(t.Context(), 7)
	require.NoError(t, err)
	var wrong *stream.DecodeError
	for m, err := range s.Tail(t.Context(), ids[249]) {
		if m.ID == last {
			require.NoError(t, err)
			break
		}
		require.ErrorAs(t, err, &wrong)
	}
	ctx, cancel := context.WithCancel(t.Context())
	began := time.Now()
	time.AfterFunc(50*time.Millisecond, cancel)
	for _, err := range s.Tail(ctx, stream.Latest) {
		require.Fail(t, "there is nothing", err)
	}
	require.Less(t, time.Since(began), time.Second)
	streamAdmin(t, client, "SET", key, "x")
	n := 0
	for _, err := range s.Tail(t.Context(), ids[0]) {
		require.ErrorContains(t, err, "WRONGTYPE")
		n++
	}
	require.Equal(t, 1, n)
	var counts streamCounts
	require.ErrorContains(t, s.Group("g", stream.GroupOptions[int]{}).Run(t.Context(), counts.handle), "WRONGTYPE")
}

// One blocking connection whatever the workers, and few commands for many messages.
func TestStream_IsCheap(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t)
	s := newStream(t, client, redistest.Prefix(t))
	const messages = 20_000
	publishMany(t, s, 0, messages)
	g := s.Group("g", stream.GroupOptions[int]{Workers: 64})
	var handled atomic.Int64
	commands := redistest.Commands(t, server, func() {
		runStream(t, g, func(context.Context, *stream.Message[int]) error {
			handled.Add(1)
			return nil
		})
		require.Eventually(t, func() bool { return g.Stats().Acked == messages }, 20*time.Second, time.Millisecond)
	})
	t.Log(commands)
	require.LessOrEqual(t, commands["xreadgroup"], int64(8*messages/1000))
	require.LessOrEqual(t, commands["xack"], int64(16*messages/1000))
	blocked := 0
	list, err := client.Do(t.Context(), client.B().ClientList().Build()).ToString()
	require.NoError(t, err)
	for line := range strings.Lines(list) {
		if strings.Contains(line, "cmd=xreadgroup") {
			blocked++
		}
	}
	require.LessOrEqual(t, blocked, 1)
}

// readOnlySpy notes the commands that a client may send to replicas.
type readOnlySpy struct {
	redistest.PassThrough
	mu    sync.Mutex
	names []string
}

func (h *readOnlySpy) note(cmds ...rueidis.Completed) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, cmd := range cmds {
		if cmd.IsReadOnly() {
			h.names = append(h.names, cmd.Commands()[0])
		}
	}
}

func (h *readOnlySpy) seen() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.names)
}

func (h *readOnlySpy) Do(client rueidis.Client, ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	h.note(cmd)
	return client.Do(ctx, cmd)
}

func (h *readOnlySpy) DoMulti(client rueidis.Client, ctx context.Context, cmds ...rueidis.Completed) []rueidis.RedisResult {
	h.note(cmds...)
	return client.DoMulti(ctx, cmds...)
}

// With SendToReplicas, and replicas that lag, all but what Tail yields is the primary's.
func TestStream_OnlyTailReadsFromReplicas(t *testing.T) {
	t.Parallel()
	spy := &readOnlySpy{}
	s := newStream(t, rueidishook.WithHook(redistest.Shared(t).Client(t), spy), redistest.Prefix(t))
	g := s.Group("g", stream.GroupOptions[int]{DeleteOnAck: true})
	tailed := make(chan int, 1)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go func() {
		defer close(tailed)
		for m, err := range s.Tail(ctx, stream.Latest) {
			if err == nil {
				tailed <- m.Value
				return
			}
		}
	}()
	require.Eventually(t, func() bool {
		return len(spy.seen()) > 0 // so Tail knows where to begin
	}, 5*time.Second, time.Millisecond)
	publishMany(t, s, 1, 2)
	select {
	case v := <-tailed:
		require.Equal(t, 1, v)
	case <-time.After(5 * time.Second):
		require.Fail(t, "not tailed")
	}
	var counts streamCounts
	runStream(t, g, func(_ context.Context, m *stream.Message[int]) error {
		if counts.add(m.Value) == 1 && m.Value == 1 {
			return stream.DeadLetter(nil)
		}
		return nil
	})
	require.Eventually(t, func() bool { return len(streamDead(t, g)) == 1 }, 5*time.Second, time.Millisecond)
	n, err := g.Redrive(t.Context())
	require.NoError(t, err)
	require.Equal(t, 1, n)
	require.Eventually(t, func() bool { return counts.of(1) == 2 }, 5*time.Second, time.Millisecond)
	requireDrained(t, g, 5*time.Second)
	for _, err := range s.Range(t.Context(), "", "") {
		require.NoError(t, err)
	}
	_, err = s.TrimAcked(t.Context())
	require.NoError(t, err)
	for _, name := range spy.seen() {
		require.Equal(t, "XREAD", name)
	}
}
