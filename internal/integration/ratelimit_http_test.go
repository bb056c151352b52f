package integration

import (
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/redispatterns/redispatterns/internal/integration/redistest"
	"github.com/redispatterns/redispatterns/ratelimit"
	"github.com/redispatterns/redispatterns/ratelimit/httplimit"
)

func headerKey(name string) func(*http.Request) (string, error) {
	return func(r *http.Request) (string, error) { return r.Header.Get(name), nil }
}

func TestHTTPLimit_LimitsAndTells(t *testing.T) {
	t.Parallel()
	redistest.EachTarget(t, func(t *testing.T, client rueidis.Client) {
		opts := ratelimit.Options{Prefix: redistest.Prefix(t)}
		user := newLimiter(t, ratelimit.NewFixedWindow, client, ratelimit.PerMinute(2), opts)
		global := newLimiter(t, ratelimit.NewSlidingWindow, client, ratelimit.PerHour(5), opts)
		m, err := httplimit.Middleware(user, headerKey("User"), httplimit.Options{
			Name: "user",
			Limit: func(r *http.Request) ratelimit.Limit {
				rate, err := strconv.ParseInt(r.Header.Get("Tier"), 10, 64)
				require.NoError(t, err)
				return ratelimit.PerMinute(rate)
			},
			More: []httplimit.Policy{{Name: "all", Limiter: global, Key: headerKey("Tenant")}},
		})
		require.NoError(t, err)
		passed := 0
		handler := m(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { passed++ }))
		get := func(user, tier string) *httptest.ResponseRecorder {
			w, r := httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil)
			r.Header.Set("User", user)
			r.Header.Set("Tier", tier)
			handler.ServeHTTP(w, r)
			return w
		}
		w := get("alice", "2")
		require.Equal(t, http.StatusOK, w.Code)
		require.Equal(t, `"user";q=2;w=60, "all";q=5;w=3600`, w.Header().Get("RateLimit-Policy"))
		require.Regexp(t, `^"user";r=1;t=6[01], "all";r=4;t=36\d\d$`, w.Header().Get("RateLimit"))
		require.Equal(t, http.StatusOK, get("alice", "2").Code)
		for range 3 { // which take nothing from all
			w = get("alice", "2")
			require.Equal(t, http.StatusTooManyRequests, w.Code)
			require.Regexp(t, `^(59|60|61)$`, w.Header().Get("Retry-After"))
			require.Contains(t, w.Body.String(), `"violated-policies":["user"]`)
			require.NotContains(t, w.Header().Get("RateLimit"), `"all";r=2`)
		}
		require.Equal(t, http.StatusOK, get("alice", "3").Code, "another tier")
		require.Equal(t, http.StatusOK, get("bob", "2").Code)
		require.Equal(t, http.StatusOK, get("bob", "2").Code)
		w = get("carol", "2")
		require.Equal(t, http.StatusTooManyRequests, w.Code)
		require.Contains(t, w.Body.String(), `"violated-policies":["all"]`)
		require.Equal(t, 5, passed)
		require.EqualValues(t, 2, peek(t, user, "carol").Remaining, "what all refused was not taken from carol's")
	})
}

func TestHTTPLimit_WithoutRedis(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t, quickDial)
	codes := map[ratelimit.FailurePolicy]int{
		ratelimit.ReturnError: http.StatusServiceUnavailable, ratelimit.Allow: http.StatusOK,
		ratelimit.Deny: http.StatusTooManyRequests, ratelimit.Local: http.StatusOK,
	}
	server.Kill(t)
	for policy, code := range codes {
		l := newLimiter(t, ratelimit.NewFixedWindow, client, ratelimit.PerMinute(5), ratelimit.Options{OnFailure: policy, Timeout: limitTimeout})
		m, err := httplimit.Middleware(l, headerKey("User"), httplimit.Options{})
		require.NoError(t, err)
		w := httptest.NewRecorder()
		began := time.Now()
		m(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
		require.Equal(t, code, w.Code)
		require.Less(t, time.Since(began), limitTimeout+500*time.Millisecond)
		switch policy {
		case ratelimit.Local:
			require.Contains(t, w.Header().Get("RateLimit"), ";r=4;")
		case ratelimit.Allow:
			require.Empty(t, w.Header().Get("RateLimit"), "nobody knows what is left")
		}
	}
}
