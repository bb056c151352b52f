package integration

import (
	"context"
	"fmt"
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

// timeseriesKeys calls fn with each key of a prefix and its TTL in ms.
func timeseriesKeys(t *testing.T, client rueidis.Client, prefix string, fn func(node rueidis.Client, key string, ttl int64)) {
	t.Helper()
	nodes := map[string]rueidis.Client{"": client}
	if client.Mode() == rueidis.ClientModeCluster {
		nodes = client.Nodes()
	}
	for _, node := range nodes {
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

var _ = rand.IntN
var _ = fmt.Sprint
