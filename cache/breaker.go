package cache

import (
	"sync/atomic"
	"time"
)

// A breaker opens after breakerFailures failures in a row; from then on one probe is due every
// probeInterval, and its success, or a late one of another call, closes the breaker.
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

func (b *breaker) succeeded() {
	if b.failures.Load() != 0 || b.nextProbe.Load() != 0 {
		b.failures.Store(0)
		b.nextProbe.Store(0)
	}
}

func (b *breaker) failed() {
	if b.failures.Add(1) == breakerFailures {
		b.nextProbe.Store(int64(sinceEpoch() + probeInterval))
	}
}

// epoch is the origin of the package's monotonic clock.
var epoch = time.Now()

func sinceEpoch() time.Duration { return time.Since(epoch) }
