package integration

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/redispatterns/redispatterns/buffer"
	"github.com/redispatterns/redispatterns/internal/integration/redistest"
)

var allColumns = []buffer.Column{
	{Name: "views", Op: buffer.Sum},
	{Name: "spent", Op: buffer.SumFloat},
	{Name: "best", Op: buffer.Max},
	{Name: "worst", Op: buffer.Min},
	{Name: "status", Op: buffer.Last},
}

// newBuffer returns a buffer that is closed, with all confirmed, at the end of the test.
func newBuffer(t *testing.T, client rueidis.Client, columns []buffer.Column, opts buffer.Options) *buffer.Buffer {
	t.Helper()
	if opts.Prefix == "" {
		opts.Prefix = redistest.Prefix(t)
	}
	if opts.OpTimeout == 0 {
		opts.OpTimeout = 5 * time.Second // a busy test machine is no fault of Redis
	}
	if opts.AddTimeout == 0 {
		opts.AddTimeout = 20 * time.Second
	}
	b, err := buffer.New(client, "counts", columns, opts)
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		require.NoError(t, b.Close(ctx))
	})
	return b
}

// memorySink is a sink in memory that does what Sink asks for, and breaks on demand.
type memorySink struct {
	mu     sync.Mutex
	ledger map[string]memoryMark
	rows   map[string][]buffer.Value
	order  []string // entities, as they were applied
	seqs   []int64
	shards map[string]int // of entities

	before func(*buffer.Batch) error // instead of applying, if it returns an error
	after  func(*buffer.Batch) error // having applied
	calls  atomic.Int64
}

type memoryMark struct {
	epoch, seq int64
	nonce      string
	version    int
}

func newMemorySink() *memorySink {
	return &memorySink{ledger: map[string]memoryMark{}, rows: map[string][]buffer.Value{}, shards: map[string]int{}}
}

func (s *memorySink) Apply(_ context.Context, b *buffer.Batch) error {
	s.calls.Add(1)
	if s.before != nil {
		if err := s.before(b); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	key := b.Buffer + "/" + strconv.Itoa(b.Shard)
	mark, known := s.ledger[key]
	if known && mark.epoch > b.Follows && (b.Epoch != mark.epoch || b.Seq <= mark.seq) {
		if mark.nonce == b.Nonce {
			return &buffer.AppliedError{Version: mark.version}
		}
		return &buffer.RegressError{Epoch: mark.epoch}
	}
	s.ledger[key] = memoryMark{b.Epoch, b.Seq, b.Nonce, b.Version}
	for _, row := range b.Rows {
		s.order = append(s.order, row.Entity)
		s.shards[row.Entity] = b.Shard
		have := s.rows[row.Entity]
		if have == nil {
			have = make([]buffer.Value, len(allColumns))
			s.rows[row.Entity] = have
		}
		for i, v := range row.Values {
			mergeValue(b.Columns[i].Op, &have[i], v)
		}
	}
	s.seqs = append(s.seqs, b.Seq)
	if s.after != nil {
		return s.after(b)
	}
	return nil
}

// mergeValue is the oracle of the operations.
func mergeValue(op buffer.Op, have *buffer.Value, v buffer.Value) {
	switch {
	case !v.Set:
	case !have.Set:
		*have = v
	case op == buffer.Sum:
		have.Int += v.Int
	case op == buffer.SumFloat:
		have.Float += v.Float
	case op == buffer.Max && v.Int > have.Int, op == buffer.Min && v.Int < have.Int:
		have.Int = v.Int
	case op == buffer.Last && (v.At.After(have.At) || v.At.Equal(have.At) && v.Text > have.Text):
		*have = v
	}
}

// total is the sum of all views.
func (s *memorySink) total() (sum int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, row := range s.rows {
		sum += row[0].Int
	}
	return sum
}

// drainTo flushes until nothing is pending. A connection that a restart has cut, or a database that another flusher has
// locked, may make it try again.
func drainTo(t *testing.T, b *buffer.Buffer, sink buffer.Sink) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		_, err := b.Flush(ctx, sink)
		if err == nil {
			var stats buffer.Stats
			stats, err = b.Stats(ctx)
			if err == nil && stats.Pending == 0 && stats.Local == 0 {
				return
			}
		}
		if after(ctx, time.Millisecond) != nil {
			require.NoError(t, err)
			require.Fail(t, "values are still pending")
		}
	}
}

func TestBuffer_FlushesWhatWasAdded(t *testing.T) {
	t.Parallel()
	redistest.EachTarget(t, func(t *testing.T, client rueidis.Client) {
		ctx := t.Context()
		prefix := redistest.Prefix(t)
		b := newBuffer(t, client, allColumns, buffer.Options{Prefix: prefix})
		at := time.Date(2026, 1, 2, 3, 4, 5, 678901234, time.UTC)
		add := func(entity string, deltas ...buffer.Delta) {
			t.Helper()
			require.NoError(t, b.Add(ctx, entity, deltas...))
		}
		add("a", buffer.Int("views", 2), buffer.Float("spent", 0.5), buffer.Int("best", -7), buffer.Int("worst", 9), buffer.At("status", at, "old"))
		add("a", buffer.Int("views", -5), buffer.Float("spent", 1e300), buffer.Int("best", -8), buffer.Int("worst", -9), buffer.At("status", at.Add(-time.Hour), "older"))
		add("b", buffer.Float("spent", 1e-300))
		require.NoError(t, b.Post("c", buffer.Int("views", 1)))
		require.Eventually(t, func() bool {
			rows, err := b.Pending(ctx, "a", "b", "c", "none", "a")
			require.NoError(t, err)
			return len(rows) == 3
		}, 10*time.Second, time.Millisecond)
		want := []buffer.Value{
			{Set: true, Int: -3},
			{Set: true, Float: 1e300},
			{Set: true, Int: -7},
			{Set: true, Int: -9},
			{Set: true, Text: "old", At: at.Truncate(time.Microsecond)},
		}
		rows, err := b.Pending(ctx, "a")
		require.NoError(t, err)
		require.Equal(t, map[string]buffer.Row{"a": {Entity: "a", Values: want}}, rows)

		stats, err := b.Stats(ctx)
		require.NoError(t, err)
		require.Equal(t, int64(7), stats.Pending)
		sink := newMemorySink()
		report, err := b.Flush(ctx, sink)
		require.NoError(t, err)
		require.Equal(t, 3, report.Rows)
		require.Equal(t, want, sink.rows["a"])
		require.InDelta(t, 1e-300, sink.rows["b"][1].Float, 0)
		require.Equal(t, int64(1), sink.rows["c"][0].Int)
		stats, err = b.Stats(ctx)
		require.NoError(t, err)
		require.Equal(t, buffer.Stats{}, stats)

		// Nothing again, and only what is new.
		report, err = b.Flush(ctx, sink)
		require.NoError(t, err)
		require.Equal(t, buffer.Report{}, report)
		add("a", buffer.Int("views", 1))
		drainTo(t, b, sink)
		require.Equal(t, int64(-2), sink.rows["a"][0].Int)

		// What is pending has no TTL: only the writers' records have.
		add("a", buffer.Int("views", 1))
		for _, key := range keysOf(t, client, prefix) {
			ttl, err := client.Do(ctx, client.B().Pttl().Key(key).Build()).AsInt64()
			require.NoError(t, err)
			require.Equal(t, strings.Contains(key, "}:w:"), ttl > 0, key)
		}
	})
}

// keysOf returns all keys that begin with a prefix.
func keysOf(t *testing.T, client rueidis.Client, prefix string) (found []string) {
	t.Helper()
	for _, node := range client.Nodes() {
		for cursor, first := uint64(0), true; first || cursor != 0; first = false {
			entry, err := node.Do(t.Context(), node.B().Scan().Cursor(cursor).Match(prefix+"*").Count(1000).Build()).AsScanEntry()
			require.NoError(t, err)
			cursor = entry.Cursor
			found = append(found, entry.Elements...)
		}
	}
	require.NotEmpty(t, found)
	return found
}

func TestBuffer_AnyBytesAreAnEntity(t *testing.T) {
	t.Parallel()
	redistest.EachTarget(t, func(t *testing.T, client rueidis.Client) {
		entities := []string{"", ":", "a:b", "{", "}", "{}", "{a}b", "\x00", "a\x00b", "\x1f", "+views:a", "0", "%d%s", "\xff\xfe", "ключ", strings.Repeat("x", 10<<10), strings.Repeat("\x00", 10<<10)}
		b := newBuffer(t, client, allColumns, buffer.Options{MaxBatch: 7})
		sink := newMemorySink()
		for round := range 2 {
			for i, e := range entities {
				require.NoError(t, b.Add(t.Context(), e, buffer.Int("views", int64(i+1)), buffer.At("status", time.Now(), e)))
			}
			if round == 0 {
				rows, err := b.Pending(t.Context(), entities...)
				require.NoError(t, err)
				require.Len(t, rows, len(entities))
			}
		}
		drainTo(t, b, sink)
		require.Len(t, sink.rows, len(entities))
		for i, e := range entities {
			require.Equal(t, int64(2*(i+1)), sink.rows[e][0].Int, "%q", e)
			require.Equal(t, e, sink.rows[e][4].Text)
		}
	})
}

func TestBuffer_TwoBuffersNeverCollide(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	prefix := redistest.Prefix(t)
	sink := newMemorySink() // one for all: their marks in its ledger must not collide either
	type id struct{ prefix, name string }
	buffers := map[id]*buffer.Buffer{}
	for _, i := range []id{{prefix, "a"}, {prefix, "b"}, {prefix + ":a", "a"}, {prefix + "x", "a"}, {prefix, "a 0"}} {
		b, err := buffer.New(client, i.name, allColumns, buffer.Options{Prefix: i.prefix})
		require.NoError(t, err)
		buffers[i] = b
		require.NoError(t, b.Add(t.Context(), "e", buffer.Int("views", 1)))
	}
	for i, b := range buffers {
		rows, err := b.Pending(t.Context(), "e")
		require.NoError(t, err)
		require.Equal(t, int64(1), rows["e"].Values[0].Int, "%v", i)
		_, err = b.Flush(t.Context(), sink)
		require.NoError(t, err)
	}
	require.Equal(t, int64(len(buffers)), sink.total())
	require.Len(t, sink.ledger, len(buffers))
}

func TestBuffer_Int64IsExact(t *testing.T) {
	t.Parallel()
	redistest.EachTarget(t, func(t *testing.T, client rueidis.Client) {
		b := newBuffer(t, client, allColumns, buffer.Options{})
		ctx := t.Context()
		const big = 1<<53 + 1
		for _, n := range []int64{big, 2, math.MinInt64 + 1, math.MaxInt64 - big - 2} { // one by one: the sum never overflows
			require.NoError(t, b.Add(ctx, "sum", buffer.Int("views", n)))
		}
		for _, n := range []int64{big, big - 1, -big, -big + 1} {
			require.NoError(t, b.Add(ctx, "extremes", buffer.Int("best", n), buffer.Int("worst", n)))
		}
		for _, n := range []int64{math.MaxInt64, math.MinInt64, 0, -1, 1} {
			require.NoError(t, b.Add(ctx, "limits", buffer.Int("best", n), buffer.Int("worst", n)))
		}
		require.NoError(t, b.Add(ctx, "min", buffer.Int("views", math.MinInt64)))

		// An overflow is reported on its field alone, be it found here or in Redis.
		var overflow *buffer.OverflowError
		err := b.Add(ctx, "min", buffer.Int("views", -1), buffer.Int("best", 5))
		require.ErrorAs(t, err, &overflow)
		require.ErrorIs(t, err, buffer.ErrOverflow)
		require.Equal(t, []string{"views"}, overflow.Columns)
		require.NoError(t, b.Post("here", buffer.Int("views", math.MaxInt64)))
		if err := b.Post("here", buffer.Int("views", 1), buffer.Int("best", 5)); err != nil { // nil if the first was sent by then
			require.ErrorIs(t, err, buffer.ErrOverflow)
		}
		require.NoError(t, b.Add(ctx, "float", buffer.Float("spent", math.MaxFloat64)))
		require.ErrorIs(t, b.Add(ctx, "float", buffer.Float("spent", math.MaxFloat64), buffer.Int("views", 3)), buffer.ErrOverflow)
		for _, bad := range []float64{math.NaN(), math.Inf(1), math.Inf(-1)} {
			require.ErrorContains(t, b.Add(ctx, "float", buffer.Int("views", 100), buffer.Float("spent", bad)), "not finite")
			require.ErrorContains(t, b.Post("float", buffer.Float("spent", bad)), "not finite")
		}
		require.NoError(t, b.Close(ctx))
		sink := newMemorySink()
		drainTo(t, b, sink)
		require.Equal(t, int64(0), sink.rows["sum"][0].Int)
		require.Equal(t, int64(big), sink.rows["extremes"][2].Int)
		require.Equal(t, int64(-big), sink.rows["extremes"][3].Int)
		require.Equal(t, int64(math.MaxInt64), sink.rows["limits"][2].Int)
		require.Equal(t, int64(math.MinInt64), sink.rows["limits"][3].Int)
		require.Equal(t, int64(math.MinInt64), sink.rows["min"][0].Int)
		require.Equal(t, int64(5), sink.rows["min"][2].Int)
		require.Equal(t, int64(math.MaxInt64), sink.rows["here"][0].Int)
		require.Equal(t, int64(5), sink.rows["here"][2].Int)
		require.InDelta(t, math.MaxFloat64, sink.rows["float"][1].Float, 0)
		require.Equal(t, int64(3), sink.rows["float"][0].Int)
	})
}

// All orders of some events, in all ways to cut them into batches, must end alike.
func TestBuffer_LastIsByEventTime(t *testing.T) {
	t.Parallel()
	redistest.EachTarget(t, func(t *testing.T, client rueidis.Client) {
		b := newBuffer(t, client, allColumns, buffer.Options{})
		at := time.Now()
		events := []buffer.Delta{
			buffer.At("status", at, "b"),
			buffer.At("status", at, "B\xff"), // equal times: the larger bytes win, whatever the locale thinks
			buffer.At("status", at, "bb"),
			buffer.At("status", at, ""),
			buffer.At("status", at.Add(-time.Microsecond), "zzz"),
			buffer.At("status", time.Unix(-1e9, 0), "before 1970"),
		}
		sink := newMemorySink()
		for i := range 20 {
			entity := strconv.Itoa(i)
			for _, e := range rand.Perm(len(events)) {
				require.NoError(t, b.Add(t.Context(), entity, events[e]))
				if rand.IntN(3) == 0 {
					drainTo(t, b, sink)
				}
			}
		}
		require.NoError(t, b.Add(t.Context(), "early", events[5]))
		drainTo(t, b, sink)
		for i := range 20 {
			require.Equal(t, "bb", sink.rows[strconv.Itoa(i)][4].Text)
		}
		require.Equal(t, "before 1970", sink.rows["early"][4].Text)
		require.Equal(t, int64(-1e9), sink.rows["early"][4].At.Unix())
	})
}

// Several flushers, of slices so small that hot fields are claimed while they change, and producers of everything.
func TestBuffer_EqualsTheOracleUnderConcurrency(t *testing.T) {
	t.Parallel()
	adds := 20_000
	if soak() {
		adds = 200_000
	}
	for name, opts := range map[string]buffer.Options{
		"small slices": {MaxBatch: 3, Shards: 2, FlushEvery: time.Millisecond},
		"defaults":     {FlushEvery: time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			opts.Prefix = redistest.Prefix(t)
			sink := newMemorySink()
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			var flushers, producers sync.WaitGroup
			for range 3 {
				b := newBuffer(t, redistest.Shared(t).Client(t), allColumns, opts)
				flushers.Go(func() { require.NoError(t, b.Run(ctx, sink)) })
			}
			oracle := map[string][]buffer.Value{}
			var mu sync.Mutex
			b := newBuffer(t, redistest.Shared(t).Client(t), allColumns, opts)
			for p := range 50 {
				producers.Go(func() {
					r := rand.New(rand.NewPCG(uint64(p), 1))
					for range adds / 50 {
						entity := "hot"
						if r.IntN(4) == 0 {
							entity = "e" + strconv.Itoa(r.IntN(40))
						}
						n, at := r.Int64N(1000)-500, time.UnixMicro(r.Int64N(50)).UTC()
						values := []buffer.Value{
							{Set: true, Int: n},
							{Set: r.IntN(2) == 0, Float: float64(n) / 4}, // exact in binary: sums do not depend on the order
							{Set: r.IntN(2) == 0, Int: n},
							{Set: r.IntN(2) == 0, Int: n},
							{Set: r.IntN(2) == 0, At: at, Text: strconv.FormatInt(n, 10)},
						}
						deltas := []buffer.Delta{buffer.Int("views", n)}
						if values[1].Set {
							deltas = append(deltas, buffer.Float("spent", values[1].Float))
						}
						if values[2].Set {
							deltas = append(deltas, buffer.Int("best", n))
						}
						if values[3].Set {
							deltas = append(deltas, buffer.Int("worst", n))
						}
						if values[4].Set {
							deltas = append(deltas, buffer.At("status", at, values[4].Text))
						}
						if r.IntN(5) == 0 {
							require.NoError(t, b.Post(entity, deltas...))
						} else {
							require.NoError(t, b.Add(t.Context(), entity, deltas...))
						}
						mu.Lock()
						if oracle[entity] == nil {
							oracle[entity] = make([]buffer.Value, len(values))
						}
						for i := range values {
							mergeValue(allColumns[i].Op, &oracle[entity][i], values[i])
						}
						mu.Unlock()
					}
				})
			}
			producers.Wait()
			require.NoError(t, b.Close(t.Context()))
			stop()
			flushers.Wait()
			drainTo(t, b, sink)
			require.Equal(t, oracle, sink.rows)
		})
	}
}

func TestBuffer_AddIsNotCountedTwiceInOneRoundTrip(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	b := newBuffer(t, server.Client(t), allColumns, buffer.Options{})
	require.NoError(t, b.Add(t.Context(), "hot", buffer.Int("views", 1)))
	var wg sync.WaitGroup
	sent := redistest.Commands(t, server, func() {
		for range 64 {
			wg.Go(func() {
				for range 100 {
					require.NoError(t, b.Add(t.Context(), "hot", buffer.Int("views", 1)))
				}
			})
		}
		wg.Wait()
	})
	require.Less(t, sent["evalsha"], int64(3200), "concurrent calls share round trips")
	rows, err := b.Pending(t.Context(), "hot")
	require.NoError(t, err)
	require.Equal(t, int64(6401), rows["hot"].Values[0].Int)
	idle := redistest.Commands(t, server, func() {
		_, err := newBuffer(t, server.Client(t), allColumns, buffer.Options{}).Flush(t.Context(), newMemorySink())
		require.NoError(t, err)
	})
	require.Equal(t, int64(4), idle["exists"], "a pass with nothing to do asks for nothing else")
	require.Zero(t, idle["hdel"])
}

func TestBuffer_ASinkThatIsDown(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	prefix := redistest.Prefix(t)
	b := newBuffer(t, client, allColumns, buffer.Options{Prefix: prefix, Shards: 1, MaxPending: 200, MaxBatch: 10})
	ctx := t.Context()
	sink := newMemorySink()
	down := errors.New("down")
	sink.before = func(*buffer.Batch) error { return down }
	counted := map[string]int64{}
	full := 0
	for i := range 1000 {
		entity := fmt.Sprintf("%04d", i)
		err := b.Add(ctx, entity, buffer.Int("views", 1), buffer.Int("best", 1))
		if err == nil {
			counted[entity]++
		} else {
			require.ErrorIs(t, err, buffer.ErrFull)
			full++
		}
		if i%10 == 0 {
			_, err := b.Flush(ctx, sink)
			require.ErrorIs(t, err, down)
		}
	}
	require.Positive(t, full)
	stats, err := b.Stats(ctx)
	require.NoError(t, err)
	require.LessOrEqual(t, stats.Pending, int64(200+2))
	require.GreaterOrEqual(t, stats.Pending, int64(100))
	require.Equal(t, 1, stats.LiveBatches)
	require.Greater(t, stats.Attempts, 50)
	require.Positive(t, stats.OldestAge)
	// What is there already still counts.
	last := ""
	for e := range counted {
		last = max(last, e)
	}
	require.NoError(t, b.Add(ctx, last, buffer.Int("views", 1)))
	counted[last]++
	require.ErrorIs(t, b.Add(ctx, last, buffer.Int("views", 1), buffer.Int("worst", 1)), buffer.ErrFull, "all of it or nothing")

	// Nothing of it ever expires.
	for _, key := range keysOf(t, client, prefix) {
		if !strings.Contains(key, "}:w:") {
			ttl, err := client.Do(ctx, client.B().Pttl().Key(key).Build()).AsInt64()
			require.NoError(t, err)
			require.Equal(t, int64(-1), ttl, key)
		}
	}
	// It recovers, in batches of the size that was asked for, and what comes meanwhile waits for its turn.
	calls := 0
	sink.before = func(batch *buffer.Batch) error {
		require.LessOrEqual(t, len(batch.Rows), 10)
		require.True(t, slices.IsSortedFunc(batch.Rows, func(a, b buffer.Row) int { return strings.Compare(a.Entity, b.Entity) }))
		if calls++; calls >= 2 && calls < 10 { // in the first call they would join the generation of those that waited
			counted["new"+strconv.Itoa(calls)]++
			return b.Add(ctx, "new"+strconv.Itoa(calls), buffer.Int("views", 1))
		}
		return nil
	}
	drainTo(t, b, sink)
	for e, n := range counted {
		require.Equal(t, n, sink.rows[e][0].Int, e)
	}
	require.Len(t, sink.rows, len(counted))
	require.Equal(t, "0000", sink.order[0], "its batch was claimed when it was alone")
	oldest := slices.IndexFunc(sink.order, func(e string) bool { return strings.HasPrefix(e, "new") })
	require.Len(t, sink.order[oldest:], 8)
	require.Equal(t, slices.Sorted(slices.Values(sink.seqs)), sink.seqs)
}

// refusing is a sink that refuses some entities for good.
func refusing(sink *memorySink, bad func(entity string) bool) {
	sink.before = func(batch *buffer.Batch) error {
		var refused buffer.RowErrors
		for _, row := range batch.Rows {
			if bad(row.Entity) {
				refused = append(refused, buffer.RowError{Entity: row.Entity, Err: errors.New("bad row")})
			}
		}
		if refused != nil {
			return refused
		}
		return nil
	}
}

func TestBuffer_DeadLettersAndReplay(t *testing.T) {
	t.Parallel()
	redistest.EachTarget(t, func(t *testing.T, client rueidis.Client) {
		b := newBuffer(t, client, allColumns, buffer.Options{})
		ctx := t.Context()
		sink := newMemorySink()
		refusing(sink, func(e string) bool { return e[0] == '7' })
		for round := range 3 {
			for i := range 100 {
				require.NoError(t, b.Add(ctx, strconv.Itoa(i), buffer.Int("views", 1), buffer.Int("best", int64(round)),
					buffer.At("status", time.Unix(int64(round), 0), strconv.Itoa(round))))
			}
			report, err := b.Flush(ctx, sink)
			require.NoError(t, err)
			require.Equal(t, 11, report.Dead)
			require.Equal(t, 89, report.Rows)
		}
		require.NoError(t, b.Add(ctx, "7", buffer.Int("views", math.MaxInt64)))
		_, err := b.Flush(ctx, sink)
		require.NoError(t, err)
		stats, err := b.Stats(ctx)
		require.NoError(t, err)
		require.Equal(t, int64(34), stats.DeadLetters)
		require.Zero(t, stats.Pending)
		var views []int64
		letters := map[string]int{}
		for l, err := range b.DeadLetters(ctx) {
			require.NoError(t, err)
			require.Equal(t, "bad row", l.Reason)
			letters[l.Entity]++
			if l.Entity == "7" && l.Column.Name == "views" {
				views = append(views, l.Value.Int)
			}
			if l.Column.Op == buffer.Last {
				require.Equal(t, "2", l.Value.Text)
			}
		}
		slices.Sort(views)
		require.Equal(t, []int64{3, math.MaxInt64}, views, "more than one field can hold")
		require.Len(t, letters, 11)
		for _, err := range b.DeadLetters(ctx) {
			require.NoError(t, err)
			break // which is allowed
		}
		sink.before = nil
		n, err := b.Replay(ctx, "70", "71", "none")
		require.NoError(t, err)
		require.Equal(t, 6, n)
		drainTo(t, b, sink)
		require.Equal(t, int64(3), sink.rows["70"][0].Int)
		require.Nil(t, sink.rows["72"])
		n, err = b.Replay(ctx)
		require.NoError(t, err)
		require.Equal(t, 27, n, "the sum that would overflow stays")
		drainTo(t, b, sink)
		n, err = b.Replay(ctx)
		require.NoError(t, err)
		require.Equal(t, 1, n)
		n, err = b.Replay(ctx)
		require.NoError(t, err)
		require.Zero(t, n)
		for i := range 100 {
			require.Equal(t, int64(2), sink.rows[strconv.Itoa(i)][2].Int)
			if i != 7 {
				require.Equal(t, int64(3), sink.rows[strconv.Itoa(i)][0].Int)
			}
		}
	})
}

// A flusher that read the whole batch may apply it while another one excludes rows from it: then they were applied, and must
// not be dead letters too.
func TestBuffer_AnOldVersionThatIsAppliedLeavesNoDeadLetters(t *testing.T) {
	t.Parallel()
	b := newBuffer(t, redistest.Shared(t).Client(t), allColumns, buffer.Options{Shards: 1})
	ctx := t.Context()
	for _, e := range []string{"good", "bad"} {
		require.NoError(t, b.Add(ctx, e, buffer.Int("views", 1)))
	}
	sink := newMemorySink()
	var whole *buffer.Batch
	calls := 0
	sink.before = func(batch *buffer.Batch) error {
		if calls++; calls == 1 {
			copied := *batch
			copied.Rows = slices.Clone(batch.Rows)
			whole = &copied
			return buffer.RowErrors{{Entity: "bad", Err: errors.New("bad row")}}
		}
		if calls == 2 { // the second version comes; but the first is quicker after all
			require.Len(t, batch.Rows, 1)
			require.Equal(t, 1, batch.Version)
			require.Equal(t, whole.ID, batch.ID)
			require.NoError(t, sink.Apply(ctx, whole))
		}
		return nil
	}
	drainTo(t, b, sink)
	require.Equal(t, int64(2), sink.total())
	stats, err := b.Stats(ctx)
	require.NoError(t, err)
	require.Zero(t, stats.DeadLetters)
}

func TestBuffer_ARowThatIsNotThereIsNoReason(t *testing.T) {
	t.Parallel()
	b := newBuffer(t, redistest.Shared(t).Client(t), allColumns, buffer.Options{Shards: 1})
	require.NoError(t, b.Add(t.Context(), "e", buffer.Int("views", 1)))
	sink := newMemorySink()
	sink.before = func(*buffer.Batch) error {
		return buffer.RowErrors{{Entity: "x", Err: errors.New("bad row")}}
	}
	_, err := b.Flush(t.Context(), sink)
	require.ErrorContains(t, err, "not in the batch")
	sink.before = nil
	drainTo(t, b, sink)
	require.Equal(t, int64(1), sink.total())
}

// During a deployment, processes with more columns, or more shards, run beside those with fewer.
func TestBuffer_ProcessesThatDiffer(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	prefix := redistest.Prefix(t)
	ctx := t.Context()
	less := newBuffer(t, client, allColumns[:1], buffer.Options{Prefix: prefix, Shards: 1})
	more := newBuffer(t, client, allColumns, buffer.Options{Prefix: prefix, Shards: 7})
	for i := range 50 {
		require.NoError(t, less.Add(ctx, strconv.Itoa(i), buffer.Int("views", 1)))
		require.NoError(t, more.Add(ctx, strconv.Itoa(i), buffer.Int("views", 1)))
	}
	require.NoError(t, more.Add(ctx, "x", buffer.Int("views", 1), buffer.Int("best", 1)))
	sink := newMemorySink()
	_, err := less.Flush(ctx, sink)
	require.ErrorContains(t, err, `a column that this buffer does not have, "best"`)
	drainTo(t, more, sink)
	require.Equal(t, int64(101), sink.total())
}

func TestBuffer_Close(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t)
	b, err := buffer.New(client, "counts", allColumns, buffer.Options{OpTimeout: 100 * time.Millisecond, AddTimeout: 200 * time.Millisecond})
	require.NoError(t, err)
	for range 1000 {
		require.NoError(t, b.Post("e", buffer.Int("views", 1)))
	}
	require.NoError(t, b.Close(t.Context()))
	rows, err := b.Pending(t.Context(), "e")
	require.NoError(t, err)
	require.Equal(t, int64(1000), rows["e"].Values[0].Int)
	require.ErrorIs(t, b.Add(t.Context(), "e", buffer.Int("views", 1)), buffer.ErrClosed)
	require.ErrorIs(t, b.Post("e", buffer.Int("views", 1)), buffer.ErrClosed)
	require.NoError(t, b.Close(t.Context()))

	b, err = buffer.New(client, "others", allColumns, buffer.Options{OpTimeout: 100 * time.Millisecond, AddTimeout: 200 * time.Millisecond})
	require.NoError(t, err)
	require.NoError(t, b.Add(t.Context(), "e", buffer.Int("views", 1)))
	server.Pause(t)
	require.ErrorIs(t, b.Add(t.Context(), "e", buffer.Int("views", 1)), buffer.ErrUnconfirmed)
	require.NoError(t, b.Post("f", buffer.Int("views", 1)))
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	err = b.Close(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "2 rows were not confirmed")
	server.Resume(t)
}

// Producers that never stop do not keep a pass from ending.
func TestBuffer_FlushEnds(t *testing.T) {
	t.Parallel()
	b := newBuffer(t, redistest.Shared(t).Client(t), allColumns, buffer.Options{Shards: 1})
	require.NoError(t, b.Add(t.Context(), "e", buffer.Int("views", 1)))
	sink := newMemorySink()
	sink.before = func(*buffer.Batch) error {
		if sink.calls.Load() > 10 {
			return errors.New("it does not end")
		}
		return b.Add(t.Context(), "e", buffer.Int("views", 1))
	}
	report, err := b.Flush(t.Context(), sink)
	require.NoError(t, err)
	require.Equal(t, buffer.Report{Batches: 1, Rows: 1}, report)
}
