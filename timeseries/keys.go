package timeseries

import (
	"strconv"

	"github.com/redispatterns/redispatterns/internal/key"
)

// What a key holds.
const (
	kindCounter  = 'c'
	kindStats    = 's'
	kindDistinct = 'd'
	kindTop      = 't'
)

// keyspace builds the keys of a store; doc.go lists them. Names have no colon, so that a name and a series make one tag.
type keyspace struct {
	prefix, name string
	topSize      int
}

// base is what all keys of a kind, series and resolution begin with.
func (k keyspace) base(kind byte, series string, step, width int64) string {
	b := make([]byte, 0, len(k.prefix)+len(k.name)+len(series)+32)
	b = key.AppendTagged(b, k.prefix+":", k.name+":"+series)
	b = append(b, ':', kind)
	b = strconv.AppendInt(b, step, 10)
	switch kind {
	case kindTop:
		width = int64(k.topSize)
		fallthrough
	case kindCounter, kindStats:
		b = strconv.AppendInt(append(b, 'x'), width, 10)
	}
	return string(append(b, ':'))
}

// at returns the key of a chunk, or of a bucket where each has a key of its own.
func at(base string, n int64) string { return base + strconv.FormatInt(n, 10) }

// layout has how many buckets a chunk has.
func (k keyspace) layout() string { return k.prefix + ":{" + k.name + "}:layout" }
