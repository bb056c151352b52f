package main

import (
	"context"
	"errors"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/buffer"
	"github.com/redispatterns/redispatterns/cache"
	"github.com/redispatterns/redispatterns/featurestore"
	"github.com/redispatterns/redispatterns/lock"
	"github.com/redispatterns/redispatterns/ratelimit"
	"github.com/redispatterns/redispatterns/stream"
	"github.com/redispatterns/redispatterns/timeseries"
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
	seriesWrite      *histogram
	seriesEvents     *counter
	seriesDropped    *counter
	handled          *histogram
	lag              *gauge
	unacked          *gauge
	deadMessages     *gauge
	featureRead      *histogram
	featureRows      *counter
	featureWrites    *counter
	featureSwitches  *counter
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
	m.seriesWrite = m.histogram("redispatterns_timeseries_write_duration_seconds", "Time of a round trip that writes, by result: ok or error.", "name", "result")
	m.seriesEvents = m.counter("redispatterns_timeseries_events_total", "Events in round trips that Redis confirmed.", "name")
	m.seriesDropped = m.counter("redispatterns_timeseries_dropped_events_total", "Events that were not counted, by reason: late, future or refused; or that may have been: unknown.", "name", "reason")
	m.handled = m.histogram("redispatterns_stream_handled_duration_seconds", "Time of a handler, by outcome: acked, retried, dropped, dead or lost.", "name", "outcome")
	m.lag = m.gauge("redispatterns_stream_lag", "Entries that the group has not been given yet, if Redis knows.", "name")
	m.unacked = m.gauge("redispatterns_stream_pending", "Messages that were delivered and not acknowledged.", "name")
	m.deadMessages = m.gauge("redispatterns_stream_dead_letters", "Messages that wait for somebody to redrive them.", "name")
	m.featureRead = m.histogram("redispatterns_featurestore_read_duration_seconds", "Time of a read, by result: ok or error.", "name", "result")
	m.featureRows = m.counter("redispatterns_featurestore_rows_total", "Rows that were read, by status: found, partial, stale, missing or broken.", "name", "status")
	m.featureWrites = m.counter("redispatterns_featurestore_writes_total", "Rows that were to be written, by outcome: applied, older, same or invalid.", "name", "outcome")
	m.featureSwitches = m.counter("redispatterns_featurestore_switches_total", "Times another version was seen to be live.", "name")
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

func (m *metrics) timeseriesHooks(name string) timeseries.Hooks {
	return timeseries.Hooks{
		Write: func(_ context.Context, info timeseries.WriteInfo) {
			m.seriesWrite.observe(info.Took, name, result(info.Err))
			if info.Err == nil {
				m.seriesEvents.add(int(info.Events), name)
			}
		},
		Drop: func(_ context.Context, events int64, err error) {
			reason := "refused"
			switch {
			case errors.Is(err, timeseries.ErrTooLate):
				reason = "late"
			case errors.Is(err, timeseries.ErrFuture):
				reason = "future"
			case errors.Is(err, timeseries.ErrUnknown):
				reason = "unknown"
			}
			m.seriesDropped.add(int(events), name, reason)
		},
	}
}

func (m *metrics) streamHooks(name string) stream.Hooks {
	return stream.Hooks{
		Done:  func(_ context.Context, info stream.Done) { m.handled.observe(info.Took, name, string(info.Outcome)) },
		Error: func(_ context.Context, op string, err error) { m.survived("stream", op, err) },
	}
}

func (m *metrics) featurestoreHooks(name string) featurestore.Hooks {
	return featurestore.Hooks{
		Read: func(_ context.Context, info featurestore.ReadInfo) {
			m.featureRead.observe(info.Took, name, result(info.Err))
			m.featureRows.add(info.Counts.Found, name, "found")
			m.featureRows.add(info.Counts.Partial, name, "partial")
			m.featureRows.add(info.Counts.Stale, name, "stale")
			m.featureRows.add(info.Counts.Missing, name, "missing")
			m.featureRows.add(info.Counts.Broken, name, "broken")
		},
		Write: func(_ context.Context, info featurestore.WriteInfo) {
			m.featureWrites.add(info.Applied, name, "applied")
			m.featureWrites.add(info.Older, name, "older")
			m.featureWrites.add(info.Same, name, "same")
			m.featureWrites.add(info.Invalid, name, "invalid")
			if info.Err != nil {
				m.survived("featurestore", "write", info.Err)
			}
		},
		Switch: func(context.Context, string, string, string) { m.featureSwitches.add(1, name) },
	}
}

// watchGroup reads what a group's hooks cannot tell: what waits in Redis, for all consumers. Call it before each scrape.
func watchGroup[T any](ctx context.Context, m *metrics, name string, g *stream.Group[T]) error {
	info, err := g.Info(ctx)
	if err != nil {
		return err
	}
	if info.LagKnown {
		m.lag.set(float64(info.Lag), name)
	}
	m.unacked.set(float64(info.Pending), name)
	m.deadMessages.set(float64(info.Dead), name)
	return nil
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
