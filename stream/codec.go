package stream

import (
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"unsafe"
)

// Codec turns values into the fields of an entry and back. It must be safe for concurrent use.
type Codec[T any] interface {
	// Append appends names and values of fields, in turn, at least one of each. Names that begin with "_" are the package's own.
	Append(fields []string, v T) ([]string, error)
	// Decode returns the value of an entry's fields, names and values in turn. It may keep the strings, but not the slice.
	Decode(fields []string) (T, error)
}

// JSON returns a codec that stores a value with encoding/json in the field "data". It is the default.
func JSON[T any]() Codec[T] { return jsonCodec[T]{} }

type jsonCodec[T any] struct{}

const jsonField = "data"

var errNoData = errors.New(`stream: entry has no field "data"`)

func (jsonCodec[T]) Append(fields []string, v T) ([]string, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return fields, err
	}
	return append(fields, jsonField, unsafe.String(unsafe.SliceData(data), len(data))), nil // nobody else has data
}

func (jsonCodec[T]) Decode(fields []string) (v T, err error) {
	for i := 0; i+1 < len(fields); i += 2 {
		if fields[i] == jsonField {
			data := fields[i+1]
			// Unmarshal neither changes nor keeps its input.
			err = json.Unmarshal(unsafe.Slice(unsafe.StringData(data), len(data)), &v)
			return v, err
		}
	}
	return v, errNoData
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
