package cache

import (
	"encoding/binary"
	"hash/crc32"
	"time"
)

// An entry is what a value key holds: a header, then what the codec made of the value.
//
//	offset  bytes  field
//	0       1      magic, 0xCA
//	1       1      format, 1
//	2       1      flags: 1 = not found (the payload is empty)
//	3       1      reserved, 0
//	4       4      CRC-32C of all other bytes
//	8       8      segment stamp that was current before the value was loaded
//	16      4      random, tells two writes of the same value apart
//	20      4      what the load cost, microseconds
//	24      8      how long before its expiry the entry turns stale, milliseconds
//	32      -      payload
//
// Numbers are big-endian. The format is part of the library's compatibility promise: a release that
// changes it changes the format byte, and older or newer formats are misses to each other.
const (
	headerSize   = 32
	entryMagic   = 0xCA
	entryFormat  = 1
	flagNotFound = 1
	stampSize    = 8
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

type header struct {
	notFound bool
	stamp    string
	nonce    uint32
	cost     time.Duration
	stale    time.Duration
}

// seal writes h into the first headerSize bytes of b, whose remaining bytes are the payload.
func seal(b []byte, h header) {
	b[0], b[1], b[2], b[3] = entryMagic, entryFormat, 0, 0
	if h.notFound {
		b[2] = flagNotFound
	}
	copy(b[8:16], h.stamp)
	binary.BigEndian.PutUint32(b[16:], h.nonce)
	binary.BigEndian.PutUint32(b[20:], uint32(min(h.cost.Microseconds(), 1<<32-1)))
	binary.BigEndian.PutUint64(b[24:], uint64(h.stale.Milliseconds()))
	binary.BigEndian.PutUint32(b[4:], checksum(b))
}

func checksum(b []byte) uint32 {
	return crc32.Update(crc32.Update(0, castagnoli, b[:4]), castagnoli, b[8:])
}

// entry is a view of stored bytes, which it does not copy.
type entry []byte

// parse returns b as an entry, or ok false if this package did not write b or b has been damaged.
func parse(b []byte) (e entry, ok bool) {
	if len(b) < headerSize || b[0] != entryMagic || b[1] != entryFormat || b[2]&^flagNotFound != 0 || b[3] != 0 {
		return nil, false
	}
	if binary.BigEndian.Uint32(b[4:]) != checksum(b) || binary.BigEndian.Uint64(b[24:]) > maxMillis {
		return nil, false
	}
	return entry(b), true
}

func (e entry) notFound() bool       { return e[2]&flagNotFound != 0 }
func (e entry) payload() []byte      { return e[headerSize:] }
func (e entry) under(st string) bool { return string(e[8:16]) == st }

func (e entry) cost() time.Duration {
	return time.Duration(binary.BigEndian.Uint32(e[20:])) * time.Microsecond
}

func (e entry) stale() time.Duration {
	return time.Duration(binary.BigEndian.Uint64(e[24:])) * time.Millisecond
}

// headerOf returns what acquire.lua compares to see whether stored bytes have changed.
func headerOf(stored []byte) string {
	return string(stored[:min(len(stored), headerSize)])
}
