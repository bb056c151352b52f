package featurestore

import (
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"
)

// State says what is known of one feature of one row.
type State uint8

// States. The zero value is Absent.
const (
	Absent  State = iota // nothing was written, or nothing since the feature exists
	Null                 // it was written that there is no value
	Default              // nothing was written, and the tag has a default
	Set                  // a value was written
)

// Opt is a feature that tells its state. V has the tag's default, or zero, unless State is Set. Where rows are written, one of
// state Null is written as null, one of state Absent or Default as if it had never been written.
type Opt[V any] struct {
	V     V
	State State
}

// Some returns an Opt that is set.
func Some[V any](v V) Opt[V] { return Opt[V]{V: v, State: Set} }

func (Opt[V]) isOpt() {}

const (
	maxFeatures = 1000 // so that a row's fields can be arguments of one command in a script
	maxName     = 64
)

// class is how values are encoded. Types of one class differ in their range alone.
type class uint8

const (
	classBool class = iota
	classInt
	classUint
	classFloat
	classText
	classTime
	classVector
)

// feature is a field of T, compiled: where it is and how it is encoded. Reads and writes go by offset, without reflection.
type feature struct {
	name     string
	class    class
	quick    quick
	kind     reflect.Kind // of a number; of a vector's elements
	bits     int          // of a number in memory
	narrow   bool         // floats are encoded as float32
	bytes    bool         // []byte, not string
	length   int          // of a vector: of an array, or -1 for a slice
	offset   uintptr
	state    uintptr // offset of Opt's State
	optional bool
	initial  *datum // the default
	preset   string // the default's text
}

// quick tells features that need no conversion between memory and a packed row.
type quick uint8

const (
	quickNot   quick = iota
	quickFloat       // float64
	quickInt         // int64, or an int that is as long
)

// datum is a value on its way between memory and a codec.
type datum struct {
	num   uint64 // bool, int64, uint64, float64's bits, or a time's seconds
	nanos int32  // of a time
	text  string
}

func (d datum) float() float64 { return math.Float64frombits(d.num) }

func floatDatum(f float64) datum { return datum{num: math.Float64bits(f)} }

// typeName is how manifests call the feature's type, and part of the fingerprint: what it takes to read what was written.
func (f *feature) typeName() string {
	number := func() string {
		if f.narrow {
			return "float32"
		}
		return "float64"
	}
	switch f.class {
	case classBool:
		return "bool"
	case classInt:
		return "int" + strconv.Itoa(f.bits)
	case classUint:
		return "uint" + strconv.Itoa(f.bits)
	case classFloat:
		return number()
	case classTime:
		return "time"
	case classVector:
		if f.length < 0 {
			return "[]" + number()
		}
		return "[" + strconv.Itoa(f.length) + "]" + number()
	}
	if f.bytes {
		return "bytes"
	}
	return "string"
}

var timeType = reflect.TypeFor[time.Time]()

// compileSchema reads the tags of a struct type.
func compileSchema(t reflect.Type) ([]feature, error) {
	if t.Kind() != reflect.Struct {
		return nil, fmt.Errorf("%v is not a struct", t)
	}
	var features []feature
	seen := map[string]bool{}
	for i := range t.NumField() {
		field := t.Field(i)
		tag, ok := field.Tag.Lookup("feature")
		if !ok && field.Anonymous && hasFeatures(field.Type) {
			return nil, fmt.Errorf("%v.%s: features of an embedded struct would be ignored", t, field.Name)
		}
		if !ok || tag == "-" {
			continue
		}
		f, err := compileFeature(field, tag)
		if err != nil {
			return nil, fmt.Errorf("%v.%s: %w", t, field.Name, err)
		}
		if seen[f.name] {
			return nil, fmt.Errorf("%v.%s: another field has the name %q", t, field.Name, f.name)
		}
		seen[f.name] = true
		features = append(features, f)
	}
	if len(features) == 0 || len(features) > maxFeatures {
		return nil, fmt.Errorf("%v must have 1 to %d fields with a feature tag, has %d", t, maxFeatures, len(features))
	}
	return features, nil
}

// hasFeatures reports whether a type that is embedded has fields with a feature tag.
func hasFeatures(t reflect.Type) bool {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return false
	}
	for i := range t.NumField() {
		f := t.Field(i)
		if tag, ok := f.Tag.Lookup("feature"); ok && tag != "-" || !ok && f.Anonymous && f.Type.Kind() == reflect.Struct && hasFeatures(f.Type) {
			return true
		}
	}
	return false
}

func compileFeature(field reflect.StructField, tag string) (f feature, err error) {
	if !field.IsExported() {
		return f, errors.New("a field with a feature tag must be exported")
	}
	f.name, tag, _ = strings.Cut(tag, ",")
	if err := checkName(f.name); err != nil {
		return f, err
	}
	f.offset = field.Offset
	t := field.Type
	if _, ok := reflect.Zero(t).Interface().(interface{ isOpt() }); ok && t.Kind() == reflect.Struct && t.NumField() == 2 {
		f.optional, f.state = true, field.Offset+t.Field(1).Offset
		t = t.Field(0).Type
	}
	if err := f.setType(t); err != nil {
		return f, err
	}
	for tag != "" {
		var option string
		if text, ok := strings.CutPrefix(tag, "default="); ok { // it may have commas
			tag = ""
			var d datum
			if f.class == classVector {
				return f, errors.New("a vector cannot have a default")
			}
			if d, err = f.parseText(text); err != nil {
				return f, fmt.Errorf("default %q: %w", text, err)
			}
			f.initial, f.preset = &d, text
			continue
		}
		option, tag, _ = strings.Cut(tag, ",")
		if option != "f32" || f.kind != reflect.Float64 {
			return f, fmt.Errorf("unknown option %q: there are default= and, for float64, f32", option)
		}
		f.narrow = true
	}
	switch {
	case f.class == classFloat && f.bits == 64 && !f.narrow:
		f.quick = quickFloat
	case f.class == classInt && f.bits == 64:
		f.quick = quickInt
	}
	return f, nil
}

// checkName returns an error if s cannot be the name of a view, a feature or a version.
func checkName(s string) error {
	if s == "" || len(s) > maxName {
		return fmt.Errorf("a name must be 1 to %d bytes, got %q", maxName, s)
	}
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_', c == '.', c == '-':
		default:
			return fmt.Errorf("a name must be of letters, digits, _, . and -, got %q", s)
		}
	}
	return nil
}

func (f *feature) setType(t reflect.Type) error {
	f.kind, f.length = t.Kind(), 1
	switch t.Kind() {
	case reflect.Bool:
		f.class = classBool
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		f.class, f.bits = classInt, t.Bits()
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		f.class, f.bits = classUint, t.Bits()
	case reflect.Float32, reflect.Float64:
		f.class, f.bits, f.narrow = classFloat, t.Bits(), t.Bits() == 32
	case reflect.String:
		f.class = classText
	case reflect.Slice, reflect.Array:
		f.kind = t.Elem().Kind()
		if t.Kind() == reflect.Slice && f.kind == reflect.Uint8 {
			f.class, f.bytes = classText, true
			return nil
		}
		if f.kind != reflect.Float32 && f.kind != reflect.Float64 {
			return fmt.Errorf("%v cannot be a feature", t)
		}
		f.class, f.length = classVector, -1
		f.bits, f.narrow = t.Elem().Bits(), t.Elem().Bits() == 32
		if t.Kind() == reflect.Array {
			f.length = t.Len()
		}
	default:
		if t != timeType {
			return fmt.Errorf("%v cannot be a feature", t)
		}
		f.class = classTime
	}
	return nil
}

// width is how many numbers the feature is in a Matrix; -1 if it cannot be in one.
func (f *feature) width() int {
	switch f.class {
	case classText, classTime:
		return -1
	}
	return f.length
}

// at returns where the feature is in the row at p. It and what follows convert p to pointers of just the type that the field
// has, or whose memory is the same (reflect.Kind says so): checkptr and the race detector see them as they see any pointer.
func (f *feature) at(p unsafe.Pointer) unsafe.Pointer { return unsafe.Add(p, f.offset) }

func (f *feature) setState(p unsafe.Pointer, s State) {
	if f.optional {
		*(*State)(unsafe.Add(p, f.state)) = s
	}
}

// stateOf returns the state of a field that is to be written.
func (f *feature) stateOf(p unsafe.Pointer) State {
	if f.optional {
		return *(*State)(unsafe.Add(p, f.state))
	}
	return Set
}

// load returns the value in the row at p, which is not a vector.
func (f *feature) load(p unsafe.Pointer) (d datum) {
	p = f.at(p)
	switch f.class {
	case classTime:
		t := *(*time.Time)(p)
		return datum{num: uint64(t.Unix()), nanos: int32(t.Nanosecond())}
	case classText:
		if f.bytes {
			return datum{text: string(*(*[]byte)(p))}
		}
		return datum{text: *(*string)(p)}
	}
	switch f.kind {
	case reflect.Bool:
		if *(*bool)(p) {
			d.num = 1
		}
	case reflect.Int:
		d.num = uint64(*(*int)(p))
	case reflect.Int8:
		d.num = uint64(*(*int8)(p))
	case reflect.Int16:
		d.num = uint64(*(*int16)(p))
	case reflect.Int32:
		d.num = uint64(*(*int32)(p))
	case reflect.Int64:
		d.num = uint64(*(*int64)(p))
	case reflect.Uint:
		d.num = uint64(*(*uint)(p))
	case reflect.Uint8:
		d.num = uint64(*(*uint8)(p))
	case reflect.Uint16:
		d.num = uint64(*(*uint16)(p))
	case reflect.Uint32:
		d.num = uint64(*(*uint32)(p))
	case reflect.Uint64:
		d.num = *(*uint64)(p)
	case reflect.Float32:
		d = floatDatum(float64(*(*float32)(p)))
	case reflect.Float64:
		if d = floatDatum(*(*float64)(p)); f.narrow {
			d = floatDatum(float64(float32(d.float())))
		}
	}
	return d
}

// fits reports whether a value is in the range of the feature's type.
func (f *feature) fits(d datum) bool {
	switch f.class {
	case classBool:
		return d.num <= 1
	case classInt:
		shift := 64 - f.bits
		return int64(d.num)<<shift>>shift == int64(d.num)
	case classUint:
		return d.num>>(f.bits-1)>>1 == 0
	case classFloat:
		v := d.float()
		return f.bits == 64 || v != v || float64(float32(v)) == v
	}
	return true
}

// store writes a value that fits, and is not a vector, into the row at p. Bytes are copied, strings are not.
func (f *feature) store(p unsafe.Pointer, d datum) {
	p = f.at(p)
	switch f.class {
	case classTime:
		*(*time.Time)(p) = time.Unix(int64(d.num), int64(d.nanos)).UTC()
		return
	case classText:
		if f.bytes {
			*(*[]byte)(p) = []byte(d.text)
		} else {
			*(*string)(p) = d.text
		}
		return
	}
	switch f.kind {
	case reflect.Bool:
		*(*bool)(p) = d.num != 0
	case reflect.Int:
		*(*int)(p) = int(d.num)
	case reflect.Int8:
		*(*int8)(p) = int8(d.num)
	case reflect.Int16:
		*(*int16)(p) = int16(d.num)
	case reflect.Int32:
		*(*int32)(p) = int32(d.num)
	case reflect.Int64:
		*(*int64)(p) = int64(d.num)
	case reflect.Uint:
		*(*uint)(p) = uint(d.num)
	case reflect.Uint8:
		*(*uint8)(p) = uint8(d.num)
	case reflect.Uint16:
		*(*uint16)(p) = uint16(d.num)
	case reflect.Uint32:
		*(*uint32)(p) = uint32(d.num)
	case reflect.Uint64:
		*(*uint64)(p) = d.num
	case reflect.Float32:
		*(*float32)(p) = float32(d.float())
	case reflect.Float64:
		*(*float64)(p) = d.float()
	}
}

// vector returns the vector in the row at p, as one of the two slices.
func (f *feature) vector(p unsafe.Pointer) ([]float32, []float64) {
	p = f.at(p)
	switch {
	case f.bits == 32 && f.length < 0:
		return *(*[]float32)(p), nil
	case f.bits == 32:
		return unsafe.Slice((*float32)(p), f.length), nil
	case f.length < 0:
		return nil, *(*[]float64)(p)
	}
	return nil, unsafe.Slice((*float64)(p), f.length)
}

// resize makes room for n numbers in the vector of the row at p and returns it, or false if it has another length.
func (f *feature) resize(p unsafe.Pointer, n int) ([]float32, []float64, bool) {
	if f.length >= 0 {
		a, b := f.vector(p)
		return a, b, n == f.length
	}
	if f.bits == 32 {
		*(*[]float32)(f.at(p)) = make([]float32, n)
	} else {
		*(*[]float64)(f.at(p)) = make([]float64, n)
	}
	a, b := f.vector(p)
	return a, b, true
}

// setElement writes one number of a vector; false if it does not fit.
func setElement(a []float32, b []float64, i int, v float64) bool {
	if b != nil {
		b[i] = v
		return true
	}
	a[i] = float32(v)
	return v != v || float64(a[i]) == v
}

// zero empties the feature in the row at p.
func (f *feature) zero(p unsafe.Pointer) {
	if f.class != classVector {
		f.store(p, datum{})
		return
	}
	if f.length < 0 {
		_, _, _ = f.resize(p, 0)
	}
	a, b := f.vector(p)
	clear(a)
	clear(b)
}

// blank is what a feature has that was not read.
func (f *feature) blank(p unsafe.Pointer, s State) State {
	if f.initial != nil {
		f.store(p, *f.initial)
		if s == Absent {
			s = Default
		}
	}
	f.setState(p, s)
	return s
}

// isNaN reports whether the feature in the row at p is NaN, or has one in it.
func (f *feature) isNaN(p unsafe.Pointer) bool {
	switch f.class {
	case classFloat:
		v := f.load(p).float()
		return v != v
	case classVector:
		a, b := f.vector(p)
		for _, v := range a {
			if v != v {
				return true
			}
		}
		for _, v := range b {
			if v != v {
				return true
			}
		}
	}
	return false
}

// overflows reports whether a number in the row at p is too large for the float32 that it is encoded as.
func (f *feature) overflows(p unsafe.Pointer) bool {
	if !f.narrow || f.bits == 32 {
		return false
	}
	large := func(v float64) bool { return math.IsInf(float64(float32(v)), 0) && !math.IsInf(v, 0) }
	if f.class == classVector {
		_, b := f.vector(p)
		return slices.ContainsFunc(b, large)
	}
	return large(*(*float64)(f.at(p)))
}

// fingerprint tells schemas apart whose rows differ: by names, types and order.
func fingerprint(features []feature) uint32 {
	h := fnv.New32a()
	for i := range features {
		_, _ = h.Write([]byte(features[i].name + " " + features[i].typeName() + "\n"))
	}
	return h.Sum32()
}
