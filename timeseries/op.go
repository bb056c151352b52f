package timeseries

import (
	"maps"
	"slices"
	"sync/atomic"
)

type opKey struct {
	series string
	bucket int64 // of the finest level, in seconds
	kind   byte
}

// op is what all events of one kind, series and bucket add up to.
type op struct {
	opKey
	n       atomic.Int64     // of a counter
	stats   cell             // of stats
	members map[string]int64 // of a distinct count or a top list
	events  atomic.Int64
	err     error
	again   bool // Redis has surely not taken it, but may later
}

// count adds n to a counter, unless that overflows. Several may do so at the same time.
func (o *op) count(n int64) bool {
	for {
		before := o.n.Load()
		sum, ok := add(before, n)
		if !ok {
			return false
		}
		if o.n.CompareAndSwap(before, sum) {
			return true
		}
	}
}

// copy returns an op of the same events that has yet to be written.
func (o *op) copy() *op {
	c := &op{opKey: o.opKey, stats: o.stats, members: o.members}
	c.n.Store(o.n.Load())
	c.events.Store(o.events.Load())
	return c
}

// merge adds what d has, or returns false if it cannot.
func (o *op) merge(d *op) bool {
	switch o.kind {
	case kindCounter:
		if !o.count(d.n.Load()) {
			return false
		}
	case kindStats:
		if !o.stats.merge(d.stats) {
			return false
		}
	default:
		for m, n := range d.members {
			o.members[m] = min(o.members[m]+n, maxExact)
		}
	}
	o.events.Add(d.events.Load())
	return true
}

// split makes each op as small as a script can take, so that each has one outcome. Only those that nobody waits for are larger.
func split(list []*op) []*op {
	var parts []*op
	for i, o := range list {
		if len(o.members) <= maxCallMembers {
			if parts != nil {
				parts = append(parts, o)
			}
			continue
		}
		if parts == nil {
			parts = slices.Clone(list[:i])
		}
		left, events := len(o.members), o.events.Load()
		for names := range slices.Chunk(slices.Collect(maps.Keys(o.members)), maxCallMembers) {
			share := events * int64(len(names)) / int64(left)
			p := &op{opKey: o.opKey, members: make(map[string]int64, len(names))}
			p.events.Store(share)
			for _, m := range names {
				p.members[m] = o.members[m]
			}
			left -= len(names)
			events -= share
			parts = append(parts, p)
		}
	}
	if parts == nil {
		return list
	}
	return parts
}
