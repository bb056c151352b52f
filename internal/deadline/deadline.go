// Package deadline bounds round trips to Redis in time, for less than context.WithTimeout costs.
package deadline

import (
	"context"
	"sync/atomic"
	"time"
)

// Shared bounds round trips by a timeout. A context with a timeout of its own costs each call several allocations and
// a timer, so round trips that begin within an eighth of the timeout share one: each gets between 7/8 of it and all.
type Shared struct {
	timeout time.Duration
	current atomic.Pointer[shared]
}

type shared struct {
	ctx      context.Context
	deadline time.Time
	renewAt  time.Duration
}

// New returns a Shared for a timeout, which must be positive.
func New(timeout time.Duration) *Shared { return &Shared{timeout: timeout} }

// Bound returns a context that ends with ctx, and after the timeout at the latest, and keeps ctx's values. now is how
// long ago a fixed instant is, by the monotonic clock; the same instant each time.
func (d *Shared) Bound(ctx context.Context, now time.Duration) (context.Context, context.CancelFunc) {
	s := d.current.Load()
	if s == nil || now >= s.renewAt {
		next := &shared{deadline: time.Now().Add(d.timeout), renewAt: now + d.timeout/8}
		var cancel context.CancelFunc
		next.ctx, cancel = context.WithDeadline(context.Background(), next.deadline)
		context.AfterFunc(next.ctx, cancel) // not earlier: others share it
		d.current.CompareAndSwap(s, next)
		s = next
	}
	switch dl, ok := ctx.Deadline(); {
	case ctx == context.Background():
		return s.ctx, func() {}
	case ctx.Done() == nil:
		return withValues{s.ctx, ctx}, func() {}
	case ok && dl.Before(s.deadline):
		return ctx, func() {}
	}
	return context.WithDeadline(ctx, s.deadline)
}

// withValues is a context with the values of another, which hooks around the client may look for.
type withValues struct {
	context.Context
	values context.Context
}

func (c withValues) Value(key any) any { return c.values.Value(key) }

// Over reports whether ctx has ended, or is past its deadline: that of a connection may fire before the context's own timer.
func Over(ctx context.Context) bool {
	deadline, ok := ctx.Deadline()
	return ctx.Err() != nil || ok && !time.Now().Before(deadline)
}
