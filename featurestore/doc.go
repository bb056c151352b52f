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
// A row is written by one script, and only over one that is not later: whoever writes in whatever order, the row with the
// latest event time stays, and each writer is told what became of its own. What is refused changes nothing, no TTL either.
// Of what was there before, Put leaves nothing of the view: neither features that are null or absent now, nor those of the
// schemas that the row names. Feast's rows name none: features of a schema that another process has begun to write may be
// left for a second. After DeleteAll, Redis has forgotten the schemas of processes that go on writing, and their features
// may be left. Patch leaves what it does not set.
//
// A missing row, an absent feature, null, and zero, "" and false are four different things, and all numbers come back to
// the bit, whatever the codec: infinities, -0, all of int64. Of NaN, which one it was may be lost. (Feast's times are whole
// seconds.) A float64 with the option f32 is rounded; one that float32 cannot hold is refused.
//
// A row is never read as something else than what was written. With Packed, rows of another schema are Broken, with
// ErrSkew. With Fields and Feast, features of both schemas can be read if the value is one of both types, else the row is
// Broken. One broken row is no other row's error.
//
// Freshness is enforced at each read, by the row's event time and this machine's clock. TTLs only bound memory.
//
// A version is seen by nobody before Commit, and by all after it: each read is of one version, and all of its rows are. A
// read that begins 20ms after Commit or Rollback is of the new one, in whatever process, unless Redis does not answer when
// it is asked; with Options.Hot, one that begins after Redis has invalidated what was cached. What was live stays for at
// least 3 seconds, and until Drop. A process that is killed in the middle of loading leaves all as it was. A Put goes to
// the version that was live at most a second ago, and again if it no longer was; one that is on its way for longer than 3
// seconds, over a switch and a Drop, may leave a row of the dropped version, which a later version of that name has. So
// give each version a new name.
//
// # How
//
// A row is in a hash; a read is an HMGET per hash, in one pipeline. With codec Fields, 20 fields or more are read with
// DUMP, which carries all of the hash, but for hashes that Options.Key names and views with Options.Hot. If more than 4 KB
// of it were not asked for, or Redis does not keep it compact, as it does not hashes with a value of more than 64 bytes, or
// refuses DUMP, it is read again, and for the next 10 seconds all are, with HMGET. Gets that come while four round trips of
// their projection are under way go together with the next one, but for a Cluster's. A Put is one script, and what Load
// writes is one for up to 32 rows. Which version is live is a field of one key of the view: a process that has not heard of
// it for 20ms asks, in the same pipeline as for its rows, and if it is another one reads again. A reply that comes more
// than a second after the last such answer is not trusted but read again, which is why rows of a version may be deleted 3
// seconds after it was live.
//
// # When something fails
//
// Redis is down, hung or out of reach: reads and writes return an error after Options.OpTimeout, which each pipeline of
// theirs has. Of a Cluster, rows of other nodes are read all the same; if only the node with the view's own key is out of
// reach, reads are of the version that was live last, but rows that it does not have are Broken, as another one may be
// live.
//
// Redis is full: Put returns an error and the row stays as it was; reads and deletes work. Where Redis evicts, rows are
// missing; if it evicts the view's own key, rows outside versions are live, so use volatile-ttl or the like, which spares
// it.
//
// Redis restarts or fails over: what it lost is missing, or as it was before. That may be rows of a version which is being
// loaded, and nothing says so: if Redis failed over after Begin, load another version. Until a client has noticed, its
// reads may be of the server that was primary, as things were there; still, none is of two versions. A Commit that was lost
// can be made again with Rollback or another Release. Scripts are sent anew.
//
// A reply is lost: a Put may be sent again, which changes nothing.
//
// # Keys
//
//	prefix:view:{entity}           a hash: its row of a view
//	prefix:{entity}                a hash: its rows of all views with Options.Share
//	prefix:view@version:{entity}   a hash: its row of a version of a view
//	prefix:@{view}                 a hash without TTL: which version is live, the state of versions, the schemas of writers
//
// Schemas are kept until DeleteAll: a line of names for each that ever was. Options.Key names hashes of the first kind otherwise, as
// "user:%v" does, and codec Feast has Feast's keys, and "project/view" for the view in the last one. Any bytes are legal in an
// entity. An entity that is a struct is its parts with colons between them: "7:a%3Ab" is of {7, "a:b"}. A hash lives for the
// longest TTL of the views in it; without one, for ever. One that has no TTL does not get one from views that come to have it later.
//
// Fields has the fields that the tags name, as text, vectors as [1,2.5], times as in RFC 3339, and _ts:view: the event time
// in microseconds, and after a space the schema's fingerprint (after Patch, with a + those of other schemas in the row) and
// after another one the names of features that are null. Others who write need not write _ts: such a row has no event time,
// and is not fresh where that matters. Views that share a hash must not have features of the same name; when one moves to
// another view, have each row written by its old view, without it, before the new one writes it there. Packed has the
// fields view, view:1 and so on. Feast's are described in package feast.
//
// # What it needs
//
// Redis 7.0 or Valkey 8, or later: a single server, Sentinel or Cluster, with any rueidis.Client. Reads are sent to
// primaries unless the client sends them elsewhere: then what is promised of versions, and that what is Missing is, holds
// up to the lag of the replicas.
//
// # What it is not for
//
// Point-in-time joins for training: it has one row per entity. Features that other features are computed from in Redis. Rows of
// Packed with more than one writer's schema at a time: give each schema a version, or a view, of its own.
package featurestore
