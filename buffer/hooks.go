package buffer

import (
	"context"
	"sync/atomic"
	"time"
)

// Hooks are optional functions that a buffer calls, for metrics and traces, from several goroutines at once. Keep them fast,
// and do not let them panic. Nil ones cost nothing.
type Hooks struct {
	// Flush is called after each attempt of a batch.
	Flush func(ctx context.Context, info FlushInfo)
	// Regress is called by the flusher that finds out that Redis has lost what it had; not if the flusher is killed, or Redis'
	// reply lost, just then, unlike Stats.Regressions. See Options.OnRegress.
	Regress func(ctx context.Context, info RegressInfo)
	// Error is called with each failure that the buffer goes on in spite of; op is one of the Op constants.
	Error func(ctx context.Context, op string, err error)
}

// What a buffer failed to do, for [Hooks].Error.
const (
	OpSend  = "send"  // send values to Redis; it goes on trying
	OpPost  = "post"  // have Redis take a value that nobody waits for: its sum would overflow, and it is lost
	OpFlush = "flush" // claim, read, apply or acknowledge a batch; it goes on trying
	OpCheck = "check" // find Redis as it must be: ErrEvicting, once per Buffer that flushes; it goes on
)

// FlushInfo describes one attempt of a batch.
type FlushInfo struct {
	Shard   int
	Rows    int           // how many were given to the sink at last
	Dead    int           // how many the sink refused for good
	Attempt int           // 1 for the first
	Age     time.Duration // of the batch's oldest value, when it was claimed
	Took    time.Duration
	Err     error // nil if the batch was applied, now or before, and acknowledged
}

// RegressInfo describes a loss, of one shard.
type RegressInfo struct {
	Shard int
	Rows  int // of the batch by which it was noticed
	// Behind is whether the ledger is beyond the batch, so that what is pending may have been flushed before: then
	// Options.OnRegress decides. If not, nothing can count twice.
	Behind bool
	Parked bool // whether the batch goes to the dead letters
}

type counters struct{ dropped atomic.Uint64 }

func (b *Buffer) reportRegress(ctx context.Context, info RegressInfo) {
	if b.opts.Hooks.Regress != nil {
		b.opts.Hooks.Regress(ctx, info)
	}
}

func (b *Buffer) reportError(ctx context.Context, op string, err error) {
	if b.opts.Hooks.Error != nil {
		b.opts.Hooks.Error(ctx, op, err)
	}
}
