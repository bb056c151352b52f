package buffer

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Batch is a portion of one shard for a [Sink].
type Batch struct {
	// ID is the same in all attempts of a batch, and no other batch's: an idempotency key for sinks without a ledger.
	ID string

	// Buffer is the buffer's prefix and name, "prefix:name", which together with Shard names a row of the ledger.
	Buffer string
	Shard  int
	// Epoch and Seq order the batches of a shard: one is made only after the one before was acknowledged. A new epoch begins
	// when Redis has lost what the ledger knows of. Follows is the one before it, or 0 as long as there was none.
	Epoch, Seq, Follows int64
	// Nonce tells batches with the same place in the order apart, which are there if Redis lost its memory.
	Nonce string
	// Version is how often rows were excluded from the batch because the sink refused them.
	Version int

	Attempt  int       // 1 for the first
	OldestAt time.Time // when the oldest of its values came, by this process' clock
	Columns  []Column  // of the buffer
	Rows     []Row     // sorted by the bytes of Entity, which is unique; may be empty
}

// Row is an entity and one value per column of the buffer. A batch may have a part of an entity's columns, and the rest of
// them come with another batch.
type Row struct {
	Entity string
	Values []Value
}

// Sink is what batches are applied to. Users may implement it; package sqlsink does for SQL databases.
//
// Apply must apply a batch as a whole or not at all. For a count that is exact whatever is killed when, it records in the same
// transaction that it has: in a ledger with one row per (Buffer, Shard), which holds the last batch's Epoch, Seq, Nonce and
// Version. If the ledger has the batch's Nonce, Apply returns an [*AppliedError]. It applies the batch if the ledger has no row,
// if that has the same Epoch and a smaller Seq, or if its epoch is Follows or before; else it returns a [*RegressError]. A sink
// without a ledger may use ID as an idempotency key, or else count a batch again after a crash.
//
// If rows are refused for good, while the others are not, Apply returns [RowErrors], having applied nothing: it is then
// called again without them. After any other error it is called again with the same batch, perhaps by another process.
type Sink interface {
	Apply(ctx context.Context, batch *Batch) error
}

// AppliedError says that the ledger has the batch already.
type AppliedError struct{ Version int }

func (e *AppliedError) Error() string {
	return fmt.Sprintf("buffer: version %d of the batch has been applied before", e.Version)
}

// RegressError says that the batch does not come after the ledger's: it is of a flusher that was overtaken, or of a Redis that
// has lost its memory.
type RegressError struct{ Epoch int64 } // the ledger's

func (e *RegressError) Error() string {
	return fmt.Sprintf("buffer: the batch does not come after the ledger's, of epoch %d", e.Epoch)
}

// RowError says why a row cannot be applied.
type RowError struct {
	Entity string
	Err    error
}

// RowErrors are the rows that a sink refuses.
type RowErrors []RowError

func (e RowErrors) Error() string {
	if len(e) == 0 {
		return "buffer: no row was refused"
	}
	return fmt.Sprintf("buffer: %d rows were refused, the first of them: %v", len(e), e[0].Err)
}

// Unwrap returns the reasons.
func (e RowErrors) Unwrap() []error {
	errs := make([]error, len(e))
	for i := range e {
		errs[i] = e[i].Err
	}
	return errs
}

var errNoRows = errors.New("the sink refused rows that are not in the batch")
