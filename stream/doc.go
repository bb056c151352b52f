// Package stream has typed messages in Redis Streams: producers, readers, and consumer groups that lose nothing and do not run a
// slow job twice.
//
//	orders, err := stream.New(client, "orders", stream.Options[Order]{})
//	id, err := orders.Publish(ctx, order)
//	billing := orders.Group("billing", stream.GroupOptions[Order]{})
//	err = billing.Run(ctx, func(ctx context.Context, m *stream.Message[Order]) error { … }) // in any number of processes
//
// # What it promises
//
// A message that Publish has returned an id for is handled at least once by each group, as long as Redis keeps it: it is
// acknowledged after its handler has returned nil, or [Drop], and otherwise handled again or made a dead letter, which happens in
// one step.
//
// It is handled once, however long its handler takes, unless a process is killed, stopped or cut off from Redis for longer
// than GroupOptions.Lease. Then other consumers take over what it had, GroupOptions.MaxInFlight messages at most, within a
// lease and a third, if they have room; and if it goes on, the contexts of its handlers end with [ErrLeaseLost]. It does
// not begin what it has lost, and takes nothing back. Handlers should therefore be idempotent, or have the message's id
// recorded with what they write.
//
// A message becomes a dead letter after GroupOptions.MaxAttempts attempts, also if handling it kills the process: attempts
// after the first are written down before they begin. The last attempt at one that a dead process has left is made while no
// other such one is, so that a message that kills takes no other with it.
//
// A consumer that is told to stop hands over at once what it has not begun.
//
// Messages of a group come in the order of their ids, but several are handled at once; GroupOptions.Key keeps the order of
// those with the same key within one Run. Retries, take-overs and dead letters that were redriven come later.
//
// # When something fails
//
// Redis is down, hung or out of reach: Publish returns an error, and did or did not publish; see [IdempotencyKey]. Run goes
// on: handlers at work finish, what they have done is acknowledged when Redis is back, and reading goes on within 2
// seconds. A reply with messages that was lost is found again. When connections go silent without being closed, Run goes on
// with new ones after about 2 seconds, and Tail after 4; Publish, and retries, wait until the client notices, after 11
// seconds by default: set ConnWriteTimeout and Dialer.KeepAlive lower if that is too long.
//
// Redis restarts or fails over: what its persistence or its replica has kept is kept. Acknowledgements that it has forgotten are
// handled again.
//
// The stream or the group disappears (DEL, XGROUP DESTROY, FLUSHALL): Run makes it again, with the first entry as its next.
// So nothing is left out, and what is still in the stream is handled again.
//
// Redis is full: Publish returns its error. Reading, acknowledging and trimming go on; dead letters and delayed messages
// wait for room. Redis must not evict: maxmemory-policy noeviction.
//
// Run's user needs EVALSHA, EVAL, XGROUP, XREADGROUP, XACK, XPENDING, XCLAIM, XAUTOCLAIM, XRANGE, XADD, XDEL, XINFO, TIME,
// EXISTS, ZREM, ZRANGE and ZRANGEBYSCORE, on all keys below, and what the client itself needs. Run returns an error if it
// may not make the group (XGROUP CREATE), or with DeleteOnAck look for others (XINFO). Without another right it does not
// return: it goes on, tells Hooks.Error, and does not do what needs it. In particular without XACK nothing is acknowledged,
// and without EVALSHA nothing is retried, renewed or taken over. Publish needs XADD, and with options EVALSHA, EVAL, GET,
// SET, TIME and ZADD; Tail needs XREAD and XINFO, TrimAcked EVALSHA, EVAL, EXISTS, XINFO, XPENDING and XTRIM.
//
// Entries that are deleted or trimmed while they are pending are counted and forgotten.
//
// # How
//
// Each Run is a consumer with a name of its own. It reads up to GroupOptions.Batch entries at once, as long as it has room,
// and passes them to workers. What was handled is acknowledged together, while other things are under way. Every quarter of
// a lease it renews those leases that are as old, each only if it still has it, and about every quarter of one it claims
// what nobody renews. A message that failed stays pending in its process until its next attempt, so that other groups see
// nothing of it.
//
// # Keys
//
//	key                     the stream
//	{key}:dead:group        a stream: the dead letters of a group
//	{key}:delayed           a stream: messages that are not due yet
//	{key}:due               a sorted set: when each of them is
//	{key}:once:idempotency  a string: the id that was published; it has a TTL, Options.IdempotencyTTL
//
// If key has a hash tag, these begin with key, a colon instead; so do not use both key and {key}. Only once has a TTL.
// Acknowledged messages stay in the stream for other groups and for Range until [Stream.TrimAcked] or
// GroupOptions.DeleteOnAck removes them, and dead letters until [Group.Redrive] does, or XDEL. An entry has the codec's
// fields; headers are fields that begin with "_h:", and a redriven entry begins with "_redrive" and its group's name. A
// dead letter has the fields _id, _reason and _attempts before the original ones; of one with more than 3,550 fields, what
// other programs have added, those from the 3,501st are in a field _more: each name and value after its length and a colon.
//
// # What it needs
//
// Redis 7.0 or Valkey 8, or later: a single server, Sentinel or Cluster, with any rueidis.Client. If that reads from replicas,
// only what Tail yields comes from them, and as much later as they lag. A Run uses one connection of the client's blocking
// pool, and up to four more for a while after those that all share have not answered. Several messages are one round trip
// when they are read, and one when they are acknowledged. One without anything to do sends about two commands per second,
// and a few per lease.
//
// # What it is not for
//
// Handling exactly once without the handler's help. Order across processes. More than one Redis node can take: use several
// streams. Results that the publisher waits for.
package stream
