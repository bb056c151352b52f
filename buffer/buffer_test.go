package buffer

import (
	"math"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"
)

type noClient struct{ rueidis.Client }

var columns = []Column{{"views", Sum}, {"spent", SumFloat}, {"best", Max}, {"worst", Min}, {"status", Last}}

func TestNew_RefusesBadArguments(t *testing.T) {
	t.Parallel()
	_, err := New(nil, "name", columns, Options{})
	require.ErrorContains(t, err, "client")
	for _, name := range []string{"", "a:b", "{", "}", "a\nb", "\xff", strings.Repeat("x", 65)} {
		_, err := New(noClient{}, name, columns, Options{})
		require.ErrorContains(t, err, "name", "%q", name)
	}
	for _, bad := range [][]Column{
		nil, {{"", Sum}}, {{"1a", Sum}}, {{"a b", Sum}}, {{"a", 0}}, {{"a", Last + 1}}, {{"a", Sum}, {"a", Max}}, make([]Column, maxColumns+1),
	} {
		_, err := New(noClient{}, "name", bad, Options{})
		require.Error(t, err, "%v", bad)
	}
	for field, opts := range map[string]Options{
		"Prefix":     {Prefix: "a{b"},
		"Shards":     {Shards: -1},
		"MaxPending": {Shards: 10, MaxPending: 19},
		"MaxLocal":   {Shards: 10, MaxLocal: 9},
		"MaxBatch":   {MaxBatch: maxMaxBatch + 1},
		"Workers":    {Workers: -1},
		"FlushEvery": {FlushEvery: time.Microsecond},
		"Lease":      {Lease: time.Millisecond},
		"Backoff":    {Backoff: -time.Second},
		"OpTimeout":  {OpTimeout: 1500 * time.Microsecond},
		"AddTimeout": {AddTimeout: math.MaxInt64},
		"OnRegress":  {OnRegress: 2},
	} {
		_, err := New(noClient{}, "name", columns, opts)
		require.ErrorContains(t, err, "Options."+field)
	}
	_, err = New(noClient{}, "name", columns, Options{})
	require.NoError(t, err)
}

func TestAdd_RefusesBadArguments(t *testing.T) {
	t.Parallel()
	b, err := New(noClient{}, "name", columns, Options{}) // whose methods would panic
	require.NoError(t, err)
	for name, c := range map[string]struct {
		entity string
		deltas []Delta
	}{
		"no values":       {"e", nil},
		"no column":       {"e", []Delta{Int("none", 1)}},
		"another kind":    {"e", []Delta{Int("best", 1), Float("views", 1)}},
		"comes twice":     {"e", []Delta{Int("views", 1), Int("best", 1), Int("views", 1)}},
		"not finite":      {"e", []Delta{Float("spent", math.NaN())}},
		"entity has":      {strings.Repeat("x", maxEntity+1), []Delta{Int("views", 1)}},
		"the text has":    {"e", []Delta{At("status", time.Now(), strings.Repeat("x", maxEntity+1))}},
		"of another kind": {"e", []Delta{At("best", time.Now(), "")}},
	} {
		require.ErrorContains(t, b.Add(t.Context(), c.entity, c.deltas...), name)
		require.ErrorContains(t, b.Post(c.entity, c.deltas...), name)
	}
}

// Redis forgets a process's round trips some day, which is no loss.
func TestShard_WhatRedisMustKnow(t *testing.T) {
	t.Parallel()
	s := shard{confirmed: 7}
	require.Equal(t, "0", s.known())
	s.confirmedAt = time.Now().Round(0)
	require.Equal(t, "7", s.known())
	s.confirmedAt = s.confirmedAt.Add(-writerTTL * 9 / 10)
	require.Equal(t, "0", s.known())
}

// What a round trip has taken is not changed by what is posted afterwards.
func TestShard_TakenPostsAreNotPostedTo(t *testing.T) {
	t.Parallel()
	s := shard{b: &Buffer{columns: []Column{{Name: "views", Op: Sum}}, opts: Options{MaxLocal: 1 << 20}}}
	s.b.shards = []*shard{&s}
	post := func(entity string) {
		_, r, err := s.rowOf(&s.posts, entity)
		require.NoError(t, err)
		r.merge(s.b.columns, []Delta{Int("views", 1)})
	}
	const entities = maxTripFields + 10
	for i := range entities {
		post(strconv.Itoa(i))
	}
	for _, entity := range []string{"0", "0", strconv.Itoa(entities - 1), "0"} {
		post(entity)
	}
	taken := s.takePosts()
	require.Less(t, len(taken), entities)
	post("0")
	require.Equal(t, int64(4), taken[0].values[0].Int)
	rest := s.takePosts()
	require.Len(t, rest, entities-len(taken)+1)
	require.Equal(t, "0", rest[len(rest)-1].entity)
	require.Equal(t, int64(1), rest[len(rest)-1].values[0].Int)
	require.Equal(t, int64(2), rest[len(rest)-2].values[0].Int)
	post("0")
	require.Equal(t, int64(1), rest[len(rest)-1].values[0].Int)
}

// A group that waits for a Redis that hangs forgets the Adds that have left, and their timers have ended them.
func TestGroup_ForgetsWavesThatEnded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const timeout = 80 * time.Millisecond
		g := &group{}
		began := time.Now()
		var all []*wave
		for range 1000 {
			all = append(all, g.wave(time.Since(began), timeout))
			require.LessOrEqual(t, len(g.waves), 10)
			time.Sleep(3 * time.Millisecond) //nolint:forbidigo // synctest: a fake clock, which takes no time and cannot flake
		}
		time.Sleep(timeout) //nolint:forbidigo // synctest: a fake clock, which takes no time and cannot flake
		for _, w := range all {
			<-w.done
		}
	})
}

func TestValue_MergesInAnyOrder(t *testing.T) {
	t.Parallel()
	at := time.UnixMicro(1).UTC()
	values := []Value{
		{Set: true, Int: 5, Float: 0.5, At: at, Text: "b"},
		{Set: true, Int: -7, Float: 2, At: at, Text: "a"},
		{Set: true, Int: math.MaxInt32, Float: -8, At: at.Add(-1000), Text: "z"},
		{},
	}
	for op := Sum; op <= Last; op++ {
		var forth, back Value
		for i := range values {
			require.True(t, forth.merge(op, values[i]))
			require.True(t, back.merge(op, values[len(values)-1-i]))
		}
		require.Equal(t, forth.encode(op), back.encode(op))
	}
	for _, c := range []struct {
		a, b int64
		ok   bool
	}{
		{math.MaxInt64, 1, false},
		{math.MinInt64, -1, false},
		{math.MaxInt64, math.MinInt64, true},
		{math.MaxInt64, 0, true},
		{math.MinInt64, 0, true},
		{1, math.MaxInt64, false},
		{-1, math.MinInt64, false},
	} {
		v := Value{Set: true, Int: c.a}
		require.Equal(t, c.ok, v.merge(Sum, Value{Set: true, Int: c.b}), "%d + %d", c.a, c.b)
		if !c.ok {
			require.Equal(t, c.a, v.Int)
		}
	}
	v := Value{Set: true, Float: math.MaxFloat64}
	require.False(t, v.merge(SumFloat, v))
	require.InDelta(t, math.MaxFloat64, v.Float, 0)
}

// A total that fits does not overflow on the way, in whatever order its parts come.
func TestMergeAll_OverflowsOnlyIfTheTotalDoes(t *testing.T) {
	t.Parallel()
	numbers := []int64{math.MinInt64, -1, 0, 1, math.MaxInt64}
	for i := range 125 {
		parts := []int64{numbers[i%5], numbers[i/5%5], numbers[i/25]}
		sum := new(big.Int)
		var ints, floats []Value
		for _, n := range parts {
			sum.Add(sum, big.NewInt(n))
			ints = append(ints, Value{Set: true, Int: n})
			f := map[int64]float64{math.MinInt64: -math.MaxFloat64, math.MaxInt64: math.MaxFloat64}[n]
			floats = append(floats, Value{Set: true, Float: f})
		}
		total, ok := mergeAll(Sum, ints)
		require.Equal(t, sum.IsInt64(), ok, "%v", parts)
		if ok {
			require.Equal(t, Value{Set: true, Int: sum.Int64()}, total, "%v", parts)
		}
		low, high := slices.Index(parts, math.MinInt64) >= 0, slices.Index(parts, math.MaxInt64) >= 0
		if low && high {
			_, ok = mergeAll(SumFloat, floats)
			require.True(t, ok, "%v", parts)
		}
	}
}

func TestSortable_SortsAsNumbers(t *testing.T) {
	t.Parallel()
	numbers := []int64{math.MinInt64, math.MinInt64 + 1, -1 << 53, -256, -1, 0, 1, 9, 10, 255, 1 << 53, 1<<53 + 1, math.MaxInt64}
	texts := make([]string, len(numbers))
	for i, n := range numbers {
		texts[i] = sortable(n)
		require.Len(t, texts[i], 16)
	}
	require.True(t, slices.IsSorted(texts))
}

func FuzzField(f *testing.F) {
	f.Add("a", "b")
	f.Add("", ":")
	f.Add("a:b", "\x00")
	f.Fuzz(func(t *testing.T, a, b string) {
		for _, c := range columns {
			column, entity, err := splitField(c.field(a))
			require.NoError(t, err)
			require.Equal(t, c, column)
			require.Equal(t, a, entity)
			for _, other := range columns {
				if (a == b && c == other) != (c.field(a) == other.field(b)) {
					t.Errorf("%v of %q and %v of %q are the same field", c, a, other, b)
				}
			}
			require.Equal(t, c.field(a), originalField(c.field(a)[:1]+"10"+c.field(a)[1:]))
		}
		require.Less(t, shardOf(a, 7), 7)
	})
}

func FuzzDecodeValue(f *testing.F) {
	f.Add(byte(1), "12")
	f.Add(byte(2), "1e300")
	f.Add(byte(3), "8000000000000000")
	f.Add(byte(5), "8000000000000000text")
	f.Fuzz(func(t *testing.T, op byte, text string) {
		o := Op(op%5 + 1)
		v, err := decodeValue(o, text)
		if err != nil || o == SumFloat { // of which there are many spellings
			return
		}
		again, err := decodeValue(o, v.encode(o))
		require.NoError(t, err)
		require.Equal(t, v, again)
	})
}

func TestSplitField_RefusesForeignFields(t *testing.T) {
	t.Parallel()
	for _, field := range []string{"", ":", "+:", "views:e", " views:e", "+views", "*views:e"} {
		_, _, err := splitField(field)
		require.ErrorIs(t, err, errForeign, field)
	}
	for op, text := range map[Op]string{Sum: "1.5", SumFloat: "x", Max: "1", Min: "80000000000000001", Last: "short"} {
		_, err := decodeValue(op, text)
		require.ErrorIs(t, err, errForeign, text)
	}
}

func TestShardOf_SpreadsEntities(t *testing.T) {
	t.Parallel()
	counts := make([]int, 16)
	for i := range 16_000 {
		counts[shardOf("post-"+sortable(int64(i)), 16)]++
	}
	require.Greater(t, slices.Min(counts), 800)
	require.Less(t, slices.Max(counts), 1200)
}

func TestRowsOf_FoldsAndSorts(t *testing.T) {
	t.Parallel()
	rows, err := rowsOf(columns, map[string]string{
		"+views:b": "2", "+views:a": "1", ">best:b": sortable(7), "+views:c": "3", "<worst:c": sortable(-1),
	}, map[string]string{"+views:c": "1 reason"})
	require.NoError(t, err)
	require.Equal(t, []Row{
		{"a", []Value{{Set: true, Int: 1}, {}, {}, {}, {}}},
		{"b", []Value{{Set: true, Int: 2}, {}, {Set: true, Int: 7}, {}, {}}},
		{"c", []Value{{}, {}, {}, {Set: true, Int: -1}, {}}},
	}, rows)
	_, err = rowsOf(columns[:1], map[string]string{">best:b": sortable(7)}, nil)
	require.ErrorContains(t, err, "best")
}
