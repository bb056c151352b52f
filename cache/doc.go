// Package cache caches expensive results, such as model predictions and queries, in Redis: cache-aside, with one load
// per missed key across all processes.
//
//	scores, err := cache.New(client, "scores", cache.Options[string, float64]{TTL: time.Hour, Version: "model-1"})
//	score, err := scores.Fetch(ctx, "user-42", predict)
//
// # What it promises
//
// One load. Callers that miss a key at the same time share one load, in a process through memory and between processes
// through a lease in Redis, which lasts as long as the loading process lives and is void a LeaseTTL after it died or
// lost touch with Redis. An error or panic of a load reaches all in its process that wait for it, and is not cached;
// another process that was waiting loads for itself. That there is no value can be cached: see [ErrNotFound].
//
// No old value. What a load returns that began before a Delete, Set or Invalidate of its key, in any process, is never
// served to those who come later, and a Fetch or Get that begins after one of them has returned does not return what
// was there before. For that the caller must first change the source and then delete or invalidate, and repeat that if
// it returned an error. Reads through ClientTTL, or from replicas, are eventually consistent instead.
//
// A TTL is a maximum. It is the server's clock that counts, to the millisecond, and an entry never outlives TTL +
// StaleTTL. No clock of a client is compared with another's; they need only run at the same speed.
//
// Only what it wrote. An entry is checked when it is read: what is foreign, damaged or of another version is a miss and
// is replaced. Any bytes are legal as id, segment, version and payload, and no two of them are mistaken for each other.
//
// # When Redis fails
//
// Down, hung, or out of reach: Fetch returns what load returns, delayed by 9/8 of OpTimeout at most, and after a few such
// calls without asking Redis at all, at the cost of microseconds. Loads are then shared within the process only, also
// with callers that come while they run, and not stored: when Redis is back, which is noticed within a tenth of a
// second of use, it is not flooded with writes. Get and, with Options.FailClosed, Fetch return an error instead.
// Delete, Set and Invalidate always try, and always tell. All this needs a client whose Dialer.Timeout, 5s by default,
// is not longer than OpTimeout: while any user of the client opens a connection, all others wait.
//
// Slow: a hit makes one round trip and a miss three, each as long as OpTimeout at most.
//
// Busy: while four reads of a segment by Fetch and Get are under way, those that come gather for the next round trip,
// one MGET for up to 128 of them, but for an eighth of OpTimeout at most, and then go alone. A wrapped client sees such
// a command with the context values of the first. Not with ClientTTL, and not in a cluster, where one command is for one
// slot.
//
// Full, or read-only: hits are served, misses are loaded and not stored. Delete and Invalidate work on a full Redis.
//
// Restarted, failed over, or evicting: whatever is lost is a miss, bookkeeping keys included. Replication is
// asynchronous, though: a failover can lose a Delete or Invalidate that had been confirmed, and bring back what it
// removed until its TTL ends.
//
// In a cluster the loss of a node leaves the keys of the others as they were.
//
// # Keys
//
//	prefix:version:segment:{id}    an entry: 32 bytes of header and the encoded value
//	prefix:version:segment:{id}:l  the lease of its load, for LeaseTTL
//	prefix:segment:{tag}:s         the segment's stamp, 8 random bytes that each entry must carry to count
//
// In version and segment ":", "%", "{" and "}" are escaped as in URLs; an id that is empty or begins with "}" or "%"
// gets a "%" before it. Ids are part of key names: where they are long, or private, let Options.Key hash them. All keys
// have a TTL; a stamp's is longer than that of all entries it stands for. A cluster has up to 64 stamps per segment,
// one for each range of 256 slots. A process remembers a stamp for 20ms, and Invalidate waits that long before it
// returns. Deleting a key by hand takes away a value, but, unlike Delete, does not keep a load that is under way from
// storing its own.
//
// # What it needs
//
// Redis 7.0 or Valkey 8, or later: a single server, Sentinel or Cluster, with any rueidis.Client, also one that is
// wrapped, speaks RESP2 or has DisableCache, as it must against miniredis in tests. rueidis.NewClient itself fails
// while Redis is down: a service that must start then calls its loads directly, and NewClient again, until it has a
// client.
//
// # What it is not for
//
// Data that must not be lost: any entry may vanish. Locks: a lease saves work, it does not protect it. Keeping counts,
// sessions or queues.
package cache
