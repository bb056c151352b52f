package integration

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/redispatterns/redispatterns/internal/integration/redistest"
	"github.com/redispatterns/redispatterns/stream"
)

const (
	streamPoison = -1 // kills the process that handles it
	streamSlow   = -2 // is handled until its context ends
	streamLong   = -3 // is handled for a while, whatever happens
)

// streamChild is a consumer in another process. What it has handled it counts in a hash.
func streamChild() error {
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{os.Getenv("CHILD_ADDR")}})
	if err != nil {
		return err
	}
	defer client.Close()
	key := os.Getenv("CHILD_KEY")
	lease, err := time.ParseDuration(os.Getenv("CHILD_LEASE"))
	if err != nil {
		return err
	}
	inFlight, err := strconv.Atoi(os.Getenv("CHILD_INFLIGHT"))
	if err != nil {
		return err
	}
	s, err := stream.New(client, key, stream.Options[int]{})
	if err != nil {
		return err
	}
	g := s.Group("g", stream.GroupOptions[int]{Lease: lease, MaxInFlight: inFlight, MaxAttempts: 3, Backoff: quickly})
	count := func(what string) error {
		return client.Do(context.Background(), client.B().Hincrby().Key(key+":counts").Field(what).Increment(1).Build()).Error()
	}
	return g.Run(context.Background(), func(ctx context.Context, m *stream.Message[int]) error {
		switch m.Value {
		case streamPoison:
			if err := count("poison"); err != nil {
				return err
			}
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		case streamSlow:
			fmt.Println("begun")
			<-ctx.Done()
			fmt.Println("ended", errors.Is(context.Cause(ctx), stream.ErrLeaseLost))
			return ctx.Err()
		case streamLong:
			if err := count("long"); err != nil {
				return err
			}
			return after(ctx, 2*lease)
		}
		return count(strconv.Itoa(m.Value))
	})
}

func startStreamChild(t *testing.T, addr, key string, lease time.Duration, inFlight int) *exec.Cmd {
	t.Helper()
	return child(t, "stream", "CHILD_ADDR="+addr, "CHILD_KEY="+key, "CHILD_LEASE="+lease.String(), "CHILD_INFLIGHT="+strconv.Itoa(inFlight))
}

func streamChildCounts(t *testing.T, client rueidis.Client, key string) map[string]int64 {
	t.Helper()
	counts, err := client.Do(t.Context(), client.B().Hgetall().Key(key+":counts").Build()).AsIntMap()
	require.NoError(t, err)
	return counts
}

func TestStream_KilledConsumersLoseNothing(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t)
	key := redistest.Prefix(t)
	messages, kills, lease, inFlight := 8_000, 2, time.Second, 512
	if soak() {
		messages, kills, lease, inFlight = 100_000, 5, 3*time.Second, 1024
	}
	s := newStream(t, client, key)
	g := s.Group("g", stream.GroupOptions[int]{})
	var consumers []*exec.Cmd
	start := func() {
		cmd := startStreamChild(t, server.Addr(), key, lease, inFlight)
		require.NoError(t, cmd.Start())
		consumers = append(consumers, cmd)
	}
	for range 3 {
		start()
	}
	handled := func() int64 {
		n, err := client.Do(t.Context(), client.B().Hlen().Key(key+":counts").Build()).AsInt64()
		require.NoError(t, err)
		return n
	}
	chunk := messages / (kills + 1)
	for i := range kills {
		publishMany(t, s, i*chunk, (i+1)*chunk)
		// In the midst of them.
		require.Eventually(t, func() bool { return handled() > int64(i*chunk+chunk/4) }, 30*time.Second, time.Millisecond)
		victim := consumers[0]
		consumers = consumers[1:]
		require.NoError(t, victim.Process.Kill())
		require.Error(t, victim.Wait())
		start()
	}
	killed := time.Now()
	publishMany(t, s, kills*chunk, messages)
	require.Eventually(t, func() bool {
		info, err := g.Info(t.Context())
		return err == nil && info.Lag == 0 && info.LagKnown && info.Pending == 0
	}, 2*time.Minute, 5*time.Millisecond)
	took := time.Since(killed)
	counts := streamChildCounts(t, client, key)
	require.Len(t, counts, messages, "nothing is lost")
	var extra int64
	for _, n := range counts {
		extra += n - 1
	}
	t.Logf("%d kills, %d handled, %d of them twice, the last %v after the last kill", kills, messages, extra, took)
	require.LessOrEqual(t, extra, int64(kills*inFlight))
	if !soak() { // there the messages themselves take longer
		require.Less(t, took, lease+lease/3+2*time.Second)
	}
	info, err := g.Info(t.Context())
	require.NoError(t, err)
	require.Zero(t, info.Dead)
}

// A message that kills each process that handles it is a dead letter after exactly MaxAttempts, and those handled beside it are not.
func TestStream_APoisonThatKills(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	client := server.Client(t)
	key := redistest.Prefix(t)
	const lease = 300 * time.Millisecond
	s := newStream(t, client, key)
	g := s.Group("g", stream.GroupOptions[int]{})
	publishMany(t, s, 0, 20)
	id, err := s.Publish(t.Context(), streamPoison, stream.Header("who", "me"))
	require.NoError(t, err)
	for range 5 {
		_, err := s.Publish(t.Context(), streamLong) // at work when it dies, again and again
		require.NoError(t, err)
	}
	publishMany(t, s, 20, 40)
	for range 3 {
		cmd := startStreamChild(t, server.Addr(), key, lease, 512)
		require.NoError(t, cmd.Start())
		require.Error(t, cmd.Wait())
	}
	survivor := startStreamChild(t, server.Addr(), key, lease, 512)
	require.NoError(t, survivor.Start())
	requireDrained(t, g, 30*time.Second)
	dead := streamDead(t, g)
	require.Len(t, dead, 1)
	require.Equal(t, id, dead[0].Original)
	require.Equal(t, 3, dead[0].Attempts)
	require.Equal(t, streamPoison, dead[0].Value)
	require.Equal(t, "me", dead[0].Headers["who"])
	require.Contains(t, dead[0].Reason, "process ended")
	counts := streamChildCounts(t, client, key)
	require.Equal(t, int64(3), counts["poison"])
	for v := range 40 {
		require.Positive(t, counts[strconv.Itoa(v)], v)
	}
}

// The owner is stopped: a peer handles its message. When it goes on, its handler's context ends, and it steals nothing back.
func TestStream_AStoppedOwner(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	client := server.Client(t)
	key := redistest.Prefix(t)
	const lease = 400 * time.Millisecond
	s := newStream(t, client, key)
	owner := startStreamChild(t, server.Addr(), key, lease, 512)
	out, err := owner.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, owner.Start())
	lines := bufio.NewReader(out)
	line := func() string {
		line, err := lines.ReadString('\n')
		require.NoError(t, err)
		return strings.TrimSpace(line)
	}
	_, err = s.Publish(t.Context(), streamSlow)
	require.NoError(t, err)
	require.Equal(t, "begun", line())
	require.NoError(t, owner.Process.Signal(syscall.SIGSTOP))

	g := s.Group("g", stream.GroupOptions[int]{Lease: lease})
	begun, finish := make(chan int, 10), make(chan struct{})
	r := runStream(t, g, func(ctx context.Context, m *stream.Message[int]) error {
		begun <- m.Attempt
		select {
		case <-finish:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
	select {
	case attempt := <-begun:
		require.Equal(t, 2, attempt)
	case <-time.After(10 * time.Second):
		require.Fail(t, "no peer took over")
	}
	require.NoError(t, owner.Process.Signal(syscall.SIGCONT))
	require.Equal(t, "ended true", line())
	// Its renewals would have come by now, several times.
	require.NoError(t, after(t.Context(), 2*lease))
	close(finish)
	requireDrained(t, g, 5*time.Second)
	require.Empty(t, begun, "it was begun once")
	require.Zero(t, g.Stats().Lost)
	require.NoError(t, r.end(t))
}
