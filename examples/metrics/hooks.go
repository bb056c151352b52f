package main

import (
	"context"
	"errors"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/buffer"
	"github.com/redispatterns/redispatterns/cache"
	"github.com/redispatterns/redispatterns/lock"
	"github.com/redispatterns/redispatterns/ratelimit"
)

// metrics are what docs/grafana/redispatterns.json draws. Their label name is of the cache, buffer or limiter, of which there are a
// few: never a key, an id or a tenant.
type metrics struct {
	registry

	cacheRequests    *counter
	cacheUnavailable *counter
	cacheLookup      *histogram
	cacheLoad        *histogram
	decisions        *counter
	decisionTime     *histogram
	lockAcquire      *histogram
	lockHeld         *histogram
	lockLost         *counter
	flush            *histogram
	flushed          *counter
	dead             *counter
	regressions      *counter
	pending          *gauge
	oldest           *gauge
	letters          *gauge
	errors           *counter
}

func newMetrics() *metrics {
	m := &metrics{}
	m.cacheRequests = m.counter("redispatterns_cache_requests_total", "Keys looked up, by what was found: hit, stale, not_found or miss.", "name", "result")
	m.cacheUnavailable = m.counter("redispatterns_cache_unavailable_total", "Misses because Redis failed, or had failed a moment before.", "name")
	m.cacheLookup = m.histogram("redispatterns_cache_lookup_duration_seconds", "Time of looking at Redis.", "name")
	m.cacheLoad = m.histogram("redispatterns_cache_load_duration_seconds", "Time of a load, by its result: ok or error.", "name", "result")
	m.decisions = m.counter("redispatterns_ratelimit_decisions_total", "Decisions, by result: allowed or denied.", "name", "result")
	m.decisionTime = m.histogram("redispatterns_ratelimit_decision_duration_seconds", "Time of a decision.", "name")
	m.lockAcquire = m.histogram("redispatterns_lock_acquire_duration_seconds", "Time of Lock and TryLock, by result: acquired, not_acquired or error.", "name", "result")
	m.lockHeld = m.histogram("redispatterns_lock_held_duration_seconds", "How long locks were held.", "name")
	m.lockLost = m.counter("redispatterns_lock_lost_total", "Locks that ended without Unlock.", "name")
	m.flush = m.histogram("redispatterns_buffer_flush_duration_seconds", "Time of one attempt of a batch, by result: ok or error.", "name", "result")
	m.flushed = m.counter("redispatterns_buffer_flushed_rows_total", "Rows that the sink has.", "name")
	m.dead = m.counter("redispatterns_buffer_dead_rows_total", "Rows that the sink refused for good.", "name")
	m.regressions = m.counter("redispatterns_buffer_regressions_total", "Times Redis turned out to be behind the ledger.", "name")
	m.pending = m.gauge("redispatterns_buffer_pending", "Fields that are not flushed yet.", "name")
	m.oldest = m.gauge("redispatterns_buffer_oldest_age_seconds", "How long the oldest of them has been there.", "name")
	m.letters = m.gauge("redispatterns_buffer_dead_letters", "Fields that wait for somebody to replay them.", "name")
	m.errors = m.counter("redispatterns_errors_total", "Failures that were survived, by package and operation. code is the first word of Redis' error, such as OOM, or other.", "package", "op", "code")
	return m
}

func result(err error) string {
	if err != nil {
		return "error"
	}
	return "ok"
}

// survived counts a failure. A code is of a few: what Redis says begins with a word.
func (m *metrics) survived(pkg, op string, err error) {
	code := "other"
	if e := new(rueidis.RedisError); errors.As(err, &e) {
		code = e.Error()
		for i := range code {
			if code[i] < 'A' || code[i] > 'Z' {
				code = code[:i]
				break
			}
		}
	}
	m.errors.add(1, pkg, op, code)
}

func (m *metrics) cacheHooks(name string) cache.Hooks {
	return cache.Hooks{
		Lookup: func(_ context.Context, info cache.LookupInfo) {
			m.cacheRequests.add(info.Hits, name, "hit")
			m.cacheRequests.add(info.Stale, name, "stale")
			m.cacheRequests.add(info.NotFound, name, "not_found")
			m.cacheRequests.add(info.Misses, name, "miss")
			m.cacheUnavailable.add(info.Unavailable, name)
			m.cacheLookup.observe(info.Took, name)
		},
		Load: func(_ context.Context, info cache.LoadInfo) {
			m.cacheLoad.observe(info.Took, name, result(info.Err))
		},
		Error: func(_ context.Context, op string, err error) { m.survived("cache", op, err) },
	}
}

func (m *metrics) ratelimitHooks(name string) ratelimit.Hooks {
	return ratelimit.Hooks{
		Decision: func(_ context.Context, info ratelimit.DecisionInfo) {
			decided := "denied"
			if info.Result.Allowed {
				decided = "allowed"
			}
			m.decisions.add(1, name, decided)
			m.decisionTime.observe(info.Took, name)
		},
		Error: func(_ context.Context, err error) { m.survived("ratelimit", "decide", err) },
	}
}

// lockHooks has the Locker's name: a lock's own may be one of many.
func (m *metrics) lockHooks(name string) lock.Hooks {
	return lock.Hooks{
		Acquire: func(ctx context.Context, info lock.AcquireInfo) {
			acquired := "acquired"
			held := new(lock.HeldError)
			switch {
			case info.Err != nil && (errors.As(info.Err, &held) || ctx.Err() != nil):
				acquired = "not_acquired"
			case info.Err != nil:
				acquired = "error"
			}
			m.lockAcquire.observe(info.Took, name, acquired)
		},
		Release: func(_ context.Context, info lock.ReleaseInfo) { m.lockHeld.observe(info.Held, name) },
		Lost:    func(context.Context, lock.LostInfo) { m.lockLost.add(1, name) },
		Error:   func(_ context.Context, op string, err error) { m.survived("lock", op, err) },
	}
}

func (m *metrics) bufferHooks(name string) buffer.Hooks {
	return buffer.Hooks{
		Flush: func(_ context.Context, info buffer.FlushInfo) {
			m.flush.observe(info.Took, name, result(info.Err))
			m.dead.add(info.Dead, name)
			if info.Err == nil {
				m.flushed.add(info.Rows, name)
			}
		},
		Regress: func(context.Context, buffer.RegressInfo) { m.regressions.add(1, name) },
		Error:   func(_ context.Context, op string, err error) { m.survived("buffer", op, err) },
	}
}

// watch reads what a buffer's hooks cannot tell: what waits in Redis, of all processes. Call it before each scrape.
func (m *metrics) watch(ctx context.Context, name string, b *buffer.Buffer) error {
	stats, err := b.Stats(ctx)
	if err != nil {
		return err
	}
	m.pending.set(float64(stats.Pending), name)
	m.oldest.set(stats.OldestAge.Seconds(), name)
	m.letters.set(float64(stats.DeadLetters), name)
	return nil
}
