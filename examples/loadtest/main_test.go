package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/redispatterns/redispatterns/lock"
	"github.com/redispatterns/redispatterns/ratelimit"
)

func TestRun_DemonstrationSaysUnknownNotZero(t *testing.T) {
	t.Setenv("REDIS_URL", "")
	t.Setenv("LOADTEST_DURATION", "700ms")
	before := demonstration
	demonstration = []string{"--keys", "2k", "--rate", "300", "--warmup", "100ms", "--sample", "100ms"}
	defer func() { demonstration = before }()
	var out bytes.Buffer
	code, err := run(t.Context(), nil, &out, io.Discard)
	require.NoError(t, err)
	require.Equal(t, exitOK, code)
	text := out.String()
	for _, figure := range []string{"used unknown", "evicted unknown", "cpu unknown", "OOM unknown", "policy unknown"} {
		require.Contains(t, text, figure)
	}
	require.Regexp(t, `bytes per key +unknown`, text)
	require.Contains(t, text, "says nothing about Redis")
	require.Regexp(t, `removed: [1-9]`, text)
	require.NotContains(t, text, "used 0")
}

func TestRun_Scenarios(t *testing.T) {
	t.Parallel()
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "r.json")
			var out bytes.Buffer
			code, err := run(t.Context(), []string{
				"run", "--redis", embedded, "--scenario", s.name, "--raw", "--keys", "500", "--rate", "200", "--duration", "1s", "--sample", "200ms", "--json", file, "--fail-on", "errors>0%",
			}, &out, io.Discard)
			require.NoError(t, err)
			require.Contains(t, []int{exitOK, exitSaturated}, code, out.String()) // a busy machine
			r, err := readReport(file)
			require.NoError(t, err)
			require.Equal(t, s.name != "django-cache", len(r.Overheads) > 0)
			require.EqualValues(t, 200, r.Total.Requests)
			require.Zero(t, r.Total.Failures, r.Rows)
			for _, w := range r.Rows {
				require.Positive(t, w.Requests, w.Name)
			}
			if h := r.Total.hitPercent(); h != nil {
				require.InDelta(t, 100, *h, 0.1)
			}
		})
	}
}

func TestRun_CountsMisses(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "r.json")
	_, err := run(t.Context(), []string{
		"run", "--redis", embedded, "--op", "get:1", "--op", "mget[4]:1", "--op", "del", "--op", "incr", "--op", "ping", "--op", "set(ttl=1s,val=a)", "--value", "a=10,b=20", "--no-preload", "--prefix", "lt:none:",
		"--keys", "100", "--rate", "300", "--duration", "500ms", "--sample", "100ms", "--live", "off", "--json", file, "--csc=false",
	}, io.Discard, io.Discard)
	require.NoError(t, err)
	r, err := readReport(file)
	require.NoError(t, err)
	require.Zero(t, r.Total.Hits)
	require.Greater(t, r.Total.Misses, r.Total.Requests/6)
	require.Zero(t, r.Total.Failures, "a miss is no failure")
	require.Zero(t, *r.Total.hitPercent())
}

func TestRun_RefusesWrongCommandLines(t *testing.T) {
	t.Setenv("REDIS_URL", "")
	for _, args := range []string{
		"x", "run x", "run --scenario y", "run --rate 5 --users 5", "run --rate 0", "run --rate -1", "run --stages x", "run --fail-on p99", "run --find-knee p99>",
		"run --prefix app:", "run --prefix lt:", "run --prefix lt:*:", "run --prefix lt:{a}:", "run --no-preload", "run --op keys", "run --op get --scenario cache",
		"run --duration 0s", "run --timeout 2m", "run --keys 0", "run --keys 1", "run --value a", "run --ttl 0s", "run --op get(val=none)", "run --redis http://127.0.0.1",
		"run --redis redis://192.0.2.1:6379", "run --redis redis://127.0.0.1:1?addr=192.0.2.1:6379", "preload --redis redis://example.com", "clean --redis redis://example.com --prefix lt:x:",
		"run --op mget[10000]", "preload --scenario lock", "size", "size a b", "run --live z", "run --nodes none.csv", "run --sample 1ms", "run --utilisation 0",
		"run --redis redis://127.0.0.1 --insecure",
	} {
		code, err := run(t.Context(), strings.Fields(args), io.Discard, io.Discard)
		require.Error(t, err, args)
		if args != "run --redis http://127.0.0.1" && args != "run --redis redis://127.0.0.1 --insecure" {
			require.Equal(t, exitUsage, code, args)
		}
	}
	for _, args := range []string{"run --redis redis://me:secret@[::1", "run --redis redis://me:secret@127.0.0.1:1"} {
		_, err := run(t.Context(), strings.Fields(args), io.Discard, io.Discard)
		require.Error(t, err)
		require.NotContains(t, err.Error(), "secret")
	}
	t.Setenv("LOADTEST_RATE", "x")
	code, err := run(t.Context(), []string{"run"}, io.Discard, io.Discard)
	require.Error(t, err)
	require.Equal(t, exitUsage, code)
	require.Equal(t, []string{"--redis", "redis://h:1", "--redis=rediss://h", "-redis", "redis://h"},
		safeArguments([]string{"--redis", "redis://u:p@h:1", "--redis=rediss://u:p@h", "-redis", "redis://:p@h"}))
}

func TestConfig_FromTheEnvironment(t *testing.T) {
	t.Setenv("LOADTEST_USERS", "7")
	t.Setenv("LOADTEST_MAX_INFLIGHT", "9")
	t.Setenv("REDIS_URL", "redis://127.0.0.1:1")
	c, err := parseRun("run", []string{"--max-inflight", "11"}, io.Discard)
	require.NoError(t, err)
	require.True(t, c.closed)
	require.InDelta(t, 7, c.schedule[0].to, 0)
	require.Equal(t, 11, c.maxInflight)
	require.Equal(t, "redis://127.0.0.1:1", c.url)
}

func TestConnection_Remote(t *testing.T) {
	t.Parallel()
	for url, host := range map[string]string{
		"redis://127.0.0.1:6379": "", "redis://localhost": "", "redis://[::1]:6379": "", "unix:///tmp/x": "", "redis://:1": "", embedded: "",
		"redis://10.0.0.1": "10.0.0.1", "rediss://u:p@cache.example:6380/1": "cache.example", "redis://127.0.0.1?addr=10.0.0.2:1": "10.0.0.2", "redis://[2001:db8::1]:6379": "2001:db8::1",
	} {
		require.Equal(t, host, connection{url: url}.remote(), url)
	}
}

func TestClassify(t *testing.T) {
	t.Parallel()
	server := miniredis.RunT(t)
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{server.Addr()}, DisableCache: true, ForceSingleClient: true, DisableRetry: true})
	require.NoError(t, err)
	defer client.Close()
	limiter, err := ratelimit.NewFixedWindow(client, ratelimit.PerSecond(1), ratelimit.Options{Timeout: 10 * time.Second}) // else a busy machine makes it a timeout
	require.NoError(t, err)
	for message, class := range map[string]string{
		"OOM command not allowed when used memory > 'maxmemory'.": "OOM",
		"MOVED 1 127.0.0.1:1":                                      "MOVED",
		"LOADING Redis is loading the dataset in memory":           "LOADING",
		"READONLY You can't write against a read only replica.":    "READONLY",
		"NOPERM this user has no permissions":                      "NOPERM",
		"WRONGTYPE Operation against a key":                        "WRONGTYPE",
		"CLUSTERDOWN The cluster is down":                          "CLUSTERDOWN",
		"ERR unknown command":                                      "ERR",
		"Strange":                                                  "ERR",
		"Err x":                                                    "ERR",
		"TRYAGAIN Multiple keys request during rehashing of slot":  "TRYAGAIN",
		"MISCONF Redis is configured to save RDB snapshots, but …": "MISCONF",
	} {
		server.SetError(message)
		require.Equal(t, class, classify(client.Do(t.Context(), client.B().Set().Key("k").Value("v").Build()).Error()), message)
		_, err := limiter.Allow(t.Context(), "k")
		require.Error(t, err)
		require.Contains(t, []string{class, "ratelimit: redis is unavailable"}, classify(err), "wrapped by a package")
	}
	server.SetError("")
	require.Equal(t, "lock: lost", strings.TrimSuffix(classify(fmt.Errorf("x: %w", lock.ErrLost)), "")[:len("lock: lost")])
	require.Equal(t, classTimeout, classify(fmt.Errorf("x: %w", context.DeadlineExceeded)))
	require.Equal(t, classOther, classify(errors.New("x")))
	require.Equal(t, classNetwork, classify(io.EOF))
	require.Equal(t, classNetwork, classify(rueidis.ErrClosing))
	_, err = net.Dial("tcp", "127.0.0.1:1")
	require.Equal(t, classNetwork, classify(err))
}

func TestDataset_ClassesTakeTurns(t *testing.T) {
	t.Parallel()
	d := newDataset("lt:x:", 10_007, []class{{"a", 10, 30}, {"b", 20, 10}, {"c", 2000, 60}}, distribution{kind: "uniform"}, false)
	n := map[int]int{}
	for i := range 1000 {
		n[d.classOf(i)]++
	}
	require.Equal(t, map[int]int{0: 300, 1: 100, 2: 600}, n, "any part of it has all of them in proportion")
	seen := map[string]bool{}
	sums := make([]int, 3)
	for i := range d.keys {
		seen[d.key(i)] = true
		sums[d.classOf(i)]++
	}
	require.Len(t, seen, d.keys)
	require.Equal(t, d.counts, sums)
	for range 10_000 {
		c := rand.IntN(3)
		i := d.pick(c)
		require.Equal(t, c, d.classOf(i))
		require.Less(t, i, d.keys)
	}
	for c, size := range []int{10, 20, 2000} {
		require.Len(t, d.value(c), size)
	}
	require.Len(t, newDataset("", 1, []class{{"a", 777, 1}}, distribution{}, true).value(0), 777)
	require.Equal(t, "lt:x:c:2360679774", d.name(2, 2))
	require.Equal(t, "0000000000", digits(0))
}

func TestDistribution(t *testing.T) {
	t.Parallel()
	const n, draws = 1000, 100_000
	counted := func(d distribution) []int {
		var next atomic.Int64
		c := make([]int, n)
		for range draws {
			c[d.pick(n, &next)]++
		}
		return c
	}
	sum := func(c []int) (s int) {
		for _, v := range c {
			s += v
		}
		return s
	}
	require.InDelta(t, draws/2, sum(counted(distribution{kind: "uniform"})[:n/2]), 1000)
	require.InDelta(t, 0.9*draws, sum(counted(distribution{kind: "hot", a: 0.01, b: 0.9})[:10]), 1000)
	for _, c := range counted(distribution{kind: "seq"}) {
		require.Equal(t, draws/n, c)
	}
	z := counted(distribution{kind: "zipf", a: 1.5})
	require.Greater(t, z[0], z[1])
	require.Greater(t, z[1], z[10])
	// A slope of -1.5 on logarithmic axes.
	require.InDelta(t, 1.5, logSlope(z), 0.15)
}

// logSlope compares the numbers of 10 to 20 with those of 80 to 160.
func logSlope(c []int) float64 {
	a, b := 0.0, 0.0
	for i := 10; i < 20; i++ {
		a += float64(c[i])
	}
	for i := 80; i < 160; i++ {
		b += float64(c[i])
	}
	// ∫x^-s over an octave that is 8 times further is 8^(1-s) times as much.
	x := 0.0
	for v := a / b; v > 1.0000001; v /= 1.001 {
		x++
	}
	return 1 + x*0.0009995/2.0794
}

func TestInfo(t *testing.T) {
	t.Parallel()
	a := parseInfo("# Memory\r\nused_memory:100\r\nmaxmemory:7\r\n# Keyspace\r\ndb0:keys=5,expires=1,avg_ttl=0\r\ndb3:keys=2,expires=0,avg_ttl=0\r\nbad\r\n")
	require.InDelta(t, 7, *a.keys(), 0)
	require.InDelta(t, 200, *infos{a, a}.sum("used_memory"), 0)
	require.Nil(t, infos{a, {}}.sum("used_memory"), "unknown of one, unknown of all")
	require.Nil(t, infos{}.sum("used_memory"))
	require.Nil(t, info{}.keys())
	require.Zero(t, *info{"used_memory": "1"}.keys())
	require.Equal(t, "unknown", infos{{}}.text("maxmemory_policy"))
	require.Equal(t, "a, b", infos{{"p": "b"}, {"p": "a"}, {"p": "b"}}.text("p"))
	begin := time.Now()
	first, second := &sample{begin, infos{{"n": "10"}}}, &sample{begin.Add(2 * time.Second), infos{{"n": "30"}}}
	require.InDelta(t, 10, *rate(first, second, "n"), 1e-9)
	require.Nil(t, rate(second, &sample{begin.Add(4 * time.Second), infos{{"n": "5"}}}, "n"), "it was restarted")
	require.Nil(t, rate(nil, second, "n"))
	h := histogram{1: 10, 2: 80, 4: 9, 1024: 1}.since(histogram{1: 10})
	require.InDelta(t, 2, *h.quantile(50), 0)
	require.InDelta(t, 4, *h.quantile(98.8), 0)
	require.InDelta(t, 1024, *h.quantile(99.9), 0)
	require.Nil(t, histogram{}.quantile(50))
}

func TestPage_SendsWhatHappens(t *testing.T) {
	t.Parallel()
	p, err := servePage(":0")
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(p.addr, "127.0.0.1:"), "loopback unless told")
	base := "http://" + p.addr
	reply, err := http.Get(base)
	require.NoError(t, err)
	text, err := io.ReadAll(reply.Body)
	require.NoError(t, err)
	require.NoError(t, reply.Body.Close())
	require.Contains(t, string(text), `new EventSource("events")`)
	reply, err = http.Post(base, "text/plain", nil)
	require.NoError(t, err)
	require.NoError(t, reply.Body.Close())
	require.Equal(t, http.StatusMethodNotAllowed, reply.StatusCode)

	events, err := http.Get(base + "/events")
	require.NoError(t, err)
	defer events.Body.Close()
	require.Equal(t, "text/event-stream", events.Header.Get("Content-Type"))
	lines := bufio.NewReader(events.Body)
	next := func() (s string) {
		line, err := lines.ReadString('\n')
		require.NoError(t, err)
		blank, err := lines.ReadString('\n')
		require.NoError(t, err)
		require.Equal(t, "\n", blank)
		require.NoError(t, json.Unmarshal([]byte(strings.TrimPrefix(line, "data: ")), &s))
		return s
	}
	require.Contains(t, next(), "beginning")
	p.status("a < b")
	require.Contains(t, next(), "a &lt; b")
	r := example(t, durations(100))
	p.show(r, "run 00:01/00:02")
	fragment := next()
	require.Contains(t, fragment, "get(&lt;claims&gt;)")
	require.Regexp(t, `data-key="rps" d="M100`, fragment)
	p.show(r, "ended")
	require.Contains(t, next(), "data-ended")
	p.close()
	_, err = lines.ReadString('\n')
	require.ErrorIs(t, err, io.EOF)
}

func TestScreen(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	s := newScreen(&b, "table")
	s.width = 30
	r := example(t, durations(100))
	s.live(r, "run")
	lines := strings.Count(b.String(), "\n")
	for line := range strings.Lines(strings.ReplaceAll(b.String(), "\x1b[K", "")) {
		require.LessOrEqual(t, len([]rune(strings.Trim(line, "\n\x1b[J"))), 30)
	}
	s.progress("more")
	require.Contains(t, b.String(), fmt.Sprintf("\x1b[%dA", lines), "it is drawn over the last")
	for v, text := range map[float64]string{0.4: "0.000", 183: "0.183", 1234: "1.23", 12_345: "12.3", 123_456: "123"} {
		require.Equal(t, text, milliseconds(v))
	}
	require.Equal(t, "1,234,567", count(1234567))
	require.Equal(t, "-1,234", count(-1234))
	require.Equal(t, "999", count(999))
	require.Contains(t, progress{done: 100, keys: 400, took: time.Second}.String(), "25%")
	require.Contains(t, progress{done: 100, keys: 400, took: time.Second}.String(), "ETA 3s")
	require.Contains(t, progress{keys: 400}.String(), "ETA unknown")
}
