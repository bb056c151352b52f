package integration

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/redispatterns/redispatterns/internal/integration/redistest"
	"github.com/redispatterns/redispatterns/timeseries"
	"github.com/redispatterns/redispatterns/timeseries/export"
)

// timeseriesSum returns the total of what series a test has counted since it began.
func timeseriesSum(t *testing.T, s *timeseries.Store, series string) int64 {
	t.Helper()
	now := timeseriesNow(t, s)
	total, err := s.Counter(series).Sum(t.Context(), now.Add(-time.Hour), now.Add(time.Minute))
	require.NoError(t, err)
	return total.Value
}

// TestTimeseries_AcknowledgedCountsStand counts while connections are killed, scripts forgotten and the server restarted: what was
// acknowledged is there, and no more than what was tried.
func TestTimeseries_AcknowledgedCountsStand(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	prefix := redistest.Prefix(t)
	s := newTimeseries(t, server.Client(t, quickDial), timeseries.Options{Prefix: prefix, Timeout: 2 * time.Second})
	gathering := newTimeseries(t, server.Client(t, quickDial), timeseries.Options{Prefix: prefix, Timeout: 2 * time.Second, FlushEvery: 20 * time.Millisecond})
	_, _ = timeseriesNow(t, s), timeseriesNow(t, gathering)
	admin := server.Client(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var acknowledged, unknown, gathered atomic.Int64
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for ctx.Err() == nil {
				switch err := s.Counter("a"+strconv.Itoa(w%3)).Incr(context.Background(), 1); {
				case err == nil:
					acknowledged.Add(1)
				case errors.Is(err, timeseries.ErrUnknown):
					unknown.Add(1)
				default:
					_ = after(ctx, time.Millisecond) // refused: it goes on
				}
				if gathering.Counter("g").Incr(context.Background(), 1) == nil {
					gathered.Add(1)
				}
			}
		})
	}
	rounds := 3
	if soak() {
		rounds = 60
	}
	for range rounds {
		before := acknowledged.Load()
		for _, args := range [][]string{{"SCRIPT", "FLUSH"}, {"CLIENT", "KILL", "TYPE", "normal", "SKIPME", "no"}} {
			_ = admin.Do(ctx, admin.B().Arbitrary(args...).Build()).Error() // which kills its own connection
			require.NoError(t, after(ctx, 50*time.Millisecond))
		}
		server.Restart(t)
		require.Eventually(t, func() bool { return acknowledged.Load() > before+100 }, soon, tick)
	}
	cancel()
	wg.Wait()
	_ = gathering.Close(t.Context()) // what it could not write is in its totals

	var counted int64
	require.Eventually(t, func() bool { _, err := s.Now(t.Context()); return err == nil }, soon, tick)
	for i := range 3 {
		counted += timeseriesSum(t, s, "a"+strconv.Itoa(i))
	}
	t.Logf("%d acknowledged, %d unknown, %d counted", acknowledged.Load(), unknown.Load(), counted)
	require.GreaterOrEqual(t, counted, acknowledged.Load())
	require.LessOrEqual(t, counted, acknowledged.Load()+unknown.Load())
	totals := gathering.Totals()
	require.Equal(t, gathered.Load(), totals.Written+totals.Unknown+totals.Refused, "each gathered event has an outcome")
	require.GreaterOrEqual(t, timeseriesSum(t, s, "g"), totals.Written)
	require.LessOrEqual(t, timeseriesSum(t, s, "g"), totals.Written+totals.Unknown)
	timeseriesKeys(t, server.Client(t), prefix, func(_ rueidis.Client, key string, ttl int64) { require.Positive(t, ttl, key) })
}

// TestTimeseries_ALostReplyIsNotSentTwice also shows that waiting ends.
func TestTimeseries_ALostReplyIsNotSentTwice(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, "--maxmemory-policy", "noeviction")
	proxy := redistest.NewProxy(t, server.Addr())
	prefix := redistest.Prefix(t)
	client := server.Client(t, proxy.Through, redistest.OneConnection, quickDial)
	s := newTimeseries(t, client, timeseries.Options{Prefix: prefix, Timeout: 300 * time.Millisecond})
	gathering := newTimeseries(t, client, timeseries.Options{Prefix: prefix, Timeout: 300 * time.Millisecond, FlushEvery: time.Hour})
	direct := newTimeseries(t, server.Client(t), timeseries.Options{Prefix: prefix})
	require.NoError(t, s.Counter("x").Incr(t.Context(), 1))
	require.NoError(t, gathering.Counter("g").Incr(t.Context(), 1))
	require.NoError(t, gathering.Flush(t.Context()))

	proxy.DropReplies(t)
	began := time.Now()
	require.ErrorIs(t, s.Counter("x").Incr(t.Context(), 10), timeseries.ErrUnknown)
	require.Less(t, time.Since(began), 3*time.Second)
	ended, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := s.Counter("z").Incr(ended, 1)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorIs(t, err, timeseries.ErrUnknown)
	require.NoError(t, gathering.Counter("g").Incr(t.Context(), 10))
	require.ErrorIs(t, gathering.Flush(t.Context()), timeseries.ErrUnknown)
	require.Equal(t, timeseries.Totals{Written: 1, Unknown: 1}, gathering.Totals())
	proxy.Restore(t)
	require.Eventually(t, func() bool { return s.Counter("y").Incr(t.Context(), 1) == nil }, soon, tick)
	require.NoError(t, gathering.Flush(t.Context()))
	require.EqualValues(t, 11, timeseriesSum(t, direct, "x"), "it had run, and did not run again")
	require.LessOrEqual(t, timeseriesSum(t, direct, "g"), int64(11))

	// A full server refuses all of a write; what was gathered is kept until there is room.
	fillUp(t, server, "1")
	require.ErrorContains(t, s.Counter("x").Incr(t.Context(), 1), "OOM")
	require.NoError(t, gathering.Counter("h").Incr(t.Context(), 5))
	require.ErrorContains(t, gathering.Flush(t.Context()), "OOM")
	require.EqualValues(t, 11, timeseriesSum(t, direct, "x"))
	fillUp(t, server, "0")
	require.NoError(t, gathering.Flush(t.Context()))
	require.EqualValues(t, 5, timeseriesSum(t, direct, "h"))

	// A key of somebody else's fails its own series alone, and leaves no half of an event.
	admin := server.Client(t)
	timeseriesKeys(t, admin, prefix+":{test:x}", func(node rueidis.Client, key string, _ int64) {
		if strings.Contains(key, ":c3600x") {
			require.NoError(t, set(t.Context(), node, key, "foreign"))
		}
	})
	require.Error(t, s.Counter("x").Incr(t.Context(), 1))
	require.NoError(t, s.Counter("y").Incr(t.Context(), 1))
	now := timeseriesNow(t, direct)
	series, err := direct.Counter("x").Range(t.Context(), timeseries.Range{From: now.Add(-10 * time.Minute), To: now.Add(time.Minute), Step: 10 * time.Second})
	require.NoError(t, err)
	var sum int64
	for _, p := range series.Points {
		sum += p.Value
	}
	require.EqualValues(t, 11, sum)
}

// TestTimeseries_TheServersClockCounts runs a store where all clocks of this process say that it is the year 2000.
func TestTimeseries_TheServersClockCounts(t *testing.T) {
	t.Parallel()
	server, prefix := redistest.Shared(t), redistest.Prefix(t)
	reader := newTimeseries(t, server.Client(t), timeseries.Options{Prefix: prefix})
	real := timeseriesNow(t, reader)
	require.WithinDuration(t, time.Now(), real, time.Minute, "tests have their servers on the same machine")
	synctest.Test(t, func(t *testing.T) {
		require.Equal(t, 2000, time.Now().UTC().Year())
		client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{server.Addr()}, DisableCache: true})
		require.NoError(t, err)
		defer client.Close()
		wrong, err := timeseries.New(client, "test", timeseries.Options{Prefix: prefix})
		require.NoError(t, err)
		now, err := wrong.Now(t.Context())
		require.NoError(t, err)
		require.WithinDuration(t, real, now, time.Minute)
		require.NoError(t, wrong.Counter("x").Incr(t.Context(), 3))
		require.NoError(t, wrong.Close(t.Context()))
	})
	require.EqualValues(t, 3, timeseriesSum(t, reader, "x"))

	// Skewed by five seconds either way, as Options.Clock can be, they would differ; by the server's they do not.
	for _, skew := range []time.Duration{-5 * time.Second, 5 * time.Second} {
		skewed := newTimeseries(t, server.Client(t), timeseries.Options{Prefix: prefix, Clock: func() time.Time { return time.Now().Add(skew) }})
		now := timeseriesNow(t, skewed)
		require.WithinDuration(t, timeseriesNow(t, reader).Add(skew), now, 3*time.Second)
	}
	other := newTimeseries(t, server.Client(t), timeseries.Options{Prefix: prefix})
	require.WithinDuration(t, timeseriesNow(t, reader), timeseriesNow(t, other), 500*time.Millisecond)
}

// timeseriesChild writes until it is killed.
func timeseriesChild() error {
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{os.Getenv("TIMESERIES_ADDR")}})
	if err != nil {
		return err
	}
	defer client.Close()
	s, err := timeseries.New(client, "test", timeseries.Options{Prefix: os.Getenv("TIMESERIES_PREFIX"), TopSize: 3})
	if err != nil {
		return err
	}
	ctx := context.Background()
	fmt.Println("running")
	for i := 0; ; i++ {
		series := strconv.Itoa(i)
		now, err := s.Now(ctx)
		if err != nil {
			return err
		}
		at := now.Add(-time.Duration(i%1000) * time.Minute)
		if err := errors.Join(s.Counter(series).IncrAt(ctx, at, 1), s.Stats(series).ObserveAt(ctx, at, 1),
			s.Distinct(series).AddAt(ctx, at, "m"), s.Top(series).AddAt(ctx, at, series, 1)); err != nil {
			return err
		}
	}
}

func TestTimeseries_NoKeyIsEverWithoutExpiry(t *testing.T) {
	t.Parallel()
	server, prefix := redistest.Shared(t), redistest.Prefix(t)
	client := server.Client(t)
	kills := 3
	if soak() {
		kills = 100
	}
	for range kills {
		cmd := child(t, "timeseries", "TIMESERIES_ADDR="+server.Addr(), "TIMESERIES_PREFIX="+prefix)
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		_, err = bufio.NewReader(out).ReadString('\n')
		require.NoError(t, err)
		require.NoError(t, after(t.Context(), 60*time.Millisecond))
		require.NoError(t, cmd.Process.Kill())
		_ = cmd.Wait() // it was killed
	}
	keys := 0
	timeseriesKeys(t, client, prefix, func(_ rueidis.Client, key string, ttl int64) {
		keys++
		require.Positive(t, ttl, key)
	})
	require.Greater(t, keys, 20)
}

func TestTimeseries_ExportServesWhatItMay(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := newTimeseries(t, redistest.Shared(t).Client(t), timeseries.Options{})
	now := timeseriesNow(t, s)
	window := now.Truncate(time.Minute).Add(-time.Minute)
	require.NoError(t, s.Counter(`a "b"`).IncrAt(ctx, window, 7))
	require.NoError(t, s.Counter("secret").IncrAt(ctx, window, 9))
	handler, err := export.New(s, export.Options{Series: export.List(`a "b"`, "none"), MaxPoints: 100, Fill: timeseries.FillNull})
	require.NoError(t, err)
	ask := func(method, path, body string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(body)))
		return w
	}
	require.Equal(t, http.StatusOK, ask("GET", "/", "").Code)
	require.Equal(t, http.StatusNotFound, ask("GET", "/x", "").Code)
	w := ask("GET", "/metrics", "")
	require.Equal(t, "application/openmetrics-text; version=1.0.0; charset=utf-8", w.Header().Get("Content-Type"))
	require.Regexp(t, `^# TYPE timeseries_events gauge\n# HELP .*\ntimeseries_events\{series="a \\"b\\""\} [07] \d+\ntimeseries_events\{series="none"\} 0 \d+\n# EOF\n$`, w.Body.String())
	require.JSONEq(t, `["a \"b\"", "none"]`, ask("POST", "/search", "{}").Body.String())
	require.JSONEq(t, `[{"label": "a \"b\"", "value": "a \"b\""}, {"label": "none", "value": "none"}]`, ask("POST", "/metrics", "").Body.String())

	question := func(target string, most int) string {
		return fmt.Sprintf(`{"range": {"from": %q, "to": %q}, "maxDataPoints": %d, "targets": [{"target": %q}, {"target": ""}]}`,
			now.Add(-time.Hour).Format(time.RFC3339Nano), now.Format(time.RFC3339Nano), most, target)
	}
	for most, limit := range map[int]int{0: 100, 10: 10, 1_000_000: 100} {
		w = ask("POST", "/query", question(`a "b"`, most))
		require.Equal(t, http.StatusOK, w.Code)
		var answers []struct {
			Target     string
			Datapoints [][2]*int64
		}
		require.NoError(t, json.Unmarshal(w.Body.Bytes(), &answers))
		require.Len(t, answers, 1)
		require.LessOrEqual(t, len(answers[0].Datapoints), limit)
		sum, nulls := int64(0), 0
		for _, p := range answers[0].Datapoints {
			if p[0] == nil {
				nulls++
				continue
			}
			sum += *p[0]
			require.Zero(t, *p[1]%10_000)
		}
		require.EqualValues(t, 7, sum)
		require.Equal(t, len(answers[0].Datapoints)-1, nulls)
	}
	require.Equal(t, http.StatusNotFound, ask("POST", "/query", question("secret", 10)).Code)
	for _, bad := range []string{"", "{}", "[", `{"range": {"from": "x"}}`, strings.Repeat(" ", 2<<20) + "{}", `{"range":{"from":"2026-01-01T00:00:00Z","to":"2027-01-01T00:00:00Z"},"targets":[` + strings.Repeat(`{},`, 100) + `{}]}`} {
		require.Equal(t, http.StatusBadRequest, ask("POST", "/query", bad).Code)
	}
	for _, bad := range []export.Options{{}, {Series: export.List(), Metric: "a b"}, {Series: export.List(), Window: time.Millisecond}, {Series: export.List(), MaxPoints: -1}, {Series: export.List(), Fill: 9}} {
		_, err := export.New(s, bad)
		require.ErrorContains(t, err, "export: Options.")
	}
	failing, err := export.New(s, export.Options{Series: func(context.Context) ([]string, error) { return nil, errors.New("secret") }})
	require.NoError(t, err)
	handler = failing
	for _, path := range []string{"/metrics", "/search", "/query"} {
		w := ask(map[bool]string{true: "GET", false: "POST"}[path == "/metrics"], path, question("x", 1))
		require.Equal(t, http.StatusServiceUnavailable, w.Code)
		require.NotContains(t, w.Body.String(), "secret")
	}
}
