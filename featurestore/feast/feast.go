// Package feast reads and writes the bytes that Feast's Python SDK keeps in Redis: keys of entities, names of fields, values
// and timestamps. It has no dependencies, does no I/O and needs no Feast. For whole rows, see featurestore's codec Feast.
//
// An entity is one hash for all feature views of a project. Its key is what [AppendKey] makes of the join keys, sorted by
// name, and the project. A feature of a view is a field whose name, of four bytes, is [Field]; the time of the view's row is
// in the field [TimestampField]. Values are protobuf messages of type feast.types.Value, timestamps google.protobuf.Timestamp.
//
// Verified against the SDK's bytes as of version 0.66, for keys of entity_key_serialization_version 2 and 3. Feast's Go server
// writes the same at version 3, and neither its keys of version 2 nor those of the Java server are the SDK's.
package feast

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strings"
)

// Versions of keys: entity_key_serialization_version of feature_store.yaml.
const (
	KeyV2 = 2
	KeyV3 = 3
)

// Join is one part of an entity's key: the name of a join key, and its value, of type Bytes, String, Int32, Int64 or
// UnixTimestamp.
type Join struct {
	Name  string
	Value Value
}

var (
	errKeyVersion = errors.New("feast: key version must be 2 or 3")
	errKey        = errors.New("feast: not an entity key")
)

// Feast's numbers for the types of what comes in a key. Those of Value are the same but for UnixTimestamp.
const keyString = 2

// AppendKey appends the key of an entity to dst. The order of joins does not matter. It returns an error if a name occurs
// twice or a type is not one that keys can have.
func AppendKey(dst []byte, version int, project string, joins ...Join) ([]byte, error) {
	if version != KeyV2 && version != KeyV3 {
		return dst, errKeyVersion
	}
	if !slices.IsSortedFunc(joins, byName) {
		joins = slices.SortedFunc(slices.Values(joins), byName)
	}
	if version == KeyV3 {
		dst = binary.LittleEndian.AppendUint32(dst, uint32(len(joins)))
	}
	for i, j := range joins {
		if i > 0 && j.Name == joins[i-1].Name {
			return dst, errors.New("feast: two join keys have the same name")
		}
		dst = binary.LittleEndian.AppendUint32(dst, keyString)
		if version == KeyV3 {
			dst = binary.LittleEndian.AppendUint32(dst, uint32(len(j.Name)))
		}
		dst = append(dst, j.Name...)
	}
	for _, j := range joins {
		var err error
		if dst, err = appendKeyValue(dst, j.Value); err != nil {
			return dst, err
		}
	}
	return append(dst, project...), nil
}

func byName(a, b Join) int { return strings.Compare(a.Name, b.Name) }

func appendKeyValue(dst []byte, v Value) ([]byte, error) {
	var size int
	switch v.Type {
	case Bytes, String:
		size = len(v.Text)
	case Int32:
		if v.Int != int64(int32(v.Int)) {
			return dst, errors.New("feast: the value of a join key does not fit into an Int32")
		}
		size = 4
	case Int64, UnixTimestamp:
		size = 8
	default:
		return dst, fmt.Errorf("feast: a join key cannot be of type %d", v.Type)
	}
	dst = binary.LittleEndian.AppendUint32(dst, uint32(v.Type))
	dst = binary.LittleEndian.AppendUint32(dst, uint32(size))
	switch v.Type {
	case Int32:
		return binary.LittleEndian.AppendUint32(dst, uint32(v.Int)), nil
	case Int64, UnixTimestamp:
		return binary.LittleEndian.AppendUint64(dst, uint64(v.Int)), nil
	default:
		return append(dst, v.Text...), nil
	}
}

// ParseKey is the inverse of AppendKey. Keys of version 2 do not tell where names end, so it needs the names, in any order;
// for version 3 they must be the key's if they are given. Any rest of the key is the project.
func ParseKey(version int, key string, names ...string) (project string, joins []Join, err error) {
	if version != KeyV2 && version != KeyV3 {
		return "", nil, errKeyVersion
	}
	names = slices.Sorted(slices.Values(names))
	n := len(names)
	if version == KeyV3 {
		count, rest, ok := cutUint32(key)
		if !ok || uint64(count)*16 > uint64(len(rest)) || names != nil && int(count) != n {
			return "", nil, errKey
		}
		key, n = rest, int(count)
	}
	joins = make([]Join, n)
	for i := range joins {
		kind, rest, ok := cutUint32(key)
		if !ok || kind != keyString {
			return "", nil, errKey
		}
		if version == KeyV3 {
			joins[i].Name, rest, ok = cutText(rest)
		} else {
			joins[i].Name = names[i]
			rest, ok = strings.CutPrefix(rest, names[i])
		}
		if !ok || names != nil && joins[i].Name != names[i] || i > 0 && joins[i].Name <= joins[i-1].Name {
			return "", nil, errKey
		}
		key = rest
	}
	for i := range joins {
		kind, rest, ok := cutUint32(key)
		if !ok {
			return "", nil, errKey
		}
		v := Value{Type: Type(kind)}
		var text string
		if text, key, ok = cutText(rest); !ok {
			return "", nil, errKey
		}
		switch {
		case v.Type == Bytes, v.Type == String:
			v.Text = text
		case v.Type == Int32 && len(text) == 4:
			v.Int = int64(int32(binary.LittleEndian.Uint32([]byte(text))))
		case (v.Type == Int64 || v.Type == UnixTimestamp) && len(text) == 8:
			v.Int = int64(binary.LittleEndian.Uint64([]byte(text)))
		default:
			return "", nil, errKey
		}
		joins[i].Value = v
	}
	return key, joins, nil
}

func cutUint32(s string) (uint32, string, bool) {
	if len(s) < 4 {
		return 0, s, false
	}
	return uint32(s[0]) | uint32(s[1])<<8 | uint32(s[2])<<16 | uint32(s[3])<<24, s[4:], true
}

func cutText(s string) (text, rest string, ok bool) {
	n, rest, ok := cutUint32(s)
	if !ok || uint64(n) > uint64(len(rest)) {
		return "", s, false
	}
	return rest[:n], rest[n:], true
}

// Field returns the name of the field that a feature is in: 4 bytes, a hash of both names. Two features of an entity may have
// the same; Feast does not notice. The name of a view with a version above 0, where the registry has versions on, is
// "name_v2".
func Field(view, feature string) string {
	var name [4]byte
	binary.LittleEndian.PutUint32(name[:], murmur3(view+":"+feature))
	return string(name[:])
}

// TimestampField returns the name of the field that the time of a view's row is in.
func TimestampField(view string) string { return "_ts:" + view }

// murmur3 is MurmurHash3_x86_32 with seed 0, by Austin Appleby, in the public domain.
func murmur3(s string) uint32 {
	const c1, c2 = 0xcc9e2d51, 0x1b873593
	var h uint32
	mix := func(k uint32) uint32 { return bits.RotateLeft32(k*c1, 15) * c2 }
	n := uint32(len(s))
	for {
		k, rest, ok := cutUint32(s)
		if !ok {
			break
		}
		s = rest
		h = bits.RotateLeft32(h^mix(k), 13)*5 + 0xe6546b64
	}
	var tail uint32
	for i := range len(s) {
		tail |= uint32(s[i]) << (8 * i)
	}
	h ^= mix(tail) ^ n
	h = (h ^ h>>16) * 0x85ebca6b
	h = (h ^ h>>13) * 0xc2b2ae35
	return h ^ h>>16
}
