package integration

import (
	"context"
	"maps"
	"math"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/redispatterns/redispatterns/internal/integration/redistest"
	"github.com/redispatterns/redispatterns/timeseries"
)

func TestTimeseries_RefusesWhatIsTooLateOrEarly(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	client, prefix := redistest.Shared(t).Client(t), redistest.Prefix(t)
	var dropped []error
	s := newTimeseries(t, client, timeseries.Options{Prefix: prefix, Resolutions: timeseriesShort, Hooks: timeseries.Hooks{
		Drop: func(_ context.Context, n int64, err error) {
			require.EqualValues(t, 1, n)
			dropped = append(dropped, err)
		},
	}})
	now := timeseriesNow(t, s)
	require.ErrorIs(t, s.Counter("x").IncrAt(ctx, now.Add(-25*time.Hour), 1), timeseries.ErrTooLate)
	require.ErrorIs(t, s.Stats("x").ObserveAt(ctx, now.Add(2*time.Minute), 1), timeseries.ErrFuture)
	strict := newTimeseries(t, client, timeseries.Options{Prefix: prefix, MaxLate: time.Minute})
	require.ErrorIs(t, strict.Top("x").AddAt(ctx, now.Add(-2*time.Minute), "m", 1), timeseries.ErrTooLate)
	require.Len(t, dropped, 2)
	require.Equal(t, timeseries.Totals{Late: 1, Future: 1}, s.Totals())
	keys := 0
	timeseriesKeys(t, client, prefix, func(_ rueidis.Client, key string, _ int64) {
		keys++
		require.True(t, strings.HasSuffix(key, ":layout"), key)
	})
	require.Equal(t, 1, keys)

	// A process whose clock is a day behind takes the event for new: the script does not.
	slow := newTimeseries(t, client, timeseries.Options{
		Prefix: prefix, Resolutions: timeseriesShort[:2], Clock: func() time.Time { return now.Add(-24 * time.Hour) },
	})
	require.ErrorIs(t, slow.Counter("x").Incr(ctx, 1), timeseries.ErrTooLate)
	require.ErrorIs(t, slow.Stats("x").Observe(ctx, 1), timeseries.ErrTooLate)
	require.ErrorIs(t, slow.Distinct("x").Add(ctx, "m"), timeseries.ErrTooLate)
	require.ErrorIs(t, slow.Top("x").Add(ctx, "m", 1), timeseries.ErrTooLate)

	// One that is too late for seconds counts in what is left, and the chunk of seconds that is there stays as it is.
	c := s.Counter("y")
	require.NoError(t, c.Incr(ctx, 1))
	require.NoError(t, c.IncrAt(ctx, now.Add(-20*time.Hour), 5))
	ttls := map[string]int64{}
	timeseriesKeys(t, client, prefix+":{test:y}", func(_ rueidis.Client, key string, ttl int64) {
		require.Positive(t, ttl)
		ttls[key] = ttl
	})
	require.Len(t, ttls, 4, "three for now, and one of minutes: %v", ttls)
	total, err := c.Sum(ctx, now.Add(-21*time.Hour), timeseriesNow(t, s))
	require.NoError(t, err)
	require.EqualValues(t, 6, total.Value)

	// An expiry is the end of the chunk, Keep and Step, whenever it was written; it is set again if it was lost.
	var seconds string
	for key := range ttls {
		if strings.Contains(key, ":c1x120:") {
			seconds = key
		}
	}
	n, err := strconv.ParseInt(seconds[strings.LastIndex(seconds, ":")+1:], 10, 64)
	require.NoError(t, err)
	require.Equal(t, ((n+1)*120+180+1)*1000, expiresAt(t, client, seconds))
}

func expiresAt(t *testing.T, client rueidis.Client, key string) int64 {
	t.Helper()
	at, err := client.Do(t.Context(), client.B().Pexpiretime().Key(key).Build()).AsInt64()
	require.NoError(t, err)
	return at
}

// TestTimeseries_ExpiriesAreAbsolute: the end of what a key may hold, Keep and Step, whenever and however often it is written.
func TestTimeseries_ExpiriesAreAbsolute(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	client, prefix := redistest.Shared(t).Client(t), redistest.Prefix(t)
	s := newTimeseries(t, client, timeseries.Options{Prefix: prefix, Resolutions: timeseriesShort, TopSize: 7})
	now := timeseriesNow(t, s)
	for range 2 {
		for _, age := range []time.Duration{0, time.Minute, 20 * time.Minute, 20 * time.Hour} {
			require.NoError(t, s.Counter("x").IncrAt(ctx, now.Add(-age), 1))
			require.NoError(t, s.Stats("x").ObserveAt(ctx, now.Add(-age), 1))
			require.NoError(t, s.Distinct("x").AddAt(ctx, now.Add(-age), "m", age.String()))
			require.NoError(t, s.Top("x").AddAt(ctx, now.Add(-age), age.String(), 1))
		}
	}
	name := regexp.MustCompile(`\}:([csdt])(\d+)(?:x(\d+))?:(\d+)$`)
	seen := map[string]int{}
	timeseriesKeys(t, client, prefix+":{test:x}", func(_ rueidis.Client, key string, _ int64) {
		m := name.FindStringSubmatch(key)
		require.NotNil(t, m, key)
		seen[m[1]]++
		step, err := strconv.Atoi(m[2])
		require.NoError(t, err)
		n, err := strconv.Atoi(m[4])
		require.NoError(t, err)
		end := (n + 1) * step
		if m[1] == "c" || m[1] == "s" {
			require.Equal(t, "120", m[3])
			end *= 120
		}
		keep := map[int]int{1: 180, 10: 1800, 60: 86400}[step]
		require.EqualValues(t, (end+keep+step)*1000, expiresAt(t, client, key), key)
	})
	for _, kind := range []string{"c", "s", "d", "t"} {
		require.GreaterOrEqual(t, seen[kind], 5, "%v", seen)
	}
}

// TestTimeseries_LongStatisticsStaySmall has values whose texts are just short enough for a small hash, and just too long.
func TestTimeseries_LongStatisticsStaySmall(t *testing.T) {
	t.Parallel()
	redistest.EachTarget(t, func(t *testing.T, client rueidis.Client) {
		ctx := t.Context()
		prefix := redistest.Prefix(t)
		s := newTimeseries(t, client, timeseries.Options{Prefix: prefix, FlushEvery: time.Hour, Resolutions: []timeseries.Resolution{{Step: time.Second, Keep: time.Hour}}})
		now := timeseriesNow(t, s).Truncate(time.Second)
		r := rand.New(rand.NewPCG(11, 12))
		const buckets = 1500
		var want [buckets]timeseries.StatsTotal
		for round := range 2 {
			for i := range buckets {
				v := (r.Float64() - 0.5) * math.Pow(10, float64(r.IntN(30)))
				if digits := r.IntN(18); digits > 0 { // of any number of digits
					var err error
					v, err = strconv.ParseFloat(strconv.FormatFloat(v, 'e', digits, 64), 64)
					require.NoError(t, err)
				}
				require.NoError(t, s.Stats("x").ObserveAt(ctx, now.Add(-time.Duration(i)*time.Second), v))
				w := &want[i]
				if round == 0 {
					w.Min, w.Max = v, v
				}
				w.Count, w.Sum, w.Min, w.Max = w.Count+1, w.Sum+v, min(w.Min, v), max(w.Max, v)
			}
			require.NoError(t, s.Flush(ctx))
		}
		texts := map[int]int{} // of each length
		timeseriesKeys(t, client, prefix+":{test:x}", func(node rueidis.Client, key string, _ int64) {
			encoding, err := node.Do(ctx, node.B().ObjectEncoding().Key(key).Build()).ToString()
			require.NoError(t, err)
			require.Equal(t, "listpack", encoding)
			values, err := node.Do(ctx, node.B().Hvals().Key(key).Build()).AsStrSlice()
			require.NoError(t, err)
			for _, v := range values {
				if v[0] == 'b' {
					require.Len(t, v, 33)
				} else {
					texts[len(v)]++
				}
				texts[0]++
			}
		})
		require.Equal(t, buckets, texts[0])
		require.Positive(t, texts[64], "%v", texts)
		longest := slices.Max(slices.Collect(maps.Keys(texts)))
		require.Equal(t, 64, longest, "what is longer is packed")
		series, err := s.Stats("x").Range(ctx, timeseries.Range{From: now.Add(-(buckets - 1) * time.Second), To: now.Add(time.Second), Step: time.Second})
		require.NoError(t, err)
		for i, w := range want {
			p := series.Points[buckets-1-i]
			if got := (timeseries.StatsTotal{Count: p.Count, Sum: p.Sum, Min: p.Min, Max: p.Max}); got != w {
				require.Equal(t, w, got, "to the last bit")
			}
		}
	})
}

func TestTimeseries_OverflowFailsAloneAndNowhereElse(t *testing.T) {
	t.Parallel()
	redistest.EachTarget(t, func(t *testing.T, client rueidis.Client) {
		ctx := t.Context()
		prefix := redistest.Prefix(t)
		s := newTimeseries(t, client, timeseries.Options{Prefix: prefix})
		c := s.Counter("c")
		now := timeseriesNow(t, s)
		hour := now.Add(-2 * time.Hour).Truncate(time.Hour)
		const big = 1<<53 + 1
		require.NoError(t, c.IncrAt(ctx, hour, math.MaxInt64-big))
		require.NoError(t, c.IncrAt(ctx, hour, big))
		total, err := c.Sum(ctx, hour, now)
		require.NoError(t, err)
		require.Equal(t, int64(math.MaxInt64), total.Value, "to the last bit")
		// The hour overflows, other smaller buckets would not: none has it.
		require.ErrorIs(t, c.IncrAt(ctx, hour.Add(time.Minute), 7), timeseries.ErrOverflow)
		series, err := c.Range(ctx, timeseries.Range{From: hour, To: hour.Add(2 * time.Minute), Step: 10 * time.Second})
		require.NoError(t, err)
		for i, p := range series.Points {
			require.Equal(t, i > 0, p.Missing, "%+v", p)
		}
		require.NoError(t, c.IncrAt(ctx, hour.Add(time.Minute), -7), "down is free")
		down := s.Counter("down")
		require.NoError(t, down.IncrAt(ctx, hour, -math.MaxInt64))
		require.ErrorIs(t, down.IncrAt(ctx, hour.Add(time.Minute), -7), timeseries.ErrOverflow)
		fallen, err := down.Range(ctx, timeseries.Range{From: hour, To: hour.Add(2 * time.Minute), Step: 10 * time.Second})
		require.NoError(t, err)
		require.EqualValues(t, -math.MaxInt64, fallen.Points[0].Value)
		require.True(t, fallen.Points[6].Missing)
		require.NoError(t, c.IncrAt(ctx, hour.Add(time.Hour), 10), "so is the next hour")
		_, err = c.Sum(ctx, hour, now)
		require.ErrorIs(t, err, timeseries.ErrOverflow, "an answer never wraps")
		total, err = c.Sum(ctx, hour.Add(time.Hour), now)
		require.NoError(t, err)
		require.EqualValues(t, 10, total.Value)

		x := s.Stats("x")
		require.NoError(t, x.ObserveAt(ctx, hour, math.MaxFloat64))
		require.ErrorIs(t, x.ObserveAt(ctx, hour.Add(time.Minute), math.MaxFloat64), timeseries.ErrOverflow)
		for _, v := range []float64{-1.2345678901234567e-300, 1.7976931348623e+200, 0.1, -math.Pi} { // too long to be text
			require.NoError(t, x.ObserveAt(ctx, hour, v))
		}
		stats, err := x.Sum(ctx, hour, now)
		require.NoError(t, err)
		require.EqualValues(t, 5, stats.Count)
		require.Equal(t, []float64{-math.Pi, math.MaxFloat64}, []float64{stats.Min, stats.Max})
		full := s.Stats("full")
		require.NoError(t, full.ObserveAt(ctx, hour, 1))
		timeseriesKeys(t, client, prefix+":{test:full}", func(node rueidis.Client, key string, _ int64) {
			fields, err := node.Do(ctx, node.B().Hkeys().Key(key).Build()).AsStrSlice()
			require.NoError(t, err)
			require.NoError(t, node.Do(ctx, node.B().Hset().Key(key).FieldValue().FieldValue(fields[0], "9007199254740991 1 1 1").Build()).Error())
		})
		require.ErrorIs(t, full.ObserveAt(ctx, hour, 1), timeseries.ErrOverflow, "a float64 cannot count on")
		stats, err = full.Sum(ctx, hour, hour.Add(time.Hour))
		require.NoError(t, err)
		require.EqualValues(t, 1<<53-1, stats.Count)
		require.Equal(t, timeseries.Totals{Written: 11, Refused: 4}, s.Totals())
	})
}

// TestTimeseries_HashesStaySmall fills chunks of a server with its default limits, and of one whose limits are lower.
func TestTimeseries_HashesStaySmall(t *testing.T) {
	t.Parallel()
	for name, args := range map[string][]string{"default": nil, "lower": {"--hash-max-listpack-entries", "50"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			server := redistest.Start(t, args...)
			client, prefix := server.Client(t), redistest.Prefix(t)
			opts := timeseries.Options{
				Prefix: prefix, FlushEvery: time.Hour,
				Resolutions: []timeseries.Resolution{{Step: 10 * time.Second, Keep: 48 * time.Hour}},
			}
			s := newTimeseries(t, client, opts)
			from := timeseriesNow(t, s).Add(-24 * time.Hour).Truncate(1200 * 5 * time.Second)
			const buckets = 1200
			for i := range buckets {
				at := from.Add(time.Duration(i) * 10 * time.Second)
				require.NoError(t, s.Counter("c").IncrAt(ctx, at, int64(i*7919%4096)))
				for j := range 3 {
					require.NoError(t, s.Stats("s").ObserveAt(ctx, at, float64(i*31%250+j*100)))
				}
			}
			require.NoError(t, s.Flush(ctx))
			bytes := map[string]int64{}
			timeseriesKeys(t, client, prefix, func(node rueidis.Client, key string, _ int64) {
				if strings.HasSuffix(key, ":layout") {
					return
				}
				encoding, err := node.Do(ctx, node.B().ObjectEncoding().Key(key).Build()).ToString()
				require.NoError(t, err)
				require.Equal(t, "listpack", encoding)
				n, err := node.Do(ctx, node.B().MemoryUsage().Key(key).Samples(0).Build()).AsInt64()
				require.NoError(t, err)
				_, kind, _ := strings.Cut(key, "}:")
				bytes[kind[:1]] += n
			})
			require.Len(t, bytes, 2)
			if args == nil {
				require.LessOrEqual(t, float64(bytes["c"])/buckets, 7.0)
				require.LessOrEqual(t, float64(bytes["s"])/buckets, 24.0)
				t.Logf("bytes per bucket: counter %.1f, statistics %.1f", float64(bytes["c"])/buckets, float64(bytes["s"])/buckets)
			}

			// All processes have the same chunks, also those that may not ask for the limit, or come after it was changed.
			admin := server.Client(t)
			user := []string{"SETUSER", "blind", "on", ">x", "~*", "+@all", "-config"}
			require.NoError(t, admin.Do(ctx, admin.B().Arbitrary("ACL").Args(user...).Build()).Error())
			require.NoError(t, admin.Do(ctx, admin.B().ConfigSet().ParameterValue().ParameterValue("hash-max-listpack-entries", "30").Build()).Error())
			blind := newTimeseries(t, server.Client(t, func(o *rueidis.ClientOption) { o.Username, o.Password = "blind", "x" }), opts)
			total, err := blind.Counter("c").Sum(ctx, from, from.Add(buckets*10*time.Second))
			require.NoError(t, err)
			var want int64
			for i := range buckets {
				want += int64(i * 7919 % 4096)
			}
			require.Equal(t, want, total.Value)
			opts.Prefix = redistest.Prefix(t)
			alone := newTimeseries(t, server.Client(t, func(o *rueidis.ClientOption) { o.Username, o.Password = "blind", "x" }), opts)
			require.NoError(t, alone.Counter("c").Incr(ctx, 1))
			require.NoError(t, alone.Flush(ctx))
			layout, err := get(ctx, admin, opts.Prefix+":{test}:layout")
			require.NoError(t, err)
			require.Equal(t, "120", layout)

			// DUMP, HGETALL and HMGET say the same.
			chart := timeseries.Range{From: from, To: from.Add(buckets * 10 * time.Second), Step: 10 * time.Second}
			dumped, err := s.Counter("c").Range(ctx, chart)
			require.NoError(t, err)
			require.NoError(t, admin.Do(ctx, admin.B().Arbitrary("ACL").Args("SETUSER", "blind", "-dump").Build()).Error())
			listed, err := blind.Counter("c").Range(ctx, chart)
			require.NoError(t, err)
			require.Equal(t, dumped.Points, listed.Points)
			for i, p := range dumped.Points {
				require.EqualValues(t, i*7919%4096, p.Value)
				require.False(t, p.Missing)
			}
		})
	}
}

func TestTimeseries_ReadsInOneRoundTrip(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	server := redistest.Start(t)
	s := newTimeseries(t, server.Client(t), timeseries.Options{})
	from, to, err := s.Today(ctx, time.UTC)
	require.NoError(t, err)
	require.NoError(t, s.Counter("hits").IncrAt(ctx, timeseriesNow(t, s), 3))
	var total int64
	for name, n := range redistest.Commands(t, server, func() {
		sum, err := s.Counter("hits").Sum(ctx, from, timeseriesNow(t, s))
		require.NoError(t, err)
		require.True(t, sum.Exact)
		require.EqualValues(t, 3, sum.Value)
	}) {
		require.Contains(t, []string{"hmget", "dump"}, name)
		total += n
	}
	require.LessOrEqual(t, total, int64(6))
	// A write is one script, also of many callers.
	counts := redistest.Commands(t, server, func() {
		var wg sync.WaitGroup
		for range 500 {
			wg.Go(func() { require.NoError(t, s.Counter("hits").Incr(ctx, 1)) })
		}
		wg.Wait()
	})
	require.Less(t, counts["evalsha"], int64(250), "callers share round trips")
	require.LessOrEqual(t, counts["hincrby"], 3*counts["evalsha"]+3)
	sum, err := s.Counter("hits").Sum(ctx, from, to)
	require.NoError(t, err)
	require.EqualValues(t, 503, sum.Value)
}

func TestTimeseries_DistinctIsWithinItsError(t *testing.T) {
	t.Parallel()
	clients := map[string]rueidis.Client{"single": redistest.Shared(t).Client(t), "cluster": redistest.SharedCluster(t).Client(t)}
	for name, client := range clients {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			s := newTimeseries(t, client, timeseries.Options{})
			now := timeseriesNow(t, s)
			const members = 100_000
			for _, series := range []string{"a", "b", "all"} { // b has the second half of a, and as many of its own
				first, last := 0, members
				switch series {
				case "b":
					first, last = members/2, members*3/2
				case "all":
					last = members * 3 / 2
				}
				for ; first < last; first += 1000 {
					part := make([]string, 0, 1000)
					for i := range 1000 {
						part = append(part, "member-"+strconv.Itoa(first+i))
					}
					require.NoError(t, s.Distinct(series).AddAt(ctx, now.Add(-time.Duration(first)*time.Millisecond*100), part...))
				}
			}
			from, to := now.Add(-5*time.Hour).Truncate(time.Hour), timeseriesNow(t, s)
			one, err := s.Distinct("a").Count(ctx, from, to)
			require.NoError(t, err)
			require.InEpsilon(t, members, one.Count, 0.02)
			all, err := s.Distinct("all").Count(ctx, from, to)
			require.NoError(t, err)
			require.InEpsilon(t, members*3/2, all.Count, 0.02)
			union, err := s.Distinct("a").Union(ctx, from, to, "b", "nobody")
			require.NoError(t, err)
			require.Equal(t, all.Count, union.Count, "the union, also across slots, is what one series with all would say")
		})
	}
}

// TestTimeseries_TopIsWithinItsBounds has what is hardest for Space-Saving: frequent members among ever new ones, which take
// every place in turn.
func TestTimeseries_TopIsWithinItsBounds(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	const size = 20
	s := newTimeseries(t, redistest.Shared(t).Client(t), timeseries.Options{TopSize: size})
	now := timeseriesNow(t, s)
	for name, stream := range map[string]func(i int) string{
		"different":   strconv.Itoa,
		"round robin": func(i int) string { return "r" + strconv.Itoa(i%(size+1)) },
		"heavy":       func(i int) string { return map[bool]string{true: "heavy", false: strconv.Itoa(i)}[i%4 == 0] },
		"few":         func(i int) string { return strconv.Itoa(i % (size - 1)) },
	} {
		top, truth := s.Top(name), map[string]int64{}
		var all int64
		for i := range 600 {
			n := int64(1 + i%3)
			at := now.Add(-time.Duration(i%90) * time.Minute)
			truth[stream(i)] += n
			all += n
			require.NoError(t, top.AddAt(ctx, at, stream(i), n))
		}
		list, err := top.List(ctx, now.Add(-2*time.Hour).Truncate(time.Hour), timeseriesNow(t, s), 10_000)
		require.NoError(t, err)
		listed := map[string]bool{}
		for _, r := range list.Ranked {
			listed[r.Member] = true
			require.LessOrEqual(t, truth[r.Member], r.Count, "%s: %+v", name, r)
			require.GreaterOrEqual(t, truth[r.Member], r.Count-r.Error, "%s: %+v", name, r)
			require.LessOrEqual(t, r.Error, all/size)
			if name == "few" {
				require.Zero(t, r.Error)
			}
		}
		for m, n := range truth {
			if !listed[m] {
				require.LessOrEqual(t, n, list.Ranked[0].Error)
			}
		}
	}
}

func TestTimeseries_TopStopsCountingWhereFloatsDo(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := newTimeseries(t, redistest.Shared(t).Client(t), timeseries.Options{TopSize: 1})
	hour := timeseriesNow(t, s).Truncate(time.Hour)
	for _, member := range []string{"a", "a", "b"} { // which takes the place of a
		require.NoError(t, s.Top("x").AddAt(ctx, hour, member, 1<<53))
		list, err := s.Top("x").List(ctx, hour, hour.Add(time.Hour), 1)
		require.NoError(t, err)
		require.Equal(t, []timeseries.Ranked{{Member: member, Count: 1 << 53, Error: 1 << 53}}, list.Ranked)
	}
}

func TestTimeseries_DeletesWhatItIsTold(t *testing.T) {
	t.Parallel()
	redistest.EachTarget(t, func(t *testing.T, client rueidis.Client) {
		ctx := t.Context()
		s := newTimeseries(t, client, timeseries.Options{})
		now := timeseriesNow(t, s)
		hour := now.Add(-4 * time.Hour).Truncate(time.Hour)
		for i := range 4 {
			at := hour.Add(time.Duration(i)*time.Hour + 30*time.Minute)
			require.NoError(t, s.Counter("x").IncrAt(ctx, at, 1))
			require.NoError(t, s.Stats("x").ObserveAt(ctx, at, 1))
			require.NoError(t, s.Distinct("x").AddAt(ctx, at, strconv.Itoa(i)))
			require.NoError(t, s.Top("x").AddAt(ctx, at, "m", 1))
			require.NoError(t, s.Counter("y").IncrAt(ctx, at, 1))
		}
		require.NoError(t, s.Delete(ctx, "x", hour.Add(time.Hour), hour.Add(3*time.Hour)))
		require.ErrorIs(t, s.Delete(ctx, "x", hour.Add(time.Second), hour.Add(3*time.Hour)), timeseries.ErrResolution)
		require.Error(t, s.Delete(ctx, "x", hour.Add(time.Hour), hour))
		for _, q := range [][2]time.Duration{{0, 5 * time.Hour}, {20 * time.Minute, 200 * time.Minute}, {70 * time.Minute, 170 * time.Minute}} {
			from, to := hour.Add(q[0]), hour.Add(q[1])
			want := int64(2)
			switch q[0] {
			case 20 * time.Minute:
				want = 1
			case 70 * time.Minute:
				want = 0
			}
			total, err := s.Counter("x").Sum(ctx, from, to)
			require.NoError(t, err)
			require.Equal(t, want, total.Value)
			stats, err := s.Stats("x").Sum(ctx, from, to)
			require.NoError(t, err)
			require.Equal(t, want, stats.Count)
			distinct, err := s.Distinct("x").Count(ctx, from, to)
			require.NoError(t, err)
			require.Equal(t, want, distinct.Count)
			top, err := s.Top("x").List(ctx, from, to, 1)
			require.NoError(t, err)
			require.Len(t, top.Ranked, int(min(want, 1)))
		}
		total, err := s.Counter("y").Sum(ctx, hour, now)
		require.NoError(t, err)
		require.EqualValues(t, 4, total.Value)

		// The first and the last hour of a chunk of minutes, which are two.
		even := now.Add(-8 * time.Hour).Truncate(2 * time.Hour)
		for n, from := range []time.Time{even, even.Add(time.Hour)} {
			z := s.Counter("z" + strconv.Itoa(n))
			for _, at := range []time.Time{even.Add(-30 * time.Minute), even.Add(30 * time.Minute), even.Add(90 * time.Minute), even.Add(150 * time.Minute)} {
				require.NoError(t, z.IncrAt(ctx, at, 1))
			}
			require.NoError(t, s.Delete(ctx, "z"+strconv.Itoa(n), from, from.Add(time.Hour)))
			for step, of := range map[time.Duration]int{time.Minute: 1, 30 * time.Minute: 30, time.Hour: 60} {
				series, err := z.Range(ctx, timeseries.Range{From: even.Add(-time.Hour), To: even.Add(3 * time.Hour), Step: step})
				require.NoError(t, err)
				counted := map[int]int64{} // by hour
				for i, p := range series.Points {
					counted[i*of/60] += p.Value
				}
				require.Equal(t, map[int]int64{0: 1, 1: int64(n), 2: int64(1 - n), 3: 1}, counted, "%v", step)
			}
		}
	})
}

func TestTimeseries_FillsAndMarksTheRunningBucket(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := newTimeseries(t, redistest.Shared(t).Client(t), timeseries.Options{})
	now := timeseriesNow(t, s)
	from := now.Add(-10 * time.Minute).Truncate(time.Minute)
	c, x := s.Counter("c"), s.Stats("x")
	require.NoError(t, c.IncrAt(ctx, from.Add(2*time.Minute), 10))
	require.NoError(t, c.IncrAt(ctx, from.Add(6*time.Minute), 30))
	require.NoError(t, x.ObserveAt(ctx, from.Add(2*time.Minute), 10))
	require.NoError(t, x.ObserveAt(ctx, from.Add(6*time.Minute), 30))
	r := timeseries.Range{From: from, To: now.Add(2 * time.Minute), Step: time.Minute}
	for fill, want := range map[timeseries.Fill][]float64{
		timeseries.FillZero:     {0, 0, 10, 0, 0, 0, 30, 0, 0, 0},
		timeseries.FillPrevious: {-1, -1, 10, 10, 10, 10, 30, 30, 30, 30},
		timeseries.FillLinear:   {-1, -1, 10, 15, 20, 25, 30, -1, -1, -1},
		timeseries.FillNull:     {-1, -1, 10, -1, -1, -1, 30, -1, -1, -1},
	} {
		r.Fill = fill
		series, err := c.Range(ctx, r)
		require.NoError(t, err)
		stats, err := x.Range(ctx, r)
		require.NoError(t, err)
		require.Len(t, stats.Points, len(series.Points))
		for i, v := range want {
			p, q := series.Points[i], stats.Points[i]
			require.Equal(t, i != 2 && i != 6, p.Missing)
			require.Equal(t, p.Missing, q.Missing)
			require.Equal(t, v >= 0 && p.Missing, p.Filled, "%d %+v", i, p)
			require.Equal(t, p.Filled, q.Filled)
			if v >= 0 {
				require.Equal(t, int64(v), p.Value)
				require.InDelta(t, v, q.Mean, 1e-9)
				require.InDelta(t, v, q.Max, 1e-9)
			}
		}
		partial := 0
		for i, p := range series.Points {
			if p.Partial {
				partial++
				require.False(t, p.Start.After(series.At))
				require.True(t, p.End.After(series.At))
			}
			require.Equal(t, p.Partial, stats.Points[i].Partial || stats.At.Truncate(time.Minute) != series.At.Truncate(time.Minute))
			require.False(t, p.Filled && p.Start.After(series.At), "what is to come is not filled")
		}
		require.Equal(t, 1, partial)
	}
	require.NoError(t, c.Incr(ctx, 1000))
	series, err := c.Range(ctx, timeseries.Range{From: timeseriesNow(t, s).Truncate(time.Hour), To: timeseriesNow(t, s), Step: time.Hour})
	require.NoError(t, err)
	last := len(series.Points) - 1
	require.InEpsilon(t, float64(series.Points[last].Value)/series.At.Sub(series.Points[last].Start).Seconds(), series.Rates()[last], 1e-6)
}

func TestTimeseries_GathersInProcess(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	client, prefix := redistest.Shared(t).Client(t), redistest.Prefix(t)
	s := newTimeseries(t, client, timeseries.Options{Prefix: prefix, FlushEvery: time.Hour, MaxPending: 1000})
	now := timeseriesNow(t, s)
	for range 10_000 {
		require.NoError(t, s.Counter("x").IncrAt(ctx, now, 1))
	}
	reader := newTimeseries(t, client, timeseries.Options{Prefix: prefix})
	sum := func() int64 {
		total, err := reader.Counter("x").Sum(ctx, now.Add(-time.Hour), now.Add(time.Minute))
		require.NoError(t, err)
		return total.Value
	}
	require.Zero(t, sum())
	require.NoError(t, s.Flush(ctx))
	require.EqualValues(t, 10_000, sum())
	for i := range 999 {
		require.NoError(t, s.Distinct("d"+strconv.Itoa(i%100)).AddAt(ctx, now, strconv.Itoa(i)))
		if i == 900-1 { // 100 series with 9 members each
			break
		}
	}
	require.ErrorIs(t, s.Counter("y").Incr(ctx, 1), timeseries.ErrFull)
	require.NoError(t, s.Close(ctx))
	require.ErrorIs(t, s.Counter("x").Incr(ctx, 1), timeseries.ErrClosed)
	short := newTimeseries(t, client, timeseries.Options{Prefix: prefix, FlushEvery: 10 * time.Millisecond})
	require.NoError(t, short.Counter("x").IncrAt(ctx, now, 1))
	require.Eventually(t, func() bool { return sum() == 10_001 }, soon, tick)
}

// Everything is also what lies before 1970, where it is kept for so long.
func TestTimeseries_DeletesWhatLiesBefore1970(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	client := redistest.Shared(t).Client(t)
	prefix := redistest.Prefix(t)
	const day = 24 * time.Hour
	s := newTimeseries(t, client, timeseries.Options{Prefix: prefix, Resolutions: []timeseries.Resolution{{Step: day, Keep: 100 * 366 * day}}})
	for _, at := range []time.Time{time.Unix(-1, 0), time.Date(1950, 5, 6, 7, 8, 9, 0, time.UTC), time.Unix(0, 0), timeseriesNow(t, s)} {
		require.NoError(t, s.Counter("x").IncrAt(ctx, at, 1))
		require.NoError(t, s.Top("x").AddAt(ctx, at, "member", 1))
	}
	from, to := time.Date(1945, 1, 1, 0, 0, 0, 0, time.UTC), timeseriesNow(t, s)
	total, err := s.Counter("x").Sum(ctx, from, to)
	require.NoError(t, err)
	require.Equal(t, int64(4), total.Value)
	require.NoError(t, s.Delete(ctx, "x", time.Time{}, time.Time{}))
	total, err = s.Counter("x").Sum(ctx, from, to)
	require.NoError(t, err)
	require.Zero(t, total.Value)
	keys := keysOf(t, client, prefix)
	require.Len(t, keys, 1, "the layout")
}
