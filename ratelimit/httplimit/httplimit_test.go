package httplimit

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/redispatterns/redispatterns/ratelimit"
)

// noServer is a client that must not be used.
type noServer struct{ rueidis.Client }

func (noServer) Mode() rueidis.ClientMode { return rueidis.ClientModeStandalone }

func newLimiter(t *testing.T, limit ratelimit.Limit) *ratelimit.Limiter {
	t.Helper()
	l, err := ratelimit.NewFixedWindow(noServer{}, limit, ratelimit.Options{})
	require.NoError(t, err)
	return l
}

func byPath(r *http.Request) (string, error) { return r.URL.Path, nil }

func TestMiddleware_RefusesBadOptions(t *testing.T) {
	t.Parallel()
	l := newLimiter(t, ratelimit.PerSecond(1))
	for name, opts := range map[string]Options{
		"control": {Name: "a\n"},
		"unicode": {Name: "ü"},
		"none":    {More: []Policy{{Limiter: l, Key: byPath}}},
		"twice":   {Name: "a", More: []Policy{{Name: "a", Limiter: l, Key: byPath}}},
		"limiter": {More: []Policy{{Name: "a", Key: byPath}}},
		"key":     {More: []Policy{{Name: "a", Limiter: l}}},
	} {
		m, err := Middleware(l, byPath, opts)
		require.ErrorContains(t, err, "httplimit: ", name)
		require.Nil(t, m)
	}
	_, err := Middleware(nil, byPath, Options{})
	require.ErrorContains(t, err, "Limiter")
	_, err = Middleware(l, nil, Options{})
	require.ErrorContains(t, err, "Key")
}

func TestQuote(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{"a": `"a"`, `a"b\c`: `"a\"b\\c"`, " ~": `" ~"`} {
		got, err := quote(in)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	for _, bad := range []string{"", "\x1f", "\x7f", "é"} {
		_, err := quote(bad)
		require.Error(t, err, "%q", bad)
	}
}

func TestSeconds_AreRoundedUp(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		0: "0", 1: "1", time.Second: "1", time.Second + 1: "2", ratelimit.Never: "9223372037",
	} {
		require.Equal(t, want, seconds(d))
	}
}

// TestHeaders shows what is told of results, as they come from Redis and elsewhere.
func TestHeaders(t *testing.T) {
	t.Parallel()
	bucket, err := ratelimit.NewTokenBucket(noServer{}, ratelimit.Limit{Rate: 10, Window: time.Second, Burst: 100}, ratelimit.Options{})
	require.NoError(t, err)
	m := &middleware{opts: Options{LegacyHeaders: true}, quoted: []string{`"a"`, `"b\"c"`, `"d"`}}
	requests := []ratelimit.Request{
		{Limiter: newLimiter(t, ratelimit.PerMinute(100))}, {Limiter: newLimiter(t, ratelimit.Per(5, 100*time.Millisecond))}, {Limiter: bucket},
	}
	h := http.Header{}
	m.setHeaders(h, requests, []ratelimit.Result{
		{Allowed: true, Limit: 100, Remaining: 50, ResetAfter: 29_000_000_001},
		{Limit: 5, Remaining: 0, RetryAfter: 20 * time.Millisecond, ResetAfter: 30 * time.Millisecond},
		{Allowed: true, Limit: 100, Source: ratelimit.SourceFallback},
	})
	require.Equal(t, http.Header{
		"Ratelimit-Policy":      {`"a";q=100;w=60, "b\"c";q=5, "d";q=100;w=10`},
		"Ratelimit":             {`"a";r=50;t=30, "b\"c";r=0;t=1`},
		"Retry-After":           {"1"},
		"X-Ratelimit-Limit":     {"5"},
		"X-Ratelimit-Remaining": {"0"},
		"X-Ratelimit-Reset":     {"1"},
	}, h)
	h = http.Header{}
	m.setHeaders(h, requests[:1], []ratelimit.Result{{Limit: 100, RetryAfter: ratelimit.Never, Source: ratelimit.SourceLimit}})
	require.Equal(t, http.Header{"Ratelimit-Policy": {`"a";q=100;w=60`}}, h, "waiting is in vain, and nothing is known")
}

func TestMiddleware_AnswersByItself(t *testing.T) {
	t.Parallel()
	l := newLimiter(t, ratelimit.PerSecond(5))
	get := func(key func(*http.Request) (string, error), opts Options) *httptest.ResponseRecorder {
		m, err := Middleware(l, key, opts)
		require.NoError(t, err)
		w := httptest.NewRecorder()
		m(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("it passed") })).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
		return w
	}
	tooMuch := Options{Name: "api", Cost: func(*http.Request) int64 { return 6 }}
	w := get(byPath, tooMuch)
	require.Equal(t, http.StatusTooManyRequests, w.Code)
	require.Equal(t, "application/problem+json", w.Header().Get("Content-Type"))
	require.JSONEq(t, `{"type":"https://iana.org/assignments/http-problem-types#quota-exceeded","status":429,
		"title":"Request cannot be satisfied as assigned quota has been exceeded","violated-policies":["api"]}`, w.Body.String())
	require.Empty(t, w.Header().Get("Retry-After"))
	tooMuch.Refused = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })
	require.Equal(t, http.StatusTeapot, get(byPath, tooMuch).Code)

	noKey := func(*http.Request) (string, error) { return "", errors.New("who are you?") }
	w = get(noKey, Options{})
	require.Equal(t, http.StatusBadRequest, w.Code)
	require.NotContains(t, w.Body.String(), "who")
	require.Equal(t, http.StatusServiceUnavailable, get(byPath, Options{Cost: func(*http.Request) int64 { return 0 }}).Code)
	require.Equal(t, http.StatusBadGateway, get(noKey, Options{Error: func(w http.ResponseWriter, _ *http.Request, err error) {
		require.ErrorContains(t, err, "who are you?")
		w.WriteHeader(http.StatusBadGateway)
	}}).Code)
}

func TestClientIP(t *testing.T) {
	t.Parallel()
	proxies := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}
	for _, c := range []struct {
		name, remote, want string
		forwarded          []string
	}{
		{"direct", "192.0.2.1:80", "192.0.2.1", nil},
		{"a header of a stranger", "192.0.2.1:80", "192.0.2.1", []string{"198.51.100.7"}},
		{"one proxy", "10.0.0.1:80", "198.51.100.7", []string{"198.51.100.7"}},
		{"what the client made up", "10.0.0.1:80", "198.51.100.7", []string{"203.0.113.1, 10.9.9.9, 198.51.100.7"}},
		{"several proxies", "10.0.0.1:80", "198.51.100.7", []string{"203.0.113.1, 198.51.100.7, 10.1.1.1", "10.2.2.2"}},
		{"proxies all the way", "10.0.0.1:80", "10.3.3.3", []string{"10.3.3.3, 10.2.2.2"}},
		{"rubbish", "10.0.0.1:80", "10.2.2.2", []string{"198.51.100.7, unknown, 10.2.2.2"}},
		{"an empty header", "10.0.0.1:80", "10.0.0.1", []string{""}},
		{"no header", "10.0.0.1:80", "10.0.0.1", nil},
		{"with ports", "10.0.0.1:80", "198.51.100.7", []string{"198.51.100.7:4711"}},
		{"IPv6", "[2001:db8:1:2:3:4:5:6]:80", "2001:db8:1:2::/64", nil},
		{"IPv6 with a zone", "[fe80::1%eth0]:80", "fe80::/64", nil},
		{"IPv6 behind a proxy", "[fd00::1]:80", "2001:db8::/64", []string{"[2001:db8::1]:99"}},
		{"IPv4 in IPv6", "[::ffff:10.0.0.1]:80", "192.0.2.9", []string{"::ffff:192.0.2.9"}},
		{"without a port", "192.0.2.1", "192.0.2.1", nil},
	} {
		r := &http.Request{RemoteAddr: c.remote, Header: http.Header{"X-Forwarded-For": c.forwarded}}
		got, err := IPKey(proxies...)(r)
		require.NoError(t, err, c.name)
		require.Equal(t, c.want, got, c.name)
	}
	for _, remote := range []string{"", "@", "somewhere:80"} {
		_, err := IPKey()(&http.Request{RemoteAddr: remote})
		require.Error(t, err)
	}
	for bits, want := range map[int]string{0: "2001:db8:1:2::/64", 128: "2001:db8:1:2::1", 48: "2001:db8:1::/48", 999: "2001:db8:1:2::/64"} {
		got, err := ClientIP{IPv6Bits: bits}.Key(&http.Request{RemoteAddr: "[2001:db8:1:2::1]:80"})
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
}

// FuzzClientIP has strangers write what they like: with a trusted hop to the right it never changes whose key it is.
func FuzzClientIP(f *testing.F) {
	f.Add("203.0.113.1, 10.0.0.1")
	f.Add("[::1%25]:x,,")
	key := IPKey(netip.MustParsePrefix("10.0.0.0/8"))
	f.Fuzz(func(t *testing.T, forged string) {
		r := &http.Request{RemoteAddr: "10.0.0.1:80", Header: http.Header{"X-Forwarded-For": {forged, "198.51.100.7, 10.0.0.2"}}}
		got, err := key(r)
		require.NoError(t, err)
		require.Equal(t, "198.51.100.7", got)
		r.Header.Set("X-Forwarded-For", forged)
		_, err = key(r)
		require.NoError(t, err)
	})
}
