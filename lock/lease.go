package lock

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
	"weak"
)

// Lock is one acquisition of a lock. It is safe for concurrent use, and any goroutine may unlock it. One that is forgotten
// without Unlock is not renewed any more once it is garbage, and ends with its lease: keep the Lock, not its Context alone.
type Lock struct {
	*tenure
	unlocking sync.Once
	unlocked  error // what Unlock returns
}

// tenure is what there is of a Lock apart from the handle that its user has, so that the handle can become garbage.
type tenure struct {
	l      *Locker
	e      *entry
	parent context.Context
	fence  int64
	since  time.Duration
	until  atomic.Int64 // since epoch; l.mu is held when it is changed
	end    atomic.Pointer[ending]
	handle weak.Pointer[Lock]

	ctx    context.Context // nil until asked for; l.mu
	cancel context.CancelCauseFunc
}

// ending says why a tenure is over.
type ending struct{ cause error }

var (
	endReleased = &ending{ErrReleased}
	endLost     = &ending{ErrLost}
	endClosed   = &ending{ErrClosed}
)

// Context returns a context with the values of the ctx that the lock was acquired with. It does not end with that, but when
// the lock does, before another can have it: with ErrLost as its cause, ErrReleased or ErrClosed. Its Err looks at the
// clock, so that after a pause of the process it knows at once.
func (t *tenure) Context() context.Context {
	t.l.mu.Lock()
	defer t.l.mu.Unlock()
	if t.ctx == nil {
		var inner context.Context
		inner, t.cancel = context.WithCancelCause(context.WithoutCancel(t.parent))
		t.ctx = heldContext{inner, t}
		if end := t.end.Load(); end != nil {
			t.cancel(end.cause)
		}
	}
	return t.ctx
}

// heldContext notices that a lease is over also before the timer does.
type heldContext struct {
	context.Context
	t *tenure
}

func (c heldContext) Err() error {
	if err := c.Context.Err(); err != nil {
		return err
	}
	if c.t.Err() != nil {
		c.t.l.expire(c.t)
	}
	return c.Context.Err()
}

// Err returns nil if the lock is provably held at this moment, and else ErrLost, ErrReleased or ErrClosed. It does no I/O.
func (t *tenure) Err() error {
	if end := t.end.Load(); end != nil {
		return end.cause
	}
	if int64(sinceEpoch()) >= t.until.Load() {
		return ErrLost
	}
	return nil
}

// Deadline returns when the lock will be lost unless it is renewed until then: a TTL, less a guard of a hundredth and
// 2ms, after the last successful renewal was sent. Compare it with time.Now, by the monotonic clock.
func (t *tenure) Deadline() time.Time { return epoch.Add(time.Duration(t.until.Load())) }

// Fence returns a positive number that is higher than all that were given for the name before, by any process, also if Redis
// lost all it had. Give it to what the lock protects, which refuses what comes with a lower one than it has seen: a holder
// that was paused cannot know that its lock is gone, but [SetFenced] can.
func (t *tenure) Fence() int64 { return t.fence }

// Extend makes the lease last for ttl from now at least, or up to MaxHold; one that lasts longer stays. It returns
// ErrLost if the lock is not held any more, which it then stays; after another error it is as it was, or extended. One
// round trip.
func (t *tenure) Extend(ctx context.Context, ttl time.Duration) error {
	if err := checkTTL("ttl", ttl); err != nil {
		return err
	}
	if err := t.Err(); err != nil {
		return err
	}
	if err := t.l.extend(ctx, t, ttl); err != nil {
		return err
	}
	return t.Err()
}

// Unlock releases the lock, or passes it on within the process. It returns ErrLost if another may have held it while it
// was thought to be held; then what was done in the meantime is protected by fences alone. (If the first reply is lost, as in a
// failover, that is not known, and it may return nil.) Other errors tell that Redis
// could not be told: the lock was held until now, the release goes on in the background, and at worst the lock ends
// with its lease.
//
// Of ctx only the values count: Unlock is also done if it ends, or has ended, and takes 5s, or a TTL if that is less, at
// the longest. It is done once: later calls return what the first did. One round trip, or none if the lock is passed on
// or lost.
func (k *Lock) Unlock(ctx context.Context) error {
	k.unlocking.Do(func() {
		k.unlocked = k.l.unlock(ctx, k.tenure)
		if hook := k.l.opts.Hooks.Release; hook != nil {
			hook(ctx, ReleaseInfo{Name: k.e.name, Held: sinceEpoch() - k.since, Err: k.unlocked})
		}
	})
	return k.unlocked
}

// finish ends a tenure. l.mu is held.
func (t *tenure) finish(end *ending) {
	if !t.end.CompareAndSwap(nil, end) {
		return
	}
	if t.cancel != nil {
		t.cancel(end.cause)
	}
	hook := t.l.opts.Hooks.Lost
	if hook == nil || end == endReleased {
		return
	}
	info := LostInfo{Name: t.e.name, Held: sinceEpoch() - t.since, Cause: end.cause}
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(t.parent))
	cancel(end.cause)
	t.l.spawn(func() { hook(ctx, info) })
}

// extend renews the lease of one tenure.
func (l *Locker) extend(ctx context.Context, t *tenure, ttl time.Duration) error {
	l.mu.Lock()
	if t.e.tenant != t {
		l.mu.Unlock()
		return t.Err()
	}
	if l.closed {
		l.mu.Unlock()
		return ErrClosed
	}
	t.e.extended = t.e.extended || ttl > l.opts.TTL
	if l.opts.MaxHold > 0 { // so that Redis does not keep it for longer, should this process die
		left := t.since + l.opts.MaxHold - sinceEpoch()
		ttl = max(min(ttl, left+guard(left)), minTTL).Truncate(time.Millisecond) + time.Millisecond
	}
	l.running++
	r := renewal{e: t.e, token: t.e.token, ttl: ttl}
	l.mu.Unlock()
	defer l.done()
	sent := sinceEpoch()
	bound, cancel := l.deadlines.Bound(ctx, sent)
	defer cancel()
	states, err := l.sendRenewals(bound, ctx, []renewal{r})
	if err != nil {
		return fmt.Errorf("lock: extend: %w", slow(ctx, err))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.renewed(r, sent, states[0])
	return nil
}
