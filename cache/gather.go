package cache

import (
	"context"
	"sync"
)

// Reads of single entries share round trips when there are many at a time: maxTrips are under way at most, and what
// comes meanwhile gathers for the next one, which costs Redis, and rueidis, much less than each by itself. Nobody waits
// for a timer, and while there are few, each goes by itself. Not so in a cluster, where one command is for one slot.
const (
	maxTrips    = 4
	maxGathered = 128 // reads in one round trip
)

// gather is the reads of one segment.
type gather struct {
	mu      sync.Mutex
	trips   int // under way
	waiting []*gatheredRead
}

type gatheredRead struct {
	read
	ctx   context.Context //nolint:containedctx // the caller's, without its end
	bound context.Context //nolint:containedctx // the time that the caller has, its wait for others included
	done  chan struct{}
}

var gatheredReads = sync.Pool{New: func() any { return &gatheredRead{done: make(chan struct{}, 1)} }}

// readTogether reads an entry, in a round trip of its own or together with others.
func (c *Cache[K, V]) readTogether(ctx context.Context, r *read) {
	g := &c.gather
	g.mu.Lock()
	free := g.trips < maxTrips
	if free {
		g.trips++
	}
	if free && ctx.Done() == nil {
		g.mu.Unlock()
		defer c.readWaiting()
		c.readOne(ctx, r)
		return
	}
	q := gatheredReads.Get().(*gatheredRead)
	q.entry, q.part, q.ctx = r.entry, r.part, ctx
	if ctx.Done() != nil {
		q.ctx = context.WithoutCancel(ctx)
	}
	q.bound, _ = c.deadlines.Bound(q.ctx, sinceEpoch())
	g.waiting = append(g.waiting, q)
	g.mu.Unlock()
	if free {
		c.readWaiting()
	}
	select {
	case <-q.done:
		*r = q.read
		*q = gatheredRead{done: q.done}
		gatheredReads.Put(q)
	case <-ctx.Done():
		r.value, r.stamp = reply{err: ctx.Err()}, ""
	}
}

// readWaiting ends a round trip: those who wait get the next ones, if there are any.
func (c *Cache[K, V]) readWaiting() {
	qs := c.gather.next(nil)
	if len(qs) == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.goWhileOpen(func() {
		rs := make([]*read, 0, len(qs))
		for ; len(qs) > 0; qs = c.gather.next(qs) {
			rs = rs[:0]
			for _, q := range qs {
				rs = append(rs, &q.read)
			}
			c.readAll(qs[0].ctx, qs[0].bound, rs)
			for _, q := range qs {
				q.done <- struct{}{}
			}
		}
	})
}

// next returns those who wait, maxGathered at most. If there are none, a round trip less is under way. It may use the
// memory of done.
func (g *gather) next(done []*gatheredRead) []*gatheredRead {
	g.mu.Lock()
	defer g.mu.Unlock()
	qs := g.waiting
	if len(qs) > maxGathered {
		g.waiting = qs[maxGathered:]
		return qs[:maxGathered:maxGathered]
	}
	if len(qs) == 0 {
		g.trips--
	}
	clear(done)
	g.waiting = done[:0]
	return qs
}
