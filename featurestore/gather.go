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
	"github.com/redispatterns/redispatterns/internal/gather"
)

// Gets of one projection share round trips when there are many at a time. Not so in a Cluster, where one pipeline is for several
// nodes and would wait for the slowest.
const maxGathered = 64 // rows in one round trip

// gathered is one Get.
type gathered[K comparable, T any] struct {
	key   K
	row   Row[T]
	err   error
	alone bool // nobody could answer it
}

// gathers reports whether Gets of a view may share round trips.
func (v *view) gathers() bool {
	return v.opts.Hot == 0 && v.client.Mode() != rueidis.ClientModeCluster
}

func (p *Projection[K, T]) newTrips() *gather.Trips[gathered[K, T]] {
	if !p.v.gathers() {
		return nil
	}
	parts := sync.Pool{New: func() any { return &part[K, T]{p: p} }}
	return &gather.Trips[gathered[K, T]]{
		Most:     maxGathered,
		Patience: deadline.New(max(p.v.opts.OpTimeout/8, 1)),
		Make: func(qs []*gather.Request[gathered[K, T]]) {
			many := parts.Get().(*part[K, T])
			many.readTogether(qs)
			parts.Put(many)
		},
		Fail: func(q *gathered[K, T], value any) {
			q.err = fmt.Errorf("client: %v", value)
			q.row = p.broken(q.err)
		},
		Go: func(f func()) { go f() }, // it ends when nobody waits
	}
}

// get reads one row, by itself or with others.
func (p *Projection[K, T]) get(ctx context.Context, k K, row *Row[T]) error {
	if ctx.Err() != nil {
		return p.getAlone(ctx, k, row)
	}
	if p.trips.Begin() {
		defer p.trips.End()
		return p.getAlone(ctx, k, row)
	}
	began := time.Now()
	q := gathered[K, T]{key: k}
	made, err := p.trips.Do(ctx, &q)
	switch {
	case err != nil:
		*row = p.broken(err)
	case !made || q.alone:
		return p.getAlone(ctx, k, row)
	default:
		*row, err = q.row, q.err
	}
	if hook := p.v.opts.Hooks.Read; hook != nil {
		info := ReadInfo{View: p.v.name, Took: time.Since(began), Err: err}
		info.Counts.add(row.Status)
		hook(ctx, info)
	}
	return err
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

// readTogether reads for those who do not go alone.
func (p *part[K, T]) readTogether(qs []*gather.Request[gathered[K, T]]) {
	for _, q := range qs {
		p.keys = append(p.keys, q.Value.key)
	}
	if cap(p.rows) < len(qs) {
		p.rows = make([]Row[T], maxGathered)
	}
	p.rows = p.rows[:len(qs)]
	_, err := fetch(context.Background(), p)
	for i, q := range qs {
		q := &q.Value
		q.row = p.rows[i]
		if err != nil { // of some of the rows; those that have none, and nothing else, were perhaps not read
			q.alone = q.row.Status == Missing
			if e := q.row.Err; !errors.Is(e, ErrCorrupt) && !errors.Is(e, ErrSkew) && !errors.Is(e, ErrStale) {
				q.err = e
			}
		}
	}
	clear(p.keys)
	clear(p.rows)
	p.keys = p.keys[:0]
}
