package featurestore

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"unsafe"
)

// Columns returns the names of a Matrix's columns: those of the projection's features in the order of T, whatever the order of
// Select; a vector has one per element, as in "embedding[3]". It is nil if a feature cannot be in a Matrix.
func (p *Projection[K, T]) Columns() []string {
	if p.plan.wide != "" {
		return nil
	}
	var names []string
	for _, i := range p.plan.features {
		f := &p.v.schema.features[i]
		if f.class != classVector {
			names = append(names, f.name)
			continue
		}
		for n := range f.length {
			names = append(names, f.name+"["+strconv.Itoa(n)+"]")
		}
	}
	return names
}

// Matrix reads rows of numbers: those of the i-th key are at i*len(Columns()). Bools are 0 and 1; what is neither set nor has a
// default is missing, which may be NaN. All are rounded to float32, in which integers above 2^24 may change and floats
// above 3.4e38 are infinite. dst is where the numbers go, from its beginning, if it is large enough. Texts, times and
// slices cannot be in a matrix: Select the others.
//
// Round trips and errors are those of GetMany. A row that is Broken is all missing, or defaults.
func (p *Projection[K, T]) Matrix(ctx context.Context, ks []K, dst []float32, missing float32) ([]float32, []Status, error) {
	if p.plan.wide != "" {
		return nil, nil, fmt.Errorf("featurestore: matrix: feature %s is not a number of numbers", p.plan.wide)
	}
	m := &matrix[K, T]{missing: missing, status: make([]Status, len(ks))}
	m.p, m.keys = p, ks
	m.dst = slices.Grow(dst[:0], len(ks)*p.plan.width)[:len(ks)*p.plan.width]
	if err := read(ctx, m); err != nil {
		return m.dst, m.status, fmt.Errorf("featurestore: matrix: %w", err)
	}
	return m.dst, m.status, nil
}

// matrix is a part that keeps numbers, not rows.
type matrix[K comparable, T any] struct {
	part[K, T]
	row     Row[T]
	dst     []float32
	missing float32
	status  []Status
}

func (m *matrix[K, T]) begin(int) (unsafe.Pointer, *Info) {
	m.row = Row[T]{}
	return unsafe.Pointer(&m.row.Value), &m.row.Info
}

func (m *matrix[K, T]) end(i int, states []State) {
	m.status[i] = m.row.Status
	v, plan := m.p.v, &m.p.plan
	out := m.dst[i*plan.width:][:0]
	for _, n := range plan.features {
		f := &v.schema.features[n]
		if states[n] != Set && (f.initial == nil || f.class == classVector) {
			for range f.length {
				out = append(out, m.missing)
			}
			continue
		}
		if f.class == classVector {
			a, b := f.vector(unsafe.Pointer(&m.row.Value))
			out = append(out, a...)
			for _, x := range b {
				out = append(out, float32(x))
			}
			continue
		}
		d := f.load(unsafe.Pointer(&m.row.Value))
		switch f.class {
		case classFloat:
			out = append(out, float32(math.Float64frombits(d.num)))
		case classInt:
			out = append(out, float32(int64(d.num)))
		default:
			out = append(out, float32(d.num))
		}
	}
}
