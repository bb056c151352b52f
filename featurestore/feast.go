package featurestore

import (
	"reflect"
	"time"

	"github.com/redispatterns/redispatterns/featurestore/feast"
)

// FeastOptions says which rows of Feast a view reads and writes.
//
// Types must be those of Feast's. Of join keys, string is STRING, int, int64 and uint32 are INT64, and smaller integers
// INT32: with another one all rows are Missing. Features are written as BOOL, INT32 (int32 and what is smaller), INT64,
// FLOAT (float32, and f32), DOUBLE, STRING, BYTES, UNIX_TIMESTAMP, FLOAT_LIST and DOUBLE_LIST; read are also sets of
// floats, JSON, UUIDs and decimals as strings, and numbers of other widths that lose nothing. Lists of other things, and
// maps, cannot be features.
type FeastOptions struct {
	// Project is Feast's project. Not empty with codec Feast.
	Project string
	// JoinKey names the join key of views whose keys are no structs. Those of structs are named by their entity tags.
	JoinKey string
	// KeyVersion is entity_key_serialization_version: 2 or 3. Defaults to 3.
	KeyVersion int
}

// feastCodec has the fields that Feast has: see package feast.
type feastCodec struct {
	*schema
	hashes []string // of the features' names
}

func (c *feastCodec) timeField() string { return feast.TimestampField(c.view) }

func (c *feastCodec) fields(features []int) []string {
	names := make([]string, 0, len(features)+1)
	for _, i := range features {
		names = append(names, c.hashes[i])
	}
	return append(names, c.timeField())
}

func (c *feastCodec) all() []string {
	return append(append(make([]string, 0, len(c.hashes)+1), c.hashes...), c.timeField())
}

func (c *feastCodec) decode(features []int, values []value, r *row) error {
	if v := &values[len(features)]; v.ok {
		r.found = true
		at, err := feast.ParseTimestamp(v.text)
		if err != nil {
			return ErrCorrupt
		}
		if !at.IsZero() {
			if r.at = at.UnixMicro(); r.at < 0 || r.at > maxMicros {
				return ErrCorrupt
			}
		}
	}
	for n, i := range features {
		f := &c.features[i]
		if !values[n].ok {
			r.states[i] = Absent
			continue
		}
		r.found = true
		v, err := feast.ParseValue(values[n].text)
		if err != nil {
			return f.corrupt()
		}
		if v.Type == feast.Null {
			r.states[i] = Null
			continue
		}
		if !f.storeFeast(r, v) {
			return f.skewed()
		}
		r.states[i] = Set
	}
	return nil
}

// storeFeast stores a value if it is of the feature's class and loses nothing.
func (f *feature) storeFeast(r *row, v feast.Value) bool {
	var d datum
	switch {
	case f.class == classVector:
		switch v.Type {
		case feast.FloatList, feast.DoubleList, feast.FloatSet, feast.DoubleSet:
		default:
			return false
		}
		a, b, ok := f.resize(r.p, len(v.Floats))
		for i := 0; ok && i < len(v.Floats); i++ {
			ok = setElement(a, b, i, v.Floats[i])
		}
		return ok
	case f.class == classBool && v.Type == feast.Bool,
		(f.class == classInt || f.class == classUint) && (v.Type == feast.Int32 || v.Type == feast.Int64):
		if f.class == classUint && v.Int < 0 {
			return false
		}
		d.num = uint64(v.Int)
	case f.class == classFloat && (v.Type == feast.Float || v.Type == feast.Double):
		d = floatDatum(v.Float)
	case f.class == classTime && v.Type == feast.UnixTimestamp:
		d.num = uint64(v.Int)
	case f.class == classText && f.bytes && v.Type == feast.Bytes:
		d.text = v.Text
	case f.class == classText && !f.bytes:
		switch v.Type {
		case feast.String, feast.JSON, feast.UUID, feast.TimeUUID, feast.Decimal:
			d.text = v.Text
		default:
			return false
		}
	default:
		return false
	}
	if !f.fits(d) {
		return false
	}
	f.store(r.p, d)
	return true
}

// feastValue returns the feature's value in r, as of the Feast type that goes with its Go type.
func (f *feature) feastValue(r *row) feast.Value {
	if f.class == classVector {
		v := feast.Value{Type: feast.DoubleList}
		if f.narrow {
			v.Type = feast.FloatList
		}
		a, b := f.vector(r.p)
		for _, x := range a {
			v.Floats = append(v.Floats, float64(x))
		}
		v.Floats = append(v.Floats, b...)
		return v
	}
	d := f.load(r.p)
	v := feast.Value{Int: int64(d.num), Text: d.text}
	switch {
	case f.class == classBool:
		v.Type = feast.Bool
	case f.class == classTime:
		v.Type = feast.UnixTimestamp
	case f.class == classFloat && f.narrow:
		v.Type, v.Float = feast.Float, d.float()
	case f.class == classFloat:
		v.Type, v.Float = feast.Double, d.float()
	case f.bytes:
		v.Type = feast.Bytes
	case f.class == classText:
		v.Type = feast.String
	case f.bits < 32, f.kind == reflect.Int32:
		v.Type = feast.Int32
	default:
		v.Type = feast.Int64
	}
	return v
}

// dump is not for Feast: the hashes are of other views too.
func (c *feastCodec) dump(*row) (payload string, ok bool, err error) { return "", false, nil }

func (c *feastCodec) encode(features []int, r *row) (set, drop []string, err error) {
	set = make([]string, 0, 2*len(features)+2)
	for _, i := range features {
		f := &c.features[i]
		switch r.states[i] {
		case Null:
			set = append(set, c.hashes[i], "")
		case Set:
			v := f.feastValue(r)
			if f.class == classUint && v.Int < 0 {
				return nil, nil, f.invalid() // Feast's integers are signed
			}
			r.buf = feast.AppendValue(r.buf[:0], v)
			set = append(set, c.hashes[i], string(r.buf))
		default:
			drop = append(drop, c.hashes[i])
		}
	}
	r.buf = feast.AppendTimestamp(r.buf[:0], time.UnixMicro(r.at))
	return append(set, c.timeField(), string(r.buf)), drop, nil
}
