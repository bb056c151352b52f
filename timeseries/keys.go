package timeseries

import "strconv"

// What a key holds.
const (
	kindCounter  = 'c'
	kindStats    = 's'
	kindDistinct = 'd'
	kindTop      = 't'
)

// keyspace builds the keys of a store; doc.go lists them. A name is not empty and has no colon or brace, so that a name, a colon and
// whatever a series is called make a tag that is never empty, and no other's.
type keyspace struct {
	prefix, name string
	topSize      int
}

// hasChunks reports whether buckets of a kind are fields of a hash. Others have a key each.
func hasChunks(kind byte) bool { return kind == kindCounter || kind == kindStats }

// append appends what all keys of a kind, series and resolution begin with.
func (k keyspace) append(b []byte, kind byte, series string, step, width int64) []byte {
	b = append(append(b, k.prefix...), ":{"...)
	b = append(append(append(append(b, k.name...), ':'), series...), "}:"...)
	b = strconv.AppendInt(append(b, kind), step, 10)
	switch {
	case hasChunks(kind):
		b = strconv.AppendInt(append(b, 'x'), width, 10)
	case kind == kindTop:
		b = strconv.AppendInt(append(b, 'x'), int64(k.topSize), 10)
	}
	return append(b, ':')
}

func (k keyspace) base(kind byte, series string, step, width int64) string {
	return string(k.append(nil, kind, series, step, width))
}

// at returns the key of a chunk, or of a bucket where each has a key of its own.
func at(base string, n int64) string { return base + strconv.FormatInt(n, 10) }

// layout has how many buckets a chunk has.
func (k keyspace) layout() string { return k.prefix + ":{" + k.name + "}:layout" }
