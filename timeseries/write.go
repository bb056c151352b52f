package timeseries

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"time"
)

// Incr adds n to the bucket of now. n may be negative.
//
// If it returns nil, n is counted in all resolutions, unless Options.FlushEvery is set: then it will be, see there. With
// [ErrUnknown] it may have been; with any other error it is not. ErrUnknown also comes with a ctx that ends meanwhile.
// Concurrent calls share round trips, and those for the same bucket an outcome: one that overflows fails with the others of
// its round trip.
func (c Counter) Incr(ctx context.Context, n int64) error { return c.IncrAt(ctx, time.Time{}, n) }

// IncrAt is Incr for an event that happened at t; the zero time is now. Late events count in all resolutions that still
// keep their bucket. It returns [ErrTooLate] or [ErrFuture] if t is out of bounds.
func (c Counter) IncrAt(ctx context.Context, t time.Time, n int64) error {
	if n == math.MinInt64 {
		return fmt.Errorf("timeseries: incr: n is %d: %w", n, ErrOverflow)
	}
	return c.s.write(ctx, "incr", kindCounter, c.series, t, 0, func(o *op) bool { return o.count(n) })
}

// Observe adds a value to the bucket of now: neither NaN nor infinite. See [Counter.Incr].
func (x Stats) Observe(ctx context.Context, v float64) error { return x.ObserveAt(ctx, time.Time{}, v) }

// ObserveAt is Observe for a value as of t; see [Counter.IncrAt].
func (x Stats) ObserveAt(ctx context.Context, t time.Time, v float64) error {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return errors.New("timeseries: observe: the value is not finite")
	}
	return x.s.write(ctx, "observe", kindStats, x.series, t, 0, func(o *op) bool { return o.stats.merge(cell{1, v, v, v}) })
}

// Add adds members to the bucket of now, of at most 1024 bytes each and at most 1000 in a call. Members that were there
// before change nothing, so it may be repeated. See [Counter.Incr].
func (d Distinct) Add(ctx context.Context, members ...string) error {
	return d.AddAt(ctx, time.Time{}, members...)
}

// AddAt is Add for an event at t; see [Counter.IncrAt].
func (d Distinct) AddAt(ctx context.Context, t time.Time, members ...string) error {
	if len(members) == 0 {
		return nil
	}
	if len(members) > maxCallMembers {
		return fmt.Errorf("timeseries: add: more than %d members", maxCallMembers)
	}
	for _, m := range members {
		if len(m) > maxMember {
			return fmt.Errorf("timeseries: add: a member has more than %d bytes", maxMember)
		}
	}
	return d.s.write(ctx, "add", kindDistinct, d.series, t, len(members), func(o *op) bool {
		for _, m := range members {
			o.members[m] = 1
		}
		return true
	})
}

// Add counts a member n times in the bucket of now. n is 1 to 2^53, which is also where counts stop. A member has at
// most 1024 bytes. See [Counter.Incr].
func (t Top) Add(ctx context.Context, member string, n int64) error {
	return t.AddAt(ctx, time.Time{}, member, n)
}

// AddAt is Add for an event at the time when; see [Counter.IncrAt].
func (t Top) AddAt(ctx context.Context, when time.Time, member string, n int64) error {
	if n < 1 || n > maxExact {
		return fmt.Errorf("timeseries: add: n must be 1 to 2^53, got %d", n)
	}
	if len(member) > maxMember {
		return fmt.Errorf("timeseries: add: the member has more than %d bytes", maxMember)
	}
	return t.s.write(ctx, "add", kindTop, t.series, when, 1, func(o *op) bool {
		o.members[member] = min(o.members[member]+n, maxExact)
		return true
	})
}

func checkSeries(series string) error {
	if len(series) > maxSeriesName {
		return fmt.Errorf("the series' name has more than %d bytes", maxSeriesName)
	}
	return nil
}

// write merges an event into the op of its bucket and waits for its round trip, unless there is FlushEvery. merge returns
// false if it cannot.
func (s *Store) write(ctx context.Context, what string, kind byte, series string, t time.Time, members int, merge func(*op) bool) error {
	if err := checkSeries(series); err != nil {
		return fmt.Errorf("timeseries: %s: %w", what, err)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("timeseries: %s: %w", what, err)
	}
	now, _, err := s.ready(ctx)
	if err != nil {
		return fmt.Errorf("timeseries: %s: %w", what, err)
	}
	if t.IsZero() {
		t = now
	} else if err := s.checkTime(t, now); err != nil {
		s.drop(ctx, 1, err)
		return fmt.Errorf("timeseries: %s: %w", what, err)
	}
	l := &s.lanes[maphash.String(seed, series)%uint64(len(s.lanes))]
	k := opKey{series, floor(t.Unix(), s.levels[0].step), kind}

	b, o := l.join(k, merge)
	if o == nil {
		l.mu.Lock()
		b, o, err = l.add(k, members, merge)
		l.mu.Unlock()
	}
	switch {
	case errors.Is(err, ErrFull):
		s.drop(ctx, 1, err)
		return err
	case err != nil || s.opts.FlushEvery > 0:
		return err
	}
	if ctx.Done() == nil {
		<-b.done
	} else {
		select {
		case <-b.done:
		case <-ctx.Done():
			return fmt.Errorf("timeseries: %s: %w: %w", what, ErrUnknown, ctx.Err())
		}
	}
	if o.err != nil {
		return fmt.Errorf("timeseries: %s: %w", what, o.err)
	}
	return nil
}

func (s *Store) checkTime(t, now time.Time) error {
	if t.Sub(now) > s.opts.MaxFuture {
		return ErrFuture
	}
	if late := now.Sub(t); s.opts.MaxLate > 0 && late > s.opts.MaxLate || late > s.opts.Resolutions[len(s.levels)-1].Keep {
		return ErrTooLate
	}
	return nil
}
