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

// bound returns a context that ends with ctx, and after OpTimeout at the latest, and keeps ctx's values.
func (d *deadlines) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	shared := d.current.Load()
	if now := sinceEpoch(); shared == nil || now >= shared.renewAt {
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
	merged, cancel := context.WithDeadline(ctx, shared.deadline)
	return withoutDeadline{merged}, cancel
}

// withValues is a context with the values of another, which hooks around the client may look for.
type withValues struct {
	context.Context
	values context.Context
}

func (c withValues) Value(key any) any { return c.values.Value(key) }

// withoutDeadline is a context that ends when another does but does not say when. rueidis waits on an idle
// connection until a deadline that it is told, whether or not the context is cancelled before.
type withoutDeadline struct{ context.Context }

func (withoutDeadline) Deadline() (time.Time, bool) { return time.Time{}, false }
