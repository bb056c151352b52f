// Package featurestore keeps the features that models read: written by batch jobs and streams, read in one round trip, typed, and
// with word of what is missing, null, stale or of another schema.
//
//	type User struct {
//		Orders int64                       `feature:"orders_7d"`
//		Basket float64                     `feature:"avg_basket,default=0"`
//		Tier   featurestore.Opt[string]    `feature:"tier"`
//	}
//
//	users, err := featurestore.NewView[int64, User](client, "users", featurestore.Options{MaxAge: time.Hour})
//	outcome, err := users.Put(ctx, 42, User{Orders: 3, Basket: 9.5}, eventTime) // in a job
//	rows, err := users.GetMany(ctx, ids, rows)                                  // where the model is served
//
// # What it promises
//
// A row is written as a whole or not at all, and only over one that is not later: whoever writes in whatever order, the row with the
// latest event time stays, and each writer is told what became of its own. What is refused changes nothing, no TTL either. Of
// what was there before, nothing of the view is left: neither features that are null or absent now, nor those of other schemas.
//
// A missing row, an absent feature, null, and zero, "" and false are four different things, and all numbers come back to the bit, whatever
// the codec: NaN, infinities, -0, all of int64. (Feast's times are whole seconds.)
//
// A row is never read as something else than what was written. With Packed, rows of another schema are Broken, with ErrSkew. With
// Fields and Feast, features of both schemas can be read if the value is one of both types, else the row is Broken. One broken row is no
// other row's error.
//
// Freshness is enforced at each read, by the row's event time and this machine's clock. TTLs only bound memory.
//
// A version is seen by nobody before Commit, and by all after it: each read is of one version, and all of its rows are. A read that
// begins 20ms and a round trip after Commit or Rollback is of the new one, in whatever process; with Options.Hot, one that begins after
// Redis has invalidated what was cached. What was live stays for at least 3 seconds, and until Drop. A process that is killed
// in the middle of loading leaves all as it was.
//
// # How
//
// An entity's rows are in one hash; a read is an HMGET per hash, in one pipeline, and where a row has 20 fields or more one HSCAN of it.
// Gets that come while four round trips of their projection are under way go together with the next one, but for a Cluster's.
// A write is one script. Which version is live is a field of one key of the view: a process asks for it at most every 20ms, in the
// same pipeline as its rows, and if it is another one reads again. A reply that comes more than a second after the last such answer
// is not trusted but read again, which is why rows of a version may be deleted 3 seconds after it was live.
//
// # When something fails
//
// Redis is down, hung or out of reach: reads and writes return an error after Options.OpTimeout. Of a Cluster, rows of other nodes are
// read all the same; if only the node with the view's own key is out of reach, reads are of the version that was live last.
//
// Redis is full: Put returns an error and the row stays as it was; reads and deletes work. Where Redis evicts, rows are missing; if it
// evicts the view's own key, rows outside versions are live, so use volatile-ttl or the like, which spares it.
//
// Redis restarts or fails over: what it lost is missing, or as it was before. A Commit that was lost can be made again with Rollback or
// another Release. Scripts are sent anew.
//
// A reply is lost: a Put may be sent again, which changes nothing.
//
// # Keys
//
//	prefix:{entity}                a hash: the rows of the entity, of all views
//	prefix:view@version:{entity}   a hash: its row of a version of a view
//	prefix:@{view}                 a hash without TTL: which version is live, the state of versions, the schemas of writers
//
// Options.Key names those of the first kind otherwise, as "user:%v" does, and codec Feast has Feast's keys. Any bytes are legal in an
// entity. An entity that is a struct is its parts with colons between them: "7:a%3Ab" is of {7, "a:b"}. A hash lives for the
// longest TTL of the views in it; without one, for ever.
//
// Fields has the fields that the tags name, as text, vectors as [1,2.5], times as in RFC 3339, and _ts:view: the event time in
// microseconds, and after a space the schema's fingerprint and after another one the names of features that are null. Others who write
// need not write _ts: such a row has no event time, and is not fresh where that matters. Views of one prefix or template must not
// have features of the same name. Packed has the fields view, view:1 and so on. Feast's are described in package feast.
//
// # What it needs
//
// Redis 7.0 or Valkey 8, or later: a single server, Sentinel or Cluster, with any rueidis.Client. Reads are sent to primaries unless the
// client sends them elsewhere.
//
// # What it is not for
//
// Point-in-time joins for training: it has one row per entity. Features that other features are computed from in Redis. Rows of
// Packed with more than one writer's schema at a time: give each schema a version, or a view, of its own.
package featurestore
