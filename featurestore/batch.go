package featurestore

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"unsafe"
)

// Batch reads rows of several views in one round trip, with one command per hash: views with Options.Share have an
// entity's rows in one.
// The zero value is empty and ready. It is for one goroutine and one Exec.
//
//	var b featurestore.Batch
//	user := users.In(&b, 42)
//	items := products.InMany(&b, ids)
//	err := b.Exec(ctx)
type Batch struct {
	requests []request
}

// Pending is a row that is there once Exec has returned.
type Pending[T any] struct{ row Row[T] }

// Row returns the row. Before Exec it is Missing.
func (p *Pending[T]) Row() Row[T] { return p.row }

// PendingMany are rows that are there once Exec has returned.
type PendingMany[T any] struct{ rows []Row[T] }

// Rows returns the rows, in the order of the keys. Before Exec they are Missing.
func (p *PendingMany[T]) Rows() []Row[T] { return p.rows }

// In adds a row to a batch.
func (p *Projection[K, T]) In(b *Batch, k K) *Pending[T] {
	pending := &Pending[T]{}
	b.requests = append(b.requests, &part[K, T]{p: p, keys: []K{k}, rows: unsafe.Slice(&pending.row, 1)})
	return pending
}

// InMany adds rows to a batch. ks must not change before Exec has returned.
func (p *Projection[K, T]) InMany(b *Batch, ks []K) *PendingMany[T] {
	pending := &PendingMany[T]{make([]Row[T], len(ks))}
	b.requests = append(b.requests, &part[K, T]{p: p, keys: ks, rows: pending.rows})
	return pending
}

// Exec reads all that is in the batch, as GetMany does, and no two rows of a view are of different versions. All views must have the
// same client; the first one's OpTimeout counts. The client-side cache is used if all have Options.Hot, for the shortest.
func (b *Batch) Exec(ctx context.Context) error {
	if len(b.requests) == 0 {
		return nil
	}
	first, _, _ := b.requests[0].of()
	for _, r := range b.requests {
		// Clients that cannot be compared are the user's, who should know.
		if v, _, _ := r.of(); reflect.TypeOf(v.client).Comparable() && v.client != first.client {
			return errors.New("featurestore: batch: views have different clients")
		}
	}
	if err := read(ctx, b.requests...); err != nil {
		return fmt.Errorf("featurestore: batch: %w", err)
	}
	return nil
}
