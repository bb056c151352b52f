package lock

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/internal/deadline"
	"github.com/redispatterns/redispatterns/internal/gather"
	"github.com/redispatterns/redispatterns/internal/key"
)

// ErrLost means that it cannot be proven any more that the lock is held: its lease ended before it could be renewed,
// somebody broke it or deleted its key, or it was held for MaxHold. Another may hold it.
var ErrLost = errors.New("lock: lost")

// ErrReleased is the cause of the end of the context of a lock that was unlocked.
var ErrReleased = errors.New("lock: released")

// ErrClosed means that Close has been called.
var ErrClosed = errors.New("lock: closed")

// ErrUnderReplicated means that fewer than Options.Replicas replicas confirmed the acquisition in time. It was given up.
var ErrUnderReplicated = errors.New("lock: too few replicas confirmed")

// ErrSlow means that Redis did not reply within half a TTL, or 2s if that is less: it hangs, is out of reach, or the TTL is
// too short for the round trip.
var ErrSlow = errors.New("lock: no reply in time for the TTL")

// ErrStale means that a holder with a higher fence has written already.
var ErrStale = errors.New("lock: stale fence")

// HeldError is what TryLock returns if the lock is held. TTL is for how long at least, unless it is released.
type HeldError struct {
	Holder string        // names the acquisition, as Info.Holder does
	Meta   string        // Options.Meta of the holder's Locker, if it is known yet
	TTL    time.Duration // left of the holder's lease; holders renew theirs
}

func (e *HeldError) Error() string {
	return "lock: held by another, for " + e.TTL.String() + " at least unless released"
}

const (
	defaultTTL = 10 * time.Second
	minTTL     = 20 * time.Millisecond
	maxTTL     = 365 * 24 * time.Hour
	maxMaxHold = 100 * maxTTL
	maxMeta    = 1024
)

// Options configures a [Locker]. The zero value works. Lockers that share locks share Prefix; other options may differ.
// Durations are whole milliseconds.
type Options struct {
	// Prefix begins the names of all keys and of the inbox channels. It must not contain braces. Defaults to "lock".
	Prefix string

	// TTL is how long a lease lasts without renewal: how long others wait for the lock of a process that died. Leases are
	// renewed after a third of it, so it is also how long Redis may be out of reach before locks are lost. At least
	// 20ms, and many times a round trip; at most a year. Defaults to 10s.
	TTL time.Duration

	// NoRenewal turns renewal off: a lock is lost a TTL after it was acquired, or last extended.
	NoRenewal bool

	// MaxHold is for how long one Lock can be held at most, renewed or extended: then it is lost. It bounds what a
	// stuck holder does to others. At least TTL, and at most 100 years. Defaults to 0: no bound.
	MaxHold time.Duration

	// Replicas is how many replicas must confirm each acquisition (WAIT), so that a failover to one of them does not lose
	// it; then a hand-off takes a round trip more. It narrows the hole and does not close it: renewals are not waited
	// for, and a replica without the lock may be promoted. At least 0. Defaults to 0: none.
	Replicas int

	// Meta is kept with the lock for others to see: a host's name, say. Any bytes, 1024 at most.
	Meta string

	// Hooks are told what the Locker does.
	Hooks Hooks
}

// Locker acquires locks. It is safe for concurrent use, and never closes the client.
//
// While it holds or waits for locks it has a timer, and goroutines for as long as commands take. From the first time that
// it waits for another process it has a subscription, with a connection and a goroutine of its own, until it has not
// waited for half a minute. Close ends all of it.
type Locker struct {
	client    rueidis.Client
	opts      Options
	keys      string // what comes before a name
	inboxes   string // what comes before a Locker's id in the names of channels
	id        string
	cluster   bool
	deadlines *deadline.Shared
	args      arguments
	trips     *gather.Trips[request]

	asideUntil atomic.Int64 // since epoch
	asides     atomic.Int32 // commands that go aside, or would
	misses     atomic.Int32 // of those that did, how many had no reply since one had

	stop    context.Context // ends when Close gives up waiting
	stopNow context.CancelFunc

	mu      sync.Mutex
	closed  bool
	names   map[string]*entry
	number  uint64 // of the last token
	agenda  agenda
	timer   *time.Timer
	wake    time.Duration // when the timer fires; 0 if it is not set
	batch   []*entry      // to be renewed
	renews  bool          // whether a goroutine does that
	inbox   inbox
	repeats int           // how many tokens are given up and could not be yet
	running int           // goroutines of ours, and calls of others that Close waits for
	idle    chan struct{} // closed when Close has been called and nothing runs
}

// arguments of scripts that are the same each time.
type arguments struct{ ttl, waiter string }

// New returns a Locker. It reports options that are out of range. It does no I/O and starts no goroutine.
func New(client rueidis.Client, opts Options) (*Locker, error) {
	if client == nil {
		return nil, errors.New("lock: client is nil")
	}
	if err := opts.setDefaults(); err != nil {
		return nil, err
	}
	l := &Locker{
		client:    client,
		opts:      opts,
		keys:      opts.Prefix + ":",
		inboxes:   opts.Prefix + ":inbox:",
		id:        rand.Text(),
		cluster:   client.Mode() == rueidis.ClientModeCluster,
		deadlines: deadline.New(opTimeout(opts.TTL)),
		args: arguments{
			ttl:    millis(opts.TTL),
			waiter: millis(max(opts.TTL, minAlive)) + " " + millis(min(opts.TTL, claimWindow)),
		},
		names: make(map[string]*entry),
		idle:  make(chan struct{}),
	}
	l.trips = l.newTrips()
	l.stop, l.stopNow = context.WithCancel(context.Background())
	return l, nil
}

func (o *Options) setDefaults() error {
	if o.Prefix == "" {
		o.Prefix = "lock"
	}
	if o.TTL == 0 {
		o.TTL = defaultTTL
	}
	if err := key.CheckPrefix(o.Prefix); err != nil {
		return fmt.Errorf("lock: Prefix: %w", err)
	}
	if err := checkTTL("TTL", o.TTL); err != nil {
		return err
	}
	switch {
	case o.MaxHold != 0 && o.MaxHold < o.TTL:
		return fmt.Errorf("lock: MaxHold must be at least TTL, %v, got %v", o.TTL, o.MaxHold)
	case o.MaxHold > maxMaxHold:
		return fmt.Errorf("lock: MaxHold must be at most %v, got %v", maxMaxHold, o.MaxHold)
	case o.Replicas < 0:
		return fmt.Errorf("lock: Replicas must be at least 0, got %d", o.Replicas)
	case len(o.Meta) > maxMeta:
		return fmt.Errorf("lock: Meta must be at most %d bytes, got %d", maxMeta, len(o.Meta))
	}
	return nil
}

func checkTTL(name string, ttl time.Duration) error {
	if ttl < minTTL || ttl > maxTTL || ttl%time.Millisecond != 0 {
		return fmt.Errorf("lock: %s must be whole milliseconds, at least %v and at most %v, got %v", name, minTTL, maxTTL, ttl)
	}
	return nil
}

func millis(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }

// Lock waits until it holds the lock of that name, or ctx ends, or Redis has failed for a whole TTL. Any name is legal. The
// lock is then renewed until Unlock, which must be called; see [Lock.Unlock].
//
// ctx bounds the wait alone: [Lock.Context] has its values and not its end. If ctx ends, the error matches ctx.Err(), and
// nothing stays locked: what was under way is given up in the background.
//
// Processes are served first come, first served, and so are the calls of a process; but while the process has the lock,
// its calls pass it on for some milliseconds before another process gets it. One round trip if the lock is free; a
// process that waits makes one per third of its TTL. Locks are not re-entrant.
func (l *Locker) Lock(ctx context.Context, name string) (*Lock, error) {
	return l.hooked(ctx, name, false)
}

// TryLock is Lock without the wait: if the lock is held, here or elsewhere, or others wait for it, it returns a
// *[HeldError]. At most one round trip, or two if it meets an Unlock or four other calls under way, plus repetitions of one
// that failed.
func (l *Locker) TryLock(ctx context.Context, name string) (*Lock, error) {
	return l.hooked(ctx, name, true)
}

func (l *Locker) hooked(ctx context.Context, name string, try bool) (*Lock, error) {
	acquired := l.opts.Hooks.Acquire
	if acquired == nil {
		return l.lock(ctx, name, try)
	}
	began := sinceEpoch()
	lk, err := l.lock(ctx, name, try)
	acquired(ctx, AcquireInfo{Name: name, Took: sinceEpoch() - began, Err: err})
	return lk, err
}

// Do calls fn while it holds the lock of that name, and returns fn's error. fn's ctx has the values of ctx; it ends
// with ctx, and when the lock is lost, with ErrLost as its cause; the error then matches ErrLost too. The lock is
// released also if fn panics. If only the release failed, the error says so: the lock then ends with its lease.
func (l *Locker) Do(ctx context.Context, name string, fn func(ctx context.Context, fence int64) error) (err error) {
	lk, err := l.Lock(ctx, name)
	if err != nil {
		return err
	}
	held, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(lk.Context(), func() { cancel(context.Cause(lk.Context())) })
	defer func() {
		released := lk.Unlock(ctx)
		stop()
		cancel(ErrReleased)
		if released != nil {
			err = errors.Join(err, released)
		}
	}()
	return fn(doContext{held, lk.Context(), cancel}, lk.Fence())
}

// doContext notices that a lease is over also before the timer does.
type doContext struct {
	context.Context
	lock   context.Context
	cancel context.CancelCauseFunc
}

func (c doContext) Err() error {
	if c.Context.Err() == nil && c.lock.Err() != nil {
		c.cancel(context.Cause(c.lock))
	}
	return c.Context.Err()
}

// Info describes a lock.
type Info struct {
	Held    bool
	Holder  string        // names the acquisition: its Locker, and a number. Within a process it may be passed on
	Meta    string        // Options.Meta of the holder's Locker
	Fence   int64         // the lowest that the holder may have; if not held, the last, as long as it is remembered, or 0
	TTL     time.Duration // left of the lease
	Waiting int           // how many processes wait in Redis
}

// Inspect looks at the lock of that name. One round trip.
func (l *Locker) Inspect(ctx context.Context, name string) (Info, error) {
	if err := l.enter(); err != nil {
		return Info{}, err
	}
	defer l.done()
	info, err := l.inspect(ctx, name)
	if err != nil {
		return Info{}, fmt.Errorf("lock: inspect: %w", slow(ctx, err))
	}
	return info, nil
}

// Break takes the lock of that name away from whoever holds it, and gives it to the first that waits: for operators. It
// reports whether it was held. The holder is not asked: it learns of it at once if it listens, and when it next renews,
// within a third of its TTL, if not. Until then two hold the lock, and only fences tell them apart. One round trip.
func (l *Locker) Break(ctx context.Context, name string) (bool, error) {
	if err := l.enter(); err != nil {
		return false, err
	}
	defer l.done()
	was, err := l.breakLock(ctx, name)
	if err != nil {
		return false, fmt.Errorf("lock: break: %w", slow(ctx, err))
	}
	return was, nil
}

// Close makes further calls and those that wait return ErrClosed, ends the contexts of locks that are held, with ErrClosed
// as their cause, releases them, and waits until all that is under way has ended. If ctx ends first, the rest is
// left to end with its leases, and the error is ctx's. Close the Locker before its client.
func (l *Locker) Close(ctx context.Context) error {
	l.mu.Lock()
	if !l.closed {
		l.closed = true
		for _, e := range l.names {
			l.failAll(e, ErrClosed)
			switch e.state {
			case held:
				l.lose(e, ErrClosed, 0)
			case queued:
				l.leave(e)
			case calling: // whoever called will see to it
			}
		}
		if l.timer != nil {
			l.timer.Stop()
		}
		l.inbox.end()
		if l.running == 0 {
			close(l.idle)
		}
	}
	l.mu.Unlock()
	select {
	case <-l.idle:
		l.stopNow()
		return nil
	default:
	}
	select {
	case <-l.idle:
		l.stopNow()
		return nil
	case <-ctx.Done():
		l.stopNow()
		return fmt.Errorf("lock: close: %w", ctx.Err())
	}
}

// enter begins a call that Close waits for, until done.
func (l *Locker) enter() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return ErrClosed
	}
	l.running++
	return nil
}

// spawn runs f in a goroutine that Close waits for. l.mu is held.
func (l *Locker) spawn(f func()) {
	l.running++
	go func() {
		defer l.done()
		f()
	}()
}

func (l *Locker) done() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.running--; l.running == 0 && l.closed {
		close(l.idle)
	}
}

// epoch is the origin of the package's clock, which is monotonic.
var epoch = time.Now()

func sinceEpoch() time.Duration { return time.Since(epoch) }
