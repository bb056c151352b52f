package featurestore

import (
	"errors"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"
)

// fieldsCodec has a field per feature. The field _ts:view has the event time in microseconds and, if this package wrote the row, a
// space, the schema's fingerprint, after a + those of other schemas that features are of which Patch left, and, if there are any,
// another space and the names of features that are null.
type fieldsCodec struct{ *schema }

func (c *fieldsCodec) timeField() string { return "_ts:" + c.view }

func (c *fieldsCodec) fields(features []int) []string {
	names := make([]string, 0, len(features)+1)
	for _, i := range features {
		names = append(names, c.features[i].name)
	}
	return append(names, c.timeField())
}

func (c *fieldsCodec) all() []string {
	names := make([]string, 0, len(c.features)+1)
	for i := range c.features {
		names = append(names, c.features[i].name)
	}
	return append(names, c.timeField())
}

func (c *fieldsCodec) decode(features []int, values []value, r *row) error {
	var nulls string
	own := true
	if v := &values[len(features)]; v.ok {
		r.found = true
		stamp := v.text
		var mark string
		stamp, mark, _ = strings.Cut(stamp, " ")
		mark, nulls, _ = strings.Cut(mark, " ")
		own = mark == "" || mark == c.mark
		at, err := strconv.ParseInt(stamp, 10, 64)
		if err != nil || at < 0 || at > maxMicros {
			return ErrCorrupt
		}
		r.at = at
	}
	var texts []byte // all in one piece
	if r.lent {
		size := 0
		for n, i := range features {
			if f := &c.features[i]; f.class == classText && !f.bytes {
				size += len(values[n].text)
			}
		}
		texts = make([]byte, 0, size)
	}
	for n, i := range features {
		f := &c.features[i]
		v := &values[n]
		if !v.ok {
			r.states[i] = Absent
			if nulls != "" && hasName(nulls, f.name) {
				r.states[i] = Null
			}
			continue
		}
		r.found = true
		r.states[i] = Set
		var d datum
		var err error
		if f.class == classVector {
			err = f.parseVector(r, v.text, own)
		} else if d, err = f.parseText(v.text); err == nil && f.class == classFloat && !own && !f.exact(v.text, d.float()) {
			err = errText
		} else if err == nil {
			if r.lent && f.class == classText && !f.bytes {
				begin := len(texts)
				texts = append(texts, d.text...)
				d.text = unsafe.String(unsafe.SliceData(texts[begin:]), len(texts)-begin)
			}
			f.store(r.p, d)
		}
		switch {
		case err == nil:
		case own:
			return f.corrupt()
		default:
			return f.skewed()
		}
	}
	return nil
}

// hasName reports whether a name is in a list with commas.
func hasName(list, name string) bool {
	for list != "" {
		var one string
		if one, list, _ = strings.Cut(list, ","); one == name {
			return true
		}
	}
	return false
}

// keep makes r's stamp say what the one of the row that is there says of all that is not written over.
func (c *fieldsCodec) keep(stamp string, r *row) {
	_, stamp, _ = strings.Cut(stamp, " ")
	list, names, _ := strings.Cut(stamp, " ")
	for mark := range strings.SplitSeq(list, "+") {
		if mark != "" && mark != c.mark {
			r.marks += "+" + mark
		}
	}
	for i := range c.features {
		r.states[i] = Absent
	}
	for name := range strings.SplitSeq(names, ",") {
		switch i := slices.IndexFunc(c.features, func(f feature) bool { return f.name == name }); {
		case i >= 0:
			r.states[i] = Null
		case name != "":
			r.nulls = strings.TrimPrefix(r.nulls+","+name, ",")
		}
	}
}

func markOf(fingerprint uint32) string {
	return strconv.FormatUint(uint64(fingerprint)|1<<32, 16)[1:]
}

func (c *fieldsCodec) encode(features []int, r *row) (set, drop []string, err error) {
	set = make([]string, 0, 2*len(features)+2)
	buf, ends := r.buf[:0], r.ends[:0]
	for _, i := range features {
		f := &c.features[i]
		if r.states[i] != Set {
			drop = append(drop, f.name)
			continue
		}
		if buf, err = f.appendText(buf, r); err != nil {
			return nil, nil, f.invalid()
		}
		ends = append(ends, len(buf))
		set = append(set, f.name, "")
	}
	buf = c.appendStamp(buf, r)
	set = append(set, c.timeField(), "")
	ends = append(ends, len(buf))
	r.buf, r.ends = buf, ends
	all, from := string(buf), 0 // one string for all values
	for i, end := range ends {
		set[2*i+1], from = all[from:end], end
	}
	return set, drop, nil
}

func (c *fieldsCodec) dump(r *row) (payload string, ok bool, err error) {
	d := startDump(r.buf)
	for i := range c.features {
		f := &c.features[i]
		if r.states[i] != Set {
			continue
		}
		d.add(f.name)
		from := d.open()
		if d.b, err = f.appendText(d.b, r); err != nil {
			return "", false, f.invalid()
		}
		if d.close(from); d.refused {
			break
		}
	}
	d.add(c.timeField())
	from := d.open()
	d.b = c.appendStamp(d.b, r)
	d.close(from)
	payload, ok = d.end()
	r.buf = d.b
	return payload, ok, nil
}

// appendStamp appends what the time field has.
func (c *fieldsCodec) appendStamp(dst []byte, r *row) []byte {
	dst = append(strconv.AppendInt(dst, r.at, 10), ' ')
	dst = append(append(dst, c.mark...), r.marks...)
	separator := byte(' ')
	for i := range c.features {
		if r.states[i] == Null {
			dst = append(append(dst, separator), c.features[i].name...)
			separator = ','
		}
	}
	if r.nulls != "" {
		dst = append(append(dst, separator), r.nulls...)
	}
	return dst
}

var errText = errors.New("not of the feature's type")

// parseText reads a value of the feature's type, which is not a vector, as this package or another language writes it.
func (f *feature) parseText(s string) (d datum, err error) {
	switch f.class {
	case classBool:
		switch s {
		case "true", "1", "t", "True", "TRUE", "T":
			d.num = 1
		case "false", "0", "f", "False", "FALSE", "F":
		default:
			err = errText
		}
	case classInt:
		var i int64
		i, err = strconv.ParseInt(s, 10, f.bits)
		d.num = uint64(i)
	case classUint:
		d.num, err = strconv.ParseUint(s, 10, f.bits)
	case classFloat:
		bits := 64
		if f.narrow {
			bits = 32
		}
		var v float64
		v, err = strconv.ParseFloat(s, bits)
		d = floatDatum(v)
	case classTime:
		var t time.Time
		t, err = time.Parse(time.RFC3339Nano, s)
		d = datum{num: uint64(t.Unix()), nanos: int32(t.Nanosecond())}
	default:
		d.text = s
	}
	return d, err
}

// appendText appends the feature's value in r.
func (f *feature) appendText(dst []byte, r *row) ([]byte, error) {
	bits := 64
	if f.narrow {
		bits = 32
	}
	if f.class == classVector {
		a, b := f.vector(r.p)
		dst = append(dst, '[')
		for i, v := range a {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = strconv.AppendFloat(dst, float64(v), 'g', -1, bits)
		}
		for i, v := range b {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = strconv.AppendFloat(dst, v, 'g', -1, bits)
		}
		return append(dst, ']'), nil
	}
	d := f.load(r.p)
	switch f.class {
	case classBool:
		return strconv.AppendBool(dst, d.num != 0), nil
	case classInt:
		return strconv.AppendInt(dst, int64(d.num), 10), nil
	case classUint:
		return strconv.AppendUint(dst, d.num, 10), nil
	case classFloat:
		return strconv.AppendFloat(dst, d.float(), 'g', -1, bits), nil
	case classTime:
		t := time.Unix(int64(d.num), int64(d.nanos)).UTC()
		if t.Year() < 0 || t.Year() > 9999 {
			return dst, errText
		}
		return t.AppendFormat(dst, time.RFC3339Nano), nil
	}
	return append(dst, d.text...), nil
}

// exact reports whether v is the number that was written as s, for a feature of another type, and not only near it.
func (f *feature) exact(s string, v float64) bool {
	bits := 64
	if f.narrow {
		bits = 32
	}
	if i, err := strconv.ParseInt(s, 10, 64); err == nil {
		return -1<<63 <= v && v < 1<<63 && int64(v) == i
	}
	if u, err := strconv.ParseUint(s, 10, 64); err == nil {
		return v < 1<<64 && uint64(v) == u
	}
	return strconv.FormatFloat(v, 'g', -1, bits) == s
}

// parseVector reads "[1,2.5]".
func (f *feature) parseVector(r *row, s string, own bool) error {
	s, begins := strings.CutPrefix(s, "[")
	s, ends := strings.CutSuffix(s, "]")
	if !begins || !ends {
		return errText
	}
	n := 0
	if strings.TrimSpace(s) != "" {
		n = strings.Count(s, ",") + 1
	}
	a, b, ok := f.resize(r.p, n)
	if !ok {
		return errText
	}
	bits := 64
	if f.narrow {
		bits = 32
	}
	for i := range n {
		var number string
		number, s, _ = strings.Cut(s, ",")
		number = strings.TrimSpace(number)
		v, err := strconv.ParseFloat(number, bits)
		if err != nil || !setElement(a, b, i, v) || !own && !f.exact(number, v) {
			return errText
		}
	}
	return nil
}

// retired returns the names of a list, with spaces, that a schema has not.
func retired(own []string, list string) (names []string) {
	for name := range strings.FieldsSeq(list) {
		if !slices.Contains(own, name) {
			names = append(names, name)
		}
	}
	return names
}

// maxMicros bounds event times, about the year 2255: above, Lua's numbers are not exact.
const maxMicros = math.MaxInt64 >> 10
