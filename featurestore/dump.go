package featurestore

import (
	"encoding/binary"
	"hash/crc64"
	"slices"
	"strconv"
	"sync"
	"unsafe"
)

// dumpTables are of the CRC that Redis has at the end of what RESTORE takes, the one of Jones, for 16 bytes at a time: hash/crc64
// has such tables for its own polynomials alone.
var dumpTables = sync.OnceValue(func() *[16][256]uint64 {
	var tables [16][256]uint64
	tables[0] = *crc64.MakeTable(0x95ac9329ac4bc9b5)
	for i := range 256 {
		for n := 1; n < 16; n++ {
			before := tables[n-1][i]
			tables[n][i] = tables[0][byte(before)] ^ before>>8
		}
	}
	return &tables
})

func dumpCRC(t *[16][256]uint64, b []byte) (crc uint64) {
	for ; len(b) >= 16; b = b[16:] {
		crc ^= binary.LittleEndian.Uint64(b)
		next := binary.LittleEndian.Uint64(b[8:])
		// In pairs, so that look-ups need not wait for each other; and those of next wait for none.
		ahead := ((t[7][byte(next)] ^ t[6][byte(next>>8)]) ^ (t[5][byte(next>>16)] ^ t[4][byte(next>>24)])) ^
			((t[3][byte(next>>32)] ^ t[2][byte(next>>40)]) ^ (t[1][byte(next>>48)] ^ t[0][next>>56]))
		crc = ahead ^ (((t[15][byte(crc)] ^ t[14][byte(crc>>8)]) ^ (t[13][byte(crc>>16)] ^ t[12][byte(crc>>24)])) ^
			((t[11][byte(crc>>32)] ^ t[10][byte(crc>>40)]) ^ (t[9][byte(crc>>48)] ^ t[8][crc>>56])))
	}
	for _, c := range b {
		crc = t[0][byte(crc)^c] ^ crc>>8
	}
	return crc
}

const (
	dumpHash    = 16        // a hash in a listpack
	dumpHead    = 1 + 5 + 6 // that, a length, and the listpack's head
	dumpVersion = 10        // of Redis 7.0: later ones read it
	maxDumped   = 64        // bytes of a name or value: hash-max-listpack-value
	maxPairs    = 128
)

// dumping makes of a hash what DUMP does. HSET looks for each field before it adds it, which takes most of the time that a
// wide row does; RESTORE does not. In a listpack each entry has its length before it and what that makes after it.
type dumping struct {
	b       []byte
	entries int
	refused bool // whether Redis would not keep the hash in a listpack
}

// startDump writes into b.
func startDump(b []byte) dumping {
	return dumping{b: append(b[:0], make([]byte, dumpHead)...)}
}

// add appends a name or a value.
func (d *dumping) add(s string) {
	from := d.open()
	d.b = append(d.b, s...)
	d.close(from)
}

// open begins an entry, which is to be appended to d.b, for close to end.
func (d *dumping) open() (from int) {
	d.b = append(d.b, 0)
	return len(d.b)
}

func (d *dumping) close(from int) {
	d.entries++
	switch size := len(d.b) - from; {
	case size < maxDumped:
		d.b[from-1] = 0x80 | byte(size)
		d.b = append(d.b, byte(size+1))
	case size == maxDumped:
		d.b = slices.Insert(d.b, from, maxDumped)
		d.b[from-1] = 0xe0
		d.b = append(d.b, maxDumped+2)
	default:
		d.refused = true
	}
}

// end returns the payload, or false if Redis would not keep the hash in a listpack.
func (d *dumping) end() (payload string, ok bool) {
	if d.refused || d.entries > 2*maxPairs {
		return "", false
	}
	d.b = append(d.b, 0xff)
	const pack = dumpHead - 6
	size := uint32(len(d.b) - pack)
	d.b[0], d.b[1] = dumpHash, 0x80 // a length of four bytes
	binary.BigEndian.PutUint32(d.b[2:], size)
	binary.LittleEndian.PutUint32(d.b[pack:], size)
	binary.LittleEndian.PutUint16(d.b[pack+4:], uint16(d.entries))
	d.b = binary.LittleEndian.AppendUint16(d.b, dumpVersion)
	d.b = binary.LittleEndian.AppendUint64(d.b, dumpCRC(dumpTables(), d.b))
	return string(d.b), true
}

// undump returns in r.values what a payload of DUMP, of a hash that Redis keeps in a listpack, has in the fields of a plan. It
// returns false if it is another one, or most of it was not asked for.
func (p *plan) undump(payload string, r *row) bool {
	pack, ok := unpack(payload, r)
	if !ok || len(pack) < 7 {
		return false
	}
	r.lent = true
	r.values = slices.Grow(r.values[:0], len(p.fields))[:len(p.fields)]
	clear(r.values)
	l := listpack{rest: pack[6:], numbers: r.numbers[:0]}
	next, others := 0, 0
	for !l.bad && l.rest[0] != 0xff {
		name, text := l.next(), l.next()
		if next == len(p.fields) || p.fields[next] != name {
			place, ok := p.dumped[name]
			if !ok {
				others += len(name) + len(text)
				continue
			}
			next = place
		}
		r.values[next] = value{text, true}
		next++
	}
	r.numbers = l.numbers
	return !l.bad && len(l.rest) == 1 && others <= dumpOthers
}

// unpack returns the listpack in a payload, in r's memory if it is compressed.
func unpack(payload string, r *row) (pack string, ok bool) {
	const end = 2 + 8
	if len(payload) < 1+end || payload[0] != dumpHash {
		return "", false
	}
	s := payload[1 : len(payload)-end]
	if s == "" || s[0] != 0xc3 {
		n, s, ok := dumpLength(s)
		return s, ok && n == len(s)
	}
	_, s, ok = dumpLength(s[1:])
	if !ok {
		return "", false
	}
	n, s, ok := dumpLength(s)
	if !ok || n > 100*len(s) { // it cannot compress by so much
		return "", false
	}
	r.pack = slices.Grow(r.pack[:0], n)
	r.pack, ok = inflate(r.pack, s, n)
	return unsafe.String(unsafe.SliceData(r.pack), len(r.pack)), ok
}

// dumpLength reads a length in the way of Redis' rdb.c.
func dumpLength(s string) (n int, rest string, ok bool) {
	switch {
	case len(s) >= 1 && s[0] < 0x40:
		return int(s[0]), s[1:], true
	case len(s) >= 2 && s[0] < 0x80:
		return int(s[0]&0x3f)<<8 | int(s[1]), s[2:], true
	case len(s) >= 5 && s[0] == 0x80:
		return int(s[1])<<24 | int(s[2])<<16 | int(s[3])<<8 | int(s[4]), s[5:], true
	}
	return 0, "", false
}

// inflate appends n bytes that LZF has compressed to s: runs of up to 32 bytes as they are, and repetitions of what came up
// to 8 KB before.
func inflate(dst []byte, s string, n int) ([]byte, bool) {
	for s != "" {
		head := int(s[0])
		if head < 32 {
			if len(s) < 2+head {
				return nil, false
			}
			dst, s = append(dst, s[1:2+head]...), s[2+head:]
			continue
		}
		size, s2 := head>>5+2, s[1:]
		if size == 7+2 && s2 != "" {
			size, s2 = size+int(s2[0]), s2[1:]
		}
		if s2 == "" {
			return nil, false
		}
		from := len(dst) - (head&0x1f<<8 | int(s2[0])) - 1
		if from < 0 || len(dst)+size > n {
			return nil, false
		}
		s = s2[1:]
		for size > 0 { // what repeats may itself be part of the repetition
			part := min(size, len(dst)-from)
			dst = append(dst, dst[from:from+part]...)
			size -= part
			from += part
		}
	}
	return dst, len(dst) == n
}

// wayBack is how many bytes follow an entry of so many, to find its beginning from its end: lpEncodeBacklen in Redis' listpack.c.
func wayBack(size int) int {
	switch {
	case size <= 1<<7-1:
		return 1
	case size < 1<<14-1:
		return 2
	case size < 1<<21-1:
		return 3
	case size < 1<<28-1:
		return 4
	}
	return 5
}

// listpack reads what is in one. What it returns once bad is set means nothing.
type listpack struct {
	rest    string // at least one byte: the end
	numbers []byte // texts of what Redis keeps as integers
	bad     bool
}

func (l *listpack) next() string {
	s := l.rest
	from, size, bits, n := 1, 0, 0, int64(0) // where a text begins, where the entry ends; of an integer
	switch head := s[0]; {
	case head < 0x80:
		size, bits, n = 1, 8, int64(head)
	case head < 0xc0:
		size = 1 + int(head&0x3f)
	case head < 0xe0 && len(s) > 1:
		size, bits, n = 2, 13, int64(head)<<8|int64(s[1])
	case head < 0xf0 && len(s) > 1:
		from, size = 2, 2+int(head&0x0f)<<8+int(s[1])
	case head == 0xf0 && len(s) > 4:
		from, size = 5, 5+(int(s[1])|int(s[2])<<8|int(s[3])<<16|int(s[4])<<24)
	case 0xf0 < head && head < 0xf5:
		size = 1 + [...]int{2, 3, 4, 8}[head-0xf1]
		bits = 8 * (size - 1)
		for i := min(size, len(s)) - 1; i > 0; i-- {
			n = n<<8 | int64(s[i])
		}
	}
	next := size + wayBack(size)
	if size == 0 || next >= len(s) {
		l.rest, l.bad = "\xff", true
		return ""
	}
	l.rest = s[next:]
	if bits == 0 {
		return s[from:size]
	}
	begin := len(l.numbers)
	l.numbers = strconv.AppendInt(l.numbers, n<<(64-bits)>>(64-bits), 10)
	return unsafe.String(&l.numbers[begin], len(l.numbers)-begin)
}
