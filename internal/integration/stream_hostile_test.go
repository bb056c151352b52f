package integration

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
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

// streamAckLoser executes an acknowledgement and loses its reply once.
type streamAckLoser struct {
	redistest.PassThrough
	lose atomic.Bool
}

func (l *streamAckLoser) Do(client rueidis.Client, ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	c := cmd.Commands()
	// Of scripts, only this one has an id after the group.
	ack := (c[0] == "EVALSHA" || c[0] == "EVAL") && len(c) >= 6 && c[4] == "g" && stream.ID(c[5]).Time().Year() > 2000
	if !ack || !l.lose.Load() {
		return client.Do(ctx, cmd)
	}
	r := client.Do(ctx, cmd)
	if r.Error() != nil {
		return r
	}
	l.lose.Store(false)
	ended, cancel := context.WithCancel(ctx)
	cancel()
	return client.Do(ended, client.B().Ping().Build())
}

// streamOrphaned makes messages pending for a consumer that is gone.
func streamOrphaned(t *testing.T, client rueidis.Client, key string, retry string, ids ...stream.ID) {
	t.Helper()
	for _, id := range ids {
		streamAdmin(t, client, "XCLAIM", key, "g", "ghost", "0", string(id), "IDLE", "1000000", "RETRYCOUNT", retry, "FORCE", "JUSTID")
	}
}

func streamGhosts(t *testing.T, client rueidis.Client, key string, s *stream.Stream[int], n int) []stream.ID {
	t.Helper()
	ids := publishMany(t, s, 0, n)
	streamAdmin(t, client, "XGROUP", "CREATE", key, "g", "0")
	streamAdmin(t, client, "XREADGROUP", "GROUP", "g", "ghost", "COUNT", fmt.Sprint(n), "STREAMS", key, ">")
	return ids
}

func runStreamBatch(t *testing.T, g *stream.Group[int], h stream.BatchHandler[int]) {
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.RunBatch(ctx, h) }()
	t.Cleanup(func() { stop(); require.NoError(t, <-done) })
}

// streamProxy forwards TCP, and limits how many bytes a second come back.
type streamProxy struct {
	l          net.Listener
	rate       atomic.Int64
	generation atomic.Int64
}

// silence has all connections that there are swallow what they get, without an end, as when a router has forgotten them.
// New ones work.
func (p *streamProxy) silence() { p.generation.Add(1) }

func newStreamProxy(t *testing.T, upstream string) *streamProxy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := &streamProxy{l: l}
	var conns sync.Map
	t.Cleanup(func() {
		_ = l.Close()
		conns.Range(func(k, _ any) bool { _ = k.(net.Conn).Close(); return true })
	})
	go func() {
		for {
			a, err := l.Accept()
			if err != nil {
				return
			}
			b, err := net.Dial("tcp", upstream)
			if err != nil {
				_ = a.Close()
				continue
			}
			conns.Store(a, 1)
			conns.Store(b, 1)
			born := p.generation.Load()
			pipe := func(dst, src net.Conn, limited bool) {
				buf := make([]byte, 64<<10)
				for {
					n, err := src.Read(buf)
					if err != nil {
						_ = dst.Close()
						return
					}
					if r := p.rate.Load(); limited && r > 0 {
						_ = after(context.Background(), time.Duration(int64(n)*int64(time.Second)/r))
					}
					if p.generation.Load() != born {
						continue
					}
					if _, err := dst.Write(buf[:n]); err != nil {
						_ = src.Close()
						return
					}
				}
			}
			go pipe(a, b, true)
			go pipe(b, a, false)
		}
	}()
	return p
}

func (p *streamProxy) through(o *rueidis.ClientOption) { o.InitAddress = []string{p.l.Addr().String()} }

func TestStream_DeleteOnAckTwiceKeepsWhatIsNew(t *testing.T) {
	t.Parallel()
	loser := &streamAckLoser{}
	plain := redistest.Shared(t).Client(t)
	client := rueidishook.WithHook(plain, loser)
	key := redistest.Prefix(t)
	s := newStream(t, client, key)
	g := s.Group("g", stream.GroupOptions[int]{DeleteOnAck: true, Lease: streamLease})
	var counts streamCounts
	runStream(t, g, counts.handle)
	requireResumes(t, s, &counts, 1)
	require.Eventually(t, func() bool { return g.Stats().Acked == 1 }, 5*time.Second, time.Millisecond)
	streamAdmin(t, plain, "XGROUP", "CREATE", key, "second", "$")
	requireResumes(t, s, &counts, 2) // control: it stays
	require.Eventually(t, func() bool { return g.Stats().Acked == 2 }, 5*time.Second, time.Millisecond)
	n, err := plain.Do(t.Context(), plain.B().Xlen().Key(key).Build()).AsInt64()
	require.NoError(t, err)
	require.Equal(t, int64(1), n, "control")
	loser.lose.Store(true)
	requireResumes(t, s, &counts, 3)
	require.Eventually(t, func() bool { return g.Stats().Acked == 3 }, 5*time.Second, time.Millisecond)
	require.False(t, loser.lose.Load())
	n, err = plain.Do(t.Context(), plain.B().Xlen().Key(key).Build()).AsInt64()
	require.NoError(t, err)
	require.Equal(t, int64(2), n, "the second group has not had it yet")
}

func TestStream_DeleteOnAckDeletesDeadOnes(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	key := redistest.Prefix(t)
	s := newStream(t, client, key)
	g := s.Group("g", stream.GroupOptions[int]{DeleteOnAck: true, Lease: streamLease})
	publishMany(t, s, 0, 100)
	runStream(t, g, func(context.Context, *stream.Message[int]) error { return stream.DeadLetter(errors.New("bad")) })
	require.Eventually(t, func() bool { return g.Stats().Dead == 100 }, 5*time.Second, time.Millisecond)
	requireDrained(t, g, 5*time.Second)
	n, err := client.Do(t.Context(), client.B().Xlen().Key(key).Build()).AsInt64()
	require.NoError(t, err)
	require.Zero(t, n, "acknowledged as dead letters, and still in the stream")
}

func TestStream_RunBatchOutlivesItsGoroutine(t *testing.T) {
	t.Parallel()
	for _, retry := range []string{"0", "1"} { // first attempts are handled together
		t.Run(retry, func(t *testing.T) {
			t.Parallel()
			client := redistest.Shared(t).Client(t)
			key := redistest.Prefix(t)
			s := newStream(t, client, key)
			ids := streamGhosts(t, client, key, s, 10)
			streamOrphaned(t, client, key, retry, ids...)
			var counts streamCounts
			var exits atomic.Int64
			g := s.Group("g", stream.GroupOptions[int]{Lease: streamLease, Workers: 8, MaxAttempts: 5, Backoff: quickly, DrainTimeout: time.Second})
			runStreamBatch(t, g, func(_ context.Context, ms []*stream.Message[int]) error {
				if exits.Add(1) == 1 {
					runtime.Goexit()
				}
				for _, m := range ms {
					counts.add(m.Value)
				}
				return nil
			})
			require.Eventually(t, func() bool { return counts.handled() == 10 }, 6*time.Second, 5*time.Millisecond, "of 10, after 10 leases")
		})
	}
}

// streamRaw has all fields of an entry for its value.
type streamRaw struct{}

func (streamRaw) Append(fields []string, v []string) ([]string, error) {
	return append(fields, v...), nil
}

func (streamRaw) Decode(fields []string) ([]string, error) { return slices.Clone(fields), nil }

// Entries of other programs may have more fields than a script can pass on: as dead letters, redriven, and dead again, they
// keep them all.
func TestStream_ManyFields(t *testing.T) {
	t.Parallel()
	for _, n := range []int{3500, 3550, 3551, 5000, 30_000} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			client := redistest.Shared(t).Client(t)
			key := redistest.Prefix(t)
			s, err := stream.New(client, key, stream.Options[[]string]{Codec: streamRaw{}})
			require.NoError(t, err)
			var fields []string
			for i := range n {
				fields = append(fields, fmt.Sprint("f", i), strings.Repeat(":", i%12))
			}
			streamAdmin(t, client, append([]string{"XADD", key, "*"}, fields...)...)
			handled := make(chan *stream.Message[[]string], 10)
			g := s.Group("g", stream.GroupOptions[[]string]{Lease: streamLease, MaxAttempts: 1})
			ctx, stop := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() {
				done <- g.Run(ctx, func(_ context.Context, m *stream.Message[[]string]) error {
					handled <- m
					return errors.New("bad")
				})
			}()
			defer func() {
				stop()
				require.NoError(t, <-done)
			}()
			same := func(want, got []string) {
				t.Helper()
				require.True(t, slices.Equal(want, got), "%d of %d", len(got), len(want)) // a difference would be long
			}
			var before []string // what is a dead letter's own
			for round := range 3 {
				m := <-handled
				same(fields, m.Value)
				require.Equal(t, round > 0, m.Redriven)
				var dead []*stream.DeadMessage[[]string]
				require.Eventually(t, func() bool {
					dead = streamDead(t, g)
					return len(dead) == 1
				}, 5*time.Second, 10*time.Millisecond)
				same(append(before, fields...), dead[0].Fields)
				same(fields, dead[0].Value)
				require.Equal(t, m.ID, dead[0].Original)
				moved, err := g.Redrive(t.Context(), dead[0].ID)
				require.NoError(t, err)
				require.Equal(t, 1, moved)
				before = []string{"_redrive", "g"}
			}
		})
	}
}

func TestStream_MaxInFlightBounds(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	key := redistest.Prefix(t)
	s := newStream(t, client, key)
	const bound = 10
	ids := streamGhosts(t, client, key, s, bound)
	g := s.Group("g", stream.GroupOptions[int]{Lease: 3 * time.Second, Workers: bound, MaxInFlight: bound, DrainTimeout: time.Millisecond})
	streamOrphaned(t, client, key, "1", ids...)
	runStream(t, g, func(ctx context.Context, _ *stream.Message[int]) error { <-ctx.Done(); return ctx.Err() })
	var most int64
	require.Eventually(t, func() bool { return g.Stats().InFlight == bound }, 5*time.Second, time.Millisecond)
	// While a read waits.
	require.NoError(t, client.Do(t.Context(), client.B().Eval().Script("for i = 1, 50 do redis.call('XADD', KEYS[1], '*', 'data', i) end return 1").Numkeys(1).Key(key).Build()).Error())
	for range 200 {
		most = max(most, g.Stats().InFlight)
		require.NoError(t, after(t.Context(), 5*time.Millisecond))
	}
	require.LessOrEqual(t, most, int64(bound))
}

func TestStream_ALostMessageFreesItsKey(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	key := redistest.Prefix(t)
	s := newStream(t, client, key)
	g := s.Group("g", stream.GroupOptions[int]{Lease: streamLease, Key: func(int) string { return "k" }})
	var counts streamCounts
	runStream(t, g, func(ctx context.Context, m *stream.Message[int]) error {
		if m.Value == 0 {
			counts.add(0)
			return stream.RetryAfter(time.Hour, nil)
		}
		return counts.handle(ctx, m)
	})
	id := publishMany(t, s, 0, 1)[0]
	require.Eventually(t, func() bool { return g.Stats().Retries == 1 }, 5*time.Second, time.Millisecond)
	// A peer took it over, as after a stop, and has handled it.
	streamAdmin(t, client, "XCLAIM", key, "g", "peer", "0", string(id), "JUSTID")
	require.Eventually(t, func() bool { return g.Stats().Lost == 1 }, 5*time.Second, time.Millisecond)
	streamAdmin(t, client, "XACK", key, "g", string(id))
	publishMany(t, s, 1, 3)
	require.Eventually(t, func() bool { return counts.handled() == 3 }, 5*time.Second, time.Millisecond, "nobody has that key any more")
}

func TestStream_StopWhileRedisHangs(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t)
	s := newStream(t, client, redistest.Prefix(t))
	opts := stream.GroupOptions[int]{Workers: 16, DrainTimeout: 500 * time.Millisecond, MaxAttempts: -1, Backoff: func(int) time.Duration { return time.Hour }}
	g := s.Group("g", opts)
	publishMany(t, s, 0, 1000)
	var began time.Time
	var ended atomic.Int64
	r := runStream(t, g, func(ctx context.Context, m *stream.Message[int]) error {
		if m.Value == 999 {
			<-ctx.Done()
			ended.Store(int64(time.Since(began)))
		}
		return errors.New("bad")
	})
	require.Eventually(t, func() bool { return g.Stats().Retries == 999 && g.Stats().Running == 1 }, 10*time.Second, time.Millisecond)
	server.Pause(t)
	began = time.Now()
	r.stop()
	select {
	case err := <-r.done:
		r.done <- err
		t.Log("Run returned", err)
	case <-time.After(40 * time.Second):
		t.Log("not yet")
	}
	took := time.Since(began)
	server.Resume(t)
	t.Log("took", took, "handler's context ended after", time.Duration(ended.Load()))
	require.Less(t, took, 10*time.Second)
}

func TestStream_ARetrySeesTheMessageAsItWas(t *testing.T) {
	t.Parallel()
	for _, keyed := range []bool{false, true} {
		t.Run(fmt.Sprint(keyed), func(t *testing.T) {
			t.Parallel()
			client := redistest.Shared(t).Client(t)
			s, err := stream.New(client, redistest.Prefix(t), stream.Options[[]int]{})
			require.NoError(t, err)
			opts := stream.GroupOptions[[]int]{Backoff: quickly}
			if keyed {
				opts.Key = func([]int) string { return "k" }
			}
			g := s.Group("g", opts)
			_, err = s.Publish(t.Context(), []int{1, 2})
			require.NoError(t, err)
			seen := make(chan []int, 2)
			ctx, stop := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() {
				done <- g.Run(ctx, func(_ context.Context, m *stream.Message[[]int]) error {
					seen <- append([]int(nil), m.Value...)
					m.Value = append(m.Value, 3)
					m.Value[0] = 9
					if m.Attempt < 2 {
						return errors.New("again")
					}
					return nil
				})
			}()
			first, second := <-seen, <-seen
			stop()
			require.NoError(t, <-done)
			require.Equal(t, first, second)
		})
	}
}

func TestStream_RedriveByHalfAnID(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	key := redistest.Prefix(t)
	s := newStream(t, client, key)
	g := s.Group("g", stream.GroupOptions[int]{})
	streamAdmin(t, client, "XADD", "{"+key+"}:dead:g", "1700000000000-1", "_id", "1-1", "_reason", "r", "_attempts", "5", "data", "7")
	n := 0
	for range 3 {
		m, err := g.Redrive(t.Context(), "1700000000000")
		n += m
		t.Log(m, err)
	}
	require.LessOrEqual(t, n, 1, "each is put back once, whoever calls how often")
}

// What a killed process left is taken over although all of it does not come within a third of a lease.
func TestStream_BigMessagesAreTakenOver(t *testing.T) {
	t.Parallel()
	for _, n := range []int{2, 16} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t)
			admin := server.Client(t)
			p := newStreamProxy(t, server.Addr())
			client := server.Client(t, p.through)
			key := redistest.Prefix(t)
			big := `"` + strings.Repeat("x", 1<<18) + `"`
			streamAdmin(t, admin, "XGROUP", "CREATE", key, "g", "0", "MKSTREAM")
			for range n {
				streamAdmin(t, admin, "XADD", key, "*", "data", big)
			}
			streamAdmin(t, admin, "XREADGROUP", "GROUP", "g", "ghost", "COUNT", fmt.Sprint(n), "STREAMS", key, ">")
			for id, err := range newStream(t, admin, key).Group("g", stream.GroupOptions[int]{}).Pending(t.Context()) {
				require.NoError(t, err)
				streamOrphaned(t, admin, key, "1", id.ID)
			}
			s, err := stream.New(client, key, stream.Options[string]{})
			require.NoError(t, err)
			var fails atomic.Int64
			opts := stream.GroupOptions[string]{Lease: 1500 * time.Millisecond}
			opts.Hooks.Error = func(_ context.Context, op string, err error) {
				if op == stream.OpClaim {
					fails.Add(1)
				}
			}
			g := s.Group("g", opts)
			p.rate.Store(4 << 20) // 16 take a second, which is longer than a third of a lease
			ctx, stop := context.WithCancel(t.Context())
			done := make(chan error, 1)
			var handled atomic.Int64
			go func() {
				done <- g.Run(ctx, func(context.Context, *stream.Message[string]) error { handled.Add(1); return nil })
			}()
			defer func() {
				stop()
				require.NoError(t, <-done)
				t.Log("handled", handled.Load(), "failed claims", fails.Load())
			}()
			require.Eventually(t, func() bool { return handled.Load() == int64(n) }, 20*time.Second, 10*time.Millisecond)
		})
	}
}

func TestStream_AFullRedisIsAskedSeldom(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t)
	s := newStream(t, client, redistest.Prefix(t))
	publishMany(t, s, 0, 500)
	streamAdmin(t, client, "CONFIG", "SET", "maxmemory", "100kb")
	g := s.Group("g", stream.GroupOptions[int]{})
	streamAdmin(t, client, "CONFIG", "SET", "maxmemory", "0")
	var full atomic.Bool
	runStream(t, g, func(context.Context, *stream.Message[int]) error {
		if !full.Swap(true) {
			client.Do(context.Background(), client.B().Arbitrary("CONFIG", "SET", "maxmemory", "100kb").Build())
		}
		return stream.DeadLetter(nil)
	})
	require.NoError(t, after(t.Context(), 2*time.Second))
	commands := redistest.Commands(t, server, func() { require.NoError(t, after(t.Context(), 3*time.Second)) })
	t.Log(commands)
	require.Less(t, commands["evalsha"], int64(60))
}

func TestStream_PauseIsNoError(t *testing.T) {
	t.Parallel()
	s := newStream(t, redistest.Shared(t).Client(t), redistest.Prefix(t))
	opts := stream.GroupOptions[int]{MaxAttempts: 2}
	var errs atomic.Int64
	var last atomic.Value
	opts.Hooks.Error = func(_ context.Context, op string, err error) { errs.Add(1); last.Store(op + " " + err.Error()) }
	g := s.Group("g", opts)
	var counts streamCounts
	g.Pause()
	r := runStream(t, g, counts.handle)
	runStream(t, g, counts.handle)
	g.Resume()
	for i := range 40 {
		publishMany(t, s, i*50, i*50+50)
		g.Pause()
		if i%2 == 0 {
			require.NoError(t, after(t.Context(), time.Duration(rand.IntN(20))*time.Millisecond))
		}
		g.Resume()
		if i == 20 {
			require.NoError(t, r.end(t))
			r = runStream(t, g, counts.handle)
		}
	}
	require.Eventually(t, func() bool { return counts.handled() == 2000 }, 10*time.Second, time.Millisecond)
	requireDrained(t, g, 5*time.Second)
	t.Log("errors", errs.Load(), last.Load())
	require.Zero(t, counts.extra())
	require.Zero(t, errs.Load(), "Pause is no error")
}

// Published while Tail, from Latest, has no connection: no gap.
func TestStream_TailFromLatestAcrossAnOutage(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	proxy := redistest.NewProxy(t, server.Addr())
	key := redistest.Prefix(t)
	s, direct := newStream(t, server.Client(t, proxy.Through), key), newStream(t, server.Client(t), key)
	publishMany(t, direct, 0, 1)
	seen := make(chan int, 100)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go func() {
		for m, err := range s.Tail(ctx, stream.Latest) {
			if err == nil {
				seen <- m.Value
			}
		}
	}()
	require.NoError(t, after(t.Context(), 1500*time.Millisecond))
	proxy.Cut(t)
	publishMany(t, direct, 1, 4)
	require.NoError(t, after(t.Context(), 200*time.Millisecond))
	proxy.Restore(t)
	for v := 1; v < 4; v++ {
		select {
		case got := <-seen:
			require.Equal(t, v, got)
		case <-time.After(5 * time.Second):
			require.Fail(t, "a gap")
		}
	}
}

// What a dead consumer has is not removed with it, although nobody has room for it.
func TestStream_ADeadConsumerKeepsWhatItHas(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	key := redistest.Prefix(t)
	s := newStream(t, client, key)
	streamGhosts(t, client, key, s, 3)
	g := s.Group("g", stream.GroupOptions[int]{Lease: streamLease / 6, Workers: 1, MaxInFlight: 1, DrainTimeout: time.Millisecond})
	var counts streamCounts
	gate := make(chan struct{})
	runStream(t, g, func(ctx context.Context, m *stream.Message[int]) error {
		counts.add(m.Value)
		select {
		case <-gate:
		case <-ctx.Done():
		}
		return nil
	})
	require.NoError(t, after(t.Context(), 6*time.Second))
	close(gate)
	require.Eventually(t, func() bool { return counts.handled() == 3 }, 5*time.Second, time.Millisecond)
}

func TestStream_RunBatchDoesNotBeginWhatItHasLost(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	key := redistest.Prefix(t)
	s := newStream(t, client, key)
	ids := streamGhosts(t, client, key, s, 2)
	streamOrphaned(t, client, key, "0", ids[0]) // handed over by a graceful stop
	streamOrphaned(t, client, key, "1", ids[1]) // left by a process that was killed
	g := s.Group("g", stream.GroupOptions[int]{Lease: streamLease, Workers: 1, MaxInFlight: 10})
	gate, begun := make(chan struct{}), make(chan int, 2)
	runStreamBatch(t, g, func(_ context.Context, ms []*stream.Message[int]) error {
		begun <- ms[0].Value
		<-gate
		return nil
	})
	other := 1 - <-begun
	defer close(gate)
	streamAdmin(t, client, "XCLAIM", key, "g", "peer", "0", string(ids[other]), "JUSTID")
	require.Eventually(t, func() bool { return g.Stats().Lost == 1 }, 5*time.Second, time.Millisecond)
	gate <- struct{}{}
	require.Eventually(t, func() bool { return g.Stats().Acked == 1 }, 5*time.Second, time.Millisecond)
	select {
	case v := <-begun:
		require.NotEqual(t, other, v)
	default:
	}
}

type streamBomb int

func (*streamBomb) UnmarshalJSON([]byte) error { panic("decode") }

type streamNilError struct{ text string }

func (e *streamNilError) Error() string { return e.text }

func requireDead[T any](t *testing.T, reason string, opts stream.GroupOptions[T], h stream.Handler[T]) {
	t.Helper()
	client := redistest.Shared(t).Client(t)
	key := redistest.Prefix(t)
	s, err := stream.New(client, key, stream.Options[T]{})
	require.NoError(t, err)
	streamAdmin(t, client, "XADD", key, "*", "data", "null")
	opts.MaxAttempts = 2
	g := s.Group("g", opts)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx, h) }()
	require.Eventually(t, func() bool { return g.Stats().Dead == 1 }, 8*time.Second, time.Millisecond)
	stop()
	require.NoError(t, <-done)
	dead := streamDead(t, g)
	require.Len(t, dead, 1)
	require.Contains(t, dead[0].Reason, reason)
	require.Equal(t, 2, dead[0].Attempts)
}

// Whatever panics for a message makes it a dead letter, and ends no process.
func TestStream_PanicsOutsideOfTheHandler(t *testing.T) {
	t.Parallel()
	t.Run("key", func(t *testing.T) {
		t.Parallel()
		requireDead(t, "nil pointer", stream.GroupOptions[*struct{ A string }]{Backoff: quickly, Key: func(v *struct{ A string }) string { return v.A }},
			func(context.Context, *stream.Message[*struct{ A string }]) error { return nil })
	})
	t.Run("codec", func(t *testing.T) {
		t.Parallel()
		requireDead(t, "decode", stream.GroupOptions[streamBomb]{Backoff: quickly}, func(context.Context, *stream.Message[streamBomb]) error { return nil })
	})
	t.Run("error", func(t *testing.T) {
		t.Parallel()
		requireDead(t, "nil pointer", stream.GroupOptions[int]{Backoff: quickly}, func(context.Context, *stream.Message[int]) error {
			var e *streamNilError
			return e // the usual mistake
		})
	})
	t.Run("backoff", func(t *testing.T) {
		t.Parallel()
		requireDead(t, "bad", stream.GroupOptions[int]{Backoff: func(int) time.Duration { panic("backoff") }}, func(context.Context, *stream.Message[int]) error {
			return errors.New("bad")
		})
	})
}

// Connections fall silent, and nobody says so; the client itself notices after 11 seconds. Within a lease, what was in a
// reply that did not come is found and acknowledged, and what comes next is handled; if leases are long, that takes about 2
// seconds. Nothing is lost to others meanwhile.
func TestStream_SilentConnections(t *testing.T) {
	t.Parallel()
	for lease, within := range map[time.Duration]time.Duration{4 * time.Second: 4 * time.Second, 30 * time.Second: 3500 * time.Millisecond} {
		t.Run(lease.String(), func(t *testing.T) {
			t.Parallel()
			testStreamSilence(t, lease, within)
		})
	}
}

func testStreamSilence(t *testing.T, lease, within time.Duration) {
	t.Helper()
	server := redistest.Shared(t)
	p := newStreamProxy(t, server.Addr())
	key := redistest.Prefix(t)
	s := newStream(t, server.Client(t), key)
	g := newStream(t, server.Client(t, p.through), key).Group("g", stream.GroupOptions[int]{Lease: lease, Workers: 4, MaxInFlight: 40})
	direct := s.Group("g", stream.GroupOptions[int]{})
	var counts streamCounts
	var lost atomic.Bool
	finish := make(chan struct{})
	runStream(t, g, func(ctx context.Context, m *stream.Message[int]) error {
		if m.Value == 0 {
			select {
			case <-finish:
			case <-ctx.Done():
				lost.Store(true)
			}
		}
		return counts.handle(ctx, m)
	})
	acked := func(n uint64) func() bool {
		return func() bool { return g.Stats().Acked == n }
	}
	publishMany(t, s, 0, 100) // the first is at work all the while
	require.Eventually(t, acked(99), 5*time.Second, time.Millisecond)
	for n := range 2 {
		// In the first round reading waits, in the second it is about to find that it is cut off again.
		p.silence()
		silent := time.Now()
		publishMany(t, s, 100*n+100, 100*n+200)
		require.Eventually(t, acked(uint64(100*n+199)), within, time.Millisecond)
		t.Log("acknowledged", time.Since(silent), "after the silence began")
		for time.Since(silent) < 4*time.Second {
			for e, err := range direct.Pending(t.Context()) {
				require.NoError(t, err)
				require.Less(t, e.Idle, lease, "its lease is renewed")
			}
			require.NoError(t, after(t.Context(), 50*time.Millisecond))
		}
	}
	close(finish)
	require.Eventually(t, acked(300), within, time.Millisecond)
	requireDrained(t, direct, time.Second)
	require.Zero(t, counts.extra())
	require.False(t, lost.Load())
	require.Zero(t, g.Stats().Lost)
}

// streamMute keeps scripts from Redis as long as it is set.
type streamMute struct {
	redistest.PassThrough
	muted atomic.Bool
}

func (m *streamMute) Do(client rueidis.Client, ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	if strings.HasPrefix(cmd.Commands()[0], "EVAL") && m.muted.Load() {
		ended, cancel := context.WithCancel(ctx)
		cancel()
		return client.Do(ended, client.B().Ping().Build())
	}
	return client.Do(ctx, cmd)
}

// When Redis goes on after it has hung for longer than a lease, an owner has a while to renew its own before others may claim it.
func TestStream_AfterAHangOwnersComeFirst(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	key := redistest.Prefix(t)
	const lease = 3 * time.Second
	opts := stream.GroupOptions[int]{Lease: lease}
	mute := &streamMute{}
	owner := newStream(t, rueidishook.WithHook(server.Client(t), mute), key)
	begun, finish := make(chan struct{}, 10), make(chan struct{})
	og := owner.Group("g", opts)
	runStream(t, og, func(context.Context, *stream.Message[int]) error {
		begun <- struct{}{}
		<-finish
		return nil
	})
	publishMany(t, owner, 0, 1)
	<-begun
	var again atomic.Int64
	direct := server.Client(t)
	for range 8 {
		runStream(t, newStream(t, direct, key).Group("g", opts), func(context.Context, *stream.Message[int]) error {
			again.Add(1)
			return nil
		})
	}
	require.NoError(t, after(t.Context(), lease)) // all have swept
	mute.muted.Store(true)                        // or Redis would find a renewal when it goes on
	server.Pause(t)
	require.NoError(t, after(t.Context(), 2*lease))
	server.Resume(t)
	require.NoError(t, after(t.Context(), lease/16))
	mute.muted.Store(false)
	require.NoError(t, after(t.Context(), lease))
	close(finish)
	requireDrained(t, og, 5*time.Second)
	require.Zero(t, again.Load())
	require.Zero(t, og.Stats().Lost)
	require.Empty(t, begun)
}

// Nor does one claim it at once that has claimed nothing during the outage: it had no room, or began then.
func TestStream_AfterAnOutageOwnersComeFirst(t *testing.T) {
	t.Parallel()
	const lease = 3 * time.Second
	for _, begins := range []bool{false, true} {
		t.Run(fmt.Sprintf("begins=%v", begins), func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t)
			key := redistest.Prefix(t)
			opts := stream.GroupOptions[int]{Lease: lease, Workers: 1, MaxInFlight: 1}
			if begins {
				opts.MaxInFlight = 4 // or there would be no room while it reads
			}
			mute, reads := &streamMute{}, &streamCounter{name: "XREADGROUP"}
			owner := newStream(t, rueidishook.WithHook(server.Client(t), mute), key)
			direct := newStream(t, rueidishook.WithHook(server.Client(t), reads), key)
			finish, outlasted := make(chan struct{}), make(chan struct{})
			var counts streamCounts
			handler := func(until chan struct{}) stream.Handler[int] {
				return func(ctx context.Context, m *stream.Message[int]) error {
					counts.add(m.Value)
					<-until
					return nil
				}
			}
			og, pg := owner.Group("g", opts), direct.Group("g", opts)
			publishMany(t, direct, 0, 1)
			runStream(t, og, handler(finish))
			require.Eventually(t, func() bool { return counts.of(0) == 1 }, 5*time.Second, time.Millisecond)
			if !begins {
				runStream(t, pg, handler(outlasted))
				require.NoError(t, after(t.Context(), lease)) // it has swept
				publishMany(t, direct, 1, 2)
				require.Eventually(t, func() bool { return counts.of(1) == 1 }, 5*time.Second, time.Millisecond)
			}
			mute.muted.Store(true) // the owner is the last to find that Redis is back
			server.Pause(t)
			if begins {
				runStream(t, pg, handler(outlasted))
			}
			require.NoError(t, after(t.Context(), 2*lease))
			server.Resume(t)
			close(outlasted) // there is room
			if begins {
				require.Eventually(t, func() bool { return reads.n.Load() > 0 }, 5*time.Second, time.Millisecond)
			}
			require.NoError(t, after(t.Context(), lease/8))
			mute.muted.Store(false)
			require.NoError(t, after(t.Context(), lease))
			close(finish)
			requireDrained(t, og, 5*time.Second)
			require.Zero(t, counts.extra())
			require.Zero(t, og.Stats().Lost)
		})
	}
}

// streamDelay has scripts take a while to reach Redis.
type streamDelay struct {
	redistest.PassThrough
	by   time.Duration
	sent atomic.Int64
}

func (d *streamDelay) Do(client rueidis.Client, ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	if strings.HasPrefix(cmd.Commands()[0], "EVAL") {
		d.sent.Add(1)
		_ = after(ctx, d.by)
	}
	return client.Do(ctx, cmd)
}

// A claim that is held up for more than a third of a lease claims nothing, however short that is.
func TestStream_AClaimThatIsHeldUpClaimsNothing(t *testing.T) {
	t.Parallel()
	plain := redistest.Shared(t).Client(t)
	key := redistest.Prefix(t)
	s := newStream(t, plain, key)
	streamGhosts(t, plain, key, s, 3)
	delay := &streamDelay{by: 60 * time.Millisecond}
	held := newStream(t, rueidishook.WithHook(plain, delay), key).Group("g", stream.GroupOptions[int]{Lease: 120 * time.Millisecond})
	var counts streamCounts
	runStream(t, held, counts.handle)
	require.Eventually(t, func() bool { return delay.sent.Load() >= 20 }, 20*time.Second, time.Millisecond)
	require.Zero(t, held.Stats().Claimed)
	require.Zero(t, counts.handled())
}

// streamReadHolder loses one reply of a read, which has more published, and holds the next one back while what is pending
// is looked through.
type streamReadHolder struct {
	redistest.PassThrough
	armed     atomic.Bool
	reads     atomic.Int64
	more      func()
	delivered chan struct{}
}

func (h *streamReadHolder) Do(client rueidis.Client, ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	name := cmd.Commands()[0]
	if name == "XPENDING" && h.armed.Load() {
		<-h.delivered
	}
	r := client.Do(ctx, cmd)
	if m, err := r.ToMessage(); name != "XREADGROUP" || !h.armed.Load() || err != nil || m.IsNil() {
		return r
	}
	switch h.reads.Add(1) {
	case 1:
		h.more()
		ended, cancel := context.WithCancel(ctx)
		cancel()
		return client.Do(ended, client.B().Ping().Build())
	case 2:
		close(h.delivered)
		_ = after(ctx, 300*time.Millisecond) // the read's own time is longer
	}
	return r
}

// What a reply under way is about to bring is not taken for lost, and run twice.
func TestStream_AReplyUnderWayIsNotLost(t *testing.T) {
	t.Parallel()
	plain := redistest.Shared(t).Client(t)
	key := redistest.Prefix(t)
	direct := newStream(t, plain, key)
	holder := &streamReadHolder{delivered: make(chan struct{})}
	holder.more = func() { publishMany(t, direct, 10, 20) }
	g := newStream(t, rueidishook.WithHook(plain, holder), key).Group("g", stream.GroupOptions[int]{})
	var counts streamCounts
	runStream(t, g, counts.handle)
	require.Eventually(t, func() bool {
		_, err := direct.Group("g", stream.GroupOptions[int]{}).Info(t.Context())
		return err == nil
	}, 5*time.Second, time.Millisecond)
	holder.armed.Store(true)
	publishMany(t, direct, 0, 10)
	require.Eventually(t, func() bool { return counts.handled() == 20 && g.Stats().InFlight == 0 }, 5*time.Second, time.Millisecond)
	require.GreaterOrEqual(t, holder.reads.Load(), int64(2))
	require.Zero(t, counts.extra())
	require.Positive(t, g.Stats().Claimed) // all of the first ten, unless the held reply came before the last of them
}

// streamRenewMute keeps renewals from Redis: of scripts' arguments, theirs end with an id.
type streamRenewMute struct {
	streamMute
}

func (m *streamRenewMute) Do(client rueidis.Client, ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	if c := cmd.Commands(); strings.Contains(c[len(c)-1], "-") {
		return m.streamMute.Do(client, ctx, cmd)
	}
	return client.Do(ctx, cmd)
}

// A message that was taken over while nothing could be renewed is not begun, although nothing has said so yet.
func TestStream_WhatMayBeLostIsAskedFor(t *testing.T) {
	t.Parallel()
	plain := redistest.Shared(t).Client(t)
	key := redistest.Prefix(t)
	mute := &streamRenewMute{}
	s := newStream(t, rueidishook.WithHook(plain, mute), key)
	const lease = 2 * time.Second
	g := s.Group("g", stream.GroupOptions[int]{Lease: lease, Workers: 1})
	var counts streamCounts
	begun, finish := make(chan struct{}, 2), make(chan struct{})
	runStream(t, g, func(ctx context.Context, m *stream.Message[int]) error {
		begun <- struct{}{}
		<-finish
		return counts.handle(ctx, m)
	})
	mute.muted.Store(true)
	ids := publishMany(t, s, 0, 2)
	<-begun
	require.Eventually(t, func() bool { return g.Stats().InFlight == 2 }, 5*time.Second, time.Millisecond)
	streamAdmin(t, plain, "XCLAIM", key, "g", "peer", "0", string(ids[1]), "JUSTID")
	require.NoError(t, after(t.Context(), 2*lease/3))
	close(finish)
	require.Eventually(t, func() bool { return g.Stats().Acked == 1 && g.Stats().Lost == 1 }, 5*time.Second, time.Millisecond)
	require.Equal(t, 1, counts.of(0))
	require.Zero(t, counts.of(1))
}

// While Redis refuses connections, what may have been lost is looked for about once a second, not without a pause.
func TestStream_ARedisThatIsGoneIsAskedSeldom(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s := newStream(t, server.Client(t), redistest.Prefix(t))
	opts := stream.GroupOptions[int]{Lease: streamLease}
	var claims atomic.Int64
	opts.Hooks.Error = func(_ context.Context, op string, _ error) {
		if op == stream.OpClaim {
			claims.Add(1)
		}
	}
	var counts streamCounts
	runStream(t, s.Group("g", opts), counts.handle)
	requireResumes(t, s, &counts, 1)
	server.Kill(t)
	require.NoError(t, after(t.Context(), 4*time.Second))
	failed := claims.Load()
	t.Log("failed", failed)
	require.Positive(t, failed)
	require.Less(t, failed, int64(40))
	server.Restart(t)
	requireResumes(t, s, &counts, 2)
}

// streamCounter counts the commands of a name.
type streamCounter struct {
	redistest.PassThrough
	name string
	n    atomic.Int64
}

func (s *streamCounter) Do(client rueidis.Client, ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	if cmd.Commands()[0] == s.name {
		s.n.Add(1)
	}
	return client.Do(ctx, cmd)
}

// Of entries in replies that were never seen there are more than a Run has room for: it does not ask for them all the time.
func TestStream_OrphansWithoutRoomAreAskedForSeldom(t *testing.T) {
	t.Parallel()
	plain := redistest.Shared(t).Client(t)
	key := redistest.Prefix(t)
	direct := newStream(t, plain, key)
	streamGhosts(t, plain, key, direct, 6)
	counter := &streamCounter{name: "XPENDING"}
	g := newStream(t, rueidishook.WithHook(plain, counter), key).Group("g", stream.GroupOptions[int]{Workers: 1, MaxInFlight: 2})
	var counts streamCounts
	begun, finish := make(chan struct{}, 10), make(chan struct{})
	runStream(t, g, func(ctx context.Context, m *stream.Message[int]) error {
		begun <- struct{}{}
		<-finish
		return counts.handle(ctx, m)
	})
	publishMany(t, direct, 6, 7)
	<-begun
	info, err := g.Info(t.Context())
	require.NoError(t, err)
	var ids []string
	for e, err := range g.Pending(t.Context()) {
		require.NoError(t, err)
		if e.Consumer == "ghost" {
			ids = append(ids, string(e.ID))
		}
	}
	for _, c := range info.Consumers {
		if c.Name != "ghost" {
			streamAdmin(t, plain, append([]string{"XCLAIM", key, "g", c.Name, "0"}, ids...)...)
		}
	}
	g.Pause() // the read that this ends may have brought them
	g.Resume()
	require.Eventually(t, func() bool { return g.Stats().InFlight == 2 }, 5*time.Second, time.Millisecond)
	before := counter.n.Load()
	require.NoError(t, after(t.Context(), 2*time.Second))
	asked := counter.n.Load() - before
	t.Log("asked", asked)
	require.Positive(t, asked)
	require.Less(t, asked, int64(20))
	close(finish)
	require.Eventually(t, func() bool { return counts.handled() == 7 }, 5*time.Second, time.Millisecond)
	require.Zero(t, counts.extra())
}
