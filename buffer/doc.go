// Package buffer gathers counts and other values that can be merged in Redis, at Redis' speed, and flushes them in batches to a
// SQL database, or any other sink, where each counts exactly once.
//
//	views, err := buffer.New(client, "views", []buffer.Column{{Name: "views", Op: buffer.Sum}}, buffer.Options{})
//	err = views.Add(ctx, "post-42", buffer.Int("views", 1)) // in every request
//	err = views.Run(ctx, sink)                              // in any number of processes; see package sqlsink
//
// # What it promises
//
// Nothing acknowledged is lost, and nothing counts twice: whatever processes are killed or stopped between whichever two
// lines, whatever replies are lost, those to COMMIT included. When all is flushed, the sink's total is what Add has
// confirmed, plus what it said it had not confirmed yet if the process lived on, plus what was posted; Stats.Dropped counts
// the exception, sums that overflow when nobody waits any more. That takes a sink with a ledger, as sqlsink has; see [Sink]
// for what others get.
//
// Values merge: the order in which they come and are flushed does not matter. int64 is exact over its whole range. A sum that
// would overflow is reported for its column alone.
//
// A batch does not change until it is acknowledged. A shard has one at most, and the next is made of the oldest values. A row
// that the sink refuses for good becomes a dead letter, and the rest of its batch is applied without it; Replay puts dead
// letters back.
//
// Memory is bounded, in Redis by Options.MaxPending and in the process by Options.MaxLocal; beyond, Add returns ErrFull. Dead
// letters are not bounded: they stay until somebody replays them.
//
// # How
//
// Each process numbers its round trips to a shard, and Redis knows the last number of each process, for 24 hours: what is sent
// again does nothing. A flusher claims a batch with a lease, which keeps others from doing the same work, and reads it; the sink
// writes its rows and, in the same transaction, its place in the order of the shard's batches into the ledger; the flusher
// acknowledges. A flusher that has lost its lease finds the batch in the ledger, or a later one, and stops.
//
// # When something fails
//
// Redis is down, hung or out of reach: Add returns ErrUnconfirmed after Options.AddTimeout. Its values are kept, merged with
// others, and sent until Redis confirms, or the process ends. Each connection that rueidis opens meanwhile may take its
// Dialer.Timeout.
//
// A node of a Cluster is down, hung or out of reach: that holds up its shards alone. With cluster-require-full-coverage, as is
// Redis' default, the others refuse too once they have noticed.
//
// Redis is full: Add returns an error and nothing of it is counted; what is there can be flushed, which makes room. Redis must
// not evict: maxmemory-policy noeviction. With another policy it may drop what is pending. Nothing here can prevent that; where
// INFO is permitted, Hooks.Error is told ErrEvicting, once, and Stats.Evicts says it.
//
// Redis restarts: what its persistence keeps is kept. Without an append-only file all that is pending is lost, with one that is
// synced each second up to a second of it.
//
// Redis falls back to an older state, since a failover lost writes or a snapshot was restored: what was added since is lost, and
// what came back may have been flushed before. Or it comes back with nothing at all, as after FLUSHALL. The ledger never drops
// what is new. It is reported by Hooks.Regress and Stats.Regressions, for each shard that values are flushed from later, once, if
// somebody notices:
//
//   - The sink: the batch has a place in the ledger that is taken, or is not of the epoch that the ledger knows. Where the
//     ledger is beyond Redis, Options.OnRegress decides what becomes of values that may have been flushed before. A new Redis for
//     a ledger that is not new is reported likewise, and its counts are right.
//   - A process that adds or posts within 12 hours after the last time that Redis confirmed something to it, of which Redis does
//     not know any more. What else was lost, of processes that have ended or were idle for longer, nobody knows.
//   - Redis: the ledger has a version of the live batch that it does not know of. Rows that the sink refused, and that were to be
//     dead letters, are lost then; which ones is not known.
//
// Two losses in a row, the first of which nobody noticed before the second, are reported as one.
//
// The database falls back to an older state, such as that of a backup: what was flushed since is lost, and not reported. The
// ledger falls back with it and accepts each later batch, since it does not look for gaps.
//
// The sink is down: batches are retried with growing pauses, values wait without ever expiring, and when there are too many,
// Add returns ErrFull for fields that are not among them; watch Stats.OldestAge.
//
// A flusher is killed: another takes over after Options.Lease.
//
// The process is killed: what was posted within the last 10 milliseconds or so is lost, and what Add has not confirmed.
//
// # Keys
//
//	prefix:{name:n}:cur      a hash: what has come since the last claim of shard n
//	prefix:{name:n}:gen      a hash: what is being flushed, if it is more than a batch
//	prefix:{name:n}:batch    a hash: the live batch
//	prefix:{name:n}:marks    a hash: which of its fields the sink has refused
//	prefix:{name:n}:dead     a hash: dead letters
//	prefix:{name:n}:reasons  a hash: why
//	prefix:{name:n}:meta     a hash: the shard's batch number, lease and times
//	prefix:{name:n}:w:id     a string: the last round trip of a process, one per process and shard; it has a TTL of 24 hours
//	prefix:{name}:shards     a string: the number of shards
//
// Of these only w has a TTL. A field's name is the operation's sign, the column, a colon and the entity: "+views:post-42". Any
// bytes are legal in an entity. All keys of a shard share a slot.
//
// Two buffers with the same prefix and name must not flush to the same ledger from two Redis servers.
//
// # What it needs
//
// Redis 7.0 or Valkey 8, or later: a single server, Sentinel or Cluster, with any rueidis.Client. Redis' round trips: one for
// any number of concurrent Adds of a shard; three per batch, and one per pass with nothing to flush, after one for the number
// of shards.
//
// # What it is not for
//
// Values that do not merge, such as one that is set to what it was plus one by its readers. Totals that must be in the database
// as soon as Add returns: add Pending to them. Money, unless Redis is as durable as that takes.
package buffer
