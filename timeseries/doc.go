// Package timeseries counts events in buckets of time, in several resolutions at once, and answers what there was in any
// interval in one round trip: exact counters, statistics, distinct counts and top lists, in plain Redis hashes.
//
//	store, err := timeseries.New(client, "web", timeseries.Options{})
//	err = store.Counter("hits").Incr(ctx, 1) // in every request
//	from, to, err := store.Today(ctx, time.Local)
//	today, err := store.Counter("hits").Sum(ctx, from, to)
//
// # What it promises
//
// Counts are exact: an int64 from end to end, and each acknowledged event is counted once, in every resolution that still keeps
// its bucket, however late it comes. One that would overflow any of these is counted in none, and reported.
//
// An answer says which interval it covers, and whether that is what was asked for. It is made of the largest buckets that fit
// and of smaller ones at its ends. Where small buckets are no longer kept larger ones answer: what was counted is never
// reported as zero. Intervals that meet add up. What is older than all resolutions keep is in no answer.
//
// Days, weeks, months and years are those of a place, with days of 23 or 25 hours, or are refused with [ErrResolution].
//
// Every key has an expiry, set in the script that creates it and never moved: the end of what it may hold, plus Keep, plus Step. An
// event whose keys would have expired is too late; it creates nothing and deletes nothing. One that is too far ahead is
// refused as well. Both are counted in [Store.Totals].
//
// The time is the Redis server's, whatever clocks the hosts have: see Options.Clock. In a cluster the nodes' clocks must agree
// as well as buckets shall.
//
// One round trip per write, shared by concurrent calls: those that come while one is under way go with the next. With
// Options.FlushEvery calls do not wait, and a process writes one number per series, bucket and FlushEvery.
//
// # When something fails
//
// A reply is lost, or Redis hangs: the call returns [ErrUnknown] after Options.Timeout, or twice that if it had to wait for
// another. The first call of a process waits for one more, which all first calls share. The event may have been counted;
// what may have been is never sent twice. What was acknowledged stands.
//
// Redis is down, full, read-only or loading: an error, and what it is about is not counted. A full Redis still takes some:
// top lists of TopSize members, and what shares their script. With FlushEvery what Redis has surely not taken is kept and
// written later, up to Options.MaxPending; what it may have taken is not, and Hooks.Drop tells. A process that ends without
// Close loses what it has gathered. What is gathered goes out in parts of some 2000 buckets and members, of which each may
// take Options.Timeout; where one is not answered those behind it are not sent, except in a cluster.
//
// A slot of a cluster moves: Redis refuses scripts of which some keys have moved, or are new, with TRYAGAIN. They are sent again
// until Options.Timeout ends, and then refused: a series whose slot takes longer cannot begin new chunks meanwhile.
//
// Redis restarts, fails over or evicts: what it lost is missing from answers, without notice. An append-only file that is synced
// each second loses up to a second; replication is asynchronous. Use maxmemory-policy noeviction: all keys have an expiry, so the
// volatile policies evict them too.
//
// # Keys
//
//	prefix:{name:series}:c10x120:n   a hash: the counter's buckets of 10s, numbers 120n to 120n+119 since 1970
//	prefix:{name:series}:s10x120:n   a hash: the same of statistics
//	prefix:{name:series}:d10:n       a string: a HyperLogLog of bucket n
//	prefix:{name:series}:t10x100:n   a sorted set: the top list of bucket n, of 100 members
//	prefix:{name}:layout             a string: buckets per hash
//
// All keys of a series share a slot. A hash stays in the compact encoding that Redis has for small ones: 120 buckets of a counter
// below 4096 take 6 bytes each, of statistics of small numbers about 20. If the server's hash-max-listpack-entries is lower, the
// first process to come makes chunks as small as that, and the layout key tells the others; where CONFIG is forbidden
// it is 120. A limit below 16 is taken for a wish to have no such hashes. The key expires when nothing can be left that was
// written by it. If it is lost, the next process decides anew; should the limit have changed meanwhile, those that run go
// on as before for up to an hour, a day if they cannot ask. Something that is no number from 16 to 120 is replaced.
//
// # What it needs
//
// Redis 7.0 or Valkey 8, or later: a single server, Sentinel or Cluster, with any rueidis.Client. Large parts of a chart are read by
// DUMP, which is ten times cheaper than HGETALL; where that is forbidden HGETALL is used after all, at the cost of one more round
// trip, once; where it has another format, each time. Users may test with miniredis.
//
// A user with an ACL needs, on prefix:*, EVAL, EVALSHA, TIME, GET, SET, PTTL and PEXPIREAT for anything; to write counters
// HINCRBY and HDEL, statistics HGET, HSET and HDEL, distinct counts PFADD, top lists ZCARD, ZSCORE, ZADD and ZPOPMIN; to
// read HMGET, DUMP or HGETALL, PFCOUNT and ZRANGE; to delete UNLINK and HDEL. CONFIG GET is asked for once and may be
// refused. Without one of those that a write needs it is refused, though top lists and distinct counts may have it in part;
// a user who loses PEXPIREAT while processes run may leave such keys without expiry.
//
// # What it is not for
//
// Single events with their exact times, labels to group by, or metrics of machines at fixed intervals: those need a database for
// time series. Percentiles. Billing, unless Redis is as durable as that takes, and a lost reply is looked into.
package timeseries
