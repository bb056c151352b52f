package stream

import (
	"context"
	"sync/atomic"
	"time"
)

// Hooks are optional functions that a group calls, for metrics and traces, from several goroutines at once. Keep them fast, and do
// not let them panic. Nil ones cost nothing.
type Hooks struct {
	// Done is called after each attempt, before Redis knows of its outcome. ctx is the handler's.
	Done func(ctx context.Context, info Done)
	// Error is called with each failure that the group goes on in spite of; op is one of the Op constants.
	Error func(ctx context.Context, op string, err error)
}

// What a group failed to do, for [Hooks].Error. It goes on trying.
const (
	OpRead  = "read"  // read new entries, or create the group
	OpAck   = "ack"   // acknowledge what was handled
	OpRenew = "renew" // renew leases
	OpClaim = "claim" // look for entries that others have left
	OpBegin = "begin" // write down that an attempt begins
	OpDead  = "dead"  // write a dead letter
	OpDue   = "due"   // look for delayed entries that are due
	OpClean = "clean" // remove consumers that are gone
	OpDrain = "drain" // hand over what was not begun
)

// Outcome is how an attempt ended.
type Outcome string

// How an attempt ended.
const (
	Acked   Outcome = "acked"
	Retried Outcome = "retried" // will be, later
	Dropped Outcome = "dropped"
	Dead    Outcome = "dead"
	Lost    Outcome = "lost" // it failed, but another consumer has the message by now
)

// Done describes an attempt.
type Done struct {
	ID      ID
	Attempt int
	Outcome Outcome
	Took    time.Duration // of the handler
	Err     error         // of the handler
}

// Stats counts what the Runs of a [Group] in this process have done.
type Stats struct {
	Received  uint64 // messages that Redis delivered for the first time
	Claimed   uint64 // messages taken over from other consumers, or found after a reply was lost
	Acked     uint64 // messages handled or dropped, and acknowledged
	Retries   uint64 // attempts that failed and will be followed by another
	Dropped   uint64 // messages given up with [Drop]
	Dead      uint64 // messages that became dead letters
	Lost      uint64 // messages that another consumer took over while this one had them
	Deleted   uint64 // messages that were removed from the stream before anybody handled them
	Skipped   uint64 // messages that were redriven for other groups
	Recovered uint64 // how often the group was made again, since it had disappeared

	InFlight int64 // messages that this process has, from delivery to acknowledgement
	Running  int64 // handlers at work
}

type counters struct {
	received, claimed, acked, retries, dropped, dead, lost, deleted, skipped, recovered atomic.Uint64
	inFlight                                                                            atomic.Int64
}
