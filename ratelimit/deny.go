package ratelimit

import (
	"strings"
	"time"
)

// maxDenyKey is how many bytes a key has at most that is remembered, so that those of any length do not fill the memory.
const maxDenyKey = 1024

// denyCache remembers refusals. Within a part of its table, one more than fits displaces another, it does not matter
// which: a refusal that was forgotten costs a round trip.
type denyCache struct {
	table   table[denial]
	perPart int // 0 = off
	maxAge  time.Duration
}

// denial says that calls of n units or more were refused. Times are since epoch.
type denial struct {
	n      int64
	left   int64
	until  time.Duration // not later than Redis would admit such a call
	passes time.Duration // not earlier than that
	resets time.Duration
}

func newDenyCache(size int, maxAge time.Duration) denyCache {
	if size < 0 {
		size = 0
	}
	return denyCache{table: newTable[denial](), perPart: (size + tableParts - 1) / tableParts, maxAge: maxAge}
}

// look refuses a call that is known to be refused.
func (c *denyCache) look(l *Limiter, key string, n int64) (Result, bool) {
	if c.perPart == 0 {
		return Result{}, false
	}
	part := c.table.part(key)
	if part.size.Load() == 0 {
		return Result{}, false
	}
	part.RLock()
	d, ok := part.entries[subject{l.limit, key}]
	part.RUnlock()
	if !ok || n < d.n {
		return Result{}, false
	}
	now := sinceEpoch()
	if now >= d.until {
		return Result{}, false
	}
	return Result{
		Limit: l.most, Remaining: d.left, RetryAfter: d.passes - now, ResetAfter: d.resets - now, Source: SourceDenyCache,
	}, true
}

// remember takes note of it if a reply says that calls of a run were refused.
func (c *denyCache) remember(l *Limiter, r reply, i int, run run) {
	admitted, left, wait, reset, _ := r.of(i)
	if c.perPart == 0 || admitted >= run.count {
		return
	}
	now := sinceEpoch()
	c.add(r.sent, subject{l.limit, run.key}, denial{
		n:      run.n,
		left:   left,
		until:  r.sent + min(micros(wait), c.maxAge),
		passes: now + micros(wait),
		resets: now + micros(reset),
	})
}

// add takes note of a refusal that was asked for at some time.
func (c *denyCache) add(sent time.Duration, s subject, d denial) {
	if len(s.key) > maxDenyKey {
		return
	}
	part := c.table.part(s.key)
	part.Lock()
	defer part.Unlock()
	if sent <= part.dropped { // what made room for the key may have come after the refusal
		return
	}
	old, ok := part.entries[s]
	if ok && old.n < d.n && sinceEpoch() < old.until {
		return // which says more
	}
	if !ok && len(part.entries) >= c.perPart {
		for other := range part.entries {
			delete(part.entries, other)
			break
		}
	}
	s.key = strings.Clone(s.key) // it may be a part of a large request
	part.set(s, d)
	part.size.Store(int32(len(part.entries)))
}

// drop forgets the refusals of a key, by all limits: see With.
func (c *denyCache) drop(sh *shared, key string) {
	if c.perPart == 0 {
		return
	}
	part := c.table.part(key)
	part.Lock()
	defer part.Unlock()
	part.dropped = sinceEpoch()
	if limits := sh.derivedCount.Load(); limits <= maxDerived && int(limits) < len(part.entries) {
		delete(part.entries, subject{sh.base, key})
		sh.derived.Range(func(limit, _ any) bool {
			delete(part.entries, subject{limit.(Limit), key})
			return true
		})
	} else {
		for s := range part.entries {
			if s.key == key {
				delete(part.entries, s)
			}
		}
	}
	part.size.Store(int32(len(part.entries)))
}
