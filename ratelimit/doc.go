// Package ratelimit limits how much is done with a key, such as requests of a user, in all processes together: with
// fixed windows, sliding windows and token buckets whose state is in Redis.
//
//	limiter, err := ratelimit.NewSlidingWindow(client, ratelimit.PerMinute(100), ratelimit.Options{Prefix: "api"})
//	result, err := limiter.Allow(ctx, "user-42")
//	if !result.Allowed { // come back after result.RetryAfter
//
// # What it promises
//
// Never more than the limit, whatever the number of callers and processes, and whatever their clocks say:
// [NewSlidingWindow] admits at most Rate in any period as long as Window, [NewFixedWindow] in each window, and
// [NewTokenBucket] at most Burst and what has dripped in. Only the server's clock counts. If it is set back nothing is
// freed: limits wait until it has caught up, or a Reset. If it is set forward that time has passed.
//
// All or nothing. A call of n units takes them all or none. One that is refused takes nothing and writes nothing, so
// that those who keep trying do not lock themselves out. [AllowAll] does the same over several limits.
//
// RetryAfter is exact: if nobody else comes first, the same call passes then, and not before, but by fractions
// of the time it takes to tell. For fixed windows it is in whole milliseconds, else in microseconds.
//
// One round trip per decision, however many calls it decides: those of a limiter that come while some are under way share
// the next, each decided as if it had come alone. A call waits for one that is under way at most, by no timer, and not at
// all if there is none. One caller's context does not end the others' calls. A key that was refused is not asked for again
// for a moment: see Options.DenyCacheSize. In a cluster only calls for the same key share round trips.
//
// What was taken for a caller that left before Redis answered is given back, except by [AllowMany]: to just what it was
// taken from, so that never more than the limit passes. That is nothing where its window has ended, or its step of a sliding one
// counts no more; and of a bucket less by what has dripped in since.
//
// It starts no goroutine of its own accord but these, which end within two Timeouts: to make a trip for callers whose
// deadline is sooner than Timeout or who have left, to give back, and to see whether Redis is back.
//
// # When Redis fails
//
// Down, hung, full, read-only or out of reach: Options.OnFailure decides, within Options.Timeout, and after a few such
// calls without asking Redis, at the cost of microseconds. That Redis is back is noticed within a tenth of a second
// of use. In a cluster the loss of a node is no loss for the keys of the others.
//
// An answer that is lost: the call may have been counted. It is never sent twice and never given back.
//
// Restarted without persistence, failed over or evicting: limits begin anew as far as data was lost. Replication
// is asynchronous, so a failover may forget the last calls. Run limits with maxmemory-policy noeviction, or apart
// from caches.
//
// Scripts are sent by their hash, and by source where a server does not know them, as after SCRIPT FLUSH.
//
// # Keys
//
//	prefix:f60000:{id}  a fixed window of 60,000ms: the units used
//	prefix:s60000:{id}  a sliding window: see sliding.lua
//	prefix:a60000:{id}  with Options.Approximate
//	prefix:b60000:{id}  a token bucket whose Rate is per 60,000ms
//
// Ids are the keys that callers give, and any bytes are legal; one that is empty or begins with "}" or "%" gets a "%" before it.
// In a cluster ids that begin with the same tag in braces, as "{acme}alice" and "{acme}", share a slot. Every key has a
// TTL, which ends when it says nothing any more; one that lost it gets it back when it is next used, or in a sliding window
// when the next step begins.
//
// # What it needs
//
// Redis 7.0 or Valkey 8, or later: a single server, Sentinel or Cluster, with any rueidis.Client, also one that is
// wrapped, speaks RESP2 or has DisableCache. Replicas are not asked. Users may test with miniredis.
//
// # What it is not for
//
// Limits on what goes on at the same time: those need leases. Billing: an outage or failover loses counts.
package ratelimit
