package buffer

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Op is what a column does with the values that are added to it. All of them give the same result in whatever order, and
// in whatever portions, the values come.
type Op uint8

// The operations. Sum, Max and Min are for values by [Int], SumFloat for [Float], Last for [At].
const (
	// Sum adds up int64, exactly. A sum that would overflow is refused.
	Sum Op = iota + 1
	// SumFloat adds up float64. The order of additions decides on the last bits, as with any sum of floats.
	SumFloat
	// Max keeps the largest int64.
	Max
	// Min keeps the smallest int64.
	Min
	// Last keeps the text with the latest event time and, of those with the same, the one whose bytes are larger.
	Last
)

// marks are how field names begin; see merge.lua.
const marks = " +.><@"

func (op Op) mark() byte { return marks[op] }

// Column is one value that is kept per entity.
type Column struct {
	// Name is letters, digits and underscores, 63 at most, beginning with a letter.
	Name string
	Op   Op
}

var columnName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_]{0,62}$`)

func checkColumns(columns []Column) error {
	if len(columns) == 0 || len(columns) > maxColumns {
		return fmt.Errorf("columns must be 1 to %d, got %d", maxColumns, len(columns))
	}
	seen := map[string]bool{}
	for _, c := range columns {
		switch {
		case !columnName.MatchString(c.Name):
			return fmt.Errorf("Column.Name must be letters, digits and underscores, beginning with a letter, got %q", c.Name)
		case seen[c.Name]:
			return fmt.Errorf("Column.Name must be unique, got %q twice", c.Name)
		case c.Op < Sum || c.Op > Last:
			return fmt.Errorf("Column.Op must be one of the operations, got %d", c.Op)
		}
		seen[c.Name] = true
	}
	return nil
}

// Delta is a value to add to a column: see [Int], [Float] and [At].
type Delta struct {
	column string
	kind   byte // of its constructor: 'i', 'f' or 'a'
	int    int64
	float  float64
	text   string
}

// Int is a value for a column of Sum, Max or Min.
func Int(column string, n int64) Delta { return Delta{column: column, kind: 'i', int: n} }

// Float is a value for a column of SumFloat. It must be finite.
func Float(column string, v float64) Delta { return Delta{column: column, kind: 'f', float: v} }

// At is a value for a column of Last, with the time of the event that it comes from. Times are compared by the microsecond.
func At(column string, event time.Time, text string) Delta {
	return Delta{column: column, kind: 'a', int: event.UnixMicro(), text: text}
}

// kindOf is the constructor of an operation's values.
func kindOf(op Op) byte {
	switch op {
	case SumFloat:
		return 'f'
	case Last:
		return 'a'
	}
	return 'i'
}

// Value is what a row has in one column.
type Value struct {
	Set   bool      // whether there is anything
	Int   int64     // of Sum, Max and Min
	Float float64   // of SumFloat
	Text  string    // of Last
	At    time.Time // of Last: the event time, to the microsecond
}

// merge is what merge.lua does. It returns false, and changes nothing, if the sum overflows.
func (v *Value) merge(op Op, d Value) bool {
	if !d.Set {
		return true
	}
	if !v.Set && op != SumFloat {
		*v = d
		return true
	}
	switch op {
	case Sum:
		sum := v.Int + d.Int
		if (sum > v.Int) != (d.Int > 0) {
			return false
		}
		v.Int = sum
	case SumFloat:
		sum := v.Float + d.Float
		if math.IsInf(sum, 0) {
			return false
		}
		v.Float, v.Set = sum, true
	case Max:
		v.Int = max(v.Int, d.Int)
	case Min:
		v.Int = min(v.Int, d.Int)
	case Last:
		if c := d.At.Compare(v.At); c > 0 || c == 0 && d.Text > v.Text {
			*v = d
		}
	}
	return true
}

// mergeAll merges values whatever their order: of a sum, the smallest and the largest first, so that nothing on the way overflows
// if the result does not.
func mergeAll(op Op, values []Value) (all Value, ok bool) {
	slices.SortFunc(values, func(a, b Value) int { return cmp.Or(cmp.Compare(a.Int, b.Int), cmp.Compare(a.Float, b.Float)) })
	for len(values) > 0 {
		next := 0
		if all.Int < 0 || all.Float < 0 {
			next = len(values) - 1
		}
		if !all.merge(op, values[next]) {
			return all, false
		}
		values = slices.Delete(values, next, next+1)
	}
	return all, true
}

// encode is how a value is stored and sent. What Lua has to compare is written so that it sorts.
func (v Value) encode(op Op) string {
	switch op {
	case Sum:
		return strconv.FormatInt(v.Int, 10)
	case SumFloat:
		return strconv.FormatFloat(v.Float, 'g', 17, 64)
	case Last:
		return sortable(v.At.UnixMicro()) + v.Text
	}
	return sortable(v.Int)
}

func sortable(n int64) string {
	const digits = "0123456789abcdef"
	u := uint64(n) ^ 1<<63
	var b [16]byte
	for i := range b {
		b[i] = digits[u>>(60-4*i)&15]
	}
	return string(b[:])
}

var errForeign = errors.New("a value in Redis is not one that this package wrote")

func decodeValue(op Op, s string) (v Value, err error) {
	v.Set = true
	switch op {
	case Sum:
		v.Int, err = strconv.ParseInt(s, 10, 64)
	case SumFloat:
		v.Float, err = strconv.ParseFloat(s, 64)
	default:
		if len(s) < 16 || op != Last && len(s) > 16 {
			return Value{}, errForeign
		}
		var u uint64
		u, err = strconv.ParseUint(s[:16], 16, 64)
		v.Int = int64(u ^ 1<<63)
		if op == Last {
			v.At, v.Text, v.Int = time.UnixMicro(v.Int).UTC(), s[16:], 0
		}
	}
	if err != nil {
		return Value{}, errForeign
	}
	return v, nil
}

// field returns the name of a hash field. The column's name has no colon, so no two are alike.
func (c Column) field(entity string) string { return string(c.Op.mark()) + c.Name + ":" + entity }

// splitField is the opposite of field.
func splitField(field string) (Column, string, error) {
	name, entity, ok := strings.Cut(field, ":")
	if !ok || len(name) < 2 {
		return Column{}, "", errForeign
	}
	op := strings.IndexByte(marks, name[0])
	if op < int(Sum) {
		return Column{}, "", errForeign
	}
	return Column{name[1:], Op(op)}, entity, nil
}
