package timeseries

import (
	"encoding/binary"
	"errors"
	"strconv"
)

// A chunk of 120 buckets is read by DUMP: one string, which the server copies out of its memory, instead of 240, which cost
// both sides ten times as much. This is the format of Redis' RDB files, as of versions 7.0 to 8 and of Valkey 8: a type, a
// length, and for a small hash a listpack, which may be compressed. Whatever is not just that is read by HGETALL instead.

var errDump = errors.New("not a dump of a hash")

const (
	rdbHash         = 4
	rdbHashListpack = 16
	dumpFooter      = 10 // version and checksum
	maxDump         = 1 << 20
)

// value is what a field holds.
type value struct {
	text   string
	n      int64
	isText bool
}

func (v value) int() (int64, error) {
	if v.isText {
		return strconv.ParseInt(v.text, 10, 64)
	}
	return v.n, nil
}

// decodeDump calls emit with each field and value of a hash that was dumped, also with some before it finds an error.
func decodeDump(dump string, emit func(field int64, v value)) error {
	if len(dump) < 1+dumpFooter {
		return errDump
	}
	kind, rest := dump[0], dump[1:len(dump)-dumpFooter]
	switch kind {
	case rdbHashListpack:
		v, rest, err := rdbString(rest)
		if err != nil || rest != "" || !v.isText {
			return errDump
		}
		return decodeListpack(v.text, emit)
	case rdbHash:
		n, rest, err := rdbLength(rest)
		if err != nil {
			return err
		}
		for range n {
			var f, v value
			if f, rest, err = rdbString(rest); err != nil {
				return err
			}
			if v, rest, err = rdbString(rest); err != nil {
				return err
			}
			field, err := f.int()
			if err != nil {
				return errDump
			}
			emit(field, v)
		}
		if rest != "" {
			return errDump
		}
		return nil
	}
	return errDump
}

// rdbLength reads a length that is no encoding.
func rdbLength(s string) (n int, rest string, err error) {
	switch {
	case s == "":
	case s[0]>>6 == 0:
		return int(s[0]), s[1:], nil
	case s[0]>>6 == 1 && len(s) >= 2:
		return int(s[0]&63)<<8 | int(s[1]), s[2:], nil
	case s[0] == 0x80 && len(s) >= 5:
		n := uint32(s[1])<<24 | uint32(s[2])<<16 | uint32(s[3])<<8 | uint32(s[4])
		if n <= maxDump {
			return int(n), s[5:], nil
		}
	}
	return 0, "", errDump
}

func rdbString(s string) (v value, rest string, err error) {
	if s == "" {
		return v, "", errDump
	}
	if s[0]>>6 == 3 {
		code, s := s[0]&63, s[1:]
		switch size := 1 << code; {
		case code <= 2 && len(s) >= size: // an integer of 1, 2 or 4 bytes
			return value{n: littleEndian(s[:size])}, s[size:], nil
		case code == 3:
			packed, s, err := rdbLength(s)
			if err != nil {
				return v, "", err
			}
			size, s, err := rdbLength(s)
			if err != nil || packed > len(s) {
				return v, "", errDump
			}
			text, err := decompress(s[:packed], size)
			return value{text: text, isText: true}, s[packed:], err
		}
		return v, "", errDump
	}
	n, s, err := rdbLength(s)
	if err != nil || n > len(s) {
		return v, "", errDump
	}
	return value{text: s[:n], isText: true}, s[n:], nil
}

// littleEndian reads a signed integer of 1 to 8 bytes.
func littleEndian(s string) int64 {
	var b [8]byte
	copy(b[8-len(s):], s)
	return int64(binary.LittleEndian.Uint64(b[:])) >> (64 - 8*len(s))
}

// decompress undoes LZF.
func decompress(s string, size int) (string, error) {
	out := make([]byte, 0, size)
	for i := 0; i < len(s); {
		control := int(s[i])
		i++
		if control < 32 { // literals
			n := control + 1
			if i+n > len(s) || len(out)+n > size {
				return "", errDump
			}
			out = append(out, s[i:i+n]...)
			i += n
			continue
		}
		n := control>>5 + 2
		if n == 9 {
			if i >= len(s) {
				return "", errDump
			}
			n += int(s[i])
			i++
		}
		if i >= len(s) {
			return "", errDump
		}
		from := len(out) - (control&31)<<8 - int(s[i]) - 1
		i++
		if from < 0 || len(out)+n > size {
			return "", errDump
		}
		for range n { // which may overlap
			out = append(out, out[from])
			from++
		}
	}
	if len(out) != size {
		return "", errDump
	}
	return string(out), nil
}

const listpackHeader = 6 // bytes of it, and entries

func decodeListpack(s string, emit func(field int64, v value)) error {
	if len(s) < listpackHeader+1 || s[len(s)-1] != 0xff {
		return errDump
	}
	s = s[listpackHeader : len(s)-1]
	for s != "" {
		f, rest, ok := listpackEntry(s)
		if !ok {
			return errDump
		}
		v, rest, ok := listpackEntry(rest)
		if !ok {
			return errDump
		}
		field, err := f.int()
		if err != nil {
			return errDump
		}
		emit(field, v)
		s = rest
	}
	return nil
}

// listpackEntry reads one entry and skips its length, which comes after it for those who read backwards.
func listpackEntry(s string) (v value, rest string, ok bool) {
	if s == "" {
		return v, "", false
	}
	b := s[0]
	head, size := 1, 0 // bytes before the payload, and of it
	switch {
	case b>>7 == 0: // 7 bits, unsigned
		v.n = int64(b)
	case b>>6 == 2: // a string of less than 64 bytes
		v.isText, size = true, int(b&63)
	case b>>5 == 6: // 13 bits
		if len(s) < 2 {
			return v, "", false
		}
		head = 2
		v.n = int64(b&31)<<8 | int64(s[1])
		if v.n >= 1<<12 {
			v.n -= 1 << 13
		}
	case b>>4 == 14: // a string of less than 4096 bytes
		if len(s) < 2 {
			return v, "", false
		}
		head = 2
		v.isText, size = true, int(b&15)<<8|int(s[1])
	case b >= 0xf1 && b <= 0xf4: // 16, 24, 32 or 64 bits
		size = [...]int{2, 3, 4, 8}[b-0xf1]
		if len(s) < head+size {
			return v, "", false
		}
		v.n = littleEndian(s[1 : 1+size])
	default:
		return v, "", false
	}
	if len(s) < head+size {
		return v, "", false
	}
	if v.isText {
		v.text = s[head : head+size]
	}
	back := 1
	for n := head + size; n > 127; n >>= 7 {
		back++
	}
	if len(s) < head+size+back {
		return v, "", false
	}
	return v, s[head+size+back:], true
}
