package cache

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/redispatterns/redispatterns/internal/deadline"
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
	if b.failures.Add(1) >= breakerFailures { // more, if a success came between the one that opened it and now
		b.open()
	}
}

func (b *breaker) open() { b.nextProbe.CompareAndSwap(0, int64(sinceEpoch()+probeInterval)) }

// breakers has one breaker per range of slots, so that the loss of a node is no loss of the others.
type breakers struct {
	ranges []breaker
	// A cluster that is gone altogether would take each range's callers three timeouts to notice. If
	// there were failures and nothing has succeeded anywhere for as long as patience, all are opened.
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
	b.ranges[part].succeeded()
}

func (b *breakers) failed(part int) {
	b.ranges[part].failed()
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

func (b *breakers) isOpen(part int) bool { return b.ranges[part].nextProbe.Load() != 0 }

// mayUse reports whether Redis may be asked about a range of slots, and starts a probe that is due.
func (s *shared[K, V]) mayUse(b *breakers, part int) bool {
	ok, probe := b.ranges[part].allow()
	if probe {
		s.probe(b, part)
	}
	return ok
}

// settle tells the breaker of a range of slots how a round trip ended. That the caller left says nothing; that
// its deadline came first does, if Redis had some time.
func (s *shared[K, V]) settle(ctx context.Context, b *breakers, part int, op string, began time.Duration, err error) {
	switch {
	case err == nil:
		b.succeeded(part)
	case !deadline.Over(ctx), !errors.Is(ctx.Err(), context.Canceled) && sinceEpoch()-began >= s.opts.OpTimeout/8:
		b.failed(part)
		s.reportError(ctx, op, err)
	}
}

// settleAll is settle for what came of several ranges of slots, and reports whether any has failed.
func (s *shared[K, V]) settleAll(ctx context.Context, b *breakers, op string, began time.Duration, errs map[int]error) (failed bool) {
	for part, err := range errs {
		s.settle(ctx, b, part, op, began, err)
		failed = failed || err != nil
	}
	return failed
}

// probe asks Redis in the background whether a range of slots can be used again: the read breaker's by a
// read, the write breaker's by a write that a server which is full or read-only refuses.
func (s *shared[K, V]) probe(b *breakers, part int) {
	key := s.view("").keys.stamp(s.stampTags[part])
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isClosed.Load() {
		return
	}
	s.goCounted(func() {
		ctx, cancel := context.WithTimeout(s.stop, s.opts.OpTimeout)
		defer cancel()
		cmd := s.client.B().Get().Key(key).Build()
		if b == &s.writes {
			cmd = s.client.B().Set().Key(key).Value(randomString()).Nx().PxMilliseconds(s.stampTTL.Milliseconds()).Build()
		}
		if replyOf(s.client.Do(ctx, cmd)).err == nil {
			b.succeeded(part)
		}
	})
}

// epoch is the origin of the package's monotonic clock.
var epoch = time.Now()

func sinceEpoch() time.Duration { return time.Since(epoch) }
