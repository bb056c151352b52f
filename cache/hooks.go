package cache

import (
	"context"
	"sync/atomic"
	"time"
)

// Hooks are optional functions that a cache calls, for metrics and traces. They run on the caller's goroutine or on
// one of the cache's, with the caller's context or, for loads, the values of the first caller's, before callers get
// what they wait for: keep them fast, do not let them panic, and do not call the cache from them. Nil ones cost nothing.
type Hooks struct {
	// Lookup is called after each look at Redis by a Fetch, FetchMany, Get or GetMany, alone or together with others. A
	// Fetch that was overtaken by a delete, or began on a segment without a stamp, may look more than once.
	Lookup func(ctx context.Context, info LookupInfo)
	// Load is called after each call of a load and the writing of what it returned.
	Load func(ctx context.Context, info LoadInfo)
	// Error is called with each failure that the cache goes on in spite of; op is one of the Op constants.
	// That Redis is not asked because it failed a moment ago is no new failure: in an outage Error is told of the
	// first few, and LookupInfo.Unavailable of all.
	Error func(ctx context.Context, op string, err error)
}

// What a cache failed to do, for [Hooks].Error.
const (
	OpRead   = "read"   // read entries from Redis
	OpLease  = "lease"  // take, extend or give back the lease of a load
	OpStore  = "store"  // write what was loaded
	OpEncode = "encode" // encode what was loaded, or it is too large
	OpDecode = "decode" // decode a whole entry: Version was not changed with the encoding
)

// LookupInfo describes one caller's look at Redis. Hits, Stale, NotFound and Misses add up to the number of keys, each as
// often as it was asked for.
type LookupInfo struct {
	Segment  string
	Hits     int // fresh values
	Stale    int // values past their TTL
	NotFound int // keys remembered to have no value
	Misses   int // keys with nothing usable
	// Unavailable is how many of the misses were due to a Redis that failed, or was not asked because it had
	// failed a moment ago.
	Unavailable int
	Took        time.Duration // waiting for others and decoding included
}

// LoadInfo describes one call of a load.
type LoadInfo struct {
	Segment string
	Keys    int           // how many keys it was asked for
	Stored  int           // how many values, or knowledge that there is none, Redis accepted
	Refused int           // how many it refused because the key was deleted, set or leased anew meanwhile
	Refresh bool          // whether it ran in the background
	Took    time.Duration // of the load alone
	Err     error         // what it returned
}

// Stats counts what a cache, with all its segments, has done in this process.
type Stats struct {
	Hits     uint64 // keys whose value was fresh in the cache
	Stale    uint64 // keys whose value was past its TTL and was served
	NotFound uint64 // keys remembered to have no value
	Misses   uint64 // keys with nothing usable in the cache

	Unavailable uint64 // of these, those due to a Redis that failed or was not asked for that

	Shared    uint64 // misses that waited for a load begun by another caller in this process
	Loads     uint64 // calls of a load
	LoadErrs  uint64 // of these, calls that returned an error or panicked
	Refreshes uint64 // of these, calls in the background
	Stored    uint64 // loaded values, or knowledge that there is none, that Redis accepted
	Refused   uint64 // loaded values not stored since the key was deleted, set or leased anew meanwhile
	Errors    uint64 // failures that Hooks.Error tells of
}

type counters struct {
	hits, stale, notFound, misses, unavailable, shared, loads, loadErrs, refreshes, stored, refused, errors atomic.Uint64
}

// Stats returns the counts so far. They are not read at one instant.
func (c *Cache[K, V]) Stats() Stats {
	n := &c.stats
	return Stats{
		Hits: n.hits.Load(), Stale: n.stale.Load(), NotFound: n.notFound.Load(), Misses: n.misses.Load(), Unavailable: n.unavailable.Load(),
		Shared: n.shared.Load(), Loads: n.loads.Load(), LoadErrs: n.loadErrs.Load(),
		Refreshes: n.refreshes.Load(), Stored: n.stored.Load(), Refused: n.refused.Load(), Errors: n.errors.Load(),
	}
}

func (s *shared[K, V]) reportError(ctx context.Context, op string, err error) {
	s.stats.errors.Add(1)
	if s.opts.Hooks.Error != nil {
		s.opts.Hooks.Error(ctx, op, err)
	}
}
