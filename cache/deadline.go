package cache

import (
	"context"
	"sync/atomic"
	"time"
)

// deadlines bounds round trips by OpTimeout. A context with a timeout of its own costs each hit several
// allocations and a timer, so round trips that begin within an eighth of OpTimeout share one: each gets
// between 7/8 of OpTimeout and all of it.
type deadlines struct {
	timeout time.Duration
	current atomic.Pointer[sharedDeadline]
}

type sharedDeadline struct {
	ctx      context.Context
	deadline time.Time
	renewAt  time.Duration // since epoch
}

// bound returns, now, a context that ends with ctx, and after OpTimeout at the latest, and keeps ctx's values.
func (d *deadlines) bound(ctx context.Context, now time.Duration) (context.Context, context.CancelFunc) {
	shared := d.current.Load()
	if shared == nil || now >= shared.renewAt {
		next := &sharedDeadline{deadline: time.Now().Add(d.timeout), renewAt: now + d.timeout/8}
		var cancel context.CancelFunc
		next.ctx, cancel = context.WithDeadline(context.Background(), next.deadline)
		time.AfterFunc(d.timeout, cancel) // not earlier: others share it
		d.current.CompareAndSwap(shared, next)
		shared = next
	}
	switch dl, ok := ctx.Deadline(); {
	case ctx == context.Background():
		return shared.ctx, func() {}
	case ctx.Done() == nil:
		return withValues{shared.ctx, ctx}, func() {}
	case ok && dl.Before(shared.deadline):
		return ctx, func() {}
	}
	return context.WithDeadline(ctx, shared.deadline)
}

// withValues is a context with the values of another, which hooks around the client may look for.
type withValues struct {
	context.Context
	values context.Context
}

func (c withValues) Value(key any) any { return c.values.Value(key) }
