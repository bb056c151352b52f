package main

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"
)

func newTestService(t *testing.T) (string, *miniredis.Miniredis) {
	t.Helper()
	redis := miniredis.RunT(t)
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{redis.Addr()}, DisableCache: true, ForceSingleClient: true})
	require.NoError(t, err)
	t.Cleanup(client.Close)
	handler, err := newService(client, "test")
	require.NoError(t, err)
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return server.URL, redis
}

func statusOf(t *testing.T, base, token string) int {
	t.Helper()
	status, _, _, err := get(t.Context(), base+"/quote", token)
	require.NoError(t, err)
	return status
}

func TestService_LimitsByTier(t *testing.T) {
	t.Parallel()
	base, _ := newTestService(t)
	for range 5 {
		require.Equal(t, http.StatusOK, statusOf(t, base, "free-alice"))
	}
	require.Equal(t, http.StatusTooManyRequests, statusOf(t, base, "free-alice"))
	require.Equal(t, http.StatusOK, statusOf(t, base, "free-bob"))
	for range 50 {
		require.Equal(t, http.StatusOK, statusOf(t, base, "paid-carol"))
	}
	for _, nobody := range []string{"", "root-alice", "free"} {
		want := http.StatusBadRequest
		if nobody == "free" {
			want = http.StatusOK
		}
		require.Equal(t, want, statusOf(t, base, nobody))
	}
}

func TestService_GoesOnWithoutRedis(t *testing.T) {
	t.Parallel()
	base, redis := newTestService(t)
	redis.Close()
	passed := 0
	for range 20 {
		switch status := statusOf(t, base, "free-alice"); status {
		case http.StatusOK:
			passed++
		default:
			require.Equal(t, http.StatusTooManyRequests, status)
		}
	}
	require.Equal(t, 2, passed, "half of five")
	require.NoError(t, redis.Restart())
	require.Eventually(t, func() bool { return statusOf(t, base, "free-bob") == http.StatusOK && len(redis.Keys()) > 0 }, 10*time.Second, 10*time.Millisecond)
}

func TestDemo_ShowsTheEdgeOfAWindow(t *testing.T) {
	t.Setenv("REDIS_URL", "")
	var out strings.Builder
	require.NoError(t, run(t.Context(), []string{"-demo"}, &out))
	require.Regexp(t, `(?s)fixed +sliding.* 1900ms .*in the busiest second: fixed \d+, sliding (50|[1-4]?\d)\n`, out.String())
	require.Regexp(t, `(?s)200  RateLimit: "user";r=4;t=1[01], "everybody";r=\d+;t=\d+\n.*429  .*Retry-After: \d+\n.*quota-exceeded.*a paid user\n200 `, out.String())
}

func TestBusiest_CountsWhatIsSurelyInOneSecond(t *testing.T) {
	t.Parallel()
	ms := func(sent, answered int) answer {
		return answer{time.Duration(sent) * time.Millisecond, time.Duration(answered) * time.Millisecond}
	}
	require.Equal(t, 0, busiest(nil))
	require.Equal(t, 2, busiest([]answer{ms(0, 1), ms(500, 600), ms(990, 1000)}))
	require.Equal(t, 3, busiest([]answer{ms(1, 2), ms(500, 600), ms(990, 1000), ms(1100, 1200)}))
}

func TestRun_ServesUntilInterrupted(t *testing.T) {
	t.Setenv("REDIS_URL", "")
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	read, write := io.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, []string{"-addr", "127.0.0.1:0"}, write) }()
	line, err := bufio.NewReader(read).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, statusOf(t, strings.TrimSpace(strings.TrimPrefix(line, "serving at ")), "paid-alice"))
	interrupt()
	require.NoError(t, <-ended)
}

func TestRun_RefusesBadArguments(t *testing.T) {
	t.Setenv("REDIS_URL", "")
	for _, args := range [][]string{{"serve"}, {"-what"}, {"-addr", "nowhere:x"}} {
		require.Error(t, run(t.Context(), args, io.Discard), "%v", args)
	}
}
