package timeseries

import (
	"maps"
	"slices"
	"strconv"

	"github.com/redispatterns/redispatterns/internal/script"
)

// writer builds a call of write.lua.
type writer struct {
	s          *Store
	buckets    int64
	keys, args []string
	owners     []*op
	members    int

	block   opKey // of the block that is being built: its kind and bucket
	count   int   // index of its number of operations in args, 0 before the first
	inBlock int
	chunks  [maxLevels]int64 // its part of the keys
	key     []byte
}

func newWriter(s *Store, buckets int64, ops int) writer {
	n := len(s.levels)
	return writer{s: s, buckets: buckets, keys: make([]string, 0, ops*n), args: make([]string, 0, 3+2*n+ops), owners: make([]*op, 0, ops)}
}

func (w *writer) call() script.Call {
	w.end()
	return writeScript.Call(w.keys, w.args...)
}

// end ends a block.
func (w *writer) end() {
	if w.count > 0 {
		w.args[w.count] = strconv.Itoa(w.inBlock)
	}
}

// begin begins the block of an op's kind and bucket.
func (w *writer) begin(o *op) {
	if w.count > 0 && w.block.kind == o.kind && w.block.bucket == o.bucket {
		return
	}
	if w.count == 0 {
		w.args = append(w.args, strconv.Itoa(len(w.s.levels)))
	}
	w.end()
	w.args = append(w.args, string(o.kind), "")
	w.block, w.count, w.inBlock = o.opKey, len(w.args)-1, 0
	for r, l := range w.s.levels {
		bucket := floor(o.bucket, l.step) / l.step
		field, end := "", bucket+1
		w.chunks[r] = bucket
		if hasChunks(o.kind) {
			chunk := floor(bucket, w.buckets) / w.buckets
			field, end = strconv.FormatInt(bucket-chunk*w.buckets, 10), (chunk+1)*w.buckets
			w.chunks[r] = chunk
		}
		w.args = append(w.args, field, strconv.FormatInt(l.expires(end*l.step)*1000, 10))
	}
}

// add appends the operation of an op.
func (w *writer) add(o *op) {
	w.begin(o)
	switch o.kind {
	case kindCounter:
		w.operation(o, strconv.FormatInt(o.n.Load(), 10))
	case kindStats:
		w.operation(o, strconv.FormatInt(o.stats.count, 10), formatFloat(o.stats.sum), formatFloat(o.stats.least), formatFloat(o.stats.most))
	case kindDistinct:
		w.operation(o, strconv.Itoa(len(o.members)))
		w.args = slices.AppendSeq(w.args, maps.Keys(o.members))
	case kindTop:
		w.operation(o, strconv.Itoa(w.s.opts.TopSize), strconv.Itoa(len(o.members)))
		for m, n := range o.members {
			w.args = append(w.args, m, strconv.FormatInt(n, 10))
		}
	}
	w.members += len(o.members)
}

func (w *writer) operation(o *op, args ...string) {
	w.owners = append(w.owners, o)
	w.inBlock++
	for r, l := range w.s.levels {
		w.key = strconv.AppendInt(w.s.keys.append(w.key[:0], o.kind, o.series, l.step, w.buckets), w.chunks[r], 10)
		w.keys = append(w.keys, string(w.key))
	}
	w.args = append(w.args, args...)
}

func formatFloat(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }
