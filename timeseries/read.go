package timeseries

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Covered is the interval that an answer is about.
type Covered struct {
	// From and To are borders of buckets: each the first one, at or after what was asked for, of the smallest buckets that
	// are kept for that long. Intervals that meet are answered by intervals that meet.
	From, To time.Time
	// Exact says that this is what was asked for. An end in the bucket that is running, such as now, is exact too: it has
	// what has come so far.
	Exact bool
}

// Total is the sum of a counter.
type Total struct {
	Value int64
	Covered
}

// StatsTotal is what the values of an interval amount to. Without any, all is 0.
type StatsTotal struct {
	Count    int64
	Sum      float64
	Min, Max float64
	Covered
}

// Mean returns Sum / Count, and NaN if there are no values.
func (t StatsTotal) Mean() float64 { return t.Sum / float64(t.Count) }

// Sum returns the sum of [from, to), in one round trip and usually a handful of commands: it is made of the largest buckets
// that fit in, and of smaller ones at the ends. See [Covered]. What is only in another process' memory is not in it. Sums of
// intervals that meet add up: Sum(a, b) + Sum(b, c) = Sum(a, c).
func (c Counter) Sum(ctx context.Context, from, to time.Time) (Total, error) {
	var total Total
	var sum wide
	var err error
	total.Covered, err = c.s.sum(ctx, kindCounter, c.series, from, to, func(v value) error {
		n, err := v.int()
		if err != nil {
			return errReply
		}
		sum.add(n)
		return nil
	})
	var fits bool
	if total.Value, fits = sum.int64(); err == nil && !fits {
		err = ErrOverflow
	}
	if err != nil {
		return Total{}, fmt.Errorf("timeseries: sum: %w", err)
	}
	return total, nil
}

// Sum returns what the values of [from, to) amount to. See [Counter.Sum].
func (x Stats) Sum(ctx context.Context, from, to time.Time) (StatsTotal, error) {
	var all cell
	covered, err := x.s.sum(ctx, kindStats, x.series, from, to, func(v value) error { return all.addValue(v) })
	if err != nil {
		return StatsTotal{}, fmt.Errorf("timeseries: sum: %w", err)
	}
	return StatsTotal{all.count, all.sum, all.least, all.most, covered}, nil
}

func (s *Store) sum(ctx context.Context, kind byte, series string, from, to time.Time, add func(value) error) (Covered, error) {
	if err := checkSeries(series); err != nil {
		return Covered{}, err
	}
	now, buckets, err := s.ready(ctx)
	if err != nil {
		return Covered{}, err
	}
	bounds, covered, err := s.interval(from, to, now)
	if err != nil {
		return Covered{}, err
	}
	reqs, err := s.requests(bounds[:], now.Unix(), buckets, maxKeys)
	if err != nil {
		return Covered{}, err
	}
	return covered, s.fetch(ctx, kind, []string{series}, reqs, buckets, func(_, _ int, v value) error { return add(v) })
}

// interval is what [from, to) comes to.
func (s *Store) interval(from, to, at time.Time) (bounds [2]int64, c Covered, err error) {
	if err := checkTimes(from, to); err != nil {
		return bounds, c, err
	}
	if to.Before(from) {
		return bounds, c, errors.New("the interval ends before it begins")
	}
	now, step := at.Unix(), s.levels[0].step
	bounds = [2]int64{s.levels.snap(seconds(from), now), s.levels.snap(seconds(to), now)}
	c = Covered{From: timeOf(bounds[0]), To: timeOf(bounds[1])}
	c.Exact = c.From.Equal(from) && (c.To.Equal(to) || floor(to.Unix(), step) == floor(now, step))
	return bounds, c, nil
}

// seconds returns the first whole second at or after t.
func seconds(t time.Time) int64 {
	if t.Nanosecond() > 0 {
		return t.Unix() + 1
	}
	return t.Unix()
}

func timeOf(seconds int64) time.Time { return time.Unix(seconds, 0).UTC() }

// mostSeconds is before and after 1970 for how long times make sense: a million years.
const mostSeconds = 1 << 45

func checkTimes(from, to time.Time) error {
	for _, t := range []time.Time{from, to} {
		if t.Unix() < -mostSeconds || t.Unix() > mostSeconds {
			return errors.New("a time is more than a million years from 1970")
		}
	}
	return nil
}
