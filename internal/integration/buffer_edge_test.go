package integration

import (
	"context"
	"errors"
	"math"
	"strconv"
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
	passThroughHook
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
			opts := buffer.Options{Prefix: redistest.Prefix(t), Shards: 1, MaxPending: 4}
			other := newBuffer(t, raw, allColumns, opts)
			opts.Hooks.Error = func(_ context.Context, op string, _ error) {
				if op == buffer.OpPost {
					told.Add(1)
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

// slowRead delays read.lua, as large texts do.
type slowRead struct {
	passThroughHook
	delay time.Duration
}

func (h slowRead) Do(client rueidis.Client, ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	if cmd.Commands()[2] == "3" {
		_ = after(ctx, h.delay)
	}
	return client.Do(ctx, cmd)
}

// A batch whose transfer takes longer than OpTimeout is flushed all the same.
func TestBuffer_ABatchThatTakesLongToRead(t *testing.T) {
	t.Parallel()
	raw := redistest.Shared(t).Client(t)
	opts := buffer.Options{Prefix: redistest.Prefix(t), Shards: 1, OpTimeout: time.Second}
	b := newBuffer(t, raw, allColumns, opts)
	require.NoError(t, b.Add(t.Context(), "e", buffer.Int("views", 1)))
	flusher := newBuffer(t, rueidishook.WithHook(raw, slowRead{delay: 1500 * time.Millisecond}), allColumns, opts)
	sink := newMemorySink()
	_, err := flusher.Flush(t.Context(), sink)
	require.NoError(t, err)
	require.Equal(t, int64(1), sink.total())
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
