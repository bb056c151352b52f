package integration

import (
	"context"
	"errors"
	"math"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/redis/rueidis/rueidishook"
	"github.com/stretchr/testify/require"

	"github.com/redispatterns/redispatterns/buffer"
	"github.com/redispatterns/redispatterns/buffer/sqlsink"
	"github.com/redispatterns/redispatterns/internal/integration/redistest"
)

type sinkFunc func(ctx context.Context, b *buffer.Batch) error

func (f sinkFunc) Apply(ctx context.Context, b *buffer.Batch) error { return f(ctx, b) }

// heldClient holds calls before they are sent: the next one if next is set, all if all is.
type heldClient struct {
	redistest.PassThrough
	next, all *atomic.Bool
	reached   chan struct{} // has room for one
	release   chan struct{}
}

func newHeldClient() heldClient {
	return heldClient{next: &atomic.Bool{}, all: &atomic.Bool{}, reached: make(chan struct{}, 1), release: make(chan struct{})}
}

func (h heldClient) Do(client rueidis.Client, ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	if h.all.Load() || h.next.CompareAndSwap(true, false) {
		select {
		case h.reached <- struct{}{}:
		default:
		}
		select {
		case <-h.release:
		case <-ctx.Done():
		}
	}
	return client.Do(ctx, cmd)
}

// An Add has left, unconfirmed, before Redis refuses what it was to add: that is counted later, or its overflow told. An Add of
// the same row that still waits must not believe that nothing will be counted.
//
//nolint:tparallel // the server's memory is limited for one of them
func TestBuffer_WhatIsUnconfirmedAndThenRefused(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, "--maxmemory-policy", "noeviction")
	raw := server.Client(t)
	setMemory := func(limit string) {
		t.Helper()
		require.NoError(t, raw.Do(t.Context(), raw.B().ConfigSet().ParameterValue().ParameterValue("maxmemory", limit).Build()).Error())
	}
	for _, reason := range []string{"full", "out of memory", "overflow"} {
		t.Run(reason, func(t *testing.T) {
			ctx := t.Context()
			var told atomic.Int64
			returned := make(chan struct{})
			opts := buffer.Options{Prefix: redistest.Prefix(t), Shards: 1, MaxPending: 4}
			other := newBuffer(t, raw, allColumns, opts)
			opts.Hooks.Error = func(_ context.Context, op string, _ error) {
				if op != buffer.OpPost {
					return
				}
				select {
				case <-returned:
					told.Add(1)
				case <-time.After(5 * time.Second): // the Add that waits must not wait for a hook
				}
			}
			held := newHeldClient()
			b := newBuffer(t, rueidishook.WithHook(raw, held), allColumns, opts)
			require.NoError(t, b.Add(ctx, "e", buffer.Int("best", 1)))
			held.next.Store(true)
			require.NoError(t, b.Post("posted", buffer.Int("best", 1)))
			<-held.reached
			waiting := make(chan error)
			go func() { waiting <- b.Add(ctx, "e", buffer.Int("views", 1)) }()
			require.Eventually(t, func() bool {
				stats, err := b.Stats(ctx)
				require.NoError(t, err)
				return stats.Local == 2
			}, 20*time.Second, time.Millisecond)
			short, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
			defer cancel()
			require.ErrorIs(t, b.Add(short, "e", buffer.Int("views", 1)), buffer.ErrUnconfirmed)

			sink := newMemorySink()
			switch reason {
			case "full":
				require.NoError(t, other.Add(ctx, "f", buffer.Int("best", 1)))
			case "out of memory":
				setMemory("1mb")
			case "overflow":
				require.NoError(t, other.Add(ctx, "e", buffer.Int("views", math.MaxInt64)))
			}
			close(held.release)
			err := <-waiting
			close(returned)
			if reason == "overflow" {
				require.ErrorIs(t, err, buffer.ErrOverflow)
			} else {
				require.ErrorIs(t, err, buffer.ErrUnconfirmed)
				require.NotErrorIs(t, err, buffer.ErrFull)
				require.Zero(t, sink.total())
			}
			setMemory("0")
			drainTo(t, other, sink)
			require.NoError(t, b.Close(ctx))
			drainTo(t, other, sink)
			stats, err := other.Stats(ctx)
			require.NoError(t, err)
			require.Zero(t, stats.Pending)
			stats, err = b.Stats(ctx)
			require.NoError(t, err)
			require.Zero(t, stats.Local)
			if reason == "overflow" {
				require.Equal(t, int64(math.MaxInt64), sink.total())
				require.Equal(t, uint64(1), stats.Dropped)
				require.Equal(t, int64(1), told.Load())
				return
			}
			require.Equal(t, int64(2), sink.total(), "both were unconfirmed")
			require.Zero(t, stats.Dropped)
		})
	}
}

// steppedClient lets an add.lua through for each token.
type steppedClient struct {
	redistest.PassThrough
	reached, tokens chan struct{} // have room for one and two
}

func (h steppedClient) Do(client rueidis.Client, ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	if cmd.Commands()[2] == "3" {
		select {
		case h.reached <- struct{}{}:
		default:
		}
		select {
		case <-h.tokens:
		case <-ctx.Done():
		}
	}
	return client.Do(ctx, cmd)
}

// An Add waits for the round trip that is under way and its own, whatever was posted; and that goes along.
func TestBuffer_AnAddDoesNotWaitForPosts(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	raw := redistest.Shared(t).Client(t)
	require.NoError(t, newBuffer(t, raw, allColumns, buffer.Options{}).Add(ctx, "e", buffer.Int("views", 1)), "Redis knows the script")
	client := steppedClient{reached: make(chan struct{}, 1), tokens: make(chan struct{}, 2)}
	b := newBuffer(t, rueidishook.WithHook(raw, client), allColumns, buffer.Options{Shards: 1, OpTimeout: time.Minute})
	require.NoError(t, b.Post("first", buffer.Int("views", 1)))
	<-client.reached
	const posts = 5000
	for i := range posts {
		require.NoError(t, b.Post(strconv.Itoa(i), buffer.Int("views", 1)))
	}
	local := func() int {
		stats, err := b.Stats(ctx)
		require.NoError(t, err)
		return stats.Local
	}
	added := make(chan error)
	go func() { added <- b.Add(ctx, "added", buffer.Int("views", 1)) }()
	require.Eventually(t, func() bool { return local() == posts+2 }, 20*time.Second, time.Millisecond)
	client.tokens <- struct{}{}
	client.tokens <- struct{}{}
	require.NoError(t, <-added)
	require.Equal(t, posts-1000, local())
	close(client.tokens)
	require.NoError(t, b.Close(ctx))
	sink := newMemorySink()
	drainTo(t, b, sink)
	require.Equal(t, int64(posts+2), sink.total())
}

// movingSlot answers add.lua as a cluster's node does while it moves the slot's keys to another.
type movingSlot struct {
	redistest.PassThrough
	times *atomic.Int64
}

func (h movingSlot) Do(client rueidis.Client, ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	if cmd.Commands()[2] == "3" && h.times.Add(-1) >= 0 {
		cmd = client.B().Eval().Script("return redis.error_reply('TRYAGAIN Multiple keys request during rehashing of slot')").Numkeys(0).Build()
	}
	return client.Do(ctx, cmd)
}

func TestBuffer_ASlotThatMoves(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	raw := redistest.Shared(t).Client(t)
	moving := movingSlot{times: &atomic.Int64{}}
	opts := buffer.Options{Prefix: redistest.Prefix(t), Shards: 1}
	b := newBuffer(t, rueidishook.WithHook(raw, moving), allColumns, opts)
	moving.times.Store(3)
	require.NoError(t, b.Add(ctx, "e", buffer.Int("views", 1)))
	opts.AddTimeout = 50 * time.Millisecond
	impatient := newBuffer(t, rueidishook.WithHook(raw, moving), allColumns, opts)
	moving.times.Store(math.MaxInt64)
	total := int64(11)
	if err := impatient.Add(ctx, "e", buffer.Int("views", 10)); !errors.Is(err, buffer.ErrUnconfirmed) {
		require.ErrorContains(t, err, "TRYAGAIN") // on a busy machine: the round trip was given up first, and counted nothing
		total -= 10
	}
	moving.times.Store(0)
	require.NoError(t, impatient.Close(ctx))
	sink := newMemorySink()
	drainTo(t, b, sink)
	require.Equal(t, total, sink.total())
}

// Adds of one row that Redis does not take wait for AddTimeout each, 7/8 of it at least, whenever they come, or until their context
// ends; and a sum that overflowed here is told although its Add has left.
func TestBuffer_HowLongAnAddWaits(t *testing.T) {
	t.Parallel()
	const timeout = 800 * time.Millisecond
	ctx := t.Context()
	var told atomic.Int64
	held := newHeldClient()
	b := newBuffer(t, rueidishook.WithHook(redistest.Shared(t).Client(t), held), allColumns, buffer.Options{
		Shards: 1, AddTimeout: timeout,
		Hooks: buffer.Hooks{Error: func(_ context.Context, op string, err error) {
			if op == buffer.OpPost && errors.Is(err, buffer.ErrOverflow) {
				told.Add(1)
			}
		}},
	})
	held.next.Store(true)
	require.NoError(t, b.Post("posted", buffer.Int("best", 1)))
	<-held.reached
	var wg sync.WaitGroup
	add := func(ctx context.Context, n int64, want error, least time.Duration) {
		wg.Go(func() {
			began := time.Now()
			err := b.Add(ctx, "e", buffer.Int("views", n))
			took := time.Since(began)
			require.ErrorIs(t, err, buffer.ErrUnconfirmed)
			require.ErrorIs(t, err, want)
			require.GreaterOrEqual(t, took, least)
			require.Less(t, took, least+timeout/2)
		})
	}
	add(context.Background(), math.MaxInt64, context.DeadlineExceeded, timeout*7/8)
	require.Eventually(t, func() bool {
		stats, err := b.Stats(ctx)
		require.NoError(t, err)
		return stats.Local == 2
	}, 20*time.Second, time.Millisecond)
	require.NoError(t, after(ctx, timeout/4))
	add(ctx, 1, context.DeadlineExceeded, timeout*7/8) // overflows
	ends, cancel := context.WithTimeout(ctx, timeout/4)
	defer cancel()
	add(ends, 0, context.DeadlineExceeded, timeout/8)
	ends, cancel = context.WithCancel(ctx)
	time.AfterFunc(timeout/4, cancel)
	add(ends, 0, context.Canceled, timeout/8)
	wg.Wait()
	require.Equal(t, int64(1), told.Load())
	close(held.release)
	require.NoError(t, b.Add(ctx, "e", buffer.Int("views", 0)))
	sink := newMemorySink()
	drainTo(t, b, sink)
	require.Equal(t, int64(math.MaxInt64), sink.total())
	stats, err := b.Stats(ctx)
	require.NoError(t, err)
	require.Equal(t, uint64(1), stats.Dropped)
}

// Close ends with its context, whatever is under way and waits, and tells so each time.
func TestBuffer_CloseGivesUp(t *testing.T) {
	t.Parallel()
	held := newHeldClient()
	b, err := buffer.New(rueidishook.WithHook(redistest.Shared(t).Client(t), held), "counts", allColumns,
		buffer.Options{Prefix: redistest.Prefix(t), Shards: 1, OpTimeout: time.Hour})
	require.NoError(t, err)
	held.all.Store(true)
	for i := range 5000 { // several round trips
		require.NoError(t, b.Post(strconv.Itoa(i), buffer.Int("views", 1)))
	}
	<-held.reached
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err = b.Close(ctx)
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorContains(t, err, "5000 rows were not confirmed")
	require.ErrorContains(t, b.Close(t.Context()), "5000 rows were not confirmed")
}

func TestBuffer_AColumnComesTwice(t *testing.T) {
	t.Parallel()
	b := newBuffer(t, redistest.Shared(t).Client(t), allColumns, buffer.Options{})
	require.ErrorContains(t, b.Add(t.Context(), "e", buffer.Int("views", math.MaxInt64), buffer.Int("views", 1)), `column "views" comes twice`)
	require.ErrorContains(t, b.Post("e", buffer.Int("best", 1), buffer.Int("views", 1), buffer.Int("views", 1)), `column "views" comes twice`)
	require.NoError(t, b.Close(t.Context()))
	rows, err := b.Pending(t.Context(), "e")
	require.NoError(t, err)
	require.Empty(t, rows)
}

// Two flushers find out that Redis fell behind from the same batch, which the first of them has applied already when the
// second gives it a new number.
func TestBuffer_TwoFlushersOfABatchThatFellBehind(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	raw := redistest.Shared(t).Client(t)
	prefix := redistest.Prefix(t)
	opts := buffer.Options{Prefix: prefix, Shards: 1}
	a, b := newBuffer(t, raw, allColumns, opts), newBuffer(t, raw, allColumns, opts)
	sink := newMemorySink()
	require.NoError(t, a.Add(ctx, "e", buffer.Int("views", 1)))
	drainTo(t, a, sink)
	old := dump(t, raw, prefix)
	require.NoError(t, a.Add(ctx, "e", buffer.Int("views", 10)))
	drainTo(t, a, sink)
	restore(t, raw, prefix, old)
	require.NoError(t, a.Add(ctx, "e", buffer.Int("views", 100)))

	first := true
	report, err := a.Flush(ctx, sinkFunc(func(ctx context.Context, batch *buffer.Batch) error {
		err := sink.Apply(ctx, batch)
		if !first {
			return err
		}
		first = false
		var behind *buffer.RegressError
		require.ErrorAs(t, err, &behind)
		lostReply := errors.New("the reply to COMMIT was lost")
		sink.after = func(*buffer.Batch) error { return lostReply }
		require.NoError(t, raw.Do(ctx, raw.B().Hset().Key(prefix+":{counts:0}:meta").FieldValue().FieldValue("expires", "0").Build()).Error())
		_, otherErr := b.Flush(ctx, sink)
		require.ErrorIs(t, otherErr, lostReply)
		sink.after = nil
		return err
	}))
	require.NoError(t, err)
	require.Equal(t, 1, report.Batches)
	require.Equal(t, int64(111), sink.total())
	stats, err := a.Stats(ctx)
	require.NoError(t, err)
	require.Zero(t, stats.Pending)
	require.Equal(t, int64(1), stats.Regressions)
}

// A state from before a shard's first claim comes back after what it has was flushed.
func TestBuffer_AStateFromBeforeTheFirstClaimComesBack(t *testing.T) {
	t.Parallel()
	raw := redistest.Shared(t).Client(t)
	prefix := redistest.Prefix(t)
	b := newBuffer(t, raw, allColumns, buffer.Options{Prefix: prefix, Shards: 1, OnRegress: buffer.RegressPark})
	sink := newMemorySink()
	require.NoError(t, b.Add(t.Context(), "e", buffer.Int("views", 1)))
	old := dump(t, raw, prefix)
	drainTo(t, b, sink)
	require.NoError(t, after(t.Context(), 5*time.Millisecond)) // Redis' clock goes on
	restore(t, raw, prefix, old)
	drainTo(t, b, sink)
	require.Equal(t, int64(1), sink.total())
	stats, err := b.Stats(t.Context())
	require.NoError(t, err)
	require.Equal(t, int64(1), stats.Regressions)
	require.Equal(t, int64(1), stats.DeadLetters)
}

// slowTransfer delays read.lua, letters.lua and replay.lua, as large texts do.
type slowTransfer struct {
	redistest.PassThrough
	delay time.Duration
}

func (h slowTransfer) Do(client rueidis.Client, ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	keys, _ := strconv.Atoi(cmd.Commands()[2])
	if last := cmd.Commands()[2+keys]; strings.HasSuffix(last, ":marks") || strings.HasSuffix(last, ":reasons") && keys != 5 {
		_ = after(ctx, h.delay)
	}
	return client.Do(ctx, cmd)
}

// A batch whose transfer takes longer than OpTimeout is flushed all the same, and dead letters are put back.
func TestBuffer_WhatTakesLongToTransfer(t *testing.T) {
	t.Parallel()
	raw := redistest.Shared(t).Client(t)
	opts := buffer.Options{Prefix: redistest.Prefix(t), Shards: 1, OpTimeout: time.Second}
	b := newBuffer(t, raw, allColumns, opts)
	require.NoError(t, b.Add(t.Context(), "e", buffer.Int("views", 1)))
	sink := newMemorySink()
	refusing(sink, func(string) bool { return true })
	drainTo(t, b, sink)
	sink.before = nil
	slow := newBuffer(t, rueidishook.WithHook(raw, slowTransfer{delay: 1500 * time.Millisecond}), allColumns, opts)
	n, err := slow.Replay(t.Context())
	require.NoError(t, err)
	require.Equal(t, 1, n)
	_, err = slow.Flush(t.Context(), sink)
	require.NoError(t, err)
	require.Equal(t, int64(1), sink.total())
}

// lettersSpy has the size of the largest portion of dead letters that was read.
type lettersSpy struct {
	redistest.PassThrough
	largest *atomic.Int64
}

func (h lettersSpy) Do(client rueidis.Client, ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	keys := cmd.Commands()[2]
	r := client.Do(ctx, cmd)
	if keys != "2" {
		return r
	}
	if reply, err := r.ToArray(); err == nil {
		texts, _ := reply[1].AsStrSlice()
		h.largest.Store(max(h.largest.Load(), int64(len(strings.Join(texts, "")))))
	}
	return r
}

// A batch is bounded by the bytes of its names and values too, whether they came by Add or Replay, and many small fields still
// are one. So are portions of dead letters.
func TestBuffer_ABatchIsBoundedByBytes(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	raw := redistest.Shared(t).Client(t)
	prefix := redistest.Prefix(t)
	letters := lettersSpy{largest: &atomic.Int64{}}
	b := newBuffer(t, rueidishook.WithHook(raw, letters), allColumns, buffer.Options{Prefix: prefix, Shards: 1})
	sink := newMemorySink()
	var batches []int // bytes
	apply := sinkFunc(func(ctx context.Context, batch *buffer.Batch) error {
		n := 0
		for _, row := range batch.Rows {
			for c, v := range row.Values {
				if v.Set {
					n += len(row.Entity) + len(allColumns[c].Name) + len(v.Text)
				}
			}
		}
		batches = append(batches, n)
		return sink.Apply(ctx, batch)
	})
	const large = 100 // fields of 64 KiB, and as many small ones
	add := func() {
		t.Helper()
		for i := range large {
			require.NoError(t, b.Add(ctx, strconv.Itoa(i), buffer.Int("views", 1), buffer.At("status", time.Now(), strings.Repeat("x", 64<<10))))
		}
	}
	flush := func(least, most int) {
		t.Helper()
		batches = nil
		_, err := b.Flush(ctx, apply)
		require.NoError(t, err)
		require.GreaterOrEqual(t, len(batches), least)
		require.LessOrEqual(t, len(batches), most)
		for _, n := range batches {
			require.Less(t, n, 4<<20+65<<10)
		}
	}
	add()
	flush(2, 3)
	require.Equal(t, int64(large), sink.total())
	for range 3 {
		add() // of the same fields, which are counted each time, but measured when they are claimed
	}
	flush(2, 3)
	require.Equal(t, int64(4*large), sink.total())

	refusing(sink, func(string) bool { return true })
	add()
	flush(4, 6) // each once, and once empty
	sink.before = nil
	n, err := b.Replay(ctx)
	require.NoError(t, err)
	require.Equal(t, 2*large, n)
	require.Greater(t, letters.largest.Load(), int64(1<<20))
	require.Less(t, letters.largest.Load(), int64(3<<20))
	flush(2, 3)
	require.Equal(t, int64(5*large), sink.total())

	for i := range 4000 {
		require.NoError(t, b.Post(strconv.Itoa(i), buffer.Int("views", 1)))
	}
	require.NoError(t, b.Close(ctx))
	flush(1, 1)
	require.Equal(t, int64(5*large+4000), sink.total())
	counted, err := raw.Do(ctx, raw.B().Hget().Key(prefix+":{counts:0}:meta").Field("genExcess").Build()).ToString()
	require.NoError(t, err)
	require.Equal(t, "0", counted, "small ones are not measured")
}

// No name of a column is one that the statements use for something else.
func TestSQLSink_ColumnsOfAnyName(t *testing.T) {
	t.Parallel()
	eachDatabase(t, func(t *testing.T, dialect sqlsink.Dialect, d redistest.Database) {
		db := openDatabase(t, dialect, d, nil)
		columns := []buffer.Column{{Name: "k", Op: buffer.Sum}, {Name: "n", Op: buffer.Sum}, {Name: "t", Op: buffer.Sum}, {Name: "excluded", Op: buffer.Max}}
		key := "TEXT"
		if dialect == sqlsink.DialectMySQL {
			key = "VARBINARY(255)"
		}
		_, err := db.ExecContext(t.Context(), "CREATE TABLE names (id "+key+" PRIMARY KEY, k BIGINT, n BIGINT, t BIGINT, excluded BIGINT)")
		require.NoError(t, err)
		b := newBuffer(t, redistest.Shared(t).Client(t), columns, buffer.Options{})
		for _, updateOnly := range []bool{false, true} {
			sink, err := newTableSink(dialect, db, sqlsink.Table{Name: "names", Key: "id", UpdateOnly: updateOnly})
			require.NoError(t, err)
			require.NoError(t, b.Add(t.Context(), "e", buffer.Int("k", 1), buffer.Int("n", 2), buffer.Int("t", 3), buffer.Int("excluded", 4)))
			report, err := b.Flush(t.Context(), sink)
			require.NoError(t, err)
			require.Zero(t, report.Dead)
		}
		var sum int64
		require.NoError(t, db.QueryRowContext(t.Context(), "SELECT k + n + t + excluded FROM names").Scan(&sum))
		require.Equal(t, int64(2+4+6+4), sum)
	})
}

// A deferred constraint shows at COMMIT. PostgreSQL can be asked whose it is; SQLite cannot, but the connection must come out of
// the transaction.
func TestSQLSink_ADeferredConstraint(t *testing.T) {
	t.Parallel()
	eachDatabase(t, func(t *testing.T, dialect sqlsink.Dialect, d redistest.Database) {
		if dialect == sqlsink.DialectMySQL {
			return // it has none
		}
		if dialect == sqlsink.DialectSQLite {
			d.DSN += "&_pragma=foreign_keys(1)"
		}
		ctx := t.Context()
		db := openDatabase(t, dialect, d, nil)
		db.SetMaxOpenConns(1)
		for _, statement := range []string{
			"CREATE TABLE posts (id TEXT PRIMARY KEY)", "INSERT INTO posts VALUES ('good')",
			"CREATE TABLE likes (id TEXT PRIMARY KEY REFERENCES posts(id) DEFERRABLE INITIALLY DEFERRED, likes BIGINT)",
		} {
			_, err := db.ExecContext(ctx, statement)
			require.NoError(t, err)
		}
		sink, err := newTableSink(dialect, db, sqlsink.Table{Name: "likes", Key: "id"})
		require.NoError(t, err)
		b := newBuffer(t, redistest.Shared(t).Client(t), []buffer.Column{{Name: "likes", Op: buffer.Sum}}, buffer.Options{Shards: 1})
		require.NoError(t, b.Add(ctx, "good", buffer.Int("likes", 1)))
		require.NoError(t, b.Add(ctx, "bad", buffer.Int("likes", 1)))
		report, err := b.Flush(ctx, sink)
		if dialect == sqlsink.DialectSQLite {
			require.Error(t, err)
			tx, err := db.BeginTx(ctx, nil)
			require.NoError(t, err, "the connection is not in a transaction any more")
			_, err = tx.ExecContext(ctx, "INSERT INTO posts VALUES ('bad')")
			require.NoError(t, err)
			require.NoError(t, tx.Commit())
			drainTo(t, b, sink)
		} else {
			require.NoError(t, err)
			require.Equal(t, buffer.Report{Batches: 1, Rows: 1, Dead: 1}, report)
		}
		var likes int64
		require.NoError(t, db.QueryRowContext(ctx, "SELECT likes FROM likes WHERE id = 'good'").Scan(&likes))
		require.Equal(t, int64(1), likes)
	})
}

// Columns of the buffer that would be one in the table, and names that PostgreSQL would cut.
func TestSQLSink_NamesThatCannotBe(t *testing.T) {
	t.Parallel()
	db := openDatabase(t, sqlsink.DialectSQLite, sqlTargets[0].open(t), nil)
	for _, columns := range []map[string]string{{"views": "id"}, {"views": "n", "best": "n"}} {
		_, err := sqlsink.SQLite(db, sqlsink.Table{Name: "hits", Key: "id", Columns: columns})
		require.ErrorContains(t, err, "must be a column of its own")
	}
	for name, want := range map[string]string{
		strings.Repeat("x", 61): "at most 63 bytes",
		"when":                  `two columns would be written to "status_at"`,
		"id":                    `two columns would be written to "id"`,
	} {
		sink, err := sqlsink.SQLite(db, sqlsink.Table{Name: "hits", Key: "id", Columns: map[string]string{"when": "status_at"}})
		require.NoError(t, err)
		columns := []buffer.Column{{Name: name, Op: buffer.Last}, {Name: "status", Op: buffer.Last}}
		b := newBuffer(t, redistest.Shared(t).Client(t), columns, buffer.Options{})
		require.NoError(t, b.Add(t.Context(), "e", buffer.At(name, time.Now(), "")))
		_, err = b.Flush(t.Context(), sink)
		require.ErrorContains(t, err, want)
	}
}

// With SendToReplicas, and replicas that lag, what is pending and the dead letters are the primary's.
func TestBuffer_NothingIsReadFromReplicas(t *testing.T) {
	t.Parallel()
	raw := redistest.Shared(t).Client(t)
	spy := &readOnlySpy{}
	b := newBuffer(t, rueidishook.WithHook(raw, spy), allColumns, buffer.Options{})
	sink := newMemorySink()
	refusing(sink, func(string) bool { return true })
	require.NoError(t, b.Add(t.Context(), "e", buffer.Int("views", 1)))
	drainTo(t, b, sink)
	for letter, err := range b.DeadLetters(t.Context()) {
		require.NoError(t, err)
		require.NotEmpty(t, letter.Reason)
	}
	n, err := b.Replay(t.Context())
	require.NoError(t, err)
	require.Equal(t, 1, n)
	_, err = b.Pending(t.Context(), "e")
	require.NoError(t, err)
	_, err = b.Stats(t.Context())
	require.NoError(t, err)
	require.Empty(t, spy.seen())
}

// What is pending of a sum may be in three places, of which two alone would overflow.
func TestBuffer_PendingAddsUpWhatFits(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	raw := redistest.Shared(t).Client(t)
	prefix := redistest.Prefix(t)
	b := newBuffer(t, raw, allColumns, buffer.Options{Prefix: prefix, Shards: 1})
	set := func(key string, n int64) {
		t.Helper()
		cmd := raw.B().Hset().Key(prefix+":{counts:0}:"+key).FieldValue().FieldValue("+views:e", strconv.FormatInt(n, 10)).Build()
		require.NoError(t, raw.Do(ctx, cmd).Error())
	}
	set("cur", math.MaxInt64)
	set("gen", 1)
	set("batch", -1)
	rows, err := b.Pending(ctx, "e")
	require.NoError(t, err)
	require.Equal(t, int64(math.MaxInt64), rows["e"].Values[0].Int)
	set("batch", 0)
	_, err = b.Pending(ctx, "e")
	require.ErrorIs(t, err, buffer.ErrOverflow)
}
