// Package lock gives one holder at a time, across processes, a name: a lease in Redis that is renewed while it is held, with
// a number that tells its holder from all later ones.
//
//	locks, err := lock.New(client, lock.Options{})
//	err = locks.Do(ctx, "nightly-report", func(ctx context.Context, fence int64) error { … })
//
// # What it promises
//
// One holder, as far as clocks and Redis allow: see below. Validity is counted on the monotonic clock from before the
// request was sent, less a guard of a hundredth of the TTL and 2ms. A holder that is cut off from Redis is told before the
// lease can be granted to another: its Context ends, by a local timer, and its Err compares the clock each time.
//
// A fence with each acquisition. Fences of a name rise strictly, across release, expiry, deletion of the key, FLUSHALL, a
// restart without persistence, and a failover that lost the last writes. They are a hybrid logical clock: the
// server's clock in microseconds, or one more than the last, whichever is higher.
//
// Nobody waits in vain. Processes queue in Redis, first come first served, and the one that releases hands the lock to
// the next and tells it: there is no polling but one look per third of the TTL. A waiter that is dead or stopped delays
// the next by 0.6s at most, and three in a row by as much each. Where the keys of a queue are lost, as by FLUSHALL,
// waiters notice within a third of the TTL. Of a holder that died, the lease ends after its TTL. A ctx that ends while
// it waits leaves nothing behind.
//
// A lost reply is not taken for an answer. Each acquisition has a token of its own; asking again with it is harmless, and
// what is given up is released in the background, several times if the command that acquires it may still be on its way.
//
// A busy process is one holder. Its calls for a name share one lease and pass it on in memory, first come first served.
// That costs no command while the lease is provably valid and the server's clock, when it last said so, was above the
// fence: so no such fence is above that of a later grant. Where other processes wait, calls pass it on for 5ms, and
// what the one takes that is inside then, before it goes to the next process; that others wait is known after 5ms more.
//
// # What no lease can give
//
// A holder can be paused, by its scheduler, a garbage collector or SIGSTOP, between looking at the clock and acting; when it
// goes on another may hold the lock. So what must not happen twice has to be guarded where it happens: give the fence to the
// resource, and let it refuse what comes with a lower one than it has seen. [SetFenced] is that for a key in Redis; for a
// row it is UPDATE … SET fence = $1 … WHERE fence <= $1, for a queue a column with the fence.
//
// Replication is asynchronous. A failover may lose an acquisition, and two may hold the lock until the first renews.
// Options.Replicas makes that unlikely and not impossible; the fences still tell them apart.
//
// Clocks: those of clients are not compared with each other's, they need only run at the same speed as the server's, to a
// hundredth. The server's clock may jump: forward, and leases end early, without notice until the next renewal; back, and
// they last longer. Fences then still rise while the lock is held or was released less than 5s ago; if it was lost
// otherwise, or the new primary's clock is behind by more than a failover takes, one may repeat. A monotonic clock may stand
// still while a machine is suspended; the fence is the answer to that too.
//
// # When Redis fails
//
// Down, hung, or out of reach: TryLock fails after a few attempts, and Lock after a TTL without an answer. Locks that are
// held stay so until their leases end, and are renewed as soon as Redis is back; what was given up is then released, but of
// more than 10,000 tokens the rest ends with its lease. Each command is bounded by half a TTL, or 2s if that is less. Set
// the client's Dialer.Timeout, 5s by default, no longer: who needs a connection waits for it.
//
// Restarted or flushed: locks are lost, which their holders learn when they next renew, after a third of their TTL at most.
// Until then another may hold them too. Waiters queue again, in another order.
//
// Full: what is held can be renewed, released and handed on, and nothing new be acquired. Evicting: locks are keys with a
// TTL like others; use noeviction, or a Redis of their own.
//
// Connections that fell silent, as a firewall may make them: after a command that had no reply in time, the next ones for
// 15s go on connections of the client's pool of blocking ones, eight at a time, so that locks live on. (Not if several of
// those are silent too, unless the client's ConnWriteTimeout and Dialer.KeepAlive make it notice in time.) A subscription
// from which nothing is heard is made again after two looks.
//
// Without rights to publish or subscribe, or while the subscription is down, waiters ask ten times a second.
//
// # Keys
//
//	prefix:{name}           the lock: token|fence|meta, for its TTL; and for 5s after a release, |fence|token
//	prefix:{name}:q         the list of tokens that wait, for as long as one does
//	prefix:{name}:w         a hash of what is to be known of them, likewise
//	prefix:inbox:locker     the channel of a Locker that waits, or has waited
//
// A name that is empty or begins with "}" or "%" gets a "%" before it. All keys have a TTL; those of [SetFenced], which are
// the user's, have none.
//
// # What it costs
//
// A free lock: one command to lock and one to unlock, each one round trip. Where a Locker has four of those under way, and
// Redis is no cluster, what comes meanwhile goes together, in one script for up to 64, without the values of the callers'
// contexts; a lock that turns out not to be free then takes a round trip more. What has not gone with others after an eighth
// of the time for a command goes alone. A process that waits: one to queue, one per third of the holder's or its own TTL,
// whichever is less, and one to claim what it was handed. Renewal: one script per 200 locks and third of the TTL; in a
// cluster, where a script has keys of one slot only, a script per lock, in one pipeline. A lock that is held has no goroutine.
//
// # What it needs
//
// Redis 7.0 or Valkey 8, or later: a single server, Sentinel or Cluster, with any rueidis.Client, also one that is wrapped,
// speaks RESP2, has DisableCache, or reads from replicas. Waiting takes a connection of its own from the client's pool of
// blocking ones.
//
// # What it is not for
//
// Locks are not re-entrant: Go has no identity for what holds them. Pass the Lock down instead. There are no
// read locks and no semaphores. A job that must run exactly once needs a record of what is done, which the fence guards.
package lock
