package cache

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/internal/key"
)

// keyspace builds the keys of one segment. All of them are made here:
//
//	prefix:version:segment:{id}    an entry
//	prefix:version:segment:{id}:l  the lease of whoever loads it; same slot as the entry
//	prefix:segment:{tag}:s         the segment's stamp; without the version, so that all versions share it
//
// No two of them are alike: entries end in "}", leases in "}:l" and stamps in "}:s"; before the first "{"
// the last parts are version and segment, which are escaped and so hold no ":", and the rest is the prefix.
type keyspace struct {
	entries string // what comes before the id
	stamps  string // what comes before the tag
}

func newKeyspace(prefix, version, segment string) keyspace {
	version, segment = escapePart(version), escapePart(segment)
	return keyspace{
		entries: prefix + ":" + version + ":" + segment + ":",
		stamps:  prefix + ":" + segment + ":",
	}
}

// escapePart makes s free of the characters that end a part of a key or begin a hash tag.
var escapePart = strings.NewReplacer("%", "%25", ":", "%3A", "{", "%7B", "}", "%7D").Replace

// entry returns the key of an entry.
func (k keyspace) entry(id string) string { return key.Tagged(k.entries, id, "") }

func (k keyspace) appendEntry(b []byte, id string) []byte { return key.AppendTagged(b, k.entries, id) }

func leaseKey(entryKey string) string { return entryKey + ":l" }

func (k keyspace) stamp(tag string) string { return key.Tagged(k.stamps, tag, ":s") }

// slotRanges is how many copies of a stamp there may be in a cluster. Copy i belongs to the entries in the
// i-th of that many equal ranges of slots and lies in that range itself: nearly always on their node, so
// that a read stays one trip to one node and no node serves every read of a segment.
const slotRanges = 64

func rangeOfSlot(slot uint16) int { return int(slot) / (16384 / slotRanges) }

// newStampTags returns a hash tag for each range. client's command builder computes the slots.
func newStampTags(client rueidis.Client) []string {
	if client.Mode() != rueidis.ClientModeCluster {
		return []string{"0"}
	}
	tags := make([]string, slotRanges)
	for missing, n := slotRanges, 0; missing > 0; n++ {
		tag := strconv.Itoa(n)
		get := client.B().Get().Key("{" + tag + "}").Build()
		if r := rangeOfSlot(get.Slot()); tags[r] == "" {
			tags[r], missing = tag, missing-1
		}
	}
	return tags
}

// defaultKey returns how keys that are strings or integers become ids.
func defaultKey[K comparable]() (func(K) string, error) {
	// The usual types first: for them no value is boxed on each call.
	for _, f := range []any{
		func(k string) string { return k },
		func(k int) string { return strconv.Itoa(k) },
		func(k int64) string { return strconv.FormatInt(k, 10) },
		func(k int32) string { return strconv.FormatInt(int64(k), 10) },
		func(k uint64) string { return strconv.FormatUint(k, 10) },
		func(k uint32) string { return strconv.FormatUint(uint64(k), 10) },
	} {
		if f, ok := f.(func(K) string); ok {
			return f, nil
		}
	}
	t := reflect.TypeFor[K]()
	switch {
	case t.Kind() == reflect.String:
		return func(k K) string { return reflect.ValueOf(k).String() }, nil
	case t.Kind() >= reflect.Int && t.Kind() <= reflect.Int64:
		return func(k K) string { return strconv.FormatInt(reflect.ValueOf(k).Int(), 10) }, nil
	case t.Kind() >= reflect.Uint && t.Kind() <= reflect.Uint64:
		return func(k K) string { return strconv.FormatUint(reflect.ValueOf(k).Uint(), 10) }, nil
	}
	return nil, fmt.Errorf("cache: Key is required: keys of type %v are neither strings nor integers", t)
}
