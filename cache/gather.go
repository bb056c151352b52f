package cache

import (
	"context"
	"runtime/debug"

	"github.com/redispatterns/redispatterns/internal/deadline"
	"github.com/redispatterns/redispatterns/internal/gather"
)

// Reads of single entries share round trips when there are many at a time. Not so in a cluster, where one command is for one
// slot, nor with ClientTTL.
const maxGathered = 128 // reads in one round trip

type gatheredRead struct {
	read
	ctx context.Context //nolint:containedctx // the caller's, without its end
}

func (c *Cache[K, V]) newTrips() *gather.Trips[gatheredRead] {
	if c.cluster || c.opts.ClientTTL > 0 {
		return nil
	}
	return &gather.Trips[gatheredRead]{
		Most:     maxGathered,
		Patience: deadline.New(max(c.opts.OpTimeout/8, 1)),
		Make:     c.readTogether,
		Fail: func(r *gatheredRead, value any) {
			r.value.err = &PanicError{Value: value, Stack: debug.Stack()}
		},
		Go: func(f func()) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.goCounted(f)
		},
	}
}

// readSoon reads an entry, in a round trip of its own or together with others.
func (c *Cache[K, V]) readSoon(ctx context.Context, r *read) {
	t := c.trips
	if t == nil || c.reads.isOpen(r.part) { // then it does not ask Redis
		c.readOne(ctx, r)
		return
	}
	// A cancelled caller shall not have to wait for the round trip: it is made on another goroutine.
	if ctx.Done() == nil && t.Begin() {
		defer t.End()
		c.readOne(ctx, r)
		return
	}
	q := gatheredRead{*r, ctx}
	if ctx.Done() != nil {
		q.ctx = context.WithoutCancel(ctx)
	}
	switch made, err := t.Do(ctx, &q); {
	case made:
		*r = q.read
	case err != nil:
		r.value, r.stamp = reply{err: err}, ""
	default:
		c.readOne(ctx, r)
	}
}

// readTogether reads for those who do not read alone.
func (c *Cache[K, V]) readTogether(qs []*gather.Request[gatheredRead]) {
	rs := make([]*read, len(qs))
	for i, q := range qs {
		rs[i] = &q.Value.read
	}
	ctx := qs[0].Value.ctx
	bound, cancel := c.deadlines.Bound(ctx, sinceEpoch())
	defer cancel()
	c.readAll(ctx, bound, rs)
}
