package buffer

import "strconv"

// keyspace builds the keys of a buffer; doc.go lists them. The tag has no brace and, since a name has no colon, one meaning.
type keyspace struct{ prefix, name string }

type shardKeys struct {
	meta, cur, gen, batch, marks, dead, reasons string
	writer                                      string // of this process
}

func (k keyspace) shard(n int, writer string) shardKeys {
	base := k.prefix + ":{" + k.name + ":" + strconv.Itoa(n) + "}:"
	return shardKeys{
		meta: base + "meta", cur: base + "cur", gen: base + "gen", batch: base + "batch", marks: base + "marks",
		dead: base + "dead", reasons: base + "reasons", writer: base + "w:" + writer,
	}
}

// shards has the number of shards that flushers must look at.
func (k keyspace) shards() string { return k.prefix + ":{" + k.name + "}:shards" }

// shardOf is FNV-1a of an entity, whose low bits are good enough for a modulus.
func shardOf(entity string, shards int) int {
	h := uint64(14695981039346656037)
	for i := range len(entity) {
		h = (h ^ uint64(entity[i])) * 1099511628211
	}
	return int((h ^ h>>32) % uint64(shards))
}
