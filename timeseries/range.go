package timeseries

import (
	"context"
	"fmt"
	"math"
	"time"
)

// Fill says what a point has that nothing was recorded for.
type Fill uint8

// How gaps are filled.
const (
	FillZero     Fill = iota // 0
	FillNull                 // nothing: see Point.Filled
	FillPrevious             // what the last point before it has; nothing before the first
	FillLinear               // a straight line between its neighbours; nothing before the first and after the last
)

const (
	defaultMaxPoints = 11_000
	maxMaxPoints     = 1_000_000
)

// Range says which points are wanted: those of all buckets that [From, To) touches.
type Range struct {
	From, To time.Time

	// Step is the width of the buckets, which begin at multiples of it since 1970-01-01 UTC: a multiple of the store's
	// smallest Step, else the answer is ErrResolution. Where From is older than that is kept, they are wider, and
	// Exact is false. 0 takes the smallest round width that keeps to MaxPoints.
	Step time.Duration

	// Calendar, in place of Step, is for days, weeks, months or years in Location, UTC if it is nil. Where no resolution that is
	// kept for that long has a border at each beginning, the answer is ErrResolution: midnight in Kathmandu, for one, is
	// 18:15 UTC, which needs buckets of at most 15 minutes.
	Calendar Calendar
	Location *time.Location

	// Fill is for buckets without events, of the past and since when the store keeps events.
	Fill Fill

	// MaxPoints bounds the points of each series: if there were more, it is ErrTooMany. So it is if all series of a
	// RangeMany had more than 1,000,000 together. At most 1,000,000. Defaults to 11,000.
	MaxPoints int
}

// Point is one bucket of a counter.
type Point struct {
	Start, End time.Time
	Value      int64
	Partial    bool // it is not over yet, or its beginning is kept no more
	Missing    bool // nothing was recorded
	Filled     bool // Value is what Fill says; a point that is Missing and not Filled has no value
}

// Series is the answer to a [Range] of a counter.
type Series struct {
	Points []Point
	Step   time.Duration // 0 with Calendar
	At     time.Time     // when it was read
	// Err is ErrOverflow if a point would leave its range. There are no Points then. Only RangeMany sets it.
	Err error
	Covered
}

// Rates returns each point's value per second. The bucket that is running, and one whose beginning is kept no more,
// counts for as long as it has been, or is, there. Points without a value or duration have NaN.
func (s Series) Rates() []float64 {
	rates := make([]float64, len(s.Points))
	for i, p := range s.Points {
		rates[i] = math.NaN()
		if d := s.elapsed(p.Start, p.End, s.At); d > 0 && (!p.Missing || p.Filled) {
			rates[i] = float64(p.Value) / d.Seconds()
		}
	}
	return rates
}

// elapsed returns how much of a bucket has been counted.
func (c Covered) elapsed(start, end, now time.Time) time.Duration {
	if end.After(now) {
		end = now
	}
	if start.Before(c.From) {
		start = c.From
	}
	return end.Sub(start)
}

// StatsPoint is one bucket of statistics. A filled one has Min, Mean and Max, and neither Count nor Sum.
type StatsPoint struct {
	Start, End     time.Time
	Count          int64
	Sum            float64
	Min, Mean, Max float64
	Partial        bool // it is not over yet, or its beginning is kept no more
	Missing        bool // nothing was recorded
	Filled         bool // Min, Mean and Max are what Fill says; a point that is Missing and not Filled has none
}

// StatsSeries is the answer to a [Range] of statistics.
type StatsSeries struct {
	Points []StatsPoint
	Step   time.Duration // 0 with Calendar
	At     time.Time     // when it was read
	Covered
}

// Range returns the points of r, in one round trip.
func (c Counter) Range(ctx context.Context, r Range) (Series, error) {
	all, err := c.s.rangeMany(ctx, r, []string{c.series})
	if err != nil {
		return Series{}, fmt.Errorf("timeseries: range: %w", err)
	}
	if err := all[0].Err; err != nil {
		return Series{}, fmt.Errorf("timeseries: range: %w", err)
	}
	return all[0], nil
}

// RangeMany returns the points of the counters of several series, in their order, in one round trip: in a cluster one per
// node, at the same time. One that overflows has a Series.Err, and does not keep the others from being answered.
func (s *Store) RangeMany(ctx context.Context, r Range, series ...string) ([]Series, error) {
	all, err := s.rangeMany(ctx, r, series)
	if err != nil {
		return nil, fmt.Errorf("timeseries: range: %w", err)
	}
	return all, nil
}

func (s *Store) rangeMany(ctx context.Context, r Range, series []string) ([]Series, error) {
	f, err := s.frame(ctx, r, series)
	if err != nil {
		return nil, err
	}
	all := make([]Series, len(series))
	sums := make([][]wide, len(series)) // of those that have left the range of an int64, if only on the way
	for i := range all {
		all[i] = Series{Points: make([]Point, len(f.bounds)-1), Step: f.step, At: f.at, Covered: f.covered}
		end := f.start(0)
		for j := range all[i].Points {
			p := &all[i].Points[j]
			p.Start, end = end, f.start(j+1)
			p.End, p.Partial, p.Missing = end, f.partial(j), true
		}
	}
	err = s.fetch(ctx, kindCounter, series, f.reqs, f.buckets, func(i, j int, v value) error {
		n, err := v.int()
		if err != nil {
			return errReply
		}
		p := &all[i].Points[j]
		p.Missing = false
		if sums[i] == nil {
			if sum, fits := add(p.Value, n); fits {
				p.Value = sum
				return nil
			}
			sums[i] = make([]wide, len(all[i].Points))
			for k := range sums[i] {
				sums[i][k].add(all[i].Points[k].Value)
			}
		}
		sums[i][j].add(n)
		return nil
	})
	if err != nil {
		return nil, err
	}
	for i := range all {
		points := all[i].Points
		for j := range sums[i] {
			var fits bool
			if points[j].Value, fits = sums[i][j].int64(); !fits {
				all[i].Err, all[i].Points = ErrOverflow, nil
			}
		}
		if all[i].Err != nil {
			continue
		}
		f.fill(r.Fill, func(j int) bool { return !points[j].Missing }, func(j int) { points[j].Filled = true },
			func(j, a, b int, part float64) {
				points[j].Filled = true
				points[j].Value = between(points[a].Value, points[b].Value, part)
			})
	}
	return all, nil
}

// between returns what lies at a part of the way from a to b.
func between(a, b int64, part float64) int64 {
	if a == b {
		return a
	}
	v := math.Round(float64(a) + (float64(b)-float64(a))*part)
	return max(min(a, b), min(max(a, b), int64(max(math.MinInt64, min(v, math.MaxInt64-1023)))))
}

// Range returns the points of r, in one round trip.
func (x Stats) Range(ctx context.Context, r Range) (StatsSeries, error) {
	series, err := x.rangeOf(ctx, r)
	if err != nil {
		return StatsSeries{}, fmt.Errorf("timeseries: range: %w", err)
	}
	return series, nil
}

func (x Stats) rangeOf(ctx context.Context, r Range) (StatsSeries, error) {
	f, err := x.s.frame(ctx, r, []string{x.series})
	if err != nil {
		return StatsSeries{}, err
	}
	cells := make([]cell, len(f.bounds)-1)
	err = x.s.fetch(ctx, kindStats, []string{x.series}, f.reqs, f.buckets, func(_, j int, v value) error { return cells[j].addValue(v) })
	if err != nil {
		return StatsSeries{}, err
	}
	series := StatsSeries{Points: make([]StatsPoint, len(cells)), Step: f.step, At: f.at, Covered: f.covered}
	points := series.Points
	for j, c := range cells {
		points[j] = StatsPoint{
			Start: f.start(j), End: f.start(j + 1), Count: c.count, Sum: c.sum, Min: c.least, Max: c.most,
			Partial: f.partial(j), Missing: c.count == 0,
		}
		if c.count > 0 {
			points[j].Mean = c.sum / float64(c.count)
		}
	}
	f.fill(r.Fill, func(j int) bool { return !points[j].Missing }, func(j int) { points[j].Filled = true },
		func(j, a, b int, part float64) {
			mix := func(a, b float64) float64 { return a*(1-part) + b*part }
			p, a1, b1 := &points[j], &points[a], &points[b]
			p.Filled, p.Min, p.Mean, p.Max = true, mix(a1.Min, b1.Min), mix(a1.Mean, b1.Mean), mix(a1.Max, b1.Max)
		})
	return series, nil
}
