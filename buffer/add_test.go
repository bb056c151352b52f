package buffer

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"math"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"
)

// The number of shards is registered again now and then. If its node has gone by then, Add does not wait for it, and it is tried
// again.
func TestAdd_TheNumberOfShardsIsOutOfReach(t *testing.T) {
	t.Parallel()
	var gone atomic.Bool
	var registrations, told atomic.Int64
	client := answering(t, func(command string) string {
		if !strings.Contains(command, "}:shards") {
			return "+0 \r\n" // as add.lua does
		}
		registrations.Add(1)
		if gone.Load() {
			return "-CLUSTERDOWN it has gone\r\n"
		}
		return ":4\r\n"
	})
	b, err := New(client, "name", columns, Options{Hooks: Hooks{Error: func(context.Context, string, error) { told.Add(1) }}})
	require.NoError(t, err)
	add := func() {
		t.Helper()
		require.NoError(t, b.Add(t.Context(), "e", Int("views", 1)))
	}
	add()
	add()
	require.Equal(t, int64(1), registrations.Load())
	gone.Store(true)
	for n := range int64(3) {
		b.registerAt.Add(-int64(2 * registerEvery))
		add()
		add() // right after a failure it is not tried again
		require.Eventually(t, func() bool { return told.Load() == n+1 }, 10*time.Second, time.Millisecond)
		require.Equal(t, n+2, registrations.Load())
	}
	gone.Store(false)
	b.registerAt.Add(-int64(2 * registerEvery))
	add()
	require.NoError(t, b.Close(t.Context()))
	require.Equal(t, int64(5), registrations.Load())
	require.Equal(t, int64(3), told.Load())
	require.Greater(t, b.registerAt.Load(), int64(registerEvery))
}

// One Add has left, what it shares with another one is kept, and so both are unconfirmed: the overflow of the second is told.
func TestAdd_UnconfirmedForAnotherAddHasLeft(t *testing.T) {
	t.Parallel()
	first, goOn := make(chan struct{}), make(chan struct{})
	var trips atomic.Int64
	client := answering(t, func(command string) string {
		if !strings.Contains(command, "}:w:") { // not from add.lua
			return ":1\r\n"
		}
		switch trips.Add(1) {
		case 1:
			close(first)
			<-goOn
		case 2:
			return "-OOM it is full\r\n"
		}
		return "+0 \r\n"
	})
	var told atomic.Int64
	b, err := New(client, "name", columns, Options{
		Shards: 1, OpTimeout: time.Minute, AddTimeout: time.Minute,
		Hooks: Hooks{Error: func(_ context.Context, op string, err error) {
			require.Equal(t, OpPost, op)
			require.ErrorIs(t, err, ErrOverflow)
			told.Add(1)
		}},
	})
	require.NoError(t, err)
	var adds sync.WaitGroup
	adds.Go(func() { require.NoError(t, b.Add(t.Context(), "e", Int("views", 1))) })
	<-first
	ctx, leave := context.WithCancel(t.Context())
	var leaver sync.WaitGroup
	leaver.Go(func() {
		require.ErrorIs(t, b.Add(ctx, "e", Int("views", math.MaxInt64), Int("best", 1)), context.Canceled)
	})
	requireBest := func(n int64) { // as soon as an Add has been merged
		t.Helper()
		s := b.shards[0]
		require.Eventually(t, func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.adds != nil && s.adds.list[0].values[2].Int == n
		}, 10*time.Second, time.Millisecond)
	}
	requireBest(1)
	leave()
	leaver.Wait()
	adds.Go(func() { require.Equal(t, ErrUnconfirmed, b.Add(t.Context(), "e", Int("views", 1), Int("best", 2))) })
	requireBest(2)
	require.Zero(t, told.Load())
	close(goOn)
	adds.Wait()
	require.NoError(t, b.Close(t.Context()))
	require.Equal(t, int64(1), told.Load())
	require.Equal(t, uint64(1), b.stats.dropped.Load())
	require.Equal(t, int64(3), trips.Load())
}

// answering returns a real client of a server that answers all commands as the function says.
func answering(t *testing.T, answer func(command string) string) rueidis.Client {
	t.Helper()
	client, err := rueidis.NewClient(rueidis.ClientOption{
		InitAddress: []string{"test:6379"}, ForceSingleClient: true, DisableCache: true, AlwaysRESP2: true,
		ClientSetInfo: rueidis.DisableClientSetInfo, DisableRetry: true,
		DialCtxFn: func(context.Context, string, *net.Dialer, *tls.Config) (net.Conn, error) {
			ours, theirs := net.Pipe()
			go func() {
				defer ours.Close()
				for in := bufio.NewReader(ours); ; {
					command, err := readCommand(in)
					if err == nil {
						_, err = io.WriteString(ours, answer(command))
					}
					if err != nil {
						return
					}
				}
			}()
			return theirs, nil
		},
	})
	require.NoError(t, err)
	t.Cleanup(client.Close)
	return client
}

// readCommand returns a command's arguments, which have no line ends, with a space between them.
func readCommand(in *bufio.Reader) (string, error) {
	line, err := in.ReadString('\n')
	if err != nil {
		return "", err
	}
	n, err := strconv.Atoi(strings.TrimSpace(line[1:]))
	args := make([]string, n)
	for i := range args {
		if _, err := in.ReadString('\n'); err != nil { // the length
			return "", err
		}
		arg, err := in.ReadString('\n')
		if err != nil {
			return "", err
		}
		args[i] = strings.TrimSpace(arg)
	}
	return strings.Join(args, " "), err
}
