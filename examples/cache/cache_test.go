package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"
)

// patient is for tests that count: no Redis is given up because the machine is busy.
var patient = times{ttl: time.Minute, stale: time.Hour, opTimeout: 5 * time.Second}

// newTestService returns a service, where it is served, and its Redis.
func newTestService(t *testing.T, of times) (*service, string, *miniredis.Miniredis) {
	t.Helper()
	redis := miniredis.RunT(t)
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{redis.Addr()}, DisableCache: true, ForceSingleClient: true})
	require.NoError(t, err)
	t.Cleanup(client.Close)
	s, err := newService(client, "test", of)
	require.NoError(t, err)
	server := httptest.NewServer(s.handler())
	t.Cleanup(server.Close)
	return s, server.URL, redis
}

func request(t *testing.T, method, address, body string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, address, strings.NewReader(body))
	require.NoError(t, err)
	response, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return response.StatusCode, string(content)
}

func requestJSON[T any](t *testing.T, method, address, body string) (value T) {
	t.Helper()
	status, content := request(t, method, address, body)
	require.Equal(t, http.StatusOK, status, content)
	require.NoError(t, json.Unmarshal([]byte(content), &value))
	return value
}

func metricsOf(t *testing.T, base string) samples {
	t.Helper()
	found, err := scrape(t.Context(), base+"/metrics")
	require.NoError(t, err)
	return found
}

const (
	hits   = `cache_keys_total{result="hit"}`
	stales = `cache_keys_total{result="stale"}`
	misses = `cache_keys_total{result="miss"}`
	loads  = "cache_loads_total"
)

func TestScore_AsksTheModelOnce(t *testing.T) {
	t.Parallel()
	s, base, _ := newTestService(t, patient)
	for range 3 {
		p := requestJSON[Prediction](t, http.MethodGet, base+"/score?text=I+love+it", "")
		require.Equal(t, s.model.Predict("I love it"), p)
		require.Equal(t, "pos", p.Label)
	}
	require.Equal(t, s.model.Predict("never again"),
		requestJSON[Prediction](t, http.MethodGet, base+"/score?text=never+again&cache=off", ""))
	require.NoError(t, s.cache.Close(t.Context()))
	m := metricsOf(t, base)
	require.Equal(t, []float64{1, 2, 1}, []float64{m[misses], m[hits], m[loads]})
	status, _ := request(t, http.MethodGet, base+"/score?text=x", "")
	require.Equal(t, http.StatusServiceUnavailable, status)
}

func TestScore_SharesOneLoad(t *testing.T) {
	t.Parallel()
	s, base, _ := newTestService(t, patient)
	var users sync.WaitGroup
	for range 50 {
		users.Go(func() {
			_, err := get(t.Context(), http.DefaultClient, base+"/score?text=everybody+asks+this")
			if err != nil {
				t.Error(err)
			}
		})
	}
	users.Wait()
	require.NoError(t, s.cache.Close(t.Context()))
	m := metricsOf(t, base)
	require.Equal(t, 1, int(m[loads]))
	require.GreaterOrEqual(t, int(m[hits]+m[misses]), 50) // one that missed may look again after the load
}

func TestScoreMany_KeepsTheOrderAndLoadsWhatIsMissing(t *testing.T) {
	t.Parallel()
	s, base, _ := newTestService(t, patient)
	requestJSON[Prediction](t, http.MethodGet, base+"/score?text=it+is+good", "")
	texts := []string{"awful", "it is good", "awful", "{braces}", "\xff"}
	body, err := json.Marshal(texts)
	require.NoError(t, err)
	var want []Prediction
	for _, text := range texts {
		want = append(want, s.model.Predict(text))
	}
	require.Equal(t, want, requestJSON[[]Prediction](t, http.MethodPost, base+"/score", string(body)))
	require.NoError(t, s.cache.Close(t.Context()))
	m := metricsOf(t, base)
	require.Equal(t, []float64{1, 5, 2}, []float64{m[hits], m[misses], m[loads]}, "what is asked for twice is missed twice, and loaded once")
	require.Equal(t, 4, int(m["cache_stored_total"]))
}

func TestInvalidate_IsForOneTenant(t *testing.T) {
	t.Parallel()
	_, base, _ := newTestService(t, patient)
	ask := func(tenant string) (missed float64) {
		before := metricsOf(t, base)[misses]
		requestJSON[Prediction](t, http.MethodGet, base+"/score?text=hello&tenant="+tenant, "")
		return metricsOf(t, base)[misses] - before
	}
	require.Equal(t, []float64{1, 1, 0, 0}, []float64{ask("acme"), ask("globex"), ask("acme"), ask("globex")})
	status, _ := request(t, http.MethodPost, base+"/invalidate?tenant=acme", "")
	require.Equal(t, http.StatusNoContent, status)
	require.Equal(t, []float64{1, 0}, []float64{ask("acme"), ask("globex")})
	_, page := request(t, http.MethodGet, base+"/metrics", "")
	require.NotContains(t, page, "acme")
	require.NotContains(t, page, "hello")
}

func TestHandler_RefusesBadInput(t *testing.T) {
	t.Parallel()
	_, base, _ := newTestService(t, patient)
	many, err := json.Marshal(make([]string, maxTexts+1))
	require.NoError(t, err)
	for _, c := range []struct {
		name, method, path, body string
		want                     int
	}{
		{"no text", http.MethodGet, "/score", "", 400},
		{"an empty text", http.MethodGet, "/score?text=", "", 400},
		{"a blank text", http.MethodGet, "/score?text=+%0a", "", 400},
		{"a blank text without the cache", http.MethodGet, "/score?text=+&cache=off", "", 400},
		{"a long text", http.MethodGet, "/score?text=" + strings.Repeat("x", maxText+1), "", 413},
		{"the longest text", http.MethodGet, "/score?text=" + strings.Repeat("x", maxText), "", 200},
		{"a long tenant", http.MethodGet, "/score?text=x&tenant=" + strings.Repeat("x", maxTenant+1), "", 400},
		{"any tenant", http.MethodGet, "/score?text=x&tenant=" + url.QueryEscape("{\x00}:"), "", 200},
		{"no body", http.MethodPost, "/score", "", 400},
		{"a body that is no JSON", http.MethodPost, "/score", `["x"`, 400},
		{"more than JSON", http.MethodPost, "/score", `["x"] ["y"]`, 400},
		{"another type", http.MethodPost, "/score", `{"text":"x"}`, 400},
		{"an array of another type", http.MethodPost, "/score", `[1]`, 400},
		{"null", http.MethodPost, "/score", `null`, 400},
		{"no texts", http.MethodPost, "/score", `[]`, 400},
		{"an empty text among others", http.MethodPost, "/score", `["x",""]`, 400},
		{"too many texts", http.MethodPost, "/score", string(many), 400},
		{"a long text in a body", http.MethodPost, "/score", `["` + strings.Repeat("x", maxText+1) + `"]`, 413},
		{"a long body", http.MethodPost, "/score", strings.Repeat(" ", maxBody+1), 413},
		{"a long tenant to invalidate", http.MethodPost, "/invalidate?tenant=" + strings.Repeat("x", maxTenant+1), "", 400},
		{"a wrong method", http.MethodGet, "/invalidate", "", 405},
		{"a wrong path", http.MethodGet, "/", "", 404},
		{"the health", http.MethodGet, "/healthz", "", 200},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			status, content := request(t, c.method, base+c.path, c.body)
			require.Equal(t, c.want, status, content)
		})
	}
}

func TestScore_ServesAStaleScoreAndRefreshesIt(t *testing.T) {
	t.Parallel()
	_, base, redis := newTestService(t, patient)
	first := requestJSON[Prediction](t, http.MethodGet, base+"/score?text=aged", "")
	redis.FastForward(patient.ttl)
	require.Equal(t, first, requestJSON[Prediction](t, http.MethodGet, base+"/score?text=aged", ""))
	require.Eventually(t, func() bool {
		m := metricsOf(t, base)
		return m["cache_refreshes_total"] == 1 && m["cache_stored_total"] == 2
	}, 10*time.Second, time.Millisecond)
	requestJSON[Prediction](t, http.MethodGet, base+"/score?text=aged", "")
	m := metricsOf(t, base)
	require.Equal(t, []float64{1, 1, 1, 2}, []float64{m[misses], m[stales], m[hits], m[loads]})
}

func TestScore_GoesOnWithoutRedis(t *testing.T) {
	t.Parallel()
	s, base, redis := newTestService(t, production)
	redis.Close()
	p := requestJSON[Prediction](t, http.MethodGet, base+"/score?text=it+is+good", "")
	require.Equal(t, s.model.Predict("it is good"), p)
	many := requestJSON[[]Prediction](t, http.MethodPost, base+"/score", `["it is good","it is bad"]`)
	require.Equal(t, []Prediction{p, s.model.Predict("it is bad")}, many)
	status, _ := request(t, http.MethodPost, base+"/invalidate", "")
	require.Equal(t, http.StatusServiceUnavailable, status)
	m := metricsOf(t, base)
	require.Zero(t, m[hits])
	require.Positive(t, m[`cache_errors_total{op="read"}`])

	require.NoError(t, redis.Restart())
	require.Eventually(t, func() bool {
		requestJSON[Prediction](t, http.MethodGet, base+"/score?text=it+is+good", "")
		return metricsOf(t, base)[hits] > 0
	}, 10*time.Second, 10*time.Millisecond)
}

// TestMetrics_AreWhatPrometheusReads holds the page against the text format 0.0.4.
func TestMetrics_AreWhatPrometheusReads(t *testing.T) {
	t.Parallel()
	s, base, _ := newTestService(t, patient)
	requestJSON[[]Prediction](t, http.MethodPost, base+"/score", `["one","two"]`)
	require.NoError(t, s.cache.Close(t.Context()))
	response := httptest.NewRecorder()
	s.handler().ServeHTTP(response, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	require.Equal(t, "text/plain; version=0.0.4; charset=utf-8", response.Header().Get("Content-Type"))
	require.True(t, strings.HasSuffix(response.Body.String(), "\n"))

	comment := regexp.MustCompile(`^# (HELP|TYPE) ([a-z_]+) (.+)$`)
	sample := regexp.MustCompile(`^([a-z_]+?)(_bucket|_sum|_count)?(\{[a-z]+="[^"\\]+"\})? ([0-9.e+-]+)$`)
	types, seen := map[string]string{}, map[string]bool{}
	var family, kind string
	for lines := bufio.NewScanner(response.Body); lines.Scan(); {
		if c := comment.FindStringSubmatch(lines.Text()); c != nil {
			if c[1] == "TYPE" {
				family, kind = c[2], c[3]
				require.NotContains(t, types, family, "a family is told of once")
				types[family] = kind
			}
			continue
		}
		c := sample.FindStringSubmatch(lines.Text())
		require.NotNil(t, c, "%q is neither a comment nor a sample", lines.Text())
		require.Equal(t, family, c[1], "samples follow their TYPE")
		require.Equal(t, kind == "histogram", c[2] != "")
		require.False(t, seen[c[1]+c[2]+c[3]], "%q is there twice", lines.Text())
		seen[c[1]+c[2]+c[3]] = true
	}
	require.Len(t, types, 10)
	m := metricsOf(t, base)
	for _, name := range []string{"cache_lookup_seconds", "cache_load_seconds"} {
		require.Equal(t, 1, int(m[name+"_count"]))
		require.Equal(t, 1, int(m[name+`_bucket{le="+Inf"}`]))
		require.Positive(t, m[name+"_sum"])
	}
}

func TestHistogram_PutsABoundIntoItsBucket(t *testing.T) {
	t.Parallel()
	h := newHistogram(.001, .01)
	for _, d := range []time.Duration{0, time.Millisecond, 2 * time.Millisecond, 10 * time.Millisecond, time.Second} {
		h.observe(d)
	}
	require.Equal(t, []int{2, 2, 1}, h.counts)
	require.InDelta(t, 1.013, h.sum, 1e-9)
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
	base := strings.TrimSpace(strings.TrimPrefix(line, "serving at "))
	p := requestJSON[Prediction](t, http.MethodGet, base+"/score?text=thank+you", "")
	require.Equal(t, "pos", p.Label)
	interrupt()
	require.NoError(t, <-ended)
}

func TestRun_MeasuresItself(t *testing.T) {
	t.Setenv("REDIS_URL", "")
	var out strings.Builder
	// Half a second proves no speed where other tests run beside it. The counts are right in any case.
	if err := run(t.Context(), []string{"-load", "500ms"}, &out); !errors.Is(err, errNoFaster) {
		require.NoError(t, err)
	}
	require.Regexp(t, `(?s)without cache +\d+ .*with cache +\d+ .*hit ratio .*agree with those that the clients counted`, out.String())
}

func TestRun_RefusesBadArguments(t *testing.T) {
	for _, args := range [][]string{{"-load", "-1s"}, {"-load", "soon"}, {"serve"}, {"-what"}, {"-addr", "nowhere:x"}} {
		t.Setenv("REDIS_URL", "")
		require.Error(t, run(t.Context(), args, io.Discard), "%v", args)
	}
	t.Setenv("REDIS_URL", "redis://me:secret@[::1")
	err := run(t.Context(), nil, io.Discard)
	require.ErrorContains(t, err, "REDIS_URL")
	require.NotContains(t, err.Error(), "secret")
}
