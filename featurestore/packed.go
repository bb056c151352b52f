package featurestore

import (
	"encoding/binary"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"
)

// packedCodec has a row in chunks of 64 bytes, the longest values that leave Redis' hashes compact, in the fields view, view:1,
// view:2 … The last chunk that the schema expects has all the rest; schemas of more than 512 bytes have one chunk.
//
//	uint32   fingerprint of the schema, 28 bits, little-endian; bit 28: all features are set; bit 29: more chunks follow;
//	         bits 30 and 31: the first two bools
//	uint56   event time in microseconds, big-endian, so that put.lua can read it
//	uvarint  how many bytes follow, if more chunks do
//	states   two bits per feature: absent, null, set; nothing if all are set
//	bools    one bit per bool after the first two
//	values   of the features that are set, but for texts: zigzag varints, varints, floats (little-endian), times (zigzag seconds,
//	         varint nanoseconds), vectors (of slices, with their length before them)
//	texts    that are set, with their length before them, but for the last one
type packedCodec struct {
	*schema
	names   []string // of the chunks
	every   []string // and of those that other schemas may have
	bools   []int    // the indexes of features that are bools
	texts   []int    // and that are texts
	numbers []int    // and others
	whole   []State  // of a row whose features are all set
}

const (
	packedPrint  = 1<<28 - 1
	packedAll    = 1 << 28
	packedMore   = 1 << 29
	packedBools  = 30
	packedHeader = 4 + 7
	chunkSize    = 64 // hash-max-listpack-value
	maxChunks    = 8
)

func newPackedCodec(s *schema) *packedCodec {
	c := &packedCodec{schema: s}
	size := packedHeader + 2 + (len(s.features)+3)/4
	for i := range s.features {
		f := &s.features[i]
		width := 8
		if f.narrow {
			width = 4
		}
		switch f.class {
		case classBool:
			c.bools = append(c.bools, i)
			width = 0
		case classInt, classUint:
			width = 1 + f.bits/32 // most are small
		case classTime:
			width = 10
		case classText:
			c.texts = append(c.texts, i)
			width = 8
		case classVector:
			if n := f.length; n < 0 {
				width *= 64
			} else {
				width *= n
			}
		}
		if f.class != classBool && f.class != classText {
			c.numbers = append(c.numbers, i)
		}
		c.whole = append(c.whole, Set)
		size += width
	}
	chunks := (size + c.boolBytes() + chunkSize - 1) / chunkSize
	if chunks > maxChunks {
		chunks = 1
	}
	c.every = chunkNames(s.view)
	c.names = c.every[:chunks]
	return c
}

// boolBytes is how many bytes the bools have that are not in the header.
func (c *packedCodec) boolBytes() int { return (max(len(c.bools)-2, 0) + 7) / 8 }

func chunkNames(view string) []string {
	names := []string{view}
	for i := 1; i < maxChunks; i++ {
		names = append(names, view+":"+strconv.Itoa(i))
	}
	return names
}

func (c *packedCodec) timeField() string     { return c.view }
func (c *packedCodec) fields([]int) []string { return c.names }
func (c *packedCodec) all() []string         { return slices.Clone(c.every) }

func (c *packedCodec) encode(_ []int, r *row) (set, drop []string, err error) {
	rest := string(c.pack(r))
	for i, name := range c.every {
		n := c.chunk(i, len(rest))
		if n == 0 {
			drop = append(drop, name)
			continue
		}
		set, rest = append(set, name, rest[:n]), rest[n:]
	}
	return set, drop, nil
}

func (c *packedCodec) dump(r *row) (payload string, ok bool, err error) {
	rest := c.pack(r)
	d := startDump(r.pack)
	for i := 0; len(rest) > 0; i++ {
		n := c.chunk(i, len(rest))
		d.add(c.every[i])
		from := d.open()
		d.b = append(d.b, rest[:n]...)
		d.close(from)
		rest = rest[n:]
	}
	payload, ok = d.end()
	r.pack = d.b
	return payload, ok, nil
}

// chunk returns how many bytes of those that are left are in one chunk.
func (c *packedCodec) chunk(i, left int) int {
	if i == len(c.names)-1 {
		return left
	}
	return min(left, chunkSize)
}

// pack returns a row in r's memory.
func (c *packedCodec) pack(r *row) []byte {
	head := c.fingerprint&packedPrint | packedAll
	last := -1 // the last text
	for i := range c.features {
		switch {
		case r.states[i] != Set:
			head &^= packedAll
		case c.features[i].class == classText:
			last = i
		}
	}
	body := r.pack[:0]
	if head&packedAll == 0 {
		body = append(body, make([]byte, (len(c.features)+3)/4)...)
		for i := range c.features {
			code := byte(0)
			switch r.states[i] {
			case Null:
				code = 1
			case Set:
				code = 2
			}
			body[i/4] |= code << (i % 4 * 2)
		}
	}
	bools := len(body)
	body = append(body, make([]byte, c.boolBytes())...)
	b := 0
	for i := range c.features {
		f := &c.features[i]
		switch {
		case f.class == classBool:
			if r.states[i] == Set && f.load(r.p).num != 0 {
				if b < 2 {
					head |= 1 << (packedBools + b)
				} else {
					body[bools+(b-2)/8] |= 1 << ((b - 2) % 8)
				}
			}
			b++
		case f.class != classText && r.states[i] == Set:
			body = f.appendPacked(body, r.p)
		}
	}
	for i := range c.features {
		if f := &c.features[i]; f.class == classText && r.states[i] == Set {
			text := f.load(r.p).text
			if i != last {
				body = binary.AppendUvarint(body, uint64(len(text)))
			}
			body = append(body, text...)
		}
	}
	if len(c.names) > 1 && packedHeader+len(body) > chunkSize {
		head |= packedMore
	}
	packed := binary.LittleEndian.AppendUint32(r.buf[:0], head)
	for shift := 48; shift >= 0; shift -= 8 {
		packed = append(packed, byte(r.at>>shift))
	}
	if head&packedMore != 0 {
		packed = binary.AppendUvarint(packed, uint64(len(body)))
	}
	r.pack, r.buf = body, append(packed, body...)
	return r.buf
}

func (f *feature) appendPacked(dst []byte, p unsafe.Pointer) []byte {
	if f.class == classVector {
		a, b := f.vector(p)
		if f.length < 0 {
			dst = binary.AppendUvarint(dst, uint64(len(a)+len(b)))
		}
		for _, v := range a {
			dst = binary.LittleEndian.AppendUint32(dst, math.Float32bits(v))
		}
		for _, v := range b {
			dst = f.appendFloat(dst, v)
		}
		return dst
	}
	d := f.load(p)
	switch f.class {
	case classInt:
		return binary.AppendVarint(dst, int64(d.num))
	case classUint:
		return binary.AppendUvarint(dst, d.num)
	case classFloat:
		return f.appendFloat(dst, d.float())
	case classTime:
		return binary.AppendUvarint(binary.AppendVarint(dst, int64(d.num)), uint64(d.nanos))
	}
	return dst
}

func (f *feature) appendFloat(dst []byte, v float64) []byte {
	if f.narrow {
		return binary.LittleEndian.AppendUint32(dst, math.Float32bits(float32(v)))
	}
	return binary.LittleEndian.AppendUint64(dst, math.Float64bits(v))
}

// decode reads the features asked for and skips the others.
func (c *packedCodec) decode(features []int, values []value, r *row) error {
	first := values[0].text
	if !values[0].ok {
		for _, i := range features {
			r.states[i] = Absent
		}
		return nil
	}
	r.found = true
	if len(first) < packedHeader {
		return ErrCorrupt
	}
	head := uint32(first[0]) | uint32(first[1])<<8 | uint32(first[2])<<16 | uint32(first[3])<<24
	if head&packedPrint != c.fingerprint&packedPrint {
		return ErrSkew
	}
	at := int64(0)
	for i := 4; i < packedHeader; i++ {
		at = at<<8 | int64(first[i])
	}
	if at > maxMicros {
		return ErrCorrupt
	}
	d := decoder{s: first[packedHeader:]}
	if head&packedMore != 0 {
		size := d.uvarint()
		if d.bad || size > maxPacked {
			return ErrCorrupt
		}
		buf := append(r.buf[:0], d.s...)
		for i := 1; i < len(values) && uint64(len(buf)) < size; i++ {
			buf = append(buf, values[i].text...)
		}
		r.buf = buf
		d.s, d.lent = unsafe.String(unsafe.SliceData(buf), len(buf)), true
		if uint64(len(d.s)) != size {
			return ErrCorrupt
		}
	}
	if err := c.decodeBody(features, head, &d, r); err != nil {
		return err
	}
	r.at = at
	return nil
}

const maxPacked = 512 << 20 // as much as a string in Redis has

func (c *packedCodec) decodeBody(features []int, head uint32, d *decoder, r *row) error {
	all, states := head&packedAll != 0, ""
	if !all {
		states = d.next((len(c.features) + 3) / 4)
	}
	bools := d.next(c.boolBytes())
	if d.bad {
		return ErrCorrupt
	}
	if r.whole = all; all && len(features) == len(c.features) {
		return c.decodeWhole(head, bools, d, r)
	}
	b, wanted, last := 0, 0, -1
	for i := range c.features {
		f := &c.features[i]
		state := Set
		if !all {
			state = [...]State{Absent, Null, Set, Set}[states[i/4]>>(i%4*2)&3]
		}
		want := wanted < len(features) && features[wanted] == i
		if want {
			wanted++
			r.states[i] = state
		}
		switch {
		case f.class == classBool:
			if want && state == Set {
				f.store(r.p, packedBool(head, bools, b))
			}
			b++
		case f.class == classText && state == Set:
			last = i
		case state == Set:
			d.feature(f, r.p, want)
		}
		if d.bad {
			return f.corrupt()
		}
	}
	d.own()
	for _, i := range c.texts {
		for len(features) > 0 && features[0] < i {
			features = features[1:]
		}
		if all || states[i/4]>>(i%4*2)&2 != 0 {
			d.storeText(&c.features[i], r.p, i == last, len(features) > 0 && features[0] == i)
		}
	}
	return d.end()
}

// decodeWhole is decodeBody of a row whose features are all set and asked for, as most are.
func (c *packedCodec) decodeWhole(head uint32, bools string, d *decoder, r *row) error {
	copy(r.states, c.whole)
	for b, i := range c.bools {
		c.features[i].store(r.p, packedBool(head, bools, b))
	}
	s := d.s // in a register, which takes a third less time than d's
	for _, i := range c.numbers {
		f := &c.features[i]
		switch {
		case f.quick == quickFloat && len(s) >= 8:
			*(*uint64)(f.at(r.p)) = uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 |
				uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
			s = s[8:]
		case f.quick == quickInt && len(s) >= 2 && (s[0] < 0x80 || s[1] < 0x80): // of one byte or two, as most are
			n := uint64(s[0])
			if n < 0x80 {
				s = s[1:]
			} else {
				n = n&0x7f | uint64(s[1])<<7
				s = s[2:]
			}
			*(*int64)(f.at(r.p)) = int64(n>>1) ^ -int64(n&1)
		default:
			d.s = s
			if d.feature(f, r.p, true); d.bad {
				return f.corrupt()
			}
			s = d.s
		}
	}
	d.s = s
	d.own()
	for n, i := range c.texts {
		d.storeText(&c.features[i], r.p, n == len(c.texts)-1, true)
	}
	return d.end()
}

// packedBool is the n-th bool of a row.
func packedBool(head uint32, bools string, n int) datum {
	if n < 2 {
		return datum{num: uint64(head) >> (packedBools + n) & 1}
	}
	return datum{num: uint64(bools[(n-2)/8]) >> ((n - 2) % 8) & 1}
}

// decoder reads a packed row from its beginning. What it returns once bad is set means nothing.
type decoder struct {
	s    string
	lent bool // s is memory that is used again
	bad  bool
}

// own makes what is left stay.
func (d *decoder) own() {
	if d.lent {
		d.s = strings.Clone(d.s)
	}
}

// end returns an error if anything is left, or was missing.
func (d *decoder) end() error {
	if d.bad || d.s != "" {
		return ErrCorrupt
	}
	return nil
}

// storeText reads a text, and stores it if it is wanted.
func (d *decoder) storeText(f *feature, p unsafe.Pointer, last, want bool) {
	n := uint64(len(d.s))
	if !last {
		n = d.uvarint()
	}
	if d.bad = d.bad || n > uint64(len(d.s)); d.bad {
		return
	}
	if text := d.next(int(n)); want {
		f.store(p, datum{text: text})
	}
}

func (d *decoder) next(n int) string {
	if n < 0 || n > len(d.s) {
		d.bad = true
		return ""
	}
	s := d.s[:n]
	d.s = d.s[n:]
	return s
}

func (d *decoder) uvarint() (n uint64) {
	for i := range min(len(d.s), binary.MaxVarintLen64) {
		c := d.s[i]
		if i == binary.MaxVarintLen64-1 && c > 1 {
			break
		}
		n |= uint64(c&0x7f) << (7 * i)
		if c < 0x80 {
			d.s = d.s[i+1:]
			return n
		}
	}
	d.bad = true
	return 0
}

func (d *decoder) varint() int64 {
	n := d.uvarint()
	return int64(n>>1) ^ -int64(n&1)
}

func (d *decoder) float(narrow bool) float64 {
	if narrow {
		if len(d.s) < 4 {
			d.bad = true
			return 0
		}
		s := d.s[:4]
		d.s = d.s[4:]
		return float64(math.Float32frombits(uint32(s[0]) | uint32(s[1])<<8 | uint32(s[2])<<16 | uint32(s[3])<<24))
	}
	if len(d.s) < 8 {
		d.bad = true
		return 0
	}
	s := d.s[:8]
	d.s = d.s[8:]
	return math.Float64frombits(uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 |
		uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56)
}

// feature reads a feature's value and, if it is wanted, stores it.
func (d *decoder) feature(f *feature, p unsafe.Pointer, want bool) {
	var v datum
	switch f.class {
	case classInt:
		v.num = uint64(d.varint())
	case classUint:
		v.num = d.uvarint()
	case classFloat:
		v = floatDatum(d.float(f.narrow))
	case classTime:
		v.num = uint64(d.varint())
		nanos := d.uvarint()
		if d.bad = d.bad || nanos >= uint64(time.Second); !d.bad {
			v.nanos = int32(nanos)
		}
	case classVector:
		d.vector(f, p, want)
		return
	}
	if d.bad = d.bad || !f.fits(v); !d.bad && want {
		f.store(p, v)
	}
}

func (d *decoder) vector(f *feature, p unsafe.Pointer, want bool) {
	width := 8
	if f.narrow {
		width = 4
	}
	n := uint64(f.length)
	if f.length < 0 {
		n = d.uvarint()
	}
	if d.bad = d.bad || n > uint64(len(d.s)/width); d.bad {
		return
	}
	if !want {
		d.next(int(n) * width)
		return
	}
	a, b, _ := f.resize(p, int(n))
	for i := range int(n) {
		setElement(a, b, i, d.float(f.narrow))
	}
}
