package export

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/redispatterns/redispatterns/timeseries"
)

// fakeClient is one that must not be used.
type fakeClient struct{ rueidis.Client }

func (fakeClient) Mode() rueidis.ClientMode { return rueidis.ClientModeStandalone }

// fakeSource is a store that answers what a test says, and notes what it was asked.
type fakeSource struct {
	now    time.Time
	delay  time.Duration
	answer func(r timeseries.Range, name string) timeseries.Series
	err    error
	asked  timeseries.Range
	names  []string
}

func (f *fakeSource) Delay() time.Duration { return f.delay }

func (f *fakeSource) Now(context.Context) (time.Time, error) { return f.now, f.err }

func (f *fakeSource) RangeMany(_ context.Context, r timeseries.Range, names ...string) ([]timeseries.Series, error) {
	if f.err != nil {
		return nil, f.err
	}
	f.asked, f.names = r, names
	all := make([]timeseries.Series, len(names))
	for i, n := range names {
		all[i] = f.answer(r, n)
	}
	return all, nil
}

func serve(h http.Handler, method, path, body string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(body)))
	return w
}

func TestNew_ChecksItsArguments(t *testing.T) {
	t.Parallel()
	store, err := timeseries.New(fakeClient{}, "a", timeseries.Options{})
	require.NoError(t, err)
	some := List("a")
	for field, bad := range map[string]Options{
		"Series": {}, "Metric": {Series: some, Metric: "a b"}, "MaxPoints": {Series: some, MaxPoints: -1}, "MaxPoints must": {Series: some, MaxPoints: 100_001},
		"Fill": {Series: some, Fill: 9}, "Window": {Series: some, Window: time.Millisecond}, "Window must": {Series: some, Window: -time.Minute},
	} {
		_, err := New(store, bad)
		require.ErrorContains(t, err, "export: Options."+field)
	}
	_, err = New(nil, Options{Series: some})
	require.ErrorContains(t, err, "store")
	_, err = New(store, Options{Series: some})
	require.NoError(t, err)
}

func TestCheckWindow_TakesWhatIsAlwaysExpressed(t *testing.T) {
	t.Parallel()
	const s, m, h, d = time.Second, time.Minute, time.Hour, 24 * time.Hour
	defaults := []timeseries.Resolution{{Step: 10 * s, Keep: 6 * h}, {Step: m, Keep: 7 * d}, {Step: h, Keep: 400 * d}}
	short := []timeseries.Resolution{{Step: 10 * s, Keep: m}, {Step: m, Keep: 24 * h}}
	for _, c := range []struct {
		window time.Duration
		of     []timeseries.Resolution
		bad    string
	}{
		{m, defaults, ""},
		{70 * s, defaults, ""},
		{10*s + 1, defaults, "multiple of 10s"},
		{15 * s, defaults, "multiple of 10s"},
		{3*h - 30*s, defaults, ""},                 // tens of seconds are kept for two, and until the next minute
		{3*h - 20*s, defaults, "multiple of 1m0s"}, // not so
		{3 * h, defaults, ""},
		{84*h - 30*m, defaults, ""},
		{84*h - 29*m, defaults, "multiple of 1h0m0s"},
		{200 * d, defaults, ""},
		{200*d + h, defaults, "half of the store's longest Keep without its Delay, that is 4800h0m0s"},
		{math.MaxInt64, defaults, "half of the store's longest Keep"},
		{10 * s, short, "multiple of 1m0s"}, // two of them fit, and an unfinished minute does not
		{70 * s, short, "multiple of 1m0s"},
		{m, short, ""},
		{m, []timeseries.Resolution{{Step: h, Keep: d}}, "multiple of 1h0m0s"},
		{0, defaults, "positive"},
		{-m, defaults, "positive"},
	} {
		for _, delay := range []time.Duration{0, 90*s + 1} { // for which all must be kept longer
			var of []timeseries.Resolution
			for _, r := range c.of {
				of = append(of, timeseries.Resolution{Step: r.Step, Keep: r.Keep + delay})
			}
			err := checkWindow(c.window, delay, of)
			if c.bad == "" {
				require.NoError(t, err, "%v", c.window)
			} else {
				require.ErrorContains(t, err, c.bad, "%v", c.window)
			}
		}
	}
}

// What is counted in a window may come to Redis later: until then the window before it is served.
func TestMetrics_AreOfWindowsThatAreWritten(t *testing.T) {
	t.Parallel()
	store, err := timeseries.New(fakeClient{}, "a", timeseries.Options{FlushEvery: 10 * time.Second, Timeout: 500 * time.Millisecond})
	require.NoError(t, err)
	source := &fakeSource{delay: store.Delay(), answer: func(timeseries.Range, string) timeseries.Series { return timeseries.Series{} }}
	h := newHandler(source, Options{Series: List("a"), Metric: "m", Window: time.Minute})
	for after, end := range map[time.Duration]int64{0: 0, 10 * time.Second: 0, 11*time.Second - 1: 0, 11 * time.Second: 60, 71*time.Second - 1: 60} {
		source.now = time.Unix(60, 0).Add(after)
		require.Contains(t, serve(h, http.MethodGet, "/metrics", "").Body.String(), fmt.Sprintf("m{series=\"a\"} 0 %d\n", end), "%v", after)
		require.Equal(t, end, source.asked.To.Unix())
	}
	_, err = New(store, Options{Series: List("a"), Window: 3*time.Hour - 30*time.Second}) // 10s are kept for 6h
	require.ErrorContains(t, err, "multiple of 1m0s")
	_, err = New(store, Options{Series: List("a"), Window: 3*time.Hour - 40*time.Second})
	require.NoError(t, err)
}

func TestMetrics_AreOpenMetrics(t *testing.T) {
	t.Parallel()
	source := &fakeSource{now: time.Unix(1_700_000_119, 9), answer: func(_ timeseries.Range, name string) timeseries.Series {
		if name == "big" {
			return timeseries.Series{Err: timeseries.ErrOverflow}
		}
		return timeseries.Series{Points: []timeseries.Point{{Value: int64(len(name)) - 2}}}
	}}
	names := []string{"a\\b\"c\nd{}=,\t", "", "big", "é", "invalid \xff", "", "\x00"}
	h := newHandler(source, Options{Series: List(names...), Metric: "m", Window: time.Minute})
	w := serve(h, http.MethodGet, "/metrics", "")
	require.Equal(t, http.StatusOK, w.Code)
	require.Equal(t, "application/openmetrics-text; version=1.0.0; charset=utf-8", w.Header().Get("Content-Type"))
	require.Equal(t, "# TYPE m gauge\n"+
		"# HELP m Events in the last whole 1m0s.\n"+
		`m{series="a\\b\"c\nd{}=,`+"\t"+`"} 10 1700000100`+"\n"+
		`m{series=""} -2 1700000100`+"\n"+
		`m{series="é"} 0 1700000100`+"\n"+
		`m{series="`+"\x00"+`"} -1 1700000100`+"\n"+
		"# EOF\n", w.Body.String())
	end := time.Unix(1_700_000_100, 0)
	require.Equal(t, timeseries.Range{From: end.Add(-time.Minute), To: end, Step: time.Minute}, source.asked)
	require.Equal(t, []string{names[0], "", "big", "é", "\x00"}, source.names)

	none := newHandler(source, Options{Series: List(), Metric: "m", Window: time.Minute})
	require.Equal(t, "# TYPE m gauge\n# HELP m Events in the last whole 1m0s.\n# EOF\n", serve(none, http.MethodGet, "/metrics", "").Body.String())
}

// FuzzExposition: whatever a series is called, its sample is one line, from which its name can be read again.
func FuzzExposition(f *testing.F) {
	f.Add("a\\b\"c\nd", int64(7))
	f.Add("\\n", int64(math.MinInt64))
	sample := regexp.MustCompile(`^m\{series="((?:[^"\\\n]|\\["\\n])*)"\} (-?\d+) 60$`)
	unescape := strings.NewReplacer(`\\`, `\`, `\"`, `"`, `\n`, "\n")
	f.Fuzz(func(t *testing.T, name string, n int64) {
		names := unique([]string{name})
		if len(names) == 0 {
			if utf8.ValidString(name) {
				t.Fatal("left out")
			}
			return
		}
		text := exposition(Options{Metric: "m", Window: time.Minute}, time.Unix(60, 0), names, []timeseries.Series{{Points: []timeseries.Point{{Value: n}}}})
		lines := strings.Split(string(text), "\n")
		if len(lines) != 5 || lines[3] != "# EOF" || lines[4] != "" {
			t.Fatalf("%q", lines)
		}
		m := sample.FindStringSubmatch(lines[2])
		if m == nil || unescape.Replace(m[1]) != name || m[2] != strconv.FormatInt(n, 10) {
			t.Fatalf("%q", lines[2])
		}
	})
}

func TestNames_AreServedToGrafana(t *testing.T) {
	t.Parallel()
	h := newHandler(&fakeSource{}, Options{Series: List("b", "a \"x\"", "b", "\xff")})
	require.Equal(t, http.StatusOK, serve(h, http.MethodGet, "/", "").Code)
	require.Equal(t, http.StatusNotFound, serve(h, http.MethodGet, "/x", "").Code)
	require.Equal(t, http.StatusMethodNotAllowed, serve(h, http.MethodPut, "/query", "").Code)
	w := serve(h, http.MethodPost, "/search", "{}")
	require.Equal(t, "application/json", w.Header().Get("Content-Type"))
	require.Equal(t, `["b","a \"x\""]`, w.Body.String())
	require.JSONEq(t, `[{"label":"b","value":"b"},{"label":"a \"x\"","value":"a \"x\""}]`, serve(h, http.MethodPost, "/metrics", "").Body.String())
	none := newHandler(&fakeSource{}, Options{Series: List()})
	require.Equal(t, `[]`, serve(none, http.MethodPost, "/search", "").Body.String())
	require.Equal(t, `[]`, serve(none, http.MethodPost, "/metrics", "").Body.String())
	many := make([]string, 1500)
	for i := range many {
		many[i] = strconv.Itoa(i)
	}
	var served []string
	require.NoError(t, json.Unmarshal(serve(newHandler(&fakeSource{}, Options{Series: List(many...)}), http.MethodPost, "/search", "").Body.Bytes(), &served))
	require.Equal(t, many[:1000], served)
}

const day = `{"range":{"from":"2026-03-01T00:00:00.5Z","to":"2026-03-02T01:00:00+01:00"},`

func TestQuery_AsksForWhatItShould(t *testing.T) {
	t.Parallel()
	from, to := time.Date(2026, 3, 1, 0, 0, 0, 5e8, time.UTC), time.Date(2026, 3, 2, 0, 0, 0, 0, time.UTC)
	series := []string{"a", "b", "c"}
	targets := func(n int) string { return `"targets":[` + strings.Repeat(`{"target":"a"},`, n-1) + `{"target":"a"}]}` }
	var each []string
	for i := range 100 {
		series = append(series, strconv.Itoa(i))
		each = append(each, `{"target":"`+strconv.Itoa(i)+`"}`)
	}
	for body, want := range map[string]struct {
		names  []string
		points int
	}{
		day + `"maxDataPoints":7,"targets":[{"target":"b","type":"timeserie"},{"target":""},{},{"target":"a"},{"target":"b"}]}`: {[]string{"b", "a"}, 7},
		day + targets(1): {[]string{"a"}, 5000},
		day + `"maxDataPoints":-7,` + targets(100):           {[]string{"a"}, 5000},
		day + `"maxDataPoints":1000000,` + targets(1):        {[]string{"a"}, 5000},
		day + `"targets":[` + strings.Join(each, ",") + `]}`: {series[3:], 2000},
		day + `"unknown":{},"RANGE":null,` + targets(1):      {[]string{"a"}, 5000},
	} {
		source := &fakeSource{answer: func(timeseries.Range, string) timeseries.Series { return timeseries.Series{} }}
		w := serve(newHandler(source, Options{Series: List(series...), MaxPoints: 5000, Fill: timeseries.FillLinear}), http.MethodPost, "/query", body)
		require.Equal(t, http.StatusOK, w.Code, body)
		require.Equal(t, want.names, source.names)
		require.True(t, source.asked.From.Equal(from) && source.asked.To.Equal(to), "%+v", source.asked)
		source.asked.From, source.asked.To = time.Time{}, time.Time{}
		require.Equal(t, timeseries.Range{MaxPoints: want.points, Fill: timeseries.FillLinear}, source.asked)
	}
	source := &fakeSource{err: errors.New("not to be asked")}
	for _, body := range []string{day + `"targets":[]}`, day + `"targets":[{"target":""}]}`, day[:len(day)-1] + "}"} {
		w := serve(newHandler(source, Options{Series: List(series...)}), http.MethodPost, "/query", body)
		require.Equal(t, http.StatusOK, w.Code)
		require.Equal(t, "[]", w.Body.String())
	}
}

func TestQuery_RefusesWhatIsNone(t *testing.T) {
	t.Parallel()
	answers := 0
	source := &fakeSource{answer: func(timeseries.Range, string) timeseries.Series { answers++; return timeseries.Series{} }}
	h := newHandler(source, Options{Series: List("a"), MaxPoints: 10})
	good := day + `"targets":[{"target":"a"}]}`
	require.Equal(t, http.StatusOK, serve(h, http.MethodPost, "/query", good).Code)
	for body, status := range map[string]int{
		"": 400, "{}": 400, "[": 400, "null": 400, `"x"`: 400, good[:len(good)-1]: 400,
		`{"range":{"from":"x","to":"2026-03-02T00:00:00Z"}}`:                    400,
		`{"range":{"from":1,"to":2}}`:                                           400,
		`{"range":{"from":"2026-03-02T00:00:00Z","to":"2026-03-02T00:00:00Z"}}`: 400,
		`{"range":{"from":"2026-03-02T00:00:00Z","to":"2026-03-01T00:00:00Z"}}`: 400,
		day + `"maxDataPoints":"7"}`:                                            400,
		day + `"maxDataPoints":1e99}`:                                           400,
		day + `"targets":{}}`:                                                   400,
		day + `"targets":[{"target":7}]}`:                                       400,
		day + `"targets":[` + strings.Repeat(`{},`, 100) + `{}]}`:               400,
		strings.Repeat(" ", 1<<20) + good:                                       400,
		day + `"targets":[{"target":"secret"}]}`:                                404,
		day + `"targets":[{"target":"a"},{"target":"A"}]}`:                      404,
	} {
		answers = 0
		w := serve(h, http.MethodPost, "/query", body)
		require.Equal(t, status, w.Code, "%.80s", body)
		require.Zero(t, answers)
		require.NotContains(t, w.Body.String(), "secret")
	}
	source.err = timeseries.ErrTooMany
	require.Equal(t, http.StatusBadRequest, serve(h, http.MethodPost, "/query", good).Code)
}

func TestQuery_AnswersInJSON(t *testing.T) {
	t.Parallel()
	at := time.UnixMilli(1_700_000_000_000)
	source := &fakeSource{answer: func(_ timeseries.Range, name string) timeseries.Series {
		if name == "big" {
			return timeseries.Series{Err: timeseries.ErrOverflow}
		}
		return timeseries.Series{Points: []timeseries.Point{
			{Start: at, Value: math.MaxInt64},
			{Start: at.Add(10 * time.Second), Missing: true},
			{Start: at.Add(20 * time.Second), Missing: true, Filled: true, Value: -3},
			{Start: at.Add(30 * time.Second), Value: 0},
		}}
	}}
	h := newHandler(source, Options{Series: List("big", `"`), MaxPoints: 10})
	w := serve(h, http.MethodPost, "/query", day+`"targets":[{"target":"\""},{"target":"big"}]}`)
	require.Equal(t, "application/json", w.Header().Get("Content-Type"))
	require.Regexp(t, `\[\[9223372036854775807,1700000000000\],`, w.Body.String()) // JSONEq would take a rounded one for it
	require.JSONEq(t, `[{"target":"\"","datapoints":[[9223372036854775807,1700000000000],[null,1700000010000],[-3,1700000020000],[0,1700000030000]]},`+
		`{"target":"big","datapoints":[]}]`, w.Body.String())
}

func TestHandler_SaysNothingOfErrors(t *testing.T) {
	t.Parallel()
	secret := errors.New("secret")
	good := day + `"targets":[{"target":"a"}]}`
	for _, h := range []http.Handler{
		newHandler(&fakeSource{err: secret}, Options{Series: List("a"), Window: time.Minute, MaxPoints: 1}),
		newHandler(&fakeSource{}, Options{Series: func(context.Context) ([]string, error) { return []string{"a"}, secret }, Window: time.Minute, MaxPoints: 1}),
	} {
		for _, w := range []*httptest.ResponseRecorder{serve(h, http.MethodGet, "/metrics", ""), serve(h, http.MethodPost, "/query", good)} {
			require.Equal(t, http.StatusServiceUnavailable, w.Code)
			require.NotContains(t, w.Body.String(), "secret")
		}
	}
	failing := newHandler(&fakeSource{}, Options{Series: func(context.Context) ([]string, error) { return nil, secret }})
	for _, path := range []string{"/search", "/metrics"} {
		require.Equal(t, http.StatusServiceUnavailable, serve(failing, http.MethodPost, path, "").Code)
	}
}

// FuzzQuery: what is taken for a query is within its bounds, and says the same if it is written again.
func FuzzQuery(f *testing.F) {
	f.Add(day + `"maxDataPoints":7,"targets":[{"target":"a"},{"target":""}]}`)
	f.Add(`{"range":{"from":"2026-01-01T00:00:00Z","to":"2027-01-01T00:00:00Z"},"maxDataPoints":-1,"targets":null}`)
	f.Add(`[]`)
	f.Fuzz(func(t *testing.T, body string) {
		q, err := parseQuery(strings.NewReader(body))
		if err != nil {
			return
		}
		names := q.targets()
		points := q.points(11_000, len(names))
		if !q.Range.From.Before(q.Range.To) || len(names) > maxTargets || points < 1 || points > 11_000 || points*len(names) > maxPoints || slices.Contains(names, "") {
			t.Fatalf("%+v", q)
		}
		text, err := json.Marshal(q)
		if err != nil {
			return // a time that JSON has no word for
		}
		again, err := parseQuery(bytes.NewReader(text))
		if err != nil || again.MaxDataPoints != q.MaxDataPoints || !again.Range.From.Equal(q.Range.From) || !slices.Equal(again.targets(), names) {
			t.Fatalf("%s: %v", text, err)
		}
	})
}
