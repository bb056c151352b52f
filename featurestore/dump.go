package featurestore

import (
	"encoding/binary"
	"hash/crc64"
	"sync"
	"unsafe"
)

// dumpTables are of the CRC that Redis has at the end of what RESTORE takes, the one of Jones, for eight bytes at a time: hash/crc64
// has such tables for its own polynomials alone.
var dumpTables = sync.OnceValue(func() *[8][256]uint64 {
	var tables [8][256]uint64
	tables[0] = *crc64.MakeTable(0x95ac9329ac4bc9b5)
	for i := range 256 {
		for n := 1; n < 8; n++ {
			before := tables[n-1][i]
			tables[n][i] = tables[0][byte(before)] ^ before>>8
		}
	}
	return &tables
})

func dumpCRC(t *[8][256]uint64, b []byte) (crc uint64) {
	for ; len(b) >= 8; b = b[8:] {
		crc ^= binary.LittleEndian.Uint64(b)
		crc = t[7][byte(crc)] ^ t[6][byte(crc>>8)] ^ t[5][byte(crc>>16)] ^ t[4][byte(crc>>24)] ^
			t[3][byte(crc>>32)] ^ t[2][byte(crc>>40)] ^ t[1][byte(crc>>48)] ^ t[0][crc>>56]
	}
	for _, c := range b {
		crc = t[0][byte(crc)^c] ^ crc>>8
	}
	return crc
}

const (
	dumpHash    = 16 // a hash in a listpack
	dumpVersion = 10 // of Redis 7.0: later ones read it
	maxDumped   = 64 // bytes of a name or value: hash-max-listpack-value
	maxPairs    = 128
)

// dump returns a hash as DUMP does, or false if Redis would not keep it in a listpack. HSET looks for each field before it adds it, which
// takes most of the time that a wide row does; RESTORE does not. In a listpack each entry has its length before it and what that
// makes after it.
func dump(pairs []string) (payload string, ok bool) {
	if len(pairs) > 2*maxPairs {
		return "", false
	}
	size := 4 + 2 + 1
	for _, s := range pairs {
		if len(s) > maxDumped {
			return "", false
		}
		size += 1 + len(s) + 1 + len(s)/maxDumped
	}
	b := make([]byte, 0, 1+5+size+2+8)
	b = append(b, dumpHash, 0x80) // a length of four bytes
	b = binary.BigEndian.AppendUint32(b, uint32(size))
	b = binary.LittleEndian.AppendUint32(b, uint32(size))
	b = binary.LittleEndian.AppendUint16(b, uint16(len(pairs)))
	for _, s := range pairs {
		if len(s) < maxDumped {
			b = append(append(append(b, 0x80|byte(len(s))), s...), byte(len(s)+1))
		} else {
			b = append(append(append(b, 0xe0, maxDumped), s...), maxDumped+2)
		}
	}
	b = append(b, 0xff)
	b = binary.LittleEndian.AppendUint16(b, dumpVersion)
	b = binary.LittleEndian.AppendUint64(b, dumpCRC(dumpTables(), b))
	return unsafe.String(unsafe.SliceData(b), len(b)), true // nobody writes to b any more
}
