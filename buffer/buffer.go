package buffer

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/internal/key"
	"github.com/redispatterns/redispatterns/internal/script"
)

// ErrFull means that there is no room: in Redis (Options.MaxPending) or, while Redis does not take what it is sent, in this
// process (Options.MaxLocal). Nothing of the call was counted.
var ErrFull = errors.New("buffer: full")

// ErrOverflow means that a sum would overflow. The value was not counted; those for other columns of the same call were.
// An [*OverflowError] says which columns.
var ErrOverflow = errors.New("buffer: sum overflows")

// ErrUnconfirmed means that Redis has not confirmed in time. The values are not lost: this process goes on sending them until
// Redis confirms, or Close gives up. So do not add them again. The exception is a sum that turns out to overflow: see [Buffer.Add].
var ErrUnconfirmed = errors.New("buffer: not confirmed yet")

// ErrEvicting means that Redis has a maxmemory and a maxmemory-policy other than noeviction: when its memory is full, it drops
// what is pending, or the records that keep values from counting twice. No method returns it: see Hooks.Error and Stats.Evicts.
var ErrEvicting = errors.New("buffer: redis evicts keys when it is full")

// ErrClosed means that Close has been called.
var ErrClosed = errors.New("buffer: closed")

// OverflowError names the columns that an Add did not count because their sums would overflow. It matches [ErrOverflow].
type OverflowError struct{ Columns []string }

func (e *OverflowError) Error() string {
	return "buffer: sum overflows: " + strings.Join(e.Columns, ", ")
}

// Is makes an OverflowError match ErrOverflow.
func (e *OverflowError) Is(target error) bool { return target == ErrOverflow }

const (
	maxColumns = 32
	maxEntity  = 64 << 10 // bytes
	maxShards  = 1024
	writerTTL  = 24 * time.Hour

	defaultPrefix     = "buffer"
	defaultShards     = 4
	defaultMaxPending = 1_000_000
	defaultMaxLocal   = 100_000
	defaultMaxBatch   = 5_000
	maxMaxBatch       = 100_000
	maxBatchBytes     = 4 << 20
	usualBytes        = 200 // of a field's name and value; see claim.lua
	defaultFlushEvery = time.Second
	defaultWorkers    = 2
	defaultLease      = 30 * time.Second
	defaultBackoff    = 30 * time.Second
	defaultOpTimeout  = time.Second
	defaultAddTimeout = 3 * time.Second
)

// OnRegress says what to do with a batch when Redis turns out to be behind the sink's ledger: see Options.OnRegress.
type OnRegress uint8

const (
	// RegressApply flushes the batch, and all after it, under new numbers: nothing new is lost, and what Redis brought back
	// from the past may be counted again.
	RegressApply OnRegress = iota
	// RegressPark puts the batch, and whatever else is pending in its shard when the flusher finds out, into the dead letters,
	// for somebody to decide about: what came back, and what was added since then.
	RegressPark
)

// Options configures a [Buffer]; the zero value works. All processes that use a buffer should have the same. Durations are
// whole milliseconds.
type Options struct {
	// Prefix is what all keys begin with. Not empty, no braces. Defaults to "buffer". Together with the buffer's name it is
	// also the buffer's name in a sink's ledger.
	Prefix string

	// Shards is how many parts the buffer has, each with its own slot in a cluster and its own batches. An entity is always
	// in the same one. More of them let more flushers work at once, fewer let concurrent Adds share more round trips. It may
	// be changed at any time, in one process after the other; values added before the change are then flushed as before,
	// but Pending no longer sees all of them. 1 to 1024. Defaults to 4.
	Shards int

	// MaxPending bounds the fields (values of one column of one entity) in Redis. Each shard has an equal share of it, half
	// for what is being flushed and half for what has come since; when that half is used up, Add returns ErrFull unless
	// all of the call's fields are in it already. One round trip, of 2000 fields at most, may go beyond it. It does not bound
	// dead letters and their reasons, of 300 bytes each at most: watch Stats.DeadLetters. At least twice Shards. Defaults to
	// 1,000,000, which is about 100 MB.
	MaxPending int

	// MaxLocal bounds the entities that wait in this process for Redis to take them; beyond, Add and Post return ErrFull.
	// Each shard has an equal share. At least Shards. Defaults to 100,000.
	MaxLocal int

	// MaxBatch is the largest number of fields in a batch, which a flusher reads within Lease and has in memory as a whole. Nor
	// has a batch more than 4 MiB of their names and values, or 200 bytes times MaxBatch if that is more, and one field. A
	// name is the entity, the column and 2 bytes. 1 to 100,000. Defaults to 5,000.
	MaxBatch int

	// FlushEvery is the pause between two passes of Run, give or take a tenth, so that processes started together do not
	// stay together. At least 1ms. Defaults to 1s.
	FlushEvery time.Duration

	// Workers is how many shards one Run or Flush works on at a time. At least 1. Defaults to 2.
	Workers int

	// Lease is how long a flusher that dies keeps others from its batches. Living ones extend it while the sink works. It
	// is not what keeps a batch from being applied twice; the sink's ledger is. It also bounds how long Run waits for the
	// sink after its context has ended. At least 10ms. Defaults to 30s.
	Lease time.Duration

	// Backoff is the longest pause after failures of a shard in a row. The first is FlushEvery, each next one twice as long.
	// At least 1ms. Defaults to 30s.
	Backoff time.Duration

	// OpTimeout bounds each round trip to Redis; Lease does those that read batches and dead letters, or put these back, if it is
	// longer. At least 1ms. Defaults to 1s.
	OpTimeout time.Duration

	// AddTimeout is how long an Add waits at most, 7/8 of it at least, before it returns ErrUnconfirmed; its context may
	// end before. At least 1ms. Defaults to 3s.
	AddTimeout time.Duration

	// OnRegress is for batches whose place in the ledger is taken by another one, as happens after a failover that lost
	// writes, or when an older snapshot of Redis was restored. Defaults to RegressApply. Hooks.Regress and Stats tell,
	// also of losses that nothing can come back from, for which it does not matter.
	OnRegress OnRegress

	// Hooks are told what the buffer does.
	Hooks Hooks
}

func (o *Options) setDefaults() error {
	if o.Prefix == "" {
		o.Prefix = defaultPrefix
	}
	if err := key.CheckPrefix(o.Prefix); err != nil {
		return fmt.Errorf("Options.Prefix: %w", err)
	}
	if !utf8.ValidString(o.Prefix) || strings.ContainsFunc(o.Prefix, unicode.IsControl) || len(o.Prefix) > 128 {
		return errors.New("Options.Prefix must be printable and at most 128 bytes")
	}
	for _, n := range []struct {
		name             string
		value            *int
		fallback         int
		smallest, greats int
	}{
		{"Shards", &o.Shards, defaultShards, 1, maxShards},
		{"MaxBatch", &o.MaxBatch, defaultMaxBatch, 1, maxMaxBatch},
		{"Workers", &o.Workers, defaultWorkers, 1, maxShards},
	} {
		if *n.value == 0 {
			*n.value = n.fallback
		}
		if *n.value < n.smallest || *n.value > n.greats {
			return fmt.Errorf("%s must be %d to %d, got %d", "Options."+n.name, n.smallest, n.greats, *n.value)
		}
	}
	if o.MaxPending == 0 {
		o.MaxPending = max(defaultMaxPending, 2*o.Shards)
	}
	if o.MaxPending < 2*o.Shards {
		return fmt.Errorf("Options.MaxPending must be at least twice Shards, got %d", o.MaxPending)
	}
	if o.MaxLocal == 0 {
		o.MaxLocal = defaultMaxLocal
	}
	if o.MaxLocal < o.Shards {
		return fmt.Errorf("Options.MaxLocal must be at least Shards, got %d", o.MaxLocal)
	}
	for _, d := range []struct {
		name               string
		value              *time.Duration
		fallback, smallest time.Duration
	}{
		{"FlushEvery", &o.FlushEvery, defaultFlushEvery, time.Millisecond},
		{"Lease", &o.Lease, defaultLease, 10 * time.Millisecond},
		{"Backoff", &o.Backoff, defaultBackoff, time.Millisecond},
		{"OpTimeout", &o.OpTimeout, defaultOpTimeout, time.Millisecond},
		{"AddTimeout", &o.AddTimeout, defaultAddTimeout, time.Millisecond},
	} {
		if *d.value == 0 {
			*d.value = d.fallback
		}
		if *d.value < d.smallest || *d.value%time.Millisecond != 0 || *d.value > math.MaxInt64/8 {
			return fmt.Errorf("%s must be whole milliseconds and at least %v, got %v", "Options."+d.name, d.smallest, *d.value)
		}
	}
	if o.OnRegress > RegressPark {
		return fmt.Errorf("Options.OnRegress must be RegressApply or RegressPark, got %d", o.OnRegress)
	}
	return nil
}

// Buffer gathers values in Redis. It is safe for concurrent use and never closes the client. Add and Post send in goroutines
// of their own, which end when there is nothing left to send; Close waits for them.
type Buffer struct {
	client  rueidis.Client
	opts    Options
	columns []Column
	keys    keyspace
	writer  string
	shards  []*shard
	stats   counters

	registerAt atomic.Int64 // when a trip does so again, since epoch; 0 if this process has not
	known      atomic.Int64 // what register returned last
	checked    atomic.Bool  // whether Redis evicts
	senders    sync.WaitGroup
	life       context.Context //nolint:containedctx // its end is when Close gives up: the senders', not a call's
	giveUp     context.CancelFunc
}

// New returns a buffer for values of the given columns. name is 1 to 64 printable bytes without colons and braces. Processes
// with other columns of the same buffer may run at the same time, as during a deployment: one that flushes leaves batches
// with columns that it does not know to others, so flushers should be deployed first.
func New(client rueidis.Client, name string, columns []Column, opts Options) (*Buffer, error) {
	if client == nil {
		return nil, errors.New("buffer: client is required")
	}
	if name == "" || len(name) > 64 || !utf8.ValidString(name) || strings.ContainsAny(name, ":{}") || strings.ContainsFunc(name, unicode.IsControl) {
		return nil, fmt.Errorf("buffer: name must be 1 to 64 printable bytes without colons and braces, got %q", name)
	}
	if err := checkColumns(columns); err != nil {
		return nil, fmt.Errorf("buffer: %w", err)
	}
	if err := opts.setDefaults(); err != nil {
		return nil, fmt.Errorf("buffer: %w", err)
	}
	b := &Buffer{
		client: client, opts: opts, columns: append([]Column(nil), columns...),
		keys: keyspace{opts.Prefix, name}, writer: rand.Text()[:16],
		shards: make([]*shard, opts.Shards),
	}
	b.life, b.giveUp = context.WithCancel(context.Background())
	for i := range b.shards {
		b.shards[i] = &shard{b: b, keys: b.keys.shard(i, b.writer), wake: make(chan struct{}, 1), lossAt: "0"}
	}
	return b, nil
}

// Close refuses further calls of Add and Post and waits until Redis has confirmed all that came before, or ctx ends: then it
// gives up, and returns an error if anything was not confirmed, as does each further call. It does not flush and does not end Run.
func (b *Buffer) Close(ctx context.Context) error {
	for _, s := range b.shards {
		s.mu.Lock()
		s.closed, s.postsDue = true, 0
		s.mu.Unlock()
		s.wakeUp()
	}
	done := make(chan struct{})
	go func() {
		b.senders.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
		b.giveUp()
		<-done
	}
	left := 0
	for _, s := range b.shards {
		s.mu.Lock()
		left += s.lost
		s.mu.Unlock()
	}
	if left == 0 {
		return nil
	}
	return fmt.Errorf("buffer: close: %d rows were not confirmed: %w", left, cmp.Or(ctx.Err(), errGivenUp))
}

// ledgerName is what the buffer is called in a sink's ledger. A name has no colon, so no two buffers of one Redis share it.
func (b *Buffer) ledgerName() string { return b.keys.prefix + ":" + b.keys.name }

// register tells flushers how many shards there are, now and then, and returns how many any process uses.
func (b *Buffer) register(ctx context.Context) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, b.opts.OpTimeout)
	defer cancel()
	n, err := script.Do(ctx, b.client, registerScript.Call([]string{b.keys.shards()}, fmt.Sprint(b.opts.Shards))).AsInt64()
	if err != nil {
		return 0, err
	}
	n = min(n, maxShards)
	b.known.Store(n)
	b.registerAt.Store(int64(sinceEpoch() + registerEvery))
	return int(n), nil
}

// registerAgain does so beside the trips if it is time: the number has a slot of its own, whose node may be out of reach when
// those of the shards are not.
func (b *Buffer) registerAgain() {
	now := sinceEpoch()
	at := b.registerAt.Load()
	if int64(now) < at || !b.registerAt.CompareAndSwap(at, int64(now+b.opts.OpTimeout+maxRetry)) {
		return
	}
	b.senders.Go(func() {
		if _, err := b.register(b.life); err != nil {
			b.reportError(context.Background(), OpSend, err)
		}
	})
}

// largeTimeout bounds a round trip that moves some MiB: that may take longer than OpTimeout, each time.
func (b *Buffer) largeTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, max(b.opts.OpTimeout, b.opts.Lease))
}

// epoch is the origin of the package's monotonic clock.
var epoch = time.Now()

func sinceEpoch() time.Duration { return time.Since(epoch) + 1 }
