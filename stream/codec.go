package stream

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"sync"
	"unsafe"
)

// Codec turns values into the fields of an entry and back. It must be safe for concurrent use.
type Codec[T any] interface {
	// Append appends names and values of fields, in turn, at least one of each, and does not keep the slice. Names that
	// begin with "_" are the package's own.
	Append(fields []string, v T) ([]string, error)
	// Decode returns the value of an entry's fields, names and values in turn. It may keep the strings, but not the slice.
	Decode(fields []string) (T, error)
}

// JSON returns a codec that stores a value with encoding/json in the field "data", as json.Marshal does a pointer to it. It
// is the default.
func JSON[T any]() Codec[T] { return &jsonCodec[T]{} }

type jsonCodec[T any] struct {
	encoders sync.Pool // of *jsonEncoder[T]
}

const jsonField = "data"

var errNoData = errors.New(`stream: entry has no field "data"`)

// jsonEncoder keeps what encoding a value needs. It writes texts one after the other into chunks, and never again where one
// is: commands have them as strings, which a client may keep.
type jsonEncoder[T any] struct {
	json  *json.Encoder
	value T // here, since what is passed to json would otherwise be copied to the heap
	chunk []byte
	text  []byte // the last one
}

const jsonChunk = 8 << 10

// Write is called once per value, with its text and a newline.
func (e *jsonEncoder[T]) Write(text []byte) (int, error) {
	if len(text) > jsonChunk/8 {
		e.text = bytes.Clone(text)
	} else {
		if cap(e.chunk)-len(e.chunk) < len(text) {
			e.chunk = make([]byte, 0, jsonChunk)
		}
		begin := len(e.chunk)
		e.chunk = append(e.chunk, text...)
		e.text = e.chunk[begin:]
	}
	e.text = e.text[:len(text)-1]
	return len(text), nil
}

func (c *jsonCodec[T]) Append(fields []string, v T) ([]string, error) {
	e, ok := c.encoders.Get().(*jsonEncoder[T])
	if !ok {
		e = &jsonEncoder[T]{}
		e.json = json.NewEncoder(e)
	}
	e.value = v
	err := e.json.Encode(&e.value)
	text := unsafe.String(unsafe.SliceData(e.text), len(e.text))
	var zero T
	e.value, e.text = zero, nil
	c.encoders.Put(e)
	if err != nil {
		return fields, err
	}
	return append(fields, jsonField, text), nil
}

func (c *jsonCodec[T]) Decode(fields []string) (v T, err error) {
	for i := 0; i+1 < len(fields); i += 2 {
		if fields[i] != jsonField {
			continue
		}
		if s, ok := any(&v).(*string); ok {
			if *s, ok = plainString(fields[i+1]); ok {
				return v, nil
			}
		}
		return unmarshal[T](fields[i+1])
	}
	return v, errNoData
}

// plainString returns the string that a JSON text is, without a copy, if it is one of printable ASCII without escapes.
func plainString(text string) (string, bool) {
	n := len(text) - 1
	if n < 1 || text[0] != '"' || text[n] != '"' {
		return "", false
	}
	for i := 1; i < n; i++ {
		if b := text[i]; b < ' ' || b > '~' || b == '"' || b == '\\' {
			return "", false
		}
	}
	return text[1:n], true
}

func unmarshal[T any](text string) (v T, err error) {
	// Unmarshal neither changes nor keeps its input.
	err = json.Unmarshal(unsafe.Slice(unsafe.StringData(text), len(text)), &v)
	return v, err
}

// Fields returns a codec that stores each exported field of a struct as a field of the entry, so that programs in other
// languages read and write them without more. A field is called what its tag `stream:"name"` says, or as in Go; "-" leaves it out.
// It may be a string, bool, integer, float or []byte, or implement encoding.TextMarshaler and its reverse. Fields that an entry
// lacks are zero, others are ignored. [New] returns an error if T is not such a struct.
func Fields[T any]() Codec[T] {
	c := &fieldsCodec[T]{index: map[string]int{}}
	t := reflect.TypeFor[T]()
	if t.Kind() != reflect.Struct {
		c.err = fmt.Errorf("%v is not a struct", t)
		return c
	}
	for i := range t.NumField() {
		f := t.Field(i)
		name := f.Tag.Get("stream")
		if !f.IsExported() || name == "-" {
			continue
		}
		if name == "" {
			name = f.Name
		}
		if _, twice := c.index[name]; twice || name[0] == '_' {
			c.err = fmt.Errorf("field %q is there twice or begins with an underscore", name)
			return c
		}
		if _, err := formatField(reflect.New(f.Type).Elem()); err != nil {
			c.err = fmt.Errorf("field %q: %w", name, err)
			return c
		}
		c.index[name] = i
		c.names = append(c.names, name)
	}
	if len(c.names) == 0 {
		c.err = fmt.Errorf("%v has no fields", t)
	}
	return c
}

type fieldsCodec[T any] struct {
	names []string
	index map[string]int // in the struct
	err   error
}

func (c *fieldsCodec[T]) check() error { return c.err }

func (c *fieldsCodec[T]) Append(fields []string, v T) ([]string, error) {
	s := reflect.ValueOf(&v).Elem()
	for _, name := range c.names {
		text, err := formatField(s.Field(c.index[name]))
		if err != nil {
			return fields, fmt.Errorf("stream: field %q: %w", name, err)
		}
		fields = append(fields, name, text)
	}
	return fields, nil
}

func (c *fieldsCodec[T]) Decode(fields []string) (v T, err error) {
	s := reflect.ValueOf(&v).Elem()
	for i := 0; i+1 < len(fields); i += 2 {
		if n, ok := c.index[fields[i]]; ok {
			if err := parseField(s.Field(n), fields[i+1]); err != nil {
				return v, fmt.Errorf("stream: field %q: %w", fields[i], err)
			}
		}
	}
	return v, nil
}

var errKind = errors.New("must be a string, bool, integer, float or []byte, or implement encoding.TextMarshaler and TextUnmarshaler")

// formatField formats an addressable field of a struct.
func formatField(v reflect.Value) (string, error) {
	if _, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		m, ok := v.Addr().Interface().(encoding.TextMarshaler)
		if !ok {
			return "", errKind
		}
		text, err := m.MarshalText()
		return string(text), err
	}
	switch {
	case v.Kind() == reflect.String:
		return v.String(), nil
	case v.Kind() == reflect.Bool:
		return strconv.FormatBool(v.Bool()), nil
	case v.CanInt():
		return strconv.FormatInt(v.Int(), 10), nil
	case v.CanUint():
		return strconv.FormatUint(v.Uint(), 10), nil
	case v.CanFloat():
		return strconv.FormatFloat(v.Float(), 'g', -1, v.Type().Bits()), nil
	case v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Uint8:
		return string(v.Bytes()), nil
	}
	return "", errKind
}

func parseField(v reflect.Value, text string) error {
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		return u.UnmarshalText([]byte(text))
	}
	switch {
	case v.Kind() == reflect.String:
		v.SetString(text)
	case v.Kind() == reflect.Bool:
		b, err := strconv.ParseBool(text)
		v.SetBool(b)
		return withoutInput(err)
	case v.CanInt():
		n, err := strconv.ParseInt(text, 10, v.Type().Bits())
		v.SetInt(n)
		return withoutInput(err)
	case v.CanUint():
		n, err := strconv.ParseUint(text, 10, v.Type().Bits())
		v.SetUint(n)
		return withoutInput(err)
	case v.CanFloat():
		f, err := strconv.ParseFloat(text, v.Type().Bits())
		v.SetFloat(f)
		return withoutInput(err)
	default:
		v.SetBytes(append([]byte(nil), text...))
	}
	return nil
}

// withoutInput takes the value out of strconv's errors.
func withoutInput(err error) error {
	var n *strconv.NumError
	if errors.As(err, &n) {
		return n.Err
	}
	return err
}
