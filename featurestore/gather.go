package featurestore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
	"unsafe"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/internal/deadline"
)

// Gets of one projection share round trips when there are many at a time: maxTrips are under way, and what comes meanwhile gathers
// for the next one, or fills one, which costs the client much less than each by itself. Nobody waits for a timer, and while there
// are few, each goes by itself, as does one that none of those under way has made room for in an eighth of the time that it has.
// Not so in a Cluster, where one pipeline is for several nodes and would wait for the slowest.
const (
	maxTrips    = 4
	maxGathered = 64 // rows in one round trip
)

// gather is the Gets of one projection.
type gather[K comparable, T any] struct {
	patience *deadline.Shared
	pool     sync.Pool // of *gathered
	mu       sync.Mutex
	trips    int // under way
	waiting  []*gathered[K, T]
}

// gathered is one Get.
type gathered[K comparable, T any] struct {
	key   K
	row   Row[T]
	err   error
	alone bool // nobody could answer it
	state gatheredState
	done  chan struct{} // gets one value, unless it was gone before it was taken
}

type gatheredState uint8

const (
	gathering gatheredState = iota
	taken                   // by a round trip
	gone                    // whoever asked does not wait
)

// gathers reports whether Gets of a view may share round trips.
func (v *view) gathers() bool {
	return v.opts.Hot == 0 && v.client.Mode() != rueidis.ClientModeCluster
}

// newGather returns nil if each Get is to go by itself.
func newGather[K comparable, T any](v *view) *gather[K, T] {
	if !v.gathers() {
		return nil
	}
	g := &gather[K, T]{patience: deadline.New(max(v.opts.OpTimeout/8, 1))}
	g.pool.New = func() any { return &gathered[K, T]{done: make(chan struct{}, 1)} }
	return g
}

// get reads one row, by itself or with others.
func (p *Projection[K, T]) get(ctx context.Context, k K, row *Row[T]) error {
	g := p.gather
	if g == nil || ctx.Err() != nil {
		return p.getAlone(ctx, k, row)
	}
	g.mu.Lock()
	if g.trips < maxTrips {
		g.trips++
		g.mu.Unlock()
		defer p.endTrip()
		return p.getAlone(ctx, k, row)
	}
	q := g.pool.Get().(*gathered[K, T])
	q.key = k
	g.waiting = append(g.waiting, q)
	full := len(g.waiting) >= maxGathered // which has nothing to wait for
	if full {
		g.trips++
	}
	g.mu.Unlock()
	if full {
		p.endTrip()
	}
	began := time.Now()
	done, err := g.wait(ctx, q, began.Sub(p.v.began))
	switch {
	case !done && err == nil:
		return p.getAlone(ctx, k, row)
	case !done:
		*row = p.broken(err)
	case q.alone:
		*q = gathered[K, T]{done: q.done}
		g.pool.Put(q)
		return p.getAlone(ctx, k, row)
	default:
		*row, err = q.row, q.err
		*q = gathered[K, T]{done: q.done}
		g.pool.Put(q)
	}
	if hook := p.v.opts.Hooks.Read; hook != nil {
		info := ReadInfo{View: p.v.name, Took: time.Since(began), Err: err}
		info.Counts.add(row.Status)
		hook(ctx, info)
	}
	return err
}

// wait waits for a round trip's answer. It returns false if there is none: with no error if the row is to be asked for alone.
func (g *gather[K, T]) wait(ctx context.Context, q *gathered[K, T], now time.Duration) (bool, error) {
	patience, cancel := g.patience.Bound(context.Background(), now)
	defer cancel()
	select {
	case <-q.done:
		return true, nil
	case <-ctx.Done():
	case <-patience.Done():
	}
	g.mu.Lock()
	if q.state == gathering || ctx.Err() != nil { // those who are under way hang: it has a better chance alone
		q.state = gone
		g.mu.Unlock()
		return false, ctx.Err()
	}
	g.mu.Unlock()
	select {
	case <-q.done: // within the time for one round trip
		return true, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// broken returns a row that was not read.
func (p *Projection[K, T]) broken(err error) Row[T] {
	row := Row[T]{Info: Info{Status: Broken, Err: err}}
	for _, i := range p.plan.features {
		p.v.schema.features[i].blank(unsafe.Pointer(&row.Value), Absent)
	}
	return row
}

func (p *Projection[K, T]) getAlone(ctx context.Context, k K, row *Row[T]) error {
	return read(ctx, &part[K, T]{p: p, keys: []K{k}, rows: unsafe.Slice(row, 1)})
}

// endTrip ends a round trip: those who wait get the next one.
func (p *Projection[K, T]) endTrip() {
	if qs := p.gather.next(nil); len(qs) > 0 {
		go p.trips(qs) // it ends when nobody waits
	}
}

// trips reads for qs, and for those who come meanwhile.
func (p *Projection[K, T]) trips(qs []*gathered[K, T]) {
	defer func() {
		if len(qs) == 0 {
			return
		}
		err := fmt.Errorf("client: %v", recover()) // a wrapped client panicked, or called runtime.Goexit
		for _, q := range qs {
			q.row, q.err = p.broken(err), err
			q.done <- struct{}{}
		}
		p.endTrip()
	}()
	many := part[K, T]{p: p}
	for ; len(qs) > 0; qs = p.gather.next(qs) {
		many.keys = many.keys[:0]
		for _, q := range qs {
			many.keys = append(many.keys, q.key)
		}
		if cap(many.rows) < len(qs) {
			many.rows = make([]Row[T], maxGathered)
		}
		many.rows = many.rows[:len(qs)]
		clear(many.rows)
		_, err := fetch(context.Background(), &many)
		for i, q := range qs {
			q.row = many.rows[i]
			if err != nil { // of some of the rows; those that have none, and nothing else, were perhaps not read
				q.alone = q.row.Status == Missing
				if e := q.row.Err; !errors.Is(e, ErrCorrupt) && !errors.Is(e, ErrSkew) && !errors.Is(e, ErrStale) {
					q.err = e
				}
			}
			q.done <- struct{}{}
		}
	}
}

// next returns those who wait, maxGathered at most. If there are none, a round trip less is under way. It may use the memory of
// done.
func (g *gather[K, T]) next(done []*gathered[K, T]) []*gathered[K, T] {
	g.mu.Lock()
	defer g.mu.Unlock()
	qs := done[:0]
	n := 0
	for n < len(g.waiting) && len(qs) < maxGathered {
		if q := g.waiting[n]; q.state == gathering {
			q.state = taken
			qs = append(qs, q)
		}
		n++
	}
	rest := copy(g.waiting, g.waiting[n:])
	clear(g.waiting[rest:])
	g.waiting = g.waiting[:rest]
	if len(qs) == 0 {
		g.trips--
	}
	return qs
}
