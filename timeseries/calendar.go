package timeseries

import "time"

// Calendar is a unit that is not always as many seconds long.
type Calendar uint8

// The units of Range.Calendar. Days begin at midnight in Range.Location, or with the first instant after it where clocks are
// set forward at midnight; a day that a place has skipped is not there. Weeks begin on Monday, as ISO 8601 has it.
const (
	Day Calendar = iota + 1
	Week
	Month
	Year
)

// dayStart returns the first instant of a day in loc: that at which its clocks show midnight, the first if they do so twice.
// Where they skip midnight it is when they do.
func dayStart(year int, month time.Month, day int, loc *time.Location) time.Time {
	t := time.Date(year, month, day, 0, 0, 0, 0, loc)
	midnight := time.Date(year, month, day, 0, 0, 0, 0, time.UTC)
	start, end := t.ZoneBounds()
	shows := func(t time.Time) bool {
		_, offset := t.Zone()
		return t.Unix()+int64(offset) == midnight.Unix()
	}
	if !shows(t) { // skipped; t is in either of the two zones
		if _, offset := t.Zone(); t.Unix()+int64(offset) < midnight.Unix() {
			return end
		}
		return start
	}
	if !start.IsZero() {
		_, before := start.Add(-1).Zone()
		if first := time.Unix(midnight.Unix()-int64(before), 0).In(loc); first.Before(start) && shows(first) {
			return first
		}
	}
	return t
}

// period returns the unit that t is in. Units follow one another without gap or overlap: where clocks are set back over
// midnight, what comes again belongs to the day that had begun.
func period(t time.Time, c Calendar, loc *time.Location) (from, to time.Time) {
	y, m, d := t.In(loc).Date()
	for !dayStart(y, m, d+1, loc).After(t) {
		d++
	}
	switch c {
	case Week:
		d -= (int(time.Date(y, m, d, 0, 0, 0, 0, time.UTC).Weekday()) + 6) % 7
	case Month:
		y, m, _ = time.Date(y, m, d, 0, 0, 0, 0, time.UTC).Date()
		d = 1
	case Year:
		y, _, _ = time.Date(y, m, d, 0, 0, 0, 0, time.UTC).Date()
		m, d = time.January, 1
	}
	from = dayStart(y, m, d, loc)
	for n := 1; ; n++ {
		switch c {
		case Week:
			to = dayStart(y, m, d+7*n, loc)
		case Month:
			to = dayStart(y, m+time.Month(n), 1, loc)
		case Year:
			to = dayStart(y+n, time.January, 1, loc)
		default:
			to = dayStart(y, m, d+n, loc)
		}
		if to.After(t) { // else the place has skipped it
			return from, to
		}
	}
}
