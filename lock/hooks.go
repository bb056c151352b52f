package lock

import (
	"context"
	"time"
)

// Hooks are optional functions that a Locker calls, for metrics and logs. Keep them fast. Nil ones cost nothing. Names of
// locks are for logs and traces; as labels of metrics there are too many.
type Hooks struct {
	// Acquire is called after each Lock and TryLock, on the caller's goroutine with its context.
	Acquire func(ctx context.Context, info AcquireInfo)
	// Release is called after the first Unlock of each Lock, on the caller's goroutine with its context.
	Release func(ctx context.Context, info ReleaseInfo)
	// Lost is called when a lock ends without Unlock, on a goroutine of its own, with the values of the ctx that it was
	// acquired with. Its context has ended by then.
	Lost func(ctx context.Context, info LostInfo)
	// Error is called with each failure that the Locker goes on in spite of, on one of its goroutines; op is one of the Op
	// constants.
	Error func(ctx context.Context, op string, err error)
}

// What a Locker failed to do, for [Hooks].Error.
const (
	OpAcquire   = "acquire"   // acquire a lock, or ask whether it is free: it is tried again
	OpRenew     = "renew"     // renew leases: it is tried again while they last
	OpRelease   = "release"   // release in the background: it is tried again for a TTL
	OpSubscribe = "subscribe" // listen to the inbox: until that works waiters poll
)

// AcquireInfo describes one Lock or TryLock.
type AcquireInfo struct {
	Name string
	Took time.Duration
	Err  error // what it returned
}

// ReleaseInfo describes one Unlock.
type ReleaseInfo struct {
	Name string
	Held time.Duration // since the lock was acquired
	Err  error         // what it returned
}

// LostInfo describes a lock that ended without Unlock.
type LostInfo struct {
	Name  string
	Held  time.Duration // since the lock was acquired
	Cause error         // ErrLost or ErrClosed
}

// survived tells of a failure. l.mu is held.
func (l *Locker) survived(op string, err error) {
	if hook := l.opts.Hooks.Error; hook != nil {
		l.spawn(func() { hook(l.stop, op, err) })
	}
}
