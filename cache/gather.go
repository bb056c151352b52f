package cache

import (
	"context"
	"runtime/debug"
	"sync"
)

// Reads of single entries share round trips when there are many at a time: maxTrips are under way, and what comes
// meanwhile gathers for the next one, or fills one, which costs Redis, and rueidis, much less than each by itself.
// Nobody waits for a timer, and while there are few, each goes by itself. Not so in a cluster, where one command is for
// one slot.
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
	bound context.Context //nolint:containedctx // ends when the caller's time does, its wait for others included
	done  chan struct{}
}

var gatheredReads = sync.Pool{New: func() any { return &gatheredRead{done: make(chan struct{}, 1)} }}

// readTogether reads an entry, in a round trip of its own or together with others.
func (c *Cache[K, V]) readTogether(ctx context.Context, r *read) {
	if c.reads.isOpen(r.part) {
		c.readOne(ctx, r) // which does not ask Redis
		return
	}
	g := &c.gather
	g.mu.Lock()
	free := g.trips < maxTrips
	alone := free && ctx.Done() == nil
	// A cancelled caller shall not have to wait for the round trip: it is made on another goroutine. One that is full
	// has nothing to wait for.
	goes := free || len(g.waiting)+1 >= maxGathered
	if goes {
		g.trips++
	}
	if alone {
		g.mu.Unlock()
		defer c.endTrip()
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
	if goes {
		c.endTrip()
	}
	select {
	case <-q.done:
		*r = q.read
		*q = gatheredRead{done: q.done}
		gatheredReads.Put(q)
	case <-ctx.Done():
		r.value, r.stamp = reply{err: ctx.Err()}, ""
	case <-q.bound.Done():
		r.value, r.stamp = reply{err: q.bound.Err()}, ""
	}
}

// endTrip ends a round trip: those who wait get the next ones, if there are any.
func (c *Cache[K, V]) endTrip() {
	if qs := c.gather.next(nil); len(qs) > 0 {
		c.trip(qs)
	}
}

// trip reads for qs, and for those who come meanwhile, on a goroutine of its own.
func (c *Cache[K, V]) trip(qs []*gatheredRead) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.goCounted(func() {
		defer func() {
			if len(qs) > 0 { // a wrapped client panicked, or called runtime.Goexit
				c.answer(qs, &PanicError{Value: recover(), Stack: debug.Stack()})
				c.endTrip()
			}
		}()
		rs := make([]*read, 0, len(qs))
		for ; len(qs) > 0; qs = c.gather.next(qs) {
			rs = rs[:0]
			for _, q := range qs {
				rs = append(rs, &q.read)
			}
			c.readAll(qs[0].ctx, qs[len(qs)-1].bound, rs) // who came earlier, leaves earlier
			c.answer(qs, nil)
		}
	})
}

func (c *Cache[K, V]) answer(qs []*gatheredRead, err error) {
	for _, q := range qs {
		if err != nil {
			q.value.err = err
		}
		q.done <- struct{}{}
	}
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
