package integration

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/redis/rueidis/rueidishook"
	"github.com/stretchr/testify/require"

	"github.com/redispatterns/redispatterns/internal/integration/redistest"
	"github.com/redispatterns/redispatterns/stream"
)

// requireResumes publishes until Redis takes it, and requires that what it took is handled 2 seconds later at the latest.
func requireResumes(t *testing.T, s *stream.Stream[int], counts *streamCounts, v int) {
	t.Helper()
	require.Eventually(t, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := s.Publish(ctx, v)
		return err == nil
	}, 20*time.Second, 10*time.Millisecond)
	require.Eventually(t, func() bool { return counts.of(v) > 0 }, 2*time.Second, time.Millisecond, v)
}

func streamAdmin(t *testing.T, client rueidis.Client, args ...string) {
	t.Helper()
	require.NoError(t, client.Do(t.Context(), client.B().Arbitrary(args...).Build()).Error())
}

// The stream, the group and the server's memory disappear, and whatever is published then is handled.
func TestStream_WhatDisappearsIsMadeAgain(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	client := server.Client(t)
	key := redistest.Prefix(t)
	s := newStream(t, client, key)
	var counts streamCounts
	v, gate := 0, make(chan struct{})
	var lost atomic.Bool
	for range 2 {
		// The first message is at work all the while.
		runStream(t, s.Group("g", stream.GroupOptions[int]{Start: stream.Latest, Lease: 2 * time.Second}), func(ctx context.Context, m *stream.Message[int]) error {
			if m.Value == -1 {
				select {
				case <-gate:
				case <-ctx.Done():
					lost.Store(true)
				}
			}
			return counts.handle(ctx, m)
		})
	}
	g := s.Group("g", stream.GroupOptions[int]{})
	require.Eventually(t, func() bool {
		_, err := g.Info(t.Context())
		return err == nil
	}, 5*time.Second, time.Millisecond)
	_, err := s.Publish(t.Context(), -1)
	require.NoError(t, err)
	next := func() int {
		v++
		return v
	}
	requireResumes(t, s, &counts, next())
	for _, loss := range [][]string{{"DEL", key}, {"FLUSHALL"}, {"DEL", key}} {
		streamAdmin(t, client, loss...)
		requireResumes(t, s, &counts, next())
	}
	streamAdmin(t, client, "XGROUP", "DESTROY", key, "g")
	requireResumes(t, s, &counts, next())
	close(gate)
	require.Eventually(t, func() bool { return counts.of(-1) == 1 }, 5*time.Second, time.Millisecond)
	require.False(t, lost.Load(), "what is gone is nobody else's")

	// Nothing is asked for much, when there is nothing or when nothing can be done.
	requireDrained(t, g, 5*time.Second) // or what is not acknowledged yet is asked for too
	const window = 2 * time.Second
	for what, begin := range map[string]func(){
		"idle": func() {}, "no stream": func() { streamAdmin(t, client, "SET", key, "x") },
	} {
		begin()
		commands := redistest.Commands(t, server, func() { require.NoError(t, after(t.Context(), window)) })
		total := int64(0)
		for name, n := range commands {
			if !strings.HasPrefix(name, "time") && name != "script|load" {
				total += n
			}
		}
		t.Log(what, commands)
		require.LessOrEqual(t, total, int64(2*10*window.Seconds()), "of two consumers: %s: %v", what, commands)
	}
	streamAdmin(t, client, "DEL", key)
	requireResumes(t, s, &counts, next())

	server.Restart(t)
	requireResumes(t, s, &counts, next())

	server.Kill(t)
	outage := 2 * time.Second
	if soak() {
		outage = 10 * time.Second
	}
	require.NoError(t, after(t.Context(), outage))
	server.Restart(t)
	requireResumes(t, s, &counts, next())
	server.Pause(t)
	require.NoError(t, after(t.Context(), outage))
	server.Resume(t)
	requireResumes(t, s, &counts, next())
}

// Delayed messages and idempotency keys survive a restart, and so does what was published.
func TestStream_WhatWaitsSurvivesARestart(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	client := server.Client(t)
	s := newStream(t, client, redistest.Prefix(t))
	published := time.Now()
	const delay = 2 * time.Second
	_, err := s.Publish(t.Context(), 1, stream.Delay(delay), stream.Header("a", "b"))
	require.NoError(t, err)
	_, err = s.PublishBatch(t.Context(), []int{2, 3}, stream.Delay(delay), stream.IdempotencyKey("k"))
	require.NoError(t, err)
	_, err = s.PublishBatch(t.Context(), []int{2, 3}, stream.Delay(delay), stream.IdempotencyKey("k"))
	require.NoError(t, err)
	server.Restart(t)
	var counts streamCounts
	var early, headless atomic.Bool
	g := s.Group("g", stream.GroupOptions[int]{})
	runStream(t, g, func(ctx context.Context, m *stream.Message[int]) error {
		if time.Since(published) < delay-10*time.Millisecond {
			early.Store(true)
		}
		if m.Value == 1 && m.Headers["a"] != "b" {
			headless.Store(true)
		}
		return counts.handle(ctx, m)
	})
	require.Eventually(t, func() bool {
		info, err := g.Info(t.Context())
		return err == nil && info.Delayed == 3
	}, time.Second, time.Millisecond)
	require.Eventually(t, func() bool { return counts.handled() == 3 }, delay+2*time.Second, time.Millisecond)
	requireDrained(t, g, 5*time.Second)
	require.Zero(t, counts.extra())
	require.False(t, early.Load())
	require.False(t, headless.Load())
}

func TestStream_SentinelFailover(t *testing.T) {
	t.Parallel()
	sentinel := redistest.StartSentinel(t)
	client := sentinel.Client(t)
	s := newStream(t, client, redistest.Prefix(t))
	var counts streamCounts
	runStream(t, s.Group("g", stream.GroupOptions[int]{Lease: streamLease}), counts.handle)
	requireResumes(t, s, &counts, 1)
	sentinel.Failover(t)
	requireResumes(t, s, &counts, 2)
}

func TestStream_ClusterFailover(t *testing.T) {
	t.Parallel()
	cluster := redistest.StartCluster(t, 1)
	client := cluster.Client(t)
	key := redistest.Prefix(t)
	s := newStream(t, client, key)
	var counts streamCounts
	runStream(t, s.Group("g", stream.GroupOptions[int]{Lease: streamLease}), counts.handle)
	requireResumes(t, s, &counts, 1)
	cluster.Failover(t, key)
	requireResumes(t, s, &counts, 2)
}

// Connections are killed every 200 ms: all that Publish confirms is handled, and read by Tail exactly once and in order.
func TestStream_ConnectionsAreKilled(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	admin := server.Client(t)
	client := server.Client(t)
	key := redistest.Prefix(t)
	s, producer := newStream(t, client, key), newStream(t, admin, key)
	g := s.Group("g", stream.GroupOptions[int]{Lease: streamLease})
	var counts streamCounts
	_, err := s.Publish(t.Context(), -1) // before Tail begins
	require.NoError(t, err)
	runStream(t, g, counts.handle)

	tailCtx, stopTail := context.WithCancel(t.Context())
	defer stopTail()
	tailed := make(chan []stream.ID, 1)
	ready := make(chan struct{})
	var seen atomic.Int64
	go func() {
		var ids []stream.ID
		close(ready)
		for m, err := range s.Tail(tailCtx, stream.Latest) {
			if err != nil {
				break
			}
			ids = append(ids, m.ID)
			seen.Add(1)
		}
		tailed <- ids
	}()
	<-ready
	require.NoError(t, after(t.Context(), 1200*time.Millisecond)) // idle for longer than a read waits
	var want []stream.ID
	kill := time.NewTicker(200 * time.Millisecond)
	defer kill.Stop()
	end := time.After(3 * time.Second)
	v := 0
killing:
	for {
		select {
		case <-end:
			break killing
		case <-kill.C:
			streamAdmin(t, admin, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
		default:
			id, err := producer.Publish(t.Context(), v, stream.IdempotencyKey(fmt.Sprint(v)))
			if err == nil {
				want = append(want, id)
				v++
			}
		}
		if v%50 == 0 { // bursts
			require.NoError(t, after(t.Context(), 20*time.Millisecond))
		}
	}
	require.Eventually(t, func() bool { return counts.handled() == v+1 }, 5*time.Second, time.Millisecond)
	requireDrained(t, g, 5*time.Second)
	require.Eventually(t, func() bool { return seen.Load() >= int64(len(want)) }, 5*time.Second, time.Millisecond)
	stopTail()
	require.Equal(t, want, <-tailed)
	t.Logf("%d published, %d handled again", v, counts.extra())
}

// readLoser executes one XREADGROUP and loses its reply.
type readLoser struct {
	redistest.PassThrough
	lose atomic.Bool
}

func (l *readLoser) Do(client rueidis.Client, ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	if cmd.Commands()[0] != "XREADGROUP" {
		return client.Do(ctx, cmd)
	}
	r := client.Do(ctx, cmd)
	if m, err := r.ToMessage(); err == nil && !m.IsNil() && l.lose.Swap(false) {
		ended, cancel := context.WithCancel(ctx)
		cancel()
		return client.Do(ended, client.B().Ping().Build())
	}
	return r
}

func TestStream_ALostReplyIsFound(t *testing.T) {
	t.Parallel()
	loser := &readLoser{}
	client := rueidishook.WithHook(redistest.Shared(t).Client(t), loser)
	s := newStream(t, client, redistest.Prefix(t))
	g := s.Group("g", stream.GroupOptions[int]{MaxAttempts: 1}) // the lease is 30 seconds
	var counts streamCounts
	runStream(t, g, counts.handle)
	requireResumes(t, s, &counts, 1)
	loser.lose.Store(true)
	publishMany(t, s, 2, 200)
	require.Eventually(t, func() bool { return counts.handled() == 199 }, 3*time.Second, time.Millisecond)
	requireDrained(t, g, 5*time.Second)
	require.Zero(t, counts.extra())
	require.False(t, loser.lose.Load())
	require.Positive(t, g.Stats().Claimed)
	require.Zero(t, g.Stats().Dead)
}

// streamClaimLoser executes a claim that takes something over, and loses its reply.
type streamClaimLoser struct {
	redistest.PassThrough
	lost atomic.Bool
}

func (l *streamClaimLoser) Do(client rueidis.Client, ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	// Of scripts, only this one has where to go on.
	c := cmd.Commands()
	claim := strings.HasPrefix(c[0], "EVAL") && len(c) == 10 && c[7] == "0-0"
	r := client.Do(ctx, cmd)
	if reply, err := r.ToArray(); claim && err == nil && len(reply) > 3 && !l.lost.Swap(true) {
		ended, cancel := context.WithCancel(ctx)
		cancel()
		return client.Do(ended, client.B().Ping().Build())
	}
	return r
}

// What was claimed in a reply that was lost has been delivered to the one before: that counts as an attempt.
func TestStream_ALostClaimIsFound(t *testing.T) {
	t.Parallel()
	plain := redistest.Shared(t).Client(t)
	key := redistest.Prefix(t)
	loser := &streamClaimLoser{}
	s := newStream(t, rueidishook.WithHook(plain, loser), key)
	streamGhosts(t, plain, key, s, 3)
	attempts := make(chan int, 10)
	runStream(t, s.Group("g", stream.GroupOptions[int]{Lease: streamLease}), func(_ context.Context, m *stream.Message[int]) error {
		attempts <- m.Attempt
		return nil
	})
	for range 3 {
		select {
		case n := <-attempts:
			require.Equal(t, 2, n)
		case <-time.After(10 * time.Second):
			require.Fail(t, "not found")
		}
	}
	require.True(t, loser.lost.Load())
}

// streamLarge has reads of more than that many entries end without a reply, as if that were too large.
type streamLarge struct {
	redistest.PassThrough
	most int
}

func (l *streamLarge) Do(client rueidis.Client, ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	c := cmd.Commands()
	if i := slices.Index(c, "COUNT"); c[0] == "XREADGROUP" && i > 0 {
		if n, err := strconv.Atoi(c[i+1]); err != nil || n > l.most {
			ended, cancel := context.WithTimeout(ctx, 0)
			defer cancel()
			return client.Do(ended, client.B().Ping().Build())
		}
	}
	return client.Do(ctx, cmd)
}

// A read that was too slow asks for less the next time.
func TestStream_ReadsThatAreTooLargeBecomeSmaller(t *testing.T) {
	t.Parallel()
	large := rueidishook.WithHook(redistest.Shared(t).Client(t), &streamLarge{most: 4})
	s := newStream(t, large, redistest.Prefix(t))
	g := s.Group("g", stream.GroupOptions[int]{})
	var counts streamCounts
	runStream(t, g, counts.handle)
	publishMany(t, s, 0, 40)
	require.Eventually(t, func() bool { return counts.handled() == 40 }, 20*time.Second, time.Millisecond)
	require.Zero(t, counts.extra())
}

// A connection breaks after XADD has run: the retry finds the first entry.
func TestStream_IdempotentPublish(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	proxy := redistest.NewProxy(t, server.Addr())
	client := server.Client(t, proxy.Through, redistest.OneConnection)
	key := redistest.Prefix(t)
	s, control := newStream(t, client, key), newStream(t, server.Client(t), key)
	_, err := s.Publish(t.Context(), 0, stream.IdempotencyKey("warm")) // the connection is open and the script known
	require.NoError(t, err)
	length := func() (n int) {
		for _, err := range control.Range(t.Context(), "", "") {
			require.NoError(t, err)
			n++
		}
		return n
	}
	for v := 1; v <= 3; v++ {
		proxy.DropReplies(t)
		type result struct {
			id  stream.ID
			err error
		}
		done := make(chan result, 1)
		go func() {
			id, err := s.Publish(t.Context(), v, stream.IdempotencyKey(fmt.Sprint(v)))
			done <- result{id, err}
		}()
		require.Eventually(t, func() bool { return length() == v+1 }, 5*time.Second, time.Millisecond, "it has run")
		proxy.Cut(t)
		proxy.Restore(t)
		r := <-done
		require.NoError(t, r.err, "it was sent again")
		again, err := control.Publish(t.Context(), 99, stream.IdempotencyKey(fmt.Sprint(v)))
		require.NoError(t, err)
		require.Equal(t, r.id, again)
		require.Equal(t, v+1, length())
	}
	ids, err := control.PublishBatch(t.Context(), []int{1, 2}, stream.IdempotencyKey("b"))
	require.NoError(t, err)
	again, err := control.PublishBatch(t.Context(), []int{1, 2}, stream.IdempotencyKey("b"))
	require.NoError(t, err)
	require.Equal(t, ids, again)
	require.Equal(t, 6, length())
}

// Redis is full: Publish says so; what is there is read, handled, acknowledged, deleted and trimmed; a dead letter waits for room.
func TestStream_RedisIsFull(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t)
	key := redistest.Prefix(t)
	s := newStream(t, client, key)
	publishMany(t, s, 0, 1000)
	var counts streamCounts
	opts := stream.GroupOptions[int]{Lease: streamLease, MaxAttempts: 1}
	streamAdmin(t, client, "XGROUP", "CREATE", key, "g", "0")
	streamAdmin(t, client, "CONFIG", "SET", "maxmemory", "100kb")
	full := func(err error) {
		t.Helper()
		require.ErrorContains(t, err, "OOM")
	}
	_, err := s.Publish(t.Context(), 1)
	full(err)
	_, err = s.Publish(t.Context(), 1, stream.IdempotencyKey("k"))
	full(err)
	_, err = s.Publish(t.Context(), 1, stream.Delay(time.Second))
	full(err)
	ids, err := s.PublishBatch(t.Context(), []int{1, 2})
	full(err)
	var batch *stream.BatchError
	require.ErrorAs(t, err, &batch)
	require.Len(t, batch.Errs, 2)
	require.Equal(t, []stream.ID{"", ""}, ids)

	var refused atomic.Int64
	opts.Hooks.Error = func(_ context.Context, op string, err error) {
		if op == stream.OpDead {
			refused.Add(1)
		}
	}
	g := s.Group("g", opts)
	runStream(t, g, func(ctx context.Context, m *stream.Message[int]) error {
		if m.Value == 500 {
			counts.add(m.Value)
			return errors.New("bad")
		}
		return counts.handle(ctx, m)
	})
	require.Eventually(t, func() bool {
		info, err := g.Info(t.Context())
		return err == nil && counts.handled() == 1000 && info.Pending == 1
	}, 10*time.Second, 5*time.Millisecond, "all but the dead one are acknowledged")
	trimmed, err := s.TrimAcked(t.Context())
	require.NoError(t, err)
	require.Equal(t, int64(500), trimmed)
	require.Eventually(t, func() bool { return refused.Load() > 0 }, 5*time.Second, time.Millisecond)
	require.Empty(t, streamDead(t, g))
	streamAdmin(t, client, "CONFIG", "SET", "maxmemory", "0")
	requireDrained(t, g, 5*time.Second)
	require.Len(t, streamDead(t, g), 1)
	require.Equal(t, 1, counts.of(500), "it was not handled again")
}

// Handlers go on while Redis hangs for longer than a lease, and nobody begins again what they do.
func TestStream_AHangingRedisCostsNoLease(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s := newStream(t, server.Client(t), redistest.Prefix(t))
	const lease = time.Second
	var counts streamCounts
	begun := make(chan struct{}, 100)
	var lost atomic.Int64
	var groups []*stream.Group[int]
	for range 3 {
		g := s.Group("g", stream.GroupOptions[int]{Lease: lease})
		groups = append(groups, g)
		runStream(t, g, func(ctx context.Context, m *stream.Message[int]) error {
			counts.add(m.Value)
			begun <- struct{}{}
			if err := after(ctx, 5*lease); err != nil {
				lost.Add(1)
				return err
			}
			return nil
		})
	}
	const messages = 12
	publishMany(t, s, 0, messages)
	for range messages {
		<-begun
	}
	server.Pause(t)
	require.NoError(t, after(t.Context(), 2*lease))
	server.Resume(t)
	requireDrained(t, groups[0], 20*time.Second)
	require.Zero(t, lost.Load())
	require.Zero(t, counts.extra())
}
