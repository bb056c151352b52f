package featurestore

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"github.com/redispatterns/redispatterns/featurestore/feast"
)

// entityType is the type of keys, compiled: a string, an integer, or a struct of those.
type entityType struct {
	parts  []entityPart
	single bool
	goType reflect.Type
}

type entityPart struct {
	name   string
	kind   reflect.Kind
	offset uintptr
}

func compileEntity(t reflect.Type) (e entityType, err error) {
	if isEntityKind(t.Kind()) {
		return entityType{parts: []entityPart{{kind: t.Kind()}}, single: true, goType: t}, nil
	}
	if t.Kind() != reflect.Struct {
		return e, fmt.Errorf("%v cannot be a key: it must be a string, an integer or a struct of those", t)
	}
	e.goType = t
	for i := range t.NumField() {
		f := t.Field(i)
		name, ok := f.Tag.Lookup("entity")
		switch {
		case !ok:
			return e, fmt.Errorf("%v.%s has no entity tag: two keys that differ in it would be one", t, f.Name)
		case !f.IsExported() || !isEntityKind(f.Type.Kind()):
			return e, fmt.Errorf("%v.%s cannot be part of a key: it must be exported, and a string or an integer", t, f.Name)
		case slices.ContainsFunc(e.parts, func(p entityPart) bool { return p.name == name }):
			return e, fmt.Errorf("%v.%s: another field has the name %q", t, f.Name, name)
		}
		if err := checkName(name); err != nil {
			return e, fmt.Errorf("%v.%s: %w", t, f.Name, err)
		}
		e.parts = append(e.parts, entityPart{name, f.Type.Kind(), f.Offset})
	}
	if len(e.parts) == 0 {
		return e, fmt.Errorf("%v has no fields", t)
	}
	return e, nil
}

func isEntityKind(k reflect.Kind) bool {
	return k == reflect.String || k >= reflect.Int && k <= reflect.Uint64
}

func (p *entityPart) signed() bool { return p.kind <= reflect.Int64 }

func (p *entityPart) bits() int {
	switch p.kind {
	case reflect.Int8, reflect.Uint8:
		return 8
	case reflect.Int16, reflect.Uint16:
		return 16
	case reflect.Int32, reflect.Uint32:
		return 32
	}
	return 64
}

// number returns the integer in the key at k.
func (p *entityPart) number(k unsafe.Pointer) uint64 {
	f := feature{kind: p.kind, offset: p.offset}
	return f.load(k).num
}

func (p *entityPart) text(k unsafe.Pointer) string { return *(*string)(unsafe.Add(k, p.offset)) }

// appendText appends the key at k: as it is, or, of a struct, its parts with colons between them, in which strings have %3A for
// a colon and %25 for a percent sign. Different keys are different texts.
func (e *entityType) appendText(dst []byte, k unsafe.Pointer) []byte {
	for i := range e.parts {
		p := &e.parts[i]
		if i > 0 {
			dst = append(dst, ':')
		}
		switch {
		case p.kind == reflect.String && e.single:
			dst = append(dst, p.text(k)...)
		case p.kind == reflect.String:
			for _, c := range []byte(p.text(k)) {
				switch c {
				case ':':
					dst = append(dst, "%3A"...)
				case '%':
					dst = append(dst, "%25"...)
				default:
					dst = append(dst, c)
				}
			}
		case p.signed():
			dst = strconv.AppendInt(dst, int64(p.number(k)), 10)
		default:
			dst = strconv.AppendUint(dst, p.number(k), 10)
		}
	}
	return dst
}

var errNotAKey = errors.New("not a key of this view")

var unescape = strings.NewReplacer("%3A", ":", "%25", "%")

// parseText is the inverse of appendText. k points to a zero key.
func (e *entityType) parseText(s string, k unsafe.Pointer) error {
	for i := range e.parts {
		p := &e.parts[i]
		text, last := s, i == len(e.parts)-1
		if !e.single {
			var more bool
			if text, s, more = strings.Cut(s, ":"); more == last {
				return errNotAKey
			}
		}
		if p.kind == reflect.String {
			if !e.single {
				text = unescape.Replace(text)
			}
			*(*string)(unsafe.Add(k, p.offset)) = text
			continue
		}
		var n uint64
		var err error
		if p.signed() {
			var i int64
			i, err = strconv.ParseInt(text, 10, p.bits())
			n = uint64(i)
		} else {
			n, err = strconv.ParseUint(text, 10, p.bits())
		}
		if err != nil {
			return errNotAKey
		}
		p.setNumber(k, n)
	}
	return nil
}

func (p *entityPart) setNumber(k unsafe.Pointer, n uint64) {
	f := feature{kind: p.kind, offset: p.offset}
	f.store(k, datum{num: n})
}

// checkFeast returns an error if Feast has no such keys. joinKey is the name for a key that is no struct.
func (e *entityType) checkFeast(joinKey string) error {
	if e.single {
		if joinKey == "" {
			return errors.New("Options.Feast.JoinKey must name the join key, as the key is no struct")
		}
		e.parts[0].name = joinKey
	}
	for i := range e.parts {
		if k := e.parts[i].kind; k == reflect.Uint || k == reflect.Uint64 {
			return errors.New("a key of type uint or uint64 has no type in Feast")
		}
	}
	return nil
}

// feastType is the type that Feast's ValueType of a part is: small integers are Int32.
func (p *entityPart) feastType() feast.Type {
	switch p.kind {
	case reflect.String:
		return feast.String
	case reflect.Int, reflect.Int64, reflect.Uint32:
		return feast.Int64
	}
	return feast.Int32
}

func (e *entityType) appendFeast(dst []byte, version int, project string, k unsafe.Pointer) ([]byte, error) {
	var room [4]feast.Join
	joins := room[:0]
	for i := range e.parts {
		p := &e.parts[i]
		v := feast.Value{Type: p.feastType()}
		if p.kind == reflect.String {
			v.Text = p.text(k)
		} else {
			v.Int = int64(p.number(k))
		}
		joins = append(joins, feast.Join{Name: p.name, Value: v})
	}
	return feast.AppendKey(dst, version, project, joins...)
}

// parseFeast is the inverse of appendFeast.
func (e *entityType) parseFeast(s string, version int, project string, k unsafe.Pointer) error {
	names := make([]string, len(e.parts))
	for i := range e.parts {
		names[i] = e.parts[i].name
	}
	of, joins, err := feast.ParseKey(version, s, names...)
	if err != nil || of != project {
		return errNotAKey
	}
	for _, j := range joins {
		p := &e.parts[slices.IndexFunc(e.parts, func(p entityPart) bool { return p.name == j.Name })]
		if j.Value.Type != p.feastType() {
			return errNotAKey
		}
		if p.kind == reflect.String {
			*(*string)(unsafe.Add(k, p.offset)) = j.Value.Text
		} else {
			f := feature{kind: p.kind, bits: p.bits(), class: classInt}
			if !p.signed() {
				f.class = classUint
			}
			if !f.fits(datum{num: uint64(j.Value.Int)}) {
				return errNotAKey
			}
			p.setNumber(k, uint64(j.Value.Int))
		}
	}
	return nil
}

// scratch returns a key to parse into.
func (e *entityType) scratch() unsafe.Pointer { return reflect.New(e.goType).UnsafePointer() }
