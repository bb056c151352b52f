package ratelimit

import (
	"sync/atomic"
	"time"
)

// A breaker opens after breakerFailures failures in a row; from then on one probe is due every probeInterval, and its
// success, or a late one of another call, closes the breaker.
const (
	breakerFailures = 3
	probeInterval   = 100 * time.Millisecond
)

type breaker struct {
	failures  atomic.Int32
	nextProbe atomic.Int64 // since epoch, in nanoseconds; 0 while closed
}

// allow reports whether a call may use Redis and, if not, whether the caller has to start a probe.
func (b *breaker) allow() (ok, probe bool) {
	due := b.nextProbe.Load()
	if due == 0 {
		return true, false
	}
	now := sinceEpoch()
	return false, int64(now) >= due && b.nextProbe.CompareAndSwap(due, int64(now+probeInterval))
}

func (b *breaker) open() { b.nextProbe.CompareAndSwap(0, int64(sinceEpoch()+probeInterval)) }

// slotRanges is how many breakers there are in a cluster, each for as many slots, so that the loss of a node is no loss
// of the others.
const slotRanges = 64

type breakers struct {
	ranges []breaker
	// A cluster that is gone altogether would take each range's callers three timeouts to notice. If there were
	// failures and nothing has succeeded anywhere for as long as patience, all are opened.
	patience time.Duration
	streak   atomic.Int64 // when the present run of failures began, since epoch; 0 = there is none
}

func newBreakers(ranges int, patience time.Duration) breakers {
	return breakers{ranges: make([]breaker, ranges), patience: patience}
}

func (b *breakers) succeeded(part int) {
	if b.streak.Load() != 0 {
		b.streak.Store(0)
	}
	if r := &b.ranges[part]; r.failures.Load() != 0 || r.nextProbe.Load() != 0 {
		r.failures.Store(0)
		r.nextProbe.Store(0)
	}
}

func (b *breakers) failed(part int) {
	if b.ranges[part].failures.Add(1) >= breakerFailures { // more, if a success came between the one that opened it and now
		b.ranges[part].open()
	}
	now := sinceEpoch()
	if b.streak.CompareAndSwap(0, int64(now)) {
		return
	}
	if began := time.Duration(b.streak.Load()); began != 0 && now-began >= b.patience {
		for i := range b.ranges { // with a probe due at once: those of other nodes may be well
			b.ranges[i].nextProbe.CompareAndSwap(0, int64(now))
		}
	}
}
