package stream

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// ErrLeaseLost is the cause with which a handler's context ends when another consumer has taken its message over: this process
// was stopped or cut off for longer than the lease. What the handler returns from then on does not matter, unless it is nil: what is
// done is acknowledged.
var ErrLeaseLost = errors.New("stream: lease lost")

// ErrStopping is the cause with which a handler's context ends when it is still at work GroupOptions.DrainTimeout after Run
// was told to stop.
var ErrStopping = errors.New("stream: stopping")

// ErrUnfinished is what Run returns when handlers did not end in time, or Redis did not confirm what was handled or handed
// over. Other consumers will handle these messages again once their leases have ended.
var ErrUnfinished = errors.New("stream: not all could be finished")

// ErrSecondGroup means that GroupOptions.DeleteOnAck would take messages away from another group.
var ErrSecondGroup = errors.New("stream: DeleteOnAck with a second group")

// ErrPanic is what the reason of an attempt that panicked matches.
var ErrPanic = errors.New("stream: handler panicked")

// Handler handles a message. If it returns nil, the message is acknowledged; an error has it handled again, after a while, up to
// GroupOptions.MaxAttempts times, unless it is made by [Drop], [DeadLetter] or [RetryAfter]. A panic is an error.
//
// Its context does not end with that of Run, nor when the handler returns. It ends with [ErrLeaseLost] or [ErrStopping];
// see [context.Cause].
type Handler[T any] func(ctx context.Context, m *Message[T]) error

// BatchHandler handles several messages at once: all of them are acknowledged, or all handled again, from then on each alone.
type BatchHandler[T any] func(ctx context.Context, ms []*Message[T]) error

type verdict struct {
	outcome Outcome
	after   time.Duration
	err     error
}

func (v *verdict) Error() string {
	if v.err == nil {
		return "stream: " + string(v.outcome)
	}
	return v.err.Error()
}

func (v *verdict) Unwrap() error { return v.err }

// Drop returns an error that has a message acknowledged although it was not handled. err may be nil.
func Drop(err error) error { return &verdict{outcome: Dropped, err: err} }

// DeadLetter returns an error that makes a message a dead letter at once, with err as the reason. err may be nil.
func DeadLetter(err error) error { return &verdict{outcome: Dead, err: err} }

// RetryAfter returns an error that has a message handled again after d, without counting this attempt. err may be nil. If
// this Run ends before, others handle it within about a lease. For a message that must wait whatever happens, publish
// another with [Delay].
func RetryAfter(d time.Duration, err error) error {
	return &verdict{outcome: Retried, after: max(d, 0), err: err}
}

// GroupOptions configures a [Group]; the zero value works. All consumers of a group should have the same. Durations are
// whole milliseconds.
type GroupOptions[T any] struct {
	// Start is where a group that does not exist yet begins: after the entry of that id, or with the first if it is "", the
	// default. A group that disappears while it runs begins with the first again: nothing is left out.
	Start ID

	// Workers is how many handlers run at once in one Run. 1 to 10,000. Defaults to 16.
	Workers int

	// Batch is how many messages are read at once at most, and how many RunBatch passes to its handler. 1 to 10,000.
	// Defaults to 256.
	Batch int

	// MaxInFlight bounds the messages, not their bytes, that one Run has, from delivery to acknowledgement: those that others must
	// handle, perhaps again, if this process is killed. If handlers take long there are fewer, about as many as take a second.
	// To leave all that no worker is free for to other processes, make it equal to Workers.
	// At least Workers. Defaults to 4 times Batch, or Workers if that is more.
	MaxInFlight int

	// Lease is how long a consumer that is killed or cut off keeps others from its messages. Living ones renew it, however long
	// a handler takes. 100ms to 24h. Defaults to 30s.
	Lease time.Duration

	// MaxAttempts is after how many attempts a message becomes a dead letter. An attempt ends with an error, a panic, or
	// the end of the process. Having been delivered to a process that is killed counts as one too, even if it had not
	// begun. Last attempts that were inherited are made one after the other within a Run: one that hangs holds the others
	// that this Run has up. With 1, all messages of a batch that RunBatch fails become dead letters. Negative: never.
	// Defaults to 5.
	MaxAttempts int

	// Backoff says how long to wait after the given attempt, from 1, has failed. The message stays in this process
	// meanwhile, and counts for MaxInFlight. Defaults to a second, doubled with each attempt up to a minute, less up to a
	// quarter; also if it panics.
	Backoff func(attempt int) time.Duration

	// DrainTimeout is how long Run waits for handlers at work when its context has ended; then theirs end too, and a second
	// later it gives up. At least 1ms. Defaults to 10s.
	DrainTimeout time.Duration

	// Key, if it is set, has messages with the same key handled one after the other, in the order of their ids, within one
	// Run. (But for those that another consumer left, and those which Redis delivers by a command that was given up more
	// than a moment before.) One that is handled again holds those behind it up, and once MaxInFlight is full of these, all
	// other keys too. A message that could not be decoded has no key; if Key panics, it counts as such.
	Key func(T) string

	// DeleteOnAck removes messages from the stream when they are acknowledged. Run refuses it if the stream has a second group, and
	// deletes nothing if one is made later. Dead letters are messages of their own, and stay.
	DeleteOnAck bool

	// Consumer begins the name of this consumer in Redis; each Run appends random letters, so that no two are alike.
	// Defaults to the host's name and the process id.
	Consumer string

	// Middleware is wrapped around the handler of Run, the first outermost.
	Middleware []func(Handler[T]) Handler[T]

	// Hooks are told what the group does.
	Hooks Hooks
}

const (
	defaultWorkers     = 16
	defaultBatch       = 256
	defaultLease       = 30 * time.Second
	defaultMaxAttempts = 5
	defaultDrain       = 10 * time.Second
	minLease           = 100 * time.Millisecond
	maxLease           = 24 * time.Hour
	most               = 10_000
)

func (o *GroupOptions[T]) setDefaults() error {
	if o.Start != "" && o.Start != Latest && !o.Start.valid() {
		return fmt.Errorf("GroupOptions.Start must be empty, Latest or an id, got %q", string(o.Start))
	}
	for _, n := range []struct {
		name     string
		value    *int
		fallback int
	}{
		{"Workers", &o.Workers, defaultWorkers},
		{"Batch", &o.Batch, defaultBatch},
	} {
		if *n.value == 0 {
			*n.value = n.fallback
		}
		if *n.value < 1 || *n.value > most {
			return fmt.Errorf("GroupOptions.%s must be 1 to %d, got %d", n.name, most, *n.value)
		}
	}
	if o.MaxInFlight == 0 {
		o.MaxInFlight = max(4*o.Batch, o.Workers)
	}
	if o.MaxInFlight < o.Workers {
		return fmt.Errorf("GroupOptions.MaxInFlight must be at least Workers, got %d", o.MaxInFlight)
	}
	for _, d := range []struct {
		name               string
		value              *time.Duration
		fallback, min, max time.Duration
	}{
		{"Lease", &o.Lease, defaultLease, minLease, maxLease},
		{"DrainTimeout", &o.DrainTimeout, defaultDrain, time.Millisecond, maxLease},
	} {
		if *d.value == 0 {
			*d.value = d.fallback
		}
		if *d.value < d.min || *d.value > d.max || *d.value%time.Millisecond != 0 {
			return fmt.Errorf("GroupOptions.%s must be whole milliseconds from %v to %v, got %v", d.name, d.min, d.max, *d.value)
		}
	}
	if o.MaxAttempts == 0 {
		o.MaxAttempts = defaultMaxAttempts
	}
	if o.Backoff == nil {
		o.Backoff = defaultBackoff
	}
	for _, m := range o.Middleware {
		if m == nil {
			return errors.New("GroupOptions.Middleware must not have a nil function")
		}
	}
	return nil
}

func defaultBackoff(attempt int) time.Duration {
	d := time.Minute
	if attempt < 7 {
		d = min(d, time.Second<<max(attempt-1, 0))
	}
	return d - time.Duration(rand.Int64N(int64(d/4)))
}

// Group is a consumer group of a stream: each message is handled by one of its consumers. It is safe for concurrent use.
type Group[T any] struct {
	s        *Stream[T]
	name     string
	opts     GroupOptions[T]
	err      error // of the options
	counters counters

	mu      sync.Mutex
	runs    map[*consumer[T]]struct{}
	resumed chan struct{} // closed while not paused
}

// Group returns the consumer group of that name. Nothing happens, and the group need not exist, until Run. A name that is
// empty, or bad options, are an error of each method.
func (s *Stream[T]) Group(name string, opts GroupOptions[T]) *Group[T] {
	g := &Group[T]{s: s, name: name, opts: opts, runs: map[*consumer[T]]struct{}{}, resumed: make(chan struct{})}
	close(g.resumed)
	if name == "" {
		g.err = errors.New("stream: group: name must not be empty")
	} else if err := g.opts.setDefaults(); err != nil {
		g.err = fmt.Errorf("stream: group: %w", err)
	}
	return g
}

// Pause has the Runs of this Group take no new messages until Resume. Those that they have are handled.
func (g *Group[T]) Pause() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.isPaused() {
		return
	}
	g.resumed = make(chan struct{})
	for c := range g.runs {
		c.interrupt()
	}
}

// Resume ends a Pause.
func (g *Group[T]) Resume() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.isPaused() {
		close(g.resumed)
	}
}

func (g *Group[T]) isPaused() bool {
	select {
	case <-g.resumed:
		return false
	default:
		return true
	}
}

// running returns a channel that is closed when the group is not paused.
func (g *Group[T]) running() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.resumed
}

// Stats returns what the Runs of this Group have done.
func (g *Group[T]) Stats() Stats {
	c := &g.counters
	st := Stats{
		Received: c.received.Load(), Claimed: c.claimed.Load(), Acked: c.acked.Load(), Retries: c.retries.Load(),
		Dropped: c.dropped.Load(), Dead: c.dead.Load(), Lost: c.lost.Load(), Deleted: c.deleted.Load(),
		Skipped: c.skipped.Load(), Recovered: c.recovered.Load(), InFlight: c.inFlight.Load(),
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for r := range g.runs {
		st.Running += r.runningNow()
	}
	return st
}
