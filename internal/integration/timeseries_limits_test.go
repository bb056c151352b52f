package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/redispatterns/redispatterns/internal/integration/redistest"
	"github.com/redispatterns/redispatterns/timeseries"
	"github.com/redispatterns/redispatterns/timeseries/export"
)

var timeseriesHourly = []timeseries.Resolution{{Step: time.Hour, Keep: 24 * time.Hour}}

func TestTimeseries_FirstCallsShareTheirWait(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	proxy := redistest.NewProxy(t, server.Addr())
	const timeout = 500 * time.Millisecond
	s := newTimeseries(t, server.Client(t, proxy.Through, redistest.OneConnection, quickDial), timeseries.Options{Timeout: timeout})
	proxy.BlackHole(t)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			ctx, most := t.Context(), 3*timeout
			if i%2 == 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, 50*time.Millisecond)
				defer cancel()
				most = timeout - 50*time.Millisecond
			}
			began := time.Now()
			require.ErrorIs(t, s.Counter("x").Incr(ctx, 1), context.DeadlineExceeded)
			require.Less(t, time.Since(began), most)
		})
	}
	wg.Wait()
}

func TestTimeseries_MaxPendingBoundsMembers(t *testing.T) {
	t.Parallel()
	s := newTimeseries(t, redistest.Shared(t).Client(t), timeseries.Options{FlushEvery: time.Hour, MaxPending: 1000, Resolutions: timeseriesHourly})
	var err error
	added := 0
	for ; err == nil && added < 10; added++ {
		members := make([]string, 1000)
		for i := range members {
			members[i] = strconv.Itoa(added) + "-" + strconv.Itoa(i)
		}
		err = s.Distinct("x").Add(t.Context(), members...)
	}
	require.ErrorIs(t, err, timeseries.ErrFull)
	require.Equal(t, 2, added)
	require.NoError(t, s.Flush(t.Context()))
	require.NoError(t, s.Distinct("x").Add(t.Context(), "m"))
}

// TestTimeseries_WhatAFullServerRefusesIsWrittenOnce has top lists of which a full server takes a part.
func TestTimeseries_WhatAFullServerRefusesIsWrittenOnce(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	server := redistest.Start(t, "--maxmemory-policy", "noeviction")
	s := newTimeseries(t, server.Client(t), timeseries.Options{TopSize: 1500, FlushEvery: time.Hour, Resolutions: timeseriesHourly, Timeout: 20 * time.Second})
	at := timeseriesNow(t, s).Add(-2 * time.Hour).Truncate(time.Hour)
	const series = 6 // which member is first is by chance
	var tried int64
	add := func(kind string) {
		for n := range series {
			for i := range 1500 {
				require.NoError(t, s.Top(strconv.Itoa(n)).AddAt(ctx, at, kind+strconv.Itoa(i), 1))
				tried++
			}
		}
	}
	add("old")
	require.NoError(t, s.Flush(ctx))
	add("old")
	add("new")
	fillUp(t, server, "1")
	_ = s.Flush(ctx) // some of it
	fillUp(t, server, "0")
	require.NoError(t, s.Flush(ctx))
	var sum int64
	for n := range series {
		list, err := s.Top(strconv.Itoa(n)).List(ctx, at, at.Add(time.Hour), 1500)
		require.NoError(t, err)
		for _, r := range list.Ranked {
			sum += r.Count // in Space-Saving, all counts of a list are exactly what was counted
		}
	}
	require.Equal(t, tried, sum)
	require.Equal(t, timeseries.Totals{Written: tried}, s.Totals())
}

// TestTimeseries_ABacklogIsWrittenInParts loses the first replies to one: what came after them was not sent.
func TestTimeseries_ABacklogIsWrittenInParts(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr())
	client := server.Client(t, proxy.Through, redistest.OneConnection, quickDial)
	s := newTimeseries(t, client, timeseries.Options{FlushEvery: time.Hour, Timeout: 3 * time.Second, Resolutions: timeseriesHourly})
	const series = 12_000
	for i := range series {
		require.NoError(t, s.Counter(strconv.Itoa(i)).Incr(ctx, 1))
	}
	proxy.DropReplies(t)
	require.Error(t, s.Flush(ctx))
	lost := s.Totals().Unknown
	require.Positive(t, lost)
	require.LessOrEqual(t, lost, int64(2*2500), "one part of each half")
	proxy.Restore(t)
	require.Eventually(t, func() bool { return client.Do(ctx, client.B().Ping().Build()).Error() == nil }, soon, tick, "it has connected anew")
	require.NoError(t, s.Flush(ctx))
	require.Equal(t, timeseries.Totals{Written: series - lost, Unknown: lost}, s.Totals())
	hour := timeseriesNow(t, s).Truncate(time.Hour)
	var counted int64
	for first := 0; first < series; first += 4000 {
		var names []string
		for i := first; i < first+4000; i++ {
			names = append(names, strconv.Itoa(i))
		}
		all, err := s.RangeMany(ctx, timeseries.Range{From: hour.Add(-time.Hour), To: hour.Add(time.Hour), Step: time.Hour}, names...)
		require.NoError(t, err)
		for _, one := range all {
			n := one.Points[0].Value + one.Points[1].Value
			require.LessOrEqual(t, n, int64(1))
			counted += n
		}
	}
	require.GreaterOrEqual(t, counted, series-lost)
}

// TestTimeseries_ALargeBatchIsWrittenWhole has more of everything than fits into a script, or into a part.
func TestTimeseries_ALargeBatchIsWrittenWhole(t *testing.T) {
	t.Parallel()
	redistest.EachTarget(t, func(t *testing.T, client rueidis.Client) {
		ctx := t.Context()
		s := newTimeseries(t, client, timeseries.Options{FlushEvery: time.Hour, TopSize: 3000, Resolutions: timeseriesHourly, Timeout: 20 * time.Second})
		hour := timeseriesNow(t, s).Truncate(time.Hour)
		const series, members = 2600, 2300
		var names []string
		for i := range series {
			name := strconv.Itoa(i)
			names = append(names, name)
			for h := range 2 {
				require.NoError(t, s.Counter(name).IncrAt(ctx, hour.Add(-time.Duration(h)*time.Hour), int64(i+1)))
			}
			require.NoError(t, s.Stats(name).ObserveAt(ctx, hour, float64(i)))
		}
		for i := range members {
			require.NoError(t, s.Distinct("all").AddAt(ctx, hour, "member "+strconv.Itoa(i)))
			require.NoError(t, s.Top("all").AddAt(ctx, hour, "member "+strconv.Itoa(i), int64(i+1)))
		}
		require.NoError(t, s.Flush(ctx))
		require.Equal(t, timeseries.Totals{Written: 3*series + 2*members}, s.Totals())
		all, err := s.RangeMany(ctx, timeseries.Range{From: hour.Add(-time.Hour), To: hour.Add(time.Hour), Step: time.Hour}, names...)
		require.NoError(t, err)
		for i, one := range all {
			require.Equal(t, []int64{int64(i + 1), int64(i + 1)}, []int64{one.Points[0].Value, one.Points[1].Value})
		}
		for i := 0; i < series; i += 100 {
			stats, err := s.Stats(names[i]).Sum(ctx, hour, hour.Add(time.Hour))
			require.NoError(t, err)
			require.Equal(t, []float64{1, float64(i)}, []float64{float64(stats.Count), stats.Sum})
		}
		top, err := s.Top("all").List(ctx, hour, hour.Add(time.Hour), members+1)
		require.NoError(t, err)
		require.Len(t, top.Ranked, members)
		for i, r := range top.Ranked {
			require.Equal(t, timeseries.Ranked{Member: "member " + strconv.Itoa(members-1-i), Count: int64(members - i)}, r)
		}
		distinct, err := s.Distinct("all").Count(ctx, hour, hour.Add(time.Hour))
		require.NoError(t, err)
		require.InEpsilon(t, members, distinct.Count, 0.02)
	})
}

func TestTimeseries_CloseDoesNotWaitForFlushEvery(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	var once sync.Once
	writing, closing := make(chan struct{}), make(chan struct{})
	s := newTimeseries(t, server.Client(t), timeseries.Options{FlushEvery: time.Hour, Hooks: timeseries.Hooks{
		Write: func(context.Context, timeseries.WriteInfo) { once.Do(func() { close(writing); <-closing }) },
	}})
	require.NoError(t, s.Counter("x").Incr(t.Context(), 1))
	fillUp(t, server, "1")
	go func() { _ = s.Flush(context.Background()) }()
	<-writing // what was refused will be kept
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- s.Close(ctx) }()
	require.Eventually(t, func() bool { return s.Counter("y").Incr(ctx, 1) != nil }, soon, tick)
	require.NoError(t, after(ctx, 50*time.Millisecond))
	close(closing)
	require.ErrorContains(t, <-done, "OOM")
	require.NoError(t, ctx.Err())
}

// TestTimeseries_FlushWaitsForWhatIsUnderWay has a round trip that somebody else's Flush began.
func TestTimeseries_FlushWaitsForWhatIsUnderWay(t *testing.T) {
	t.Parallel()
	writing, proceed := make(chan struct{}), make(chan struct{})
	s := newTimeseries(t, redistest.Shared(t).Client(t), timeseries.Options{FlushEvery: time.Hour, Hooks: timeseries.Hooks{
		Write: func(context.Context, timeseries.WriteInfo) { close(writing); <-proceed },
	}})
	require.NoError(t, s.Counter("x").Incr(t.Context(), 1))
	done := make(chan error, 2)
	flush := func() { done <- s.Flush(context.Background()) }
	go flush()
	<-writing
	go flush()
	require.NoError(t, after(t.Context(), 50*time.Millisecond))
	require.Empty(t, done)
	close(proceed)
	require.NoError(t, <-done)
	require.NoError(t, <-done)
}

// TestTimeseries_AForbiddenCommandLeavesNoKeyWithoutExpiry also has what a script does after a command was refused.
func TestTimeseries_AForbiddenCommandLeavesNoKeyWithoutExpiry(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	server := redistest.Start(t)
	admin := server.Client(t)
	for forbidden, wanted := range map[string]int64{"pexpireat": 0, "pttl": 0, "zpopmin": 4, "hdel": 5, "pfadd": 4, "zadd": 3, "hset": 4} {
		require.NoError(t, admin.Do(ctx, admin.B().Arbitrary("ACL", "SETUSER", forbidden, "on", ">pw", "~*", "&*", "+@all", "-"+forbidden).Build()).Error())
		prefix := redistest.Prefix(t)
		user := func(o *rueidis.ClientOption) { o.Username, o.Password = forbidden, "pw" }
		s := newTimeseries(t, server.Client(t, user), timeseries.Options{Prefix: prefix, TopSize: 1})
		var written int64
		for _, err := range []error{
			s.Counter("c").Incr(ctx, 1), s.Stats("s").Observe(ctx, 1), s.Distinct("d").Add(ctx, "m"), s.Top("t").Add(ctx, "m", 1), s.Top("t").Add(ctx, "m2", 1),
		} {
			if err == nil {
				written++
			}
		}
		require.Equal(t, wanted, written, forbidden)
		timeseriesKeys(t, admin, prefix, func(_ rueidis.Client, key string, ttl int64) { require.Positive(t, ttl, "%s: %s", forbidden, key) })
	}
	require.NoError(t, admin.Do(ctx, admin.B().Arbitrary("ACL", "SETUSER", "later", "on", ">pw", "~*", "&*", "+@all").Build()).Error())
	prefix := redistest.Prefix(t)
	s := newTimeseries(t, server.Client(t, func(o *rueidis.ClientOption) { o.Username, o.Password = "later", "pw" }), timeseries.Options{Prefix: prefix})
	timeseriesNow(t, s)
	require.NoError(t, admin.Do(ctx, admin.B().Arbitrary("ACL", "SETUSER", "later", "-pexpireat").Build()).Error())
	require.Error(t, s.Counter("c").Incr(ctx, 1))
	require.Error(t, s.Stats("s").Observe(ctx, 1))
	timeseriesKeys(t, admin, prefix, func(_ rueidis.Client, key string, _ int64) { require.True(t, strings.HasSuffix(key, ":layout"), key) })
}

// TestTimeseries_WhatFailsLeavesItsNeighbours has operations that fail before, between and after others of their script.
func TestTimeseries_WhatFailsLeavesItsNeighbours(t *testing.T) {
	t.Parallel()
	redistest.EachTarget(t, func(t *testing.T, client rueidis.Client) {
		ctx := t.Context()
		s := newTimeseries(t, client, timeseries.Options{FlushEvery: time.Hour})
		hour := timeseriesNow(t, s).Truncate(time.Hour)
		const series = 60
		var names []string
		for i := range series {
			names = append(names, strconv.Itoa(i))
		}
		at := func(i int) time.Time { return hour.Add(-time.Duration(i%3) * time.Hour) }
		for i := 0; i < series; i += 2 { // are full
			require.NoError(t, s.Counter(names[i]).IncrAt(ctx, at(i), math.MaxInt64))
			require.NoError(t, s.Stats(names[i]).ObserveAt(ctx, at(i), math.MaxFloat64))
		}
		require.NoError(t, s.Flush(ctx))
		for i, name := range names {
			require.NoError(t, s.Counter(name).IncrAt(ctx, at(i), int64(i+1)))
			require.NoError(t, s.Stats(name).ObserveAt(ctx, at(i), math.MaxFloat64/4*3))
			require.NoError(t, s.Distinct(name).AddAt(ctx, at(i), name))
			require.NoError(t, s.Top(name).AddAt(ctx, at(i), name, int64(i+1)))
		}
		require.ErrorIs(t, s.Flush(ctx), timeseries.ErrOverflow)
		require.Equal(t, timeseries.Totals{Written: series + series + 2*series, Refused: series}, s.Totals())
		for i, name := range names {
			from, to := at(i), at(i).Add(time.Hour)
			total, err := s.Counter(name).Sum(ctx, from, to)
			require.NoError(t, err)
			stats, err := s.Stats(name).Sum(ctx, from, to)
			require.NoError(t, err)
			require.EqualValues(t, 1, stats.Count)
			if i%2 == 0 {
				require.EqualValues(t, math.MaxInt64, total.Value)
				require.InEpsilon(t, math.MaxFloat64, stats.Sum, 1e-15)
			} else {
				require.EqualValues(t, i+1, total.Value)
				require.InEpsilon(t, math.MaxFloat64/4*3, stats.Sum, 1e-15)
			}
			distinct, err := s.Distinct(name).Count(ctx, from, to)
			require.NoError(t, err)
			require.EqualValues(t, 1, distinct.Count)
			top, err := s.Top(name).List(ctx, from, to, 3)
			require.NoError(t, err)
			require.Equal(t, []timeseries.Ranked{{Member: name, Count: int64(i + 1)}}, top.Ranked)
		}
	})
}

func TestTimeseries_AForeignBucketFailsAlone(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	client := redistest.Shared(t).Client(t)
	for _, junk := range []string{"bogus", "x 1 1 1", "1 x 1 1", "1 1 x 1", "b"} {
		prefix := redistest.Prefix(t)
		s := newTimeseries(t, client, timeseries.Options{Prefix: prefix, FlushEvery: time.Hour})
		at := timeseriesNow(t, s).Truncate(time.Hour).Add(-30 * time.Minute)
		require.NoError(t, s.Stats("bad").ObserveAt(ctx, at, 1))
		require.NoError(t, s.Flush(ctx))
		timeseriesKeys(t, client, prefix+":{test:bad}", func(node rueidis.Client, key string, _ int64) {
			fields, err := node.Do(ctx, node.B().Hkeys().Key(key).Build()).AsStrSlice()
			require.NoError(t, err)
			require.NoError(t, node.Do(ctx, node.B().Hset().Key(key).FieldValue().FieldValue(fields[0], junk).Build()).Error())
		})
		for i := range 40 { // some share the script
			require.NoError(t, s.Counter(strconv.Itoa(i)).IncrAt(ctx, at, 1))
		}
		require.NoError(t, s.Stats("bad").ObserveAt(ctx, at, 1))
		require.ErrorContains(t, s.Flush(ctx), "something else")
		require.Equal(t, timeseries.Totals{Written: 41, Refused: 1}, s.Totals())
	}
}

func TestTimeseries_ABrokenLayoutIsReplaced(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	for layout, want := range map[string]string{"": "120", "junk": "120", "0": "120", "-5": "120", "1": "120", "50.5": "120", "100000000000": "120", "16": "16"} {
		prefix := redistest.Prefix(t)
		require.NoError(t, set(t.Context(), client, prefix+":{test}:layout", layout))
		s := newTimeseries(t, client, timeseries.Options{Prefix: prefix})
		require.NoError(t, s.Counter("x").Incr(t.Context(), 1))
		got, err := get(t.Context(), client, prefix+":{test}:layout")
		require.NoError(t, err)
		require.Equal(t, want, got)

		// It lives as long as the chunks of those who keep them longest.
		short := newTimeseries(t, client, timeseries.Options{Prefix: prefix, Resolutions: timeseriesHourly})
		timeseriesNow(t, short)
		ttl, err := client.Do(t.Context(), client.B().Pttl().Key(prefix+":{test}:layout").Build()).AsInt64()
		require.NoError(t, err)
		require.Greater(t, ttl, (400 * 24 * time.Hour).Milliseconds())
	}
}

func TestTimeseries_BusyDoesNotEndDump(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	server := redistest.Start(t, "--busy-reply-threshold", "10")
	s := newTimeseries(t, server.Client(t), timeseries.Options{})
	now := timeseriesNow(t, s)
	r := timeseries.Range{From: now.Add(-time.Hour), To: now, Step: 10 * time.Second}
	require.NoError(t, s.Counter("x").Incr(ctx, 1))
	other, admin := server.Client(t), server.Client(t)
	go func() {
		_ = other.Do(context.Background(), other.B().Eval().Script("while true do end").Numkeys(0).Build()).Error() // until it is killed
	}()
	require.Eventually(t, func() bool {
		_, err := s.Counter("x").Range(ctx, r)
		return err != nil && strings.Contains(err.Error(), "BUSY")
	}, soon, tick)
	require.Eventually(t, func() bool {
		_ = admin.Do(ctx, admin.B().ScriptKill().Build()).Error() // once it runs
		_, err := s.Counter("x").Range(ctx, r)
		return err == nil
	}, soon, tick)
	counts := redistest.Commands(t, server, func() {
		_, err := s.Counter("x").Range(ctx, r)
		require.NoError(t, err)
	})
	require.Positive(t, counts["dump"])
	require.Zero(t, counts["hgetall"])
}

func TestTimeseries_ASeriesOverflowsAlone(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := newTimeseries(t, redistest.Shared(t).Client(t), timeseries.Options{})
	day := timeseriesNow(t, s).Truncate(24 * time.Hour).Add(-48 * time.Hour)
	for h, n := range []int64{math.MaxInt64, 5, -10} {
		require.NoError(t, s.Counter("fits").IncrAt(ctx, day.Add(time.Duration(h)*time.Hour), n))
		require.NoError(t, s.Counter("big").IncrAt(ctx, day.Add(time.Duration(h)*time.Hour), max(n, 1)))
	}
	total, err := s.Counter("fits").Sum(ctx, day, day.Add(24*time.Hour))
	require.NoError(t, err)
	require.EqualValues(t, math.MaxInt64-5, total.Value)
	_, err = s.Counter("big").Sum(ctx, day, day.Add(24*time.Hour))
	require.ErrorIs(t, err, timeseries.ErrOverflow)
	r := timeseries.Range{From: day, To: day.Add(24 * time.Hour), Calendar: timeseries.Day}
	all, err := s.RangeMany(ctx, r, "fits", "big")
	require.NoError(t, err)
	require.NoError(t, all[0].Err)
	require.EqualValues(t, math.MaxInt64-5, all[0].Points[0].Value)
	require.ErrorIs(t, all[1].Err, timeseries.ErrOverflow)
	require.Empty(t, all[1].Points)
	_, err = s.Counter("big").Range(ctx, r)
	require.ErrorIs(t, err, timeseries.ErrOverflow)

	seconds := newTimeseries(t, redistest.Shared(t).Client(t), timeseries.Options{
		FlushEvery: time.Hour, Resolutions: []timeseries.Resolution{{Step: time.Second, Keep: time.Hour}},
	})
	now := timeseriesNow(t, seconds)
	for i := range 1100 {
		require.NoError(t, seconds.Top("x").AddAt(ctx, now.Add(-time.Duration(i)*time.Second), "m", 1<<53))
	}
	require.NoError(t, seconds.Flush(ctx))
	list, err := seconds.Top("x").List(ctx, now.Add(-30*time.Minute), now.Add(time.Second), 1)
	require.NoError(t, err)
	require.EqualValues(t, math.MaxInt64, list.Ranked[0].Count)
}

func TestTimeseries_WhatIsTooLargeIsRefused(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	client := redistest.Shared(t).Client(t)
	s := newTimeseries(t, client, timeseries.Options{Resolutions: []timeseries.Resolution{{Step: time.Second, Keep: 365 * 24 * time.Hour}}})
	now := timeseriesNow(t, s)
	require.ErrorIs(t, s.Delete(ctx, "x", time.Time{}, time.Time{}), timeseries.ErrTooMany)
	ended, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	from := now.Add(-100 * time.Hour).Truncate(time.Second)
	require.ErrorIs(t, s.Delete(ended, "x", from, from.Add(100*time.Hour)), context.DeadlineExceeded)
	s = newTimeseries(t, client, timeseries.Options{})
	for _, r := range []timeseries.Range{
		{From: time.Unix(-1<<62, 0), To: time.Unix(1<<62, 0), Step: 10 * time.Second},
		{From: time.Unix(-1<<62, 0), To: time.Unix(1<<62, 0)},
		{From: time.Time{}, To: time.Unix(1<<62, 0)},
		{From: time.Time{}, To: now, MaxPoints: 1},
	} {
		_, err := s.Counter("x").Range(ctx, r)
		require.Error(t, err)
	}
	_, err := s.Counter("x").Sum(ctx, time.Unix(math.MinInt64, 0), time.Unix(math.MaxInt64, 0))
	require.ErrorContains(t, err, "million years")
}

// TestTimeseries_AWriteWaitsForASlotThatMoves writes while a key has moved and its neighbours have not.
func TestTimeseries_AWriteWaitsForASlotThatMoves(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	cluster := redistest.StartCluster(t, 0)
	client := cluster.Client(t)
	opts := timeseries.Options{Prefix: redistest.Prefix(t)}
	s := newTimeseries(t, client, opts)
	x := s.Counter("x")
	now := timeseriesNow(t, s)
	require.NoError(t, x.IncrAt(ctx, now, 1))
	slot, err := client.Do(ctx, client.B().ClusterKeyslot().Key("{test:x}").Build()).AsInt64()
	require.NoError(t, err)
	sl := strconv.FormatInt(slot, 10)
	node := func(addr string, args ...string) rueidis.RedisResult {
		c := client.Nodes()[addr]
		return c.Do(ctx, c.B().Arbitrary(args...).Build())
	}
	var source, target, sourceID, targetID string
	for _, addr := range cluster.Addrs() {
		id, err := node(addr, "CLUSTER", "MYID").ToString()
		require.NoError(t, err)
		if n, err := node(addr, "CLUSTER", "COUNTKEYSINSLOT", sl).AsInt64(); err == nil && n > 0 {
			source, sourceID = addr, id
		} else {
			target, targetID = addr, id
		}
	}
	require.NoError(t, node(target, "CLUSTER", "SETSLOT", sl, "IMPORTING", sourceID).Error())
	require.NoError(t, node(source, "CLUSTER", "SETSLOT", sl, "MIGRATING", targetID).Error())
	keys, err := node(source, "CLUSTER", "GETKEYSINSLOT", sl, "100").AsStrSlice()
	require.NoError(t, err)
	require.Len(t, keys, 3)
	host, port, _ := strings.Cut(target, ":")
	move := func(key string) { require.NoError(t, node(source, "MIGRATE", host, port, key, "0", "5000").Error()) }
	move(keys[0])
	gathering := newTimeseries(t, client, timeseries.Options{Prefix: opts.Prefix, FlushEvery: time.Hour})
	var others []string // some of which wait together with it
	for i := range 2000 {
		if name := "other" + strconv.Itoa(i); slotOf(client, "{test:"+name+"}") != uint16(slot) {
			others = append(others, name)
			require.NoError(t, gathering.Counter(name).IncrAt(ctx, now, 1))
		}
	}
	require.NoError(t, gathering.Counter("x").IncrAt(ctx, now, 1))
	done := make(chan error, 2)
	go func() { done <- x.IncrAt(ctx, now, 1) }()
	go func() { done <- gathering.Flush(ctx) }()
	require.NoError(t, after(ctx, 50*time.Millisecond))
	require.Empty(t, done, "it waits")
	move(keys[1])
	move(keys[2])
	require.NoError(t, <-done)
	require.NoError(t, <-done)
	for _, addr := range []string{target, source} {
		require.NoError(t, node(addr, "CLUSTER", "SETSLOT", sl, "NODE", targetID).Error())
	}
	require.EqualValues(t, 3, timeseriesSum(t, s, "x"))
	for _, name := range others {
		require.EqualValues(t, 1, timeseriesSum(t, s, name), "what was done is not sent again")
	}
}

func TestTimeseries_ExportCountsWholeWindows(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := newTimeseries(t, redistest.Shared(t).Client(t), timeseries.Options{})
	for _, window := range []time.Duration{time.Hour, 70 * time.Second, 7 * time.Minute, 7 * 24 * time.Hour} {
		series, w := window.String(), int64(window/time.Second)
		handler, err := export.New(s, export.Options{Series: export.List(series, series, "big"), Window: window})
		require.NoError(t, err)
		end := timeseriesNow(t, s).Add(-s.Delay()).Unix() / w * w
		for _, at := range []int64{end - 2*w + w/2, end - w + w/2, end} { // in each of the last whole window, that before, and what runs
			require.NoError(t, s.Counter(series).IncrAt(ctx, time.Unix(at, 0), 1))
		}
		rec := httptest.NewRecorder()
		handler.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/metrics", nil))
		m := regexp.MustCompile(`(?m)\{series="`+series+`"\} (\d+) (\d+)$`).FindAllStringSubmatch(rec.Body.String(), -1)
		require.Len(t, m, 1, rec.Body.String())
		require.Equal(t, "1", m[0][1])
		if again := timeseriesNow(t, s).Add(-s.Delay()).Unix() / w * w; again == end {
			require.Equal(t, strconv.FormatInt(end, 10), m[0][2])
		}
	}

	// A query has each series once, and fewer points of each the more there are; one that overflows has none.
	day := timeseriesNow(t, s).Truncate(24 * time.Hour).Add(-48 * time.Hour)
	names := []string{"big", "good"}
	for h := range 2 {
		require.NoError(t, s.Counter("big").IncrAt(ctx, day.Add(time.Duration(h)*time.Hour), math.MaxInt64))
		require.NoError(t, s.Counter("good").IncrAt(ctx, day.Add(time.Duration(h)*time.Hour), 1))
	}
	targets := []string{`{"target": "big"}`, `{"target": "good"}`, `{"target": "good"}`}
	for i := range 90 {
		names = append(names, strconv.Itoa(i))
		targets = append(targets, fmt.Sprintf(`{"target": "%d"}`, i))
	}
	handler, err := export.New(s, export.Options{Series: export.List(names...), MaxPoints: 100_000})
	require.NoError(t, err)
	ask := func(from, to time.Time, most int, targets []string) (answers []struct {
		Target     string
		Datapoints [][2]int64
	},
	) {
		rec := httptest.NewRecorder()
		body := fmt.Sprintf(`{"range": {"from": %q, "to": %q}, "maxDataPoints": %d, "targets": [%s]}`,
			from.Format(time.RFC3339), to.Format(time.RFC3339), most, strings.Join(targets, ","))
		handler.ServeHTTP(rec, httptest.NewRequest(http.MethodPost, "/query", strings.NewReader(body)))
		require.NoError(t, json.Unmarshal(rec.Body.Bytes(), &answers), rec.Body.String())
		return answers
	}
	answers := ask(day, day.Add(24*time.Hour), 1, targets[:3])
	require.Len(t, answers, 2)
	require.Empty(t, answers[0].Datapoints)
	require.Equal(t, [][2]int64{{2, day.UnixMilli()}}, answers[1].Datapoints)
	answers = ask(day.Add(-24*time.Hour), day.Add(48*time.Hour), 0, targets)
	require.Len(t, answers, 92)
	require.LessOrEqual(t, len(answers[0].Datapoints)+91*len(answers[1].Datapoints), 200_000)
}

// TestTimeseries_ExportRefusesWindowsThatWouldBeSummedWrongly has a clock that walks past the borders at which small
// buckets are kept no more: each window that New takes is counted as the model does all the time, and none is that is
// sometimes made of others.
func TestTimeseries_ExportRefusesWindowsThatWouldBeSummedWrongly(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	var now time.Time
	s := newTimeseries(t, redistest.Shared(t).Client(t), timeseries.Options{
		FlushEvery: 70 * time.Second, Timeout: 5 * time.Second, MaxFuture: time.Hour, Clock: func() time.Time { return now },
		Resolutions: []timeseries.Resolution{{Step: 10 * time.Second, Keep: 200 * time.Second}, {Step: time.Minute, Keep: 24 * time.Hour}},
	})
	require.Equal(t, 80*time.Second, s.Delay())
	base := time.Now().Truncate(time.Minute)
	now = base
	count := func(at time.Time) int64 { return at.Unix() / 10 % 7 }
	for at := base.Add(-20 * time.Minute); at.Before(base.Add(10 * time.Minute)); at = at.Add(10 * time.Second) {
		require.NoError(t, s.Counter("x").IncrAt(ctx, at, count(at)))
	}
	require.NoError(t, s.Flush(ctx))
	sample := regexp.MustCompile(`(?m)\{series="x"\} (\d+) (\d+)$`)
	for window := 10 * time.Second; window <= 5*time.Minute; window += 10 * time.Second {
		good := window <= 30*time.Second || window%time.Minute == 0
		handler, err := export.New(s, export.Options{Series: export.List("x"), Window: window})
		if !good {
			require.ErrorContains(t, err, "Options.Window", "%v", window)
		} else {
			require.NoError(t, err, "%v", window)
		}
		wrong := 0
		for now = base; now.Before(base.Add(10 * time.Minute)); now = now.Add(7 * time.Second) {
			end := time.Unix(now.Add(-s.Delay()).Unix()/int64(window/time.Second)*int64(window/time.Second), 0)
			if !good {
				series, err := s.RangeMany(ctx, timeseries.Range{From: end.Add(-window), To: end, Step: window}, "x")
				require.NoError(t, err)
				if len(series[0].Points) != 1 || series[0].Step != window {
					wrong++
				}
				continue
			}
			var want int64
			for at := end.Add(-window); at.Before(end); at = at.Add(10 * time.Second) {
				want += count(at)
			}
			rec := httptest.NewRecorder()
			handler.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/metrics", nil))
			m := sample.FindStringSubmatch(rec.Body.String())
			require.NotNil(t, m, rec.Body.String())
			require.Equal(t, []string{strconv.FormatInt(want, 10), strconv.FormatInt(end.Unix(), 10)}, m[1:], "%v at %v", window, now)
		}
		if !good && window != 40*time.Second { // which would just do, at the edge of what is documented
			require.Positive(t, wrong, "%v", window)
		}
	}
}
