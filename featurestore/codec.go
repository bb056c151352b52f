package featurestore

import (
	"errors"
	"fmt"
	"slices"
	"unsafe"

	"github.com/redis/rueidis"
)

// Codec is how rows are encoded.
type Codec uint8

const (
	// Fields keeps each feature in a field of its own, as text: readable in redis-cli, written and read by any language.
	Fields Codec = iota
	// Packed keeps a row in as few bytes as it takes to lose nothing. Only this package reads it.
	Packed
	// Feast keeps rows as Feast's Python SDK does, and reads what it wrote.
	Feast
)

func (c Codec) String() string { return [...]string{"fields", "packed", "feast"}[c] }

// codec turns rows into fields of a hash and back.
type codec interface {
	// fields returns which fields of the hash hold the features of these indexes, and the row's time.
	fields(features []int) []string
	// decode reads the values of those fields into r: it stores what is set, and sets states, at and found.
	decode(features []int, values []value, r *row) error
	// encode returns pairs of fields and values to set, and fields to delete, for the features of these indexes. Packed
	// takes all of r anyway.
	encode(features []int, r *row) (set, drop []string, err error)
	// dump returns what encode would set for all features, as DUMP does, or false if Redis would not keep it in a listpack.
	dump(r *row) (payload string, ok bool, err error)
	// all returns all fields that any row of the view has.
	all() []string
	// timeField is where put.lua finds the row's time.
	timeField() string
}

// row is a row on its way between memory and a hash.
type row struct {
	p       unsafe.Pointer // a T
	at      int64          // the event time, in microseconds since 1970; 0 is none
	found   bool           // whether there is anything
	whole   bool           // whether all features are known to be set
	states  []State        // of all features of T; decode sets those of the features asked for
	marks   string         // of Patch: schemas that other features are of, each with a + before it
	nulls   string         // and which of those are null, with commas
	lent    bool           // what is read is in memory that is used again
	buf     []byte         // such memory
	pack    []byte         // likewise
	numbers []byte         // likewise
	ends    []int          // likewise
	values  []value        // likewise
}

// value is what a hash has in one field.
type value struct {
	text string
	ok   bool // whether there is that field
}

// schema is what all codecs know of a view.
type schema struct {
	view        string
	features    []feature
	fingerprint uint32
	mark        string // the fingerprint's text
}

// ErrCorrupt means that a row cannot be read: a value is not of its feature's type, or is cut off, or the key is of another
// type. It concerns that row alone.
var ErrCorrupt = errors.New("featurestore: corrupt row")

// ErrSkew means that rows and readers, or manifests and views, are of different schemas. A [*SkewError] from Require names the
// differences.
var ErrSkew = errors.New("featurestore: another schema")

// corrupt returns an error about one feature.
func (f *feature) corrupt() error { return fmt.Errorf("feature %s: %w", f.name, ErrCorrupt) }

func (f *feature) skewed() error { return fmt.Errorf("feature %s: %w", f.name, ErrSkew) }

func (f *feature) invalid() error {
	return fmt.Errorf("feature %s: %w", f.name, ErrInvalid)
}

// take returns the values of a reply, in r's memory.
func (r *row) take(reply []rueidis.RedisMessage) []value {
	r.values = slices.Grow(r.values[:0], len(reply))[:len(reply)]
	for i := range reply {
		r.values[i] = value{}
		if reply[i].IsString() {
			text, err := reply[i].ToString()
			r.values[i] = value{text, err == nil}
		}
	}
	return r.values
}
