package feast

import (
	"encoding/binary"
	"errors"
	"maps"
	"math"
	"slices"
	"time"
)

// Type is the type of a [Value]: the number of its field in feast.types.Value.
type Type uint32

// Types of values. Those not named here are kept as they are: see [Value].
const (
	Null              Type = 0 // no field is set, or null_val is
	Bytes             Type = 1
	String            Type = 2
	Int32             Type = 3
	Int64             Type = 4
	Double            Type = 5
	Float             Type = 6
	Bool              Type = 7
	UnixTimestamp     Type = 8 // seconds
	BytesList         Type = 11
	StringList        Type = 12
	Int32List         Type = 13
	Int64List         Type = 14
	DoubleList        Type = 15
	FloatList         Type = 16
	BoolList          Type = 17
	UnixTimestampList Type = 18
	Map               Type = 20
	BytesSet          Type = 22
	StringSet         Type = 23
	Int32Set          Type = 24
	Int64Set          Type = 25
	DoubleSet         Type = 26
	FloatSet          Type = 27
	BoolSet           Type = 28
	UnixTimestampSet  Type = 29
	JSON              Type = 32
	JSONList          Type = 33
	UUID              Type = 36
	TimeUUID          Type = 37
	Decimal           Type = 44
)

const nullVal = 19

// Value is one value. Which field it is in depends on Type.
type Value struct {
	Type   Type
	Int    int64            // Int32, Int64, Bool (0 or 1), UnixTimestamp
	Float  float64          // Double, Float
	Text   string           // Bytes, String, JSON, UUID, TimeUUID, Decimal
	Ints   []int64          // lists and sets of those
	Floats []float64        // likewise
	Texts  []string         // likewise
	Map    map[string]Value // Map
	Raw    string           // any other type: the field as it is in the message, tag and all
}

// errValue means that bytes are no value.
var errValue = errors.New("feast: not a value")

// maxDepth is how deep maps may be in maps: protobuf's own limit.
const maxDepth = 100

type shape uint8

const (
	shapeRaw shape = iota
	shapeInt
	shapeDouble
	shapeFloat
	shapeText
	shapeMap
)

// shapeOf returns how values of a type are encoded, and whether they are lists.
func shapeOf(t Type) (s shape, list bool) {
	switch {
	case t >= BytesList && t <= UnixTimestampList:
		t, list = t-BytesList+Bytes, true
	case t >= BytesSet && t <= UnixTimestampSet:
		t, list = t-BytesSet+Bytes, true
	case t == JSONList:
		t, list = JSON, true
	}
	switch t {
	case Int32, Int64, Bool, UnixTimestamp:
		return shapeInt, list
	case Double:
		return shapeDouble, list
	case Float:
		return shapeFloat, list
	case Bytes, String, JSON, UUID, TimeUUID, Decimal:
		return shapeText, list
	case Map:
		return shapeMap, false
	}
	return shapeRaw, false
}

// Wire types of protobuf.
const (
	wireVarint  = 0
	wireFixed64 = 1
	wireBytes   = 2
	wireFixed32 = 5
)

func appendTag(dst []byte, t Type, wire uint64) []byte {
	return binary.AppendUvarint(dst, uint64(t)<<3|wire)
}

func appendText(dst []byte, t Type, text string) []byte {
	dst = binary.AppendUvarint(appendTag(dst, t, wireBytes), uint64(len(text)))
	return append(dst, text...)
}

// AppendValue appends v to dst as Python's SDK does: nothing for Null, and zeros as well as other values. Maps are written in
// the order of their keys.
func AppendValue(dst []byte, v Value) []byte {
	s, list := shapeOf(v.Type)
	if list {
		return appendText(dst, v.Type, string(appendList(nil, s, v)))
	}
	switch s {
	case shapeInt:
		return binary.AppendUvarint(appendTag(dst, v.Type, wireVarint), uint64(v.Int))
	case shapeDouble:
		return binary.LittleEndian.AppendUint64(appendTag(dst, v.Type, wireFixed64), math.Float64bits(v.Float))
	case shapeFloat:
		return binary.LittleEndian.AppendUint32(appendTag(dst, v.Type, wireFixed32), math.Float32bits(float32(v.Float)))
	case shapeText:
		return appendText(dst, v.Type, v.Text)
	case shapeMap:
		var body []byte
		for _, k := range slices.Sorted(maps.Keys(v.Map)) {
			entry := appendText(nil, 1, k)
			entry = appendText(entry, 2, string(AppendValue(nil, v.Map[k])))
			body = appendText(body, 1, string(entry))
		}
		return appendText(dst, v.Type, string(body))
	}
	return append(dst, v.Raw...)
}

// appendList appends a message {repeated X val = 1}, whose numbers are packed.
func appendList(dst []byte, s shape, v Value) []byte {
	var packed []byte
	switch s {
	case shapeInt:
		for _, i := range v.Ints {
			packed = binary.AppendUvarint(packed, uint64(i))
		}
	case shapeDouble:
		for _, f := range v.Floats {
			packed = binary.LittleEndian.AppendUint64(packed, math.Float64bits(f))
		}
	case shapeFloat:
		for _, f := range v.Floats {
			packed = binary.LittleEndian.AppendUint32(packed, math.Float32bits(float32(f)))
		}
	default:
		for _, text := range v.Texts {
			dst = appendText(dst, 1, text)
		}
		return dst
	}
	if len(packed) == 0 {
		return dst
	}
	return appendText(dst, 1, string(packed))
}

// ParseValue reads what AppendValue or any other writer of protobuf wrote. If several fields are set, the last one counts.
// Texts share the memory of s.
func ParseValue(s string) (Value, error) { return parseValue(s, 0) }

func parseValue(s string, depth int) (v Value, err error) {
	if depth > maxDepth {
		return Value{}, errValue
	}
	for s != "" {
		f, rest, ok := cutField(s)
		if !ok {
			return Value{}, errValue
		}
		raw := s[:len(s)-len(rest)]
		s = rest
		t := Type(f.number)
		if t == nullVal {
			v = Value{}
			continue
		}
		shape, list := shapeOf(t)
		if shape == shapeRaw {
			v = Value{Type: t, Raw: raw}
			continue
		}
		if t != v.Type || !list && shape != shapeMap { // parts of one list or map are merged
			v = Value{Type: t}
		}
		switch {
		case list && f.wire == wireBytes:
			ok = parseList(&v, shape, f.text)
		case shape == shapeMap && f.wire == wireBytes:
			ok = parseMap(&v, f.text, depth)
		case shape == shapeInt && f.wire == wireVarint:
			v.Int = intOf(t, f.bits)
		case shape == shapeDouble && f.wire == wireFixed64:
			v.Float = math.Float64frombits(f.bits)
		case shape == shapeFloat && f.wire == wireFixed32:
			v.Float = float64(math.Float32frombits(uint32(f.bits)))
		case shape == shapeText && f.wire == wireBytes:
			v.Text = f.text
		default:
			ok = false
		}
		if !ok {
			return Value{}, errValue
		}
	}
	return v, nil
}

// intOf is what a varint means: protobuf cuts those that are too long for their type.
func intOf(t Type, bits uint64) int64 {
	switch t {
	case Int32, Int32List, Int32Set:
		return int64(int32(bits))
	case Bool, BoolList, BoolSet:
		return int64(min(bits, 1))
	}
	return int64(bits)
}

func parseList(v *Value, shape shape, s string) bool {
	for s != "" {
		f, rest, ok := cutField(s)
		if !ok {
			return false
		}
		s = rest
		switch {
		case f.number != 1: // a field that is not known yet
		case shape == shapeText && f.wire == wireBytes:
			v.Texts = append(v.Texts, f.text)
		case shape == shapeText:
			return false
		case f.wire == wireBytes:
			for f.text != "" {
				var one field
				switch shape {
				case shapeInt:
					one.wire = wireVarint
				case shapeDouble:
					one.wire = wireFixed64
				default:
					one.wire = wireFixed32
				}
				if f.text, ok = one.cut(f.text); !ok || !appendNumber(v, shape, one) {
					return false
				}
			}
		case !appendNumber(v, shape, f): // not packed
			return false
		}
	}
	return true
}

func appendNumber(v *Value, shape shape, f field) bool {
	switch {
	case shape == shapeInt && f.wire == wireVarint:
		v.Ints = append(v.Ints, intOf(v.Type, f.bits))
	case shape == shapeDouble && f.wire == wireFixed64:
		v.Floats = append(v.Floats, math.Float64frombits(f.bits))
	case shape == shapeFloat && f.wire == wireFixed32:
		v.Floats = append(v.Floats, float64(math.Float32frombits(uint32(f.bits))))
	default:
		return false
	}
	return true
}

func parseMap(v *Value, s string, depth int) bool {
	if v.Map == nil {
		v.Map = map[string]Value{}
	}
	for s != "" {
		f, rest, ok := cutField(s)
		if !ok || f.number == 1 && f.wire != wireBytes {
			return false
		}
		s = rest
		if f.number != 1 {
			continue
		}
		var key string
		var value Value
		for entry := f.text; entry != ""; {
			part, rest, ok := cutField(entry)
			if !ok || part.number <= 2 && part.wire != wireBytes {
				return false
			}
			entry = rest
			switch part.number {
			case 1:
				key = part.text
			case 2:
				var err error
				if value, err = parseValue(part.text, depth+1); err != nil {
					return false
				}
			}
		}
		v.Map[key] = value
	}
	return true
}

// field is one field of a message.
type field struct {
	number, wire uint64
	bits         uint64 // numbers
	text         string // wireBytes
}

func cutField(s string) (f field, rest string, ok bool) {
	tag, s, ok := cutUvarint(s)
	if !ok || tag>>3 == 0 || tag>>3 > 1<<29-1 {
		return f, s, false
	}
	f.number, f.wire = tag>>3, tag&7
	rest, ok = f.cut(s)
	return f, rest, ok
}

// cut reads what comes after a tag.
func (f *field) cut(s string) (rest string, ok bool) {
	switch f.wire {
	case wireVarint:
		f.bits, s, ok = cutUvarint(s)
		return s, ok
	case wireFixed64:
		low, s, ok := cutUint32(s)
		if !ok {
			return s, false
		}
		high, s, ok := cutUint32(s)
		f.bits = uint64(high)<<32 | uint64(low)
		return s, ok
	case wireFixed32:
		low, s, ok := cutUint32(s)
		f.bits = uint64(low)
		return s, ok
	case wireBytes:
		n, s, ok := cutUvarint(s)
		if !ok || n > uint64(len(s)) {
			return s, false
		}
		f.text = s[:n]
		return s[n:], true
	}
	return s, false
}

func cutUvarint(s string) (n uint64, rest string, ok bool) {
	for i := 0; i < len(s) && i < binary.MaxVarintLen64; i++ {
		if i == binary.MaxVarintLen64-1 && s[i] > 1 {
			break
		}
		n |= uint64(s[i]&0x7f) << (7 * i)
		if s[i] < 0x80 {
			return n, s[i+1:], true
		}
	}
	return 0, s, false
}

// AppendTimestamp appends t to dst, with nanoseconds as Feast does since 2026. The zero Time and 1970 are the same to Feast, no
// time at all, and nothing is appended.
func AppendTimestamp(dst []byte, t time.Time) []byte {
	if t.IsZero() {
		return dst
	}
	if s := t.Unix(); s != 0 {
		dst = binary.AppendUvarint(append(dst, 1<<3), uint64(s))
	}
	if n := t.Nanosecond(); n != 0 {
		dst = binary.AppendUvarint(append(dst, 2<<3), uint64(n))
	}
	return dst
}

// ParseTimestamp is the inverse of AppendTimestamp: it returns the zero Time for 1970, which is Feast's way to say that there
// is none.
func ParseTimestamp(s string) (time.Time, error) {
	var seconds, nanos int64
	for s != "" {
		f, rest, ok := cutField(s)
		if !ok || f.number <= 2 && f.wire != wireVarint {
			return time.Time{}, errors.New("feast: not a timestamp")
		}
		s = rest
		switch f.number {
		case 1:
			seconds = int64(f.bits)
		case 2:
			nanos = int64(int32(f.bits))
		}
	}
	const year1, year10000 = -62135596800, 253402300800 // protobuf's bounds
	if seconds < year1 || seconds >= year10000 || nanos < 0 || nanos > 999_999_999 {
		return time.Time{}, errors.New("feast: not a timestamp")
	}
	if seconds == 0 && nanos == 0 {
		return time.Time{}, nil
	}
	return time.Unix(seconds, nanos).UTC(), nil
}
