package integration

import (
	"context"
	"math"
	"math/rand/v2"
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

// timeseriesShort are resolutions of which the finest two end within what a test can write.
var timeseriesShort = []timeseries.Resolution{
	{Step: time.Second, Keep: 3 * time.Minute}, {Step: 10 * time.Second, Keep: 30 * time.Minute}, {Step: time.Minute, Keep: 24 * time.Hour},
}

func newTimeseries(t *testing.T, client rueidis.Client, opts timeseries.Options) *timeseries.Store {
	t.Helper()
	if opts.Prefix == "" {
		opts.Prefix = redistest.Prefix(t)
	}
	if opts.Timeout == 0 {
		opts.Timeout = 10 * time.Second
	}
	s, err := timeseries.New(client, "test", opts)
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Close(context.Background()) }) // tests that care call it themselves
	return s
}

func timeseriesNow(t *testing.T, s *timeseries.Store) time.Time {
	t.Helper()
	now, err := s.Now(t.Context())
	require.NoError(t, err)
	return now
}

// timeseriesKeys calls fn with each key of a prefix, on primaries, and its TTL in ms.
func timeseriesKeys(t *testing.T, client rueidis.Client, prefix string, fn func(node rueidis.Client, key string, ttl int64)) {
	t.Helper()
	nodes := map[string]rueidis.Client{"": client}
	if client.Mode() == rueidis.ClientModeCluster {
		nodes = client.Nodes()
	}
	for _, node := range nodes {
		role, err := node.Do(t.Context(), node.B().Role().Build()).ToArray()
		require.NoError(t, err)
		if name, _ := role[0].ToString(); name != "master" {
			continue
		}
		for cursor := uint64(0); ; {
			page, err := node.Do(t.Context(), node.B().Scan().Cursor(cursor).Match(prefix+":*").Count(1000).Build()).AsScanEntry()
			require.NoError(t, err)
			for _, key := range page.Elements {
				ttl, err := node.Do(t.Context(), node.B().Pttl().Key(key).Build()).AsInt64()
				require.NoError(t, err)
				fn(node, key, ttl)
			}
			if cursor = page.Cursor; cursor == 0 {
				break
			}
		}
	}
}

func TestTimeseries_DoesItsJobEverywhere(t *testing.T) {
	t.Parallel()
	redistest.EachTarget(t, func(t *testing.T, client rueidis.Client) {
		ctx := t.Context()
		prefix := redistest.Prefix(t)
		s := newTimeseries(t, client, timeseries.Options{Prefix: prefix, TopSize: 5})
		now := timeseriesNow(t, s)
		from := now.Add(-3 * time.Hour).Truncate(time.Hour)
		hits := s.Counter("hits")
		var wg sync.WaitGroup
		for i := range 50 {
			wg.Go(func() { require.NoError(t, hits.IncrAt(ctx, from.Add(time.Duration(i)*time.Minute), 2)) })
		}
		wg.Wait()
		require.NoError(t, hits.Incr(ctx, -1))
		total, err := hits.Sum(ctx, from, timeseriesNow(t, s))
		require.NoError(t, err)
		require.EqualValues(t, 99, total.Value)
		require.True(t, total.Exact)

		r := timeseries.Range{From: from, To: from.Add(time.Hour), Step: time.Minute}
		series, err := hits.Range(ctx, r)
		require.NoError(t, err)
		require.Len(t, series.Points, 60)
		for i, p := range series.Points {
			require.Equal(t, i >= 50, p.Missing, i)
			require.Equal(t, map[bool]int64{false: 2, true: 0}[p.Missing], p.Value)
			require.Equal(t, from.Add(time.Duration(i)*time.Minute), p.Start)
			require.False(t, p.Partial)
		}
		many, err := s.RangeMany(ctx, r, "nothing", "hits", "hits")
		require.NoError(t, err)
		require.Equal(t, series.Points, many[1].Points)
		require.Equal(t, series.Points, many[2].Points)
		require.True(t, many[0].Points[0].Missing)

		took := s.Stats("took")
		for _, v := range []float64{1.5, -2, 1e9, 0.1} {
			require.NoError(t, took.ObserveAt(ctx, from, v))
		}
		stats, err := took.Sum(ctx, from, now)
		require.NoError(t, err)
		require.Equal(t, timeseries.StatsTotal{Count: 4, Sum: 1.5 - 2 + 1e9 + 0.1, Min: -2, Max: 1e9, Covered: stats.Covered}, stats)

		users := s.Distinct("users")
		require.NoError(t, users.Add(ctx, "a", "b", "a"))
		require.NoError(t, users.AddAt(ctx, from, "a", "c"))
		require.NoError(t, s.Distinct("others").Add(ctx, "c", "d"))
		distinct, err := users.Count(ctx, from, timeseriesNow(t, s))
		require.NoError(t, err)
		require.EqualValues(t, 3, distinct.Count)
		distinct, err = users.Union(ctx, from, timeseriesNow(t, s), "others", "nobody")
		require.NoError(t, err)
		require.EqualValues(t, 4, distinct.Count)

		pages := s.Top("pages")
		for i, n := range []int64{5, 30, 7} {
			require.NoError(t, pages.AddAt(ctx, from, strconv.Itoa(i), n))
			require.NoError(t, pages.Add(ctx, strconv.Itoa(i), n))
		}
		top, err := pages.List(ctx, from, timeseriesNow(t, s), 2)
		require.NoError(t, err)
		require.Equal(t, []timeseries.Ranked{{Member: "1", Count: 60}, {Member: "2", Count: 14}}, top.Ranked)

		keys := 0
		timeseriesKeys(t, client, prefix, func(_ rueidis.Client, key string, ttl int64) {
			keys++
			require.Positive(t, ttl, key)
		})
		require.GreaterOrEqual(t, keys, 12)
		for _, name := range []string{"hits", "took", "users", "others", "pages"} {
			require.NoError(t, s.Delete(ctx, name, time.Time{}, time.Time{}))
		}
		timeseriesKeys(t, client, prefix, func(_ rueidis.Client, key string, _ int64) {
			require.True(t, strings.HasSuffix(key, ":layout"), key)
		})
		require.NoError(t, s.Close(ctx))
		require.ErrorIs(t, hits.Incr(ctx, 1), timeseries.ErrClosed)
	})
}

// timeseriesEvent is one event of the model.
type timeseriesEvent struct {
	at time.Time
	n  int64
}

// TestTimeseries_AnswersAsTheModelDoes writes random events, late ones of all ages among them, and asks for random intervals:
// across the borders of buckets, chunks and retention.
func TestTimeseries_AnswersAsTheModelDoes(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	events, questions := 10_000, 300
	if soak() {
		events, questions = 100_000, 5000
	}
	ctx := t.Context()
	s := newTimeseries(t, client, timeseries.Options{Resolutions: timeseriesShort, FlushEvery: 20 * time.Millisecond})
	c, x := s.Counter("hits"), s.Stats("took")
	began := timeseriesNow(t, s)
	r := rand.New(rand.NewPCG(7, uint64(began.UnixNano())))
	age := func() time.Duration {
		most := []time.Duration{5 * time.Second, 4 * time.Minute, 40 * time.Minute, 25 * time.Hour}[r.IntN(4)]
		return time.Duration(r.Int64N(int64(most)))
	}
	var model []timeseriesEvent
	var late int64
	for range events {
		e := timeseriesEvent{began.Add(-age()), r.Int64N(2000) - 500}
		if r.IntN(10) == 0 {
			e.n *= 1 << 40
		}
		err := c.IncrAt(ctx, e.at, e.n)
		if began.Sub(e.at) > 24*time.Hour {
			require.ErrorIs(t, err, timeseries.ErrTooLate)
			late++
			continue
		}
		if err != nil { // its age passed the border meanwhile
			require.ErrorIs(t, err, timeseries.ErrTooLate)
			late++
			continue
		}
		model = append(model, e)
		require.NoError(t, x.ObserveAt(ctx, e.at, float64(e.n)))
	}
	require.NoError(t, s.Flush(ctx))
	require.Equal(t, timeseries.Totals{Written: 2 * int64(len(model)), Late: late}, s.Totals())

	// What came before each second, and the events of each.
	origin := began.Add(-26 * time.Hour).Truncate(time.Second)
	second := func(at time.Time) int { return max(0, min(27*3600-1, int(math.Ceil(at.Sub(origin).Seconds())))) }
	sums, counts, each := make([]int64, 27*3600), make([]int64, 27*3600), make([][]int64, 27*3600)
	for _, e := range model {
		i := int(e.at.Sub(origin) / time.Second)
		each[i] = append(each[i], e.n)
	}
	for i := range len(each) - 1 {
		sums[i+1], counts[i+1] = sums[i], counts[i]+int64(len(each[i]))
		for _, n := range each[i] {
			sums[i+1] += n
		}
	}
	within := func(from, to time.Time) (sum, count int64) { // whole seconds
		a, b := second(from), second(to)
		return sums[b] - sums[a], counts[b] - counts[a]
	}
	extremes := func(from, to time.Time) (least, most int64) {
		least, most = math.MaxInt64, math.MinInt64
		for _, part := range each[second(from):second(to)] {
			for _, n := range part {
				least, most = min(least, n), max(most, n)
			}
		}
		return least, most
	}
	exact := 0
	for range questions {
		instant := func() time.Time {
			at := timeseriesNow(t, s).Add(5*time.Second - age())
			return at.Truncate([]time.Duration{1, time.Second, 10 * time.Second, time.Minute, time.Hour}[r.IntN(5)])
		}
		from, to := instant(), instant()
		if to.Before(from) {
			from, to = to, from
		}
		total, err := c.Sum(ctx, from, to)
		require.NoError(t, err)
		sum, _ := within(total.From, total.To)
		require.Equal(t, sum, total.Value, "%v to %v answered for %v to %v", from, to, total.From, total.To)
		if total.Exact {
			exact++
			sum, _ := within(from, to)
			require.Equal(t, sum, total.Value)
		}
		stats, err := x.Sum(ctx, from, to)
		require.NoError(t, err)
		sum, count := within(stats.From, stats.To)
		least, most := extremes(stats.From, stats.To)
		require.Equal(t, count, stats.Count)
		require.InEpsilon(t, 1+math.Abs(float64(sum)), 1+math.Abs(stats.Sum), 1e-9)
		if count > 0 {
			require.Equal(t, []float64{float64(least), float64(most)}, []float64{stats.Min, stats.Max})
		}
		if mid := from.Add(time.Duration(r.Int64N(int64(to.Sub(from)) + 1))); true {
			first, err := c.Sum(ctx, from, mid)
			require.NoError(t, err)
			second, err := c.Sum(ctx, mid, to)
			require.NoError(t, err)
			if first.From.Equal(total.From) && second.To.Equal(total.To) && first.To.Equal(second.From) { // else a second has passed at a border
				require.Equal(t, total.Value, first.Value+second.Value)
			}
		}
		if !from.Before(to) {
			continue
		}
		q := timeseries.Range{From: from, To: to, MaxPoints: 1 + r.IntN(500)}
		if r.IntN(2) == 0 {
			q.MaxPoints, q.Step = 100_000, []time.Duration{time.Second, 10 * time.Second, 30 * time.Second, time.Minute, 7 * time.Minute, time.Hour}[r.IntN(6)]
		}
		series, err := c.Range(ctx, q)
		require.NoError(t, err)
		require.LessOrEqual(t, len(series.Points), q.MaxPoints)
		if series.Exact && q.Step > 0 {
			require.Equal(t, q.Step, series.Step)
		}
		require.False(t, series.Points[0].Start.After(from))
		require.False(t, series.Points[len(series.Points)-1].End.Before(to))
		for i, p := range series.Points {
			if p.End.Sub(p.Start) != series.Step || i > 0 && !p.Start.Equal(series.Points[i-1].End) {
				require.Fail(t, "gap", "%+v", p)
			}
			if p.Start.Before(series.From) {
				continue
			}
			if sum, count := within(p.Start, p.End); sum != p.Value || p.Missing != (count == 0) {
				require.Fail(t, "wrong point", "%v: %+v, not %d of %d", q, p, sum, count)
			}
		}
	}
	require.Positive(t, exact)
	old, err := c.Sum(ctx, began.Add(-20*time.Hour).Truncate(time.Minute).Add(time.Second), began.Add(-10*time.Hour))
	require.NoError(t, err)
	require.False(t, old.Exact, "seconds are kept no more")
	require.NotZero(t, old.Value)
}

func TestTimeseries_RefusesWhatItCannotExpress(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := newTimeseries(t, redistest.Shared(t).Client(t), timeseries.Options{})
	c := s.Counter("hits")
	now := timeseriesNow(t, s)
	kathmandu, err := time.LoadLocation("Asia/Kathmandu")
	require.NoError(t, err)
	days := timeseries.Range{From: now.AddDate(0, 0, -4), To: now, Calendar: timeseries.Day, Location: kathmandu}
	from, to, err := s.Today(ctx, kathmandu)
	require.NoError(t, err)
	require.Equal(t, 24*time.Hour, to.Sub(from))
	require.NoError(t, c.IncrAt(ctx, from, 3))
	require.NoError(t, c.IncrAt(ctx, from.Add(-time.Second), 4))
	series, err := c.Range(ctx, days)
	require.NoError(t, err)
	require.Len(t, series.Points, 5)
	require.True(t, series.Points[4].Partial)
	require.EqualValues(t, 3, series.Points[4].Value)
	require.EqualValues(t, 4, series.Points[3].Value)
	require.Equal(t, kathmandu, series.Points[0].Start.Location())
	days.From = now.AddDate(0, 0, -40) // only hours are kept for that long
	_, err = c.Range(ctx, days)
	require.ErrorIs(t, err, timeseries.ErrResolution)
	days.Location = nil
	series, err = c.Range(ctx, days)
	require.NoError(t, err)
	require.Len(t, series.Points, 41)
	days.MaxPoints = 40
	_, err = c.Range(ctx, days)
	require.ErrorIs(t, err, timeseries.ErrTooMany)

	_, err = c.Range(ctx, timeseries.Range{From: now.Add(-time.Hour), To: now, Step: 15 * time.Second})
	require.ErrorIs(t, err, timeseries.ErrResolution)
	_, err = c.Range(ctx, timeseries.Range{From: now.Add(-2 * time.Hour), To: now, Step: 10 * time.Second, MaxPoints: 700})
	require.ErrorIs(t, err, timeseries.ErrTooMany)
	require.ErrorIs(t, s.Delete(ctx, "hits", now.Truncate(time.Hour).Add(time.Minute), now.Add(time.Hour).Truncate(time.Hour)), timeseries.ErrResolution)
}
