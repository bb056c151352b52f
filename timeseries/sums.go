package timeseries

import (
	"encoding/binary"
	"math"
	"math/bits"
	"strconv"
	"strings"
)

// add returns a+b, or a if that overflows. The least int64 counts as overflow: its negative, which undoes it, is none.
func add(a, b int64) (int64, bool) {
	sum := a + b
	if (sum > a) != (b > 0) || sum == math.MinInt64 {
		return a, false
	}
	return sum, true
}

// wide is a sum of 128 bits: more than there are buckets to add up.
type wide struct {
	high int64
	low  uint64
}

func (w *wide) add(n int64) {
	var carry uint64
	w.low, carry = bits.Add64(w.low, uint64(n), 0)
	w.high += n>>63 + int64(carry)
}

// int64 returns the sum, and whether it is one.
func (w *wide) int64() (int64, bool) { return int64(w.low), w.high == int64(w.low)>>63 }

// cell is the state of a bucket of stats.
type cell struct {
	count            int64
	sum, least, most float64
}

func (c *cell) merge(d cell) bool {
	if c.count == 0 {
		*c = d
		return true
	}
	sum := c.sum + d.sum
	if math.IsInf(sum, 0) {
		return false
	}
	*c = cell{c.count + d.count, sum, min(c.least, d.least), max(c.most, d.most)}
	return true
}

// addValue merges what a bucket of stats holds: "count sum least greatest", or, where that would be long, the letter b and
// the same as float64.
func (c *cell) addValue(v value) error {
	d, err := cellOf(v)
	if err != nil {
		return err
	}
	if !c.merge(d) {
		return ErrOverflow
	}
	return nil
}

func cellOf(v value) (c cell, err error) {
	switch {
	case !v.isText:
		err = errReply
	case len(v.text) == 33 && v.text[0] == 'b':
		float := func(i int) float64 {
			return math.Float64frombits(binary.LittleEndian.Uint64([]byte(v.text[1+8*i : 9+8*i])))
		}
		c = cell{int64(float(0)), float(1), float(2), float(3)}
	default:
		count, rest, _ := strings.Cut(v.text, " ")
		sum, rest, _ := strings.Cut(rest, " ")
		least, most, _ := strings.Cut(rest, " ")
		c.count, err = strconv.ParseInt(count, 10, 64)
		for _, f := range []struct {
			to   *float64
			text string
		}{{&c.sum, sum}, {&c.least, least}, {&c.most, most}} {
			if err == nil {
				*f.to, err = strconv.ParseFloat(f.text, 64)
			}
		}
	}
	finite := c.sum-c.sum == 0 && c.least-c.least == 0 && c.most-c.most == 0
	if err != nil || c.count < 1 || c.count > maxExact || !finite {
		return cell{}, errReply // it is not ours
	}
	return c, nil
}
