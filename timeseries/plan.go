package timeseries

import "errors"

// level is a resolution, in seconds. All times in this file are seconds since 1970.
type level struct{ step, keep int64 }

// levels are a store's resolutions, the finest first. Steps divide the next one.
type levels []level

// floor returns the multiple of step at or before t.
func floor(t, step int64) int64 {
	r := t % step
	if r < 0 {
		r += step
	}
	return t - r
}

func ceil(t, step int64) int64 { return -floor(-t, step) }

// expires returns when the key of buckets up to end expires.
func (l level) expires(end int64) int64 { return end + l.keep + l.step }

// kept reports whether the bucket that begins at start can be read. Its key lives a step longer, so that clocks may differ a
// little.
func (l level) kept(start, now int64) bool { return start+l.step+l.keep > now }

// finest returns the finest level that has t, or -1. A level has either all or none of its buckets within one of the next
// coarser level's, so that the two meet where one ends.
func (ls levels) finest(t, now int64) int {
	r := len(ls) - 1
	if !ls[r].kept(floor(t, ls[r].step), now) {
		return -1
	}
	for r > 0 && ls[r-1].kept(floor(t, ls[r].step), now) {
		r--
	}
	return r
}

// horizon is where what can be read begins.
func (ls levels) horizon(now int64) int64 {
	l := ls[len(ls)-1]
	return floor(now-l.keep-l.step, l.step) + l.step
}

// snap returns the first time at or after t that is a border of buckets that can be read. It depends on t and now alone, and
// keeps order, so that intervals that meet still do.
func (ls levels) snap(t, now int64) int64 {
	r := ls.finest(t, now)
	if r < 0 {
		return ls.horizon(now)
	}
	return ceil(t, ls[r].step)
}

var errPlan = errors.New("interval is not made of buckets")

// cover calls emit with rows of buckets of a level, from the start of the first to the end of the last, that make up [from, to) and
// are as coarse as they can be: at most two rows of each level, however long that is. Both ends must be what snap returns, or equal.
// An error of emit ends it.
func (ls levels) cover(from, to, now int64, emit func(level int, start, end int64) error) error {
	for from < to {
		r := len(ls) - 1
		for r >= 0 && (from+ls[r].step > to || from%ls[r].step != 0 || !ls[r].kept(from, now)) {
			r--
		}
		if r < 0 {
			return errPlan
		}
		end := from + ls[r].step
		if end < to {
			end = floor(to, ls[r].step)
			if r+1 < len(ls) { // where the next coarser level may go on
				end = min(end, ceil(from+1, ls[r+1].step))
			}
		}
		if err := emit(r, from, end); err != nil {
			return err
		}
		from = end
	}
	return nil
}
