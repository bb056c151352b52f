package timeseries

import (
	"context"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	_ "time/tzdata" // the tests' own: users bring theirs

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"
)

// fakeClient is one that must not be used.
type fakeClient struct{ rueidis.Client }

func (fakeClient) Mode() rueidis.ClientMode { return rueidis.ClientModeStandalone }

func TestNew_ChecksItsArguments(t *testing.T) {
	t.Parallel()
	resolutions := func(steps ...time.Duration) Options {
		var o Options
		for i := 0; i < len(steps); i += 2 {
			o.Resolutions = append(o.Resolutions, Resolution{steps[i], steps[i+1]})
		}
		return o
	}
	s, m, h := time.Second, time.Minute, time.Hour
	for _, bad := range []struct {
		name  string
		opts  Options
		field string
	}{
		{"", Options{}, "name"},
		{"a:b", Options{}, "name"},
		{"a{", Options{}, "name"},
		{strings.Repeat("a", 65), Options{}, "name"},
		{"a", Options{Prefix: "{"}, "Options.Prefix"},
		{"a", Options{MaxPending: 10}, "Options.MaxPending"},
		{"a", Options{TopSize: -1}, "Options.TopSize"},
		{"a", Options{TopSize: 10_001}, "Options.TopSize"},
		{"a", Options{FlushEvery: time.Microsecond}, "Options.FlushEvery"},
		{"a", Options{FlushEvery: -h}, "Options.FlushEvery"},
		{"a", Options{MaxLate: -1}, "Options.MaxLate"},
		{"a", Options{MaxFuture: time.Millisecond}, "Options.MaxFuture"},
		{"a", Options{MaxFuture: 25 * h}, "Options.MaxFuture"},
		{"a", Options{Timeout: 1}, "Options.Timeout"},
		{"a", resolutions(time.Millisecond, h), "Options.Resolutions: "},
		{"a", resolutions(48*h, 480*h), "Options.Resolutions: "},
		{"a", resolutions(1500*time.Millisecond, h), "Options.Resolutions: "},
		{"a", resolutions(m, s), "Options.Resolutions: the Keep"},
		{"a", resolutions(m, math.MaxInt64), "Options.Resolutions: the Keep"},
		{"a", resolutions(m, h, m, h), "Options.Resolutions: "},
		{"a", resolutions(7*s, h, m, h), "Options.Resolutions: "},
		{"a", resolutions(s, h, m, m), "Options.Resolutions: the Keep"},
		{"a", resolutions(s, s, m, h), "Options.Resolutions: the Keep"},
		{"a", Options{Resolutions: make([]Resolution, 9)}, "Options.Resolutions"},
	} {
		_, err := New(fakeClient{}, bad.name, bad.opts)
		require.ErrorContains(t, err, "timeseries: "+bad.field, "%+v", bad)
	}
	_, err := New(nil, "a", Options{})
	require.ErrorContains(t, err, "client")
	_, err = New(fakeClient{}, "a", Options{})
	require.NoError(t, err)
}

func TestWrite_ChecksItsArguments(t *testing.T) {
	t.Parallel()
	s, err := New(fakeClient{}, "a", Options{})
	require.NoError(t, err)
	ctx := t.Context()
	long := strings.Repeat("x", 1025)
	for _, v := range []float64{math.NaN(), math.Inf(1), math.Inf(-1)} {
		require.ErrorContains(t, s.Stats("x").Observe(ctx, v), "not finite")
	}
	require.ErrorContains(t, s.Counter(long).Incr(ctx, 1), "series")
	require.ErrorIs(t, s.Counter("x").Incr(ctx, math.MinInt64), ErrOverflow)
	require.ErrorContains(t, s.Distinct("x").Add(ctx, long), "member")
	require.ErrorContains(t, s.Distinct("x").Add(ctx, make([]string, 1001)...), "members")
	require.NoError(t, s.Distinct("x").Add(ctx))
	require.ErrorContains(t, s.Top("x").Add(ctx, long, 1), "member")
	require.ErrorContains(t, s.Top("x").Add(ctx, "m", 0), "n must be")
	require.ErrorContains(t, s.Top("x").Add(ctx, "m", 1<<53+1), "n must be")
	_, err = s.Top("x").List(ctx, time.Time{}, time.Time{}, 0)
	require.ErrorContains(t, err, "k must be")
	ended, cancel := context.WithCancel(ctx)
	cancel()
	require.ErrorIs(t, s.Counter("x").Incr(ended, 1), context.Canceled)
	_, err = s.Counter(long).Sum(ctx, time.Time{}, time.Time{})
	require.ErrorContains(t, err, "series")
	for field, r := range map[string]Range{
		"MaxPoints": {MaxPoints: -1, To: time.Now()}, "To": {}, "Calendar": {To: time.Now(), Calendar: 5}, "both": {To: time.Now(), Calendar: Day, Step: time.Hour},
		"Step": {To: time.Now(), Step: time.Millisecond}, "Fill": {To: time.Now(), Fill: 9},
	} {
		_, err := s.Counter("x").Range(ctx, r)
		require.ErrorContains(t, err, field)
		_, err = s.Stats("x").Range(ctx, r)
		require.ErrorContains(t, err, field)
	}
}

// TestReads_WhatIsTooMuchCostsNothing asks for a century in seconds: what is refused is not walked through first.
func TestReads_WhatIsTooMuchCostsNothing(t *testing.T) {
	t.Parallel()
	s, err := New(fakeClient{}, "a", Options{
		Clock:       func() time.Time { return time.Date(2069, 1, 1, 0, 0, 0, 0, time.UTC) },
		Resolutions: []Resolution{{time.Second, maxKeep}},
	})
	require.NoError(t, err)
	s.clock.buckets.Store(chunkBuckets)
	s.clock.opened.Store(1)
	s.clock.renew.Store(math.MaxInt64)
	ctx := t.Context()
	from, to := time.Unix(1, 0), time.Date(2068, 12, 31, 23, 59, 59, 0, time.UTC)
	many := make([]string, 20_001)
	for name, ask := range map[string]func() error{
		"sum":    func() error { _, err := s.Counter("x").Sum(ctx, from, to); return err },
		"stats":  func() error { _, err := s.Stats("x").Sum(ctx, from, to); return err },
		"count":  func() error { _, err := s.Distinct("x").Count(ctx, from, to); return err },
		"union":  func() error { _, err := s.Distinct("x").Union(ctx, to.Add(-time.Hour), to, many...); return err },
		"list":   func() error { _, err := s.Top("x").List(ctx, from, to, 3); return err },
		"delete": func() error { return s.Delete(ctx, "x", from.Truncate(time.Minute), to.Truncate(time.Minute)) },
		"step": func() error {
			_, err := s.Counter("x").Range(ctx, Range{From: from, To: to, Step: time.Second})
			return err
		},
		"wide step": func() error {
			_, err := s.Stats("x").Range(ctx, Range{From: from, To: to, Step: 1000 * time.Hour})
			return err
		},
		"days": func() error {
			_, err := s.Counter("x").Range(ctx, Range{From: from, To: to, Calendar: Day})
			return err
		},
		"years": func() error {
			_, err := s.Counter("x").Range(ctx, Range{From: from, To: to, Calendar: Year})
			return err
		},
		"keys of many": func() error {
			_, err := s.RangeMany(ctx, Range{From: to.Add(-time.Hour), To: to, Step: time.Hour}, many...)
			return err
		},
		"points of many": func() error {
			_, err := s.RangeMany(ctx, Range{From: time.Unix(0, 0).AddDate(-100, 0, 0), To: time.Unix(0, 0).AddDate(-90, 0, 0), Step: 24 * time.Hour}, many...)
			return err
		},
	} {
		began := time.Now()
		require.ErrorIs(t, ask(), ErrTooMany, name)
		require.Less(t, time.Since(began), 2*time.Second, name) // milliseconds, on a machine that does nothing else
	}
}

// storeWithoutRedis returns a store that has learnt from Redis what it asks for, and gathers.
func storeWithoutRedis(t *testing.T) *Store {
	t.Helper()
	s, err := New(fakeClient{}, "a", Options{FlushEvery: time.Hour, Clock: func() time.Time { return time.Unix(1e9, 0) }})
	require.NoError(t, err)
	s.clock.buckets.Store(chunkBuckets)
	s.clock.opened.Store(1)
	s.clock.renew.Store(math.MaxInt64)
	return s
}

// TestLane_CountsEachOfMany counts in few buckets from several goroutines, while batches are taken away to be written.
func TestLane_CountsEachOfMany(t *testing.T) {
	t.Parallel()
	s := storeWithoutRedis(t)
	for i := range s.lanes {
		s.lanes[i].sending = true // by this test
	}
	const workers, events = 8, 50_000
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range events {
				n := int64(i%3 - 1)
				if i%1000 == w { // twice as large would overflow: it becomes an op of its own
					n = math.MaxInt64 / 2
				}
				if err := s.Counter("x").IncrAt(t.Context(), time.Unix(1e9-int64(i%4*10), 0), n); err != nil {
					panic(err)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	var sum wide
	var counted int64
	for ended := false; !ended; {
		select {
		case <-done:
			ended = true
		default:
		}
		for i := range s.lanes {
			l := &s.lanes[i]
			l.mu.Lock()
			b := l.next
			l.next = nil
			l.mu.Unlock()
			if b == nil {
				continue
			}
			for _, o := range b.list {
				sum.add(o.n.Load())
				counted += o.events.Load()
			}
		}
	}
	require.EqualValues(t, workers*events, counted)
	var want wide
	for w := range workers {
		for i := range events {
			if i%1000 == w {
				want.add(math.MaxInt64 / 2)
			} else {
				want.add(int64(i%3 - 1))
			}
		}
	}
	require.Equal(t, want, sum)
}

// TestLane_KeepsWhatRedisHasNotTaken merges what could not be written into what has come meanwhile.
func TestLane_KeepsWhatRedisHasNotTaken(t *testing.T) {
	t.Parallel()
	s := storeWithoutRedis(t)
	s.lanes = s.lanes[:1]
	l := &s.lanes[0]
	l.sending = true // by this test
	ctx := t.Context()
	add := func(series string, n int64) {
		require.NoError(t, s.Counter(series).Incr(ctx, n))
		require.NoError(t, s.Stats(series).Observe(ctx, float64(n)))
		require.NoError(t, s.Distinct(series).Add(ctx, strconv.FormatInt(n, 10), "both"))
		require.NoError(t, s.Top(series).Add(ctx, "both", n))
	}
	add("x", 3)
	add("y", 4)
	require.NoError(t, s.Counter("full").Incr(ctx, math.MaxInt64))
	taken := l.next
	l.next = nil
	add("x", 5)
	require.NoError(t, s.Counter("full").Incr(ctx, 2))
	for _, o := range taken.list {
		o.again, o.err = true, errReply
	}
	l.keep(taken)
	got := map[opKey][]*op{}
	for _, o := range l.next.list {
		require.NoError(t, o.err)
		got[o.opKey] = append(got[o.opKey], o)
	}
	require.Len(t, got, 9)
	one := func(series string, kind byte) *op {
		ops := got[opKey{series, 1e9, kind}]
		require.Len(t, ops, 1)
		return ops[0]
	}
	for series, want := range map[string]struct {
		n, events int64
		stats     cell
		distinct  map[string]int64
	}{
		"x": {8, 2, cell{2, 8, 3, 5}, map[string]int64{"3": 1, "5": 1, "both": 1}},
		"y": {4, 1, cell{1, 4, 4, 4}, map[string]int64{"4": 1, "both": 1}},
	} {
		require.Equal(t, want.n, one(series, kindCounter).n.Load())
		require.Equal(t, want.stats, one(series, kindStats).stats)
		for m := range want.distinct {
			require.Contains(t, one(series, kindDistinct).members, m)
		}
		require.Len(t, one(series, kindDistinct).members, len(want.distinct))
		require.Equal(t, map[string]int64{"both": want.n}, one(series, kindTop).members)
		for _, kind := range []byte{kindCounter, kindStats, kindDistinct, kindTop} {
			require.Equal(t, want.events, one(series, kind).events.Load())
		}
	}
	var sum wide
	for _, o := range got[opKey{"full", 1e9, kindCounter}] { // it would overflow
		sum.add(o.n.Load())
	}
	var want wide
	want.add(math.MaxInt64)
	want.add(2)
	require.Equal(t, want, sum)
	require.Equal(t, s.pending.Load(), int64(l.next.size))
	for _, o := range taken.list {
		require.Error(t, o.err, "who waits for it is told")
	}
}

func TestKeys_DoNotCollide(t *testing.T) {
	t.Parallel()
	seen := map[string]string{}
	for _, prefix := range []string{"p", "p:a"} {
		for _, name := range []string{"a", "%", "a b"} {
			k := keyspace{prefix, name, 100}
			note := func(key, what string) {
				require.Empty(t, seen[key], "%s is of %s", key, what)
				seen[key] = what
			}
			note(k.layout(), prefix+name)
			for _, series := range []string{"", "}", "%", "}:c10x120:1", "a}:c1", "{", ":layout", "a"} {
				for _, kind := range []byte{kindCounter, kindStats, kindDistinct, kindTop} {
					for _, step := range []int64{1, 10} {
						for _, width := range []int64{120, 12} {
							if !hasChunks(kind) && width == 12 {
								continue
							}
							for n := range int64(3) {
								note(at(k.base(kind, series, step, width), n), prefix+name+series)
							}
						}
					}
				}
			}
		}
	}
}

var testLevels = []levels{
	{{10, 6 * 3600}, {60, 7 * 86400}, {3600, 400 * 86400}},
	{{1, 60}, {10, 600}, {60, 3600}},
	{{1, 60}, {60, 60}, {3600, 3600}},
	{{5, 100}},
	{{1, 10}, {2, 11}, {6, 11}, {12, 100}, {24, 101}},
	{{60, 86400}, {900, 86400}},
}

func TestLevels_CoverIsWhatItSaysAndKept(t *testing.T) {
	t.Parallel()
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 1))
		ls := testLevels[r.IntN(len(testLevels))]
		top := ls[len(ls)-1]
		now := 1_700_000_000 + r.Int64N(10_000)
		age := func() int64 { // near a border of some level's retention, or anywhere
			l := ls[r.IntN(len(ls))]
			if r.IntN(2) == 0 {
				return l.keep + r.Int64N(6*l.step+1) - 3*l.step
			}
			return r.Int64N(min(2*l.keep, top.step*300)) - 2*l.step
		}
		a, b := now-age(), now-age()
		if b < a {
			a, b = b, a
		}
		mid := a + r.Int64N(b-a+1)
		from, to := ls.snap(a, now), ls.snap(b, now)
		require.LessOrEqual(t, from, ls.snap(mid, now))
		require.LessOrEqual(t, ls.snap(mid, now), to)
		require.GreaterOrEqual(t, from, a)
		require.Equal(t, from, ls.snap(from, now), "what is snapped stays")
		if f := ls.finest(a, now); f >= 0 {
			require.Less(t, from-a, ls[f].step)
		} else {
			require.Equal(t, ls.horizon(now), from)
		}
		at, rows := from, 0
		require.NoError(t, ls.cover(from, to, now, func(level int, start, end int64) error {
			l := ls[level]
			// What Redis keeps: the key of a chunk lives at least until its last bucket's end, Keep and a step.
			if start != at || start%l.step != 0 || end <= start || end%l.step != 0 || l.expires(start+l.step) <= now+l.step-1 {
				require.Fail(t, "gap, overlap or gone", "seed %d: level %d start %d at %d now %d", seed, level, start, at, now)
			}
			for coarser := level + 1; coarser < len(ls); coarser++ {
				if c := ls[coarser].step; start%c == 0 && start+c <= to && ls[coarser].kept(start, now) || floor(end-1, c) != floor(start, c) {
					require.Fail(t, "too fine", "seed %d: level %d from %d to %d", seed, level, start, end)
				}
			}
			at = end
			rows++
			return nil
		}))
		require.Equal(t, max(from, to), at)
		require.LessOrEqual(t, rows, 2*len(ls))
	}
}

// TestRequests_AskForEachSecondOnce has charts of equal and of random points.
func TestRequests_AskForEachSecondOnce(t *testing.T) {
	t.Parallel()
	for seed := range uint64(100) {
		r := rand.New(rand.NewPCG(seed, 3))
		s := &Store{levels: testLevels[r.IntN(len(testLevels))], opts: Options{MaxFuture: time.Minute}}
		now, buckets := 1_700_000_000+r.Int64N(10_000), []int64{16, 50, 120}[r.IntN(3)]
		l := s.levels[r.IntN(len(s.levels))]
		bounds := []int64{s.levels.snap(now-r.Int64N(2*l.keep), now)}
		if r.IntN(2) == 0 {
			bounds[0] = floor(bounds[0], l.step)
		}
		for int64(len(bounds)) < 4+10_000/l.step {
			next := bounds[len(bounds)-1] + l.step
			if r.IntN(10) == 0 {
				next += r.Int64N(3 * l.step)
			}
			bounds = append(bounds, s.levels.snap(next, now))
		}
		bounds[0] = s.levels.snap(bounds[0], now)
		reqs, err := s.requests(bounds, now, buckets, maxKeys)
		require.NoError(t, err)
		points := map[int64]int{} // of each second
		for _, q := range reqs {
			step, wanted := s.levels[q.level].step, 0
			require.Len(t, q.targets, int(buckets))
			for i, target := range q.targets {
				if target == 0 {
					continue
				}
				wanted++
				for second := range step {
					at := (q.chunk*buckets+int64(i))*step + second
					if points[at] != 0 {
						require.Fail(t, "read twice", "seed %d: %d", seed, at)
					}
					points[at] = int(target)
				}
			}
			require.Equal(t, wanted, q.wanted)
			require.Positive(t, wanted)
		}
		last := min(bounds[len(bounds)-1], s.limit(now))
		require.Len(t, points, int(max(0, last-bounds[0])), "seed %d", seed)
		for i := range len(bounds) - 1 {
			for at := bounds[i]; at < min(bounds[i+1], last); at++ {
				if points[at] != i+1 {
					require.Equal(t, i+1, points[at], "seed %d: %d", seed, at)
				}
			}
		}
		if len(reqs) > 1 {
			_, err = s.requests(bounds, now, buckets, len(reqs)-1)
			require.ErrorIs(t, err, ErrTooMany)
		}
	}
}

func TestLevels_PrefersLargeBuckets(t *testing.T) {
	t.Parallel()
	ls := testLevels[0]
	now := int64(1_700_000_000)
	midnight := floor(now, 86400)
	to := ls.snap(now, now)
	count := map[int]int{}
	require.NoError(t, ls.cover(midnight, to, now, func(level int, start, end int64) error {
		count[level] += int((end - start) / ls[level].step)
		return nil
	}))
	require.Equal(t, map[int]int{0: 2, 1: 13, 2: 22}, count, "22:13:20")
}

func TestCalendar_IsRightThroughChangesOfClocks(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		zone, at string
		unit     Calendar
		from, to string
	}{
		{"Europe/Berlin", "2026-03-29T12:00:00Z", Day, "2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z"}, // 23 hours
		{"Europe/Berlin", "2026-10-25T12:00:00Z", Day, "2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"}, // 25 hours
		{"Europe/Berlin", "2026-10-25T12:00:00Z", Week, "2026-10-18T22:00:00Z", "2026-10-25T23:00:00Z"},
		{"Europe/Berlin", "2026-03-29T12:00:00Z", Month, "2026-02-28T23:00:00Z", "2026-03-31T22:00:00Z"},
		{"Europe/Berlin", "2026-12-31T23:30:00Z", Year, "2026-12-31T23:00:00Z", "2027-12-31T23:00:00Z"},
		{"America/New_York", "2026-03-08T12:00:00Z", Day, "2026-03-08T05:00:00Z", "2026-03-09T04:00:00Z"},
		{"America/New_York", "2026-11-01T12:00:00Z", Day, "2026-11-01T04:00:00Z", "2026-11-02T05:00:00Z"},
		{"Australia/Lord_Howe", "2026-04-05T00:00:00Z", Day, "2026-04-04T13:00:00Z", "2026-04-05T13:30:00Z"}, // 24.5 hours
		{"Australia/Lord_Howe", "2026-10-04T00:00:00Z", Day, "2026-10-03T13:30:00Z", "2026-10-04T13:00:00Z"}, // 23.5 hours
		{"Asia/Kathmandu", "2026-06-01T12:00:00Z", Day, "2026-05-31T18:15:00Z", "2026-06-01T18:15:00Z"},
		{"Pacific/Apia", "2011-12-30T09:59:59Z", Day, "2011-12-29T10:00:00Z", "2011-12-30T10:00:00Z"}, // 30 December was skipped
		{"Pacific/Apia", "2011-12-30T10:00:00Z", Day, "2011-12-30T10:00:00Z", "2011-12-31T10:00:00Z"},
		{"Pacific/Apia", "2011-12-30T10:00:00Z", Week, "2011-12-26T10:00:00Z", "2012-01-01T10:00:00Z"}, // six days
		{"Africa/Casablanca", "2026-02-15T12:00:00Z", Day, "2026-02-14T23:00:00Z", "2026-02-16T00:00:00Z"},
		{"Africa/Casablanca", "2026-03-22T12:00:00Z", Day, "2026-03-22T00:00:00Z", "2026-03-22T23:00:00Z"},
		{"America/Havana", "2026-03-08T12:00:00Z", Day, "2026-03-08T05:00:00Z", "2026-03-09T04:00:00Z"},   // midnight is skipped
		{"America/Havana", "2026-11-01T05:30:00Z", Day, "2026-11-01T04:00:00Z", "2026-11-02T05:00:00Z"},   // midnight comes twice
		{"America/St_Johns", "2006-10-29T03:00:00Z", Day, "2006-10-29T02:30:00Z", "2006-10-30T03:30:00Z"}, // back to the day before, at 00:01
	} {
		loc, err := time.LoadLocation(c.zone)
		require.NoError(t, err)
		parse := func(s string) time.Time {
			v, err := time.Parse(time.RFC3339, s)
			require.NoError(t, err)
			return v
		}
		from, to := period(parse(c.at), c.unit, loc)
		require.Equal(t, c.from, from.UTC().Format(time.RFC3339), "%+v", c)
		require.Equal(t, c.to, to.UTC().Format(time.RFC3339), "%+v", c)
	}
}

// TestCalendar_UnitsFollowOneAnother walks through years in many zones: units have no gap, and begin at midnight where there
// is one.
func TestCalendar_UnitsFollowOneAnother(t *testing.T) {
	t.Parallel()
	for _, zone := range []string{
		"UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "Pacific/Apia", "Africa/Casablanca", "America/Havana",
		"America/St_Johns", "Asia/Beirut", "America/Sao_Paulo", "Asia/Tehran", "Pacific/Kwajalein", "Antarctica/Troll", "America/Scoresbysund", "Asia/Gaza",
	} {
		loc, err := time.LoadLocation(zone)
		require.NoError(t, err)
		for unit := Day; unit <= Year; unit++ {
			longest := [...]time.Duration{Day: 26 * time.Hour, Week: 8 * 24 * time.Hour, Month: 32 * 24 * time.Hour, Year: 367 * 24 * time.Hour}[unit]
			first, last := 2000, 2028
			if unit == Day {
				first, last = 2010, 2013
			}
			start, next := period(time.Date(first, 1, 1, 12, 0, 0, 0, time.UTC), unit, loc)
			for start.Year() < last {
				if !next.After(start) || next.Sub(start) > longest {
					require.Fail(t, "too short or long", "%s: %v to %v", zone, start, next)
				}
				for _, inside := range []time.Time{start, next.Add(-time.Second)} {
					if a, b := period(inside, unit, loc); !a.Equal(start) || !b.Equal(next) {
						require.Fail(t, "gap or overlap", "%s: %v is in %v to %v, not %v to %v", zone, inside, a, b, start, next)
					}
				}
				local := next.In(loc)
				if local.Hour() != 0 || local.Minute() != 0 || local.Second() != 0 {
					_, before := local.Add(-time.Nanosecond).Zone()
					_, after := local.Zone()
					require.Greater(t, after, before, "%s: %v is no midnight, and clocks were not set forward", zone, local)
				}
				if unit == Week && local.Weekday() != time.Monday {
					require.Fail(t, "no Monday", "%s: %v", zone, local)
				}
				start = next
				_, next = period(start, unit, loc)
			}
		}
	}
}

func newFrame(points int, now int64) *frame {
	f := &frame{at: time.Unix(now, 0), loc: time.UTC}
	for i := range points + 1 {
		f.bounds = append(f.bounds, int64(i)*10)
	}
	f.kept = f.bounds
	return f
}

func TestFill_InAllModes(t *testing.T) {
	t.Parallel()
	const null = math.MinInt64
	for _, c := range []struct {
		name                   string
		known                  map[int]int64
		previous, linear, zero []int64
	}{
		{"empty", nil, []int64{null, null, null, null, null}, []int64{null, null, null, null, null}, []int64{0, 0, 0, 0, 0}},
		{"first only", map[int]int64{0: 8}, []int64{8, 8, 8, 8, 8}, []int64{8, null, null, null, null}, []int64{8, 0, 0, 0, 0}},
		{"last only", map[int]int64{4: 8}, []int64{null, null, null, null, 8}, []int64{null, null, null, null, 8}, []int64{0, 0, 0, 0, 8}},
		{"single", map[int]int64{2: 8}, []int64{null, null, 8, 8, 8}, []int64{null, null, 8, null, null}, []int64{0, 0, 8, 0, 0}},
		{"ends", map[int]int64{0: 8, 4: 0}, []int64{8, 8, 8, 8, 0}, []int64{8, 6, 4, 2, 0}, []int64{8, 0, 0, 0, 0}},
		{"wide", map[int]int64{0: math.MinInt64 + 1, 4: math.MaxInt64}, nil, []int64{math.MinInt64 + 1, -1 << 62, 0, 1 << 62, math.MaxInt64}, nil},
		{"all", map[int]int64{0: 1, 1: 2, 2: 3, 3: 4, 4: 5}, []int64{1, 2, 3, 4, 5}, []int64{1, 2, 3, 4, 5}, []int64{1, 2, 3, 4, 5}},
	} {
		for how, want := range map[Fill][]int64{
			FillZero: c.zero, FillPrevious: c.previous, FillLinear: c.linear, FillNull: {null, null, null, null, null},
		} {
			if want == nil {
				continue
			}
			got := []int64{null, null, null, null, null}
			for i, v := range c.known {
				got[i] = v
			}
			newFrame(5, 49).fill(how, func(i int) bool { _, ok := c.known[i]; return ok }, func(i int) { got[i] = 0 },
				func(i, a, b int, part float64) { got[i] = between(got[a], got[b], part) })
			for i := range want {
				if v, ok := c.known[i]; ok {
					require.Equal(t, v, got[i])
				} else {
					require.Equal(t, want[i], got[i], "%s %d: %v", c.name, how, got)
				}
			}
		}
	}
	future, before := newFrame(5, 15), newFrame(5, 49)
	before.kept = []int64{30, 30, 30, 30, 40, 50}
	for f, want := range map[*frame][]int{future: {0, 1}, before: {3, 4}} {
		var zeros []int
		f.fill(FillZero, func(int) bool { return false }, func(i int) { zeros = append(zeros, i) }, nil)
		require.Equal(t, want, zeros, "neither what is to come nor what is kept no more is zero")
	}
}

func TestSeries_RatesAreByElapsedTime(t *testing.T) {
	t.Parallel()
	at := time.Unix(1000, 0)
	s := Series{At: at, Covered: Covered{From: time.Unix(965, 0)}, Points: []Point{
		{Start: time.Unix(950, 0), End: time.Unix(960, 0), Missing: true},
		{Start: time.Unix(960, 0), End: time.Unix(970, 0), Value: 10},
		{Start: time.Unix(970, 0), End: time.Unix(980, 0), Value: 10},
		{Start: time.Unix(980, 0), End: time.Unix(990, 0), Missing: true},
		{Start: time.Unix(980, 0), End: time.Unix(990, 0), Missing: true, Filled: true, Value: -5},
		{Start: time.Unix(996, 0), End: time.Unix(1006, 0), Value: 10},
		{Start: time.Unix(1006, 0), End: time.Unix(1016, 0), Value: 10},
	}}
	got := s.Rates()
	for i, want := range []float64{math.NaN(), 2, 1, math.NaN(), -0.5, 2.5, math.NaN()} {
		if math.IsNaN(want) {
			require.True(t, math.IsNaN(got[i]), "%d: %v", i, got[i])
		} else {
			require.InDelta(t, want, got[i], 1e-12)
		}
	}
}

func TestRoundStep_IsRoundAndFits(t *testing.T) {
	t.Parallel()
	require.EqualValues(t, 300, roundStep(1, 60, 0, 86400, 300))
	require.EqualValues(t, 600, roundStep(1, 60, 30, 86430, 288), "an interval that begins within a bucket touches one more")
	require.EqualValues(t, 10, roundStep(1, 10, 0, 86400, 11_000))
	require.EqualValues(t, 86400, roundStep(1, 10, 1, 86399, 1))
	for seed := range uint64(5000) {
		r := rand.New(rand.NewPCG(seed, 2))
		from := r.Int64N(2e9)
		to := from + 1 + r.Int64N(1<<r.IntN(32))
		points, unit := 1+r.Int64N(1000), []int64{1, 7, 10, 60, 3600}[r.IntN(5)]
		step := roundStep(1, unit, from, to, points)
		require.LessOrEqual(t, (ceil(to, step)-floor(from, step))/step, points)
		require.Zero(t, step%unit)
	}
}

func TestClock_TakesWhatTellsMore(t *testing.T) {
	t.Parallel()
	var c clock
	ms := time.Millisecond
	offset := func() time.Duration { return c.current.Load().offset }
	c.observe(1000*time.Second, 0, 10*ms)
	require.Equal(t, 1000*time.Second-5*ms, offset())
	c.observe(1001*time.Second+12*ms, time.Second, time.Second+100*ms)
	require.Equal(t, 1000*time.Second-5*ms, offset(), "a longer trip tells less")
	c.observe(1002*time.Second, 2*time.Second, 2*time.Second+2*ms)
	require.Equal(t, 1000*time.Second-ms, offset(), "a shorter one more")
	c.observe(5000*time.Second, 3*time.Second, 3*time.Second+100*ms)
	require.Equal(t, 4997*time.Second-50*ms, offset(), "the clock was set")
	c.observe(5100*time.Second+60*ms, 103*time.Second, 103*time.Second+100*ms)
	require.Equal(t, 4997*time.Second+10*ms, offset(), "the last one has grown old")
}

func TestCell_IsReadAsWritten(t *testing.T) {
	t.Parallel()
	c, err := cellOf(value{text: "3 0.30000000000000004 -1e+300 1e-05", isText: true})
	require.NoError(t, err)
	require.Equal(t, cell{3, 0.30000000000000004, -1e300, 1e-5}, c)
	for _, bad := range []value{
		{},
		{text: "1 2 3", isText: true},
		{text: "x 1 1 1", isText: true},
		{text: "b", isText: true},
		{text: "1 2 3 4 5", isText: true},
		{text: "0 1 1 1", isText: true},
		{text: "-1 1 1 1", isText: true},
		{text: "9007199254740993 1 1 1", isText: true},
		{text: "1 NaN 1 1", isText: true},
		{text: "1 1 -Inf 1", isText: true},
		{text: "b" + strings.Repeat("\xff", 32), isText: true},
	} {
		_, err := cellOf(bad)
		require.ErrorIs(t, err, errReply)
	}
	require.ErrorIs(t, (&cell{1, math.MaxFloat64, 0, 0}).addValue(value{text: "1 1e308 1 1", isText: true}), ErrOverflow)
}

// FuzzCell: what is taken for a bucket of statistics could have been written, and is the same if it is written again.
func FuzzCell(f *testing.F) {
	f.Add("3 0.30000000000000004 -1e+300 1e-05")
	f.Add("b" + strings.Repeat("\x00", 6) + "\xf0\x3f" + strings.Repeat("\x00", 24))
	f.Fuzz(func(t *testing.T, text string) {
		c, err := cellOf(value{text: text, isText: true})
		if err != nil {
			return
		}
		again, err := cellOf(value{text: strconv.FormatInt(c.count, 10) + " " + formatFloat(c.sum) + " " + formatFloat(c.least) + " " + formatFloat(c.most), isText: true})
		if err != nil || c != again || c.count < 1 {
			t.Fatalf("%q: %+v, %+v, %v", text, c, again, err)
		}
		var all cell
		if !all.merge(c) || all != c {
			t.Fatalf("%+v", all)
		}
	})
}

func TestAdd_NeverWraps(t *testing.T) {
	t.Parallel()
	const most, least = math.MaxInt64, math.MinInt64
	for _, c := range []struct {
		a, b, want int64
		ok         bool
	}{{1, 2, 3, true}, {most, 1, most, false}, {most, -1, most - 1, true}, {-most, -1, -most, false}, {0, 0, 0, true}, {-5, 0, -5, true}} {
		got, ok := add(c.a, c.b)
		require.Equal(t, c.want, got)
		require.Equal(t, c.ok, ok, "%+v", c)
	}
	var sum wide
	for _, n := range []int64{least, least, -1} {
		sum.add(n)
	}
	_, fits := sum.int64()
	require.False(t, fits)
	sum.add(most)
	sum.add(most)
	got, fits := sum.int64()
	require.True(t, fits)
	require.EqualValues(t, -3, got)
}
