package timeseries

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"
)

// frame is which points a Range has.
type frame struct {
	bounds  []int64 // borders, one more than points
	kept    []int64 // the same, none before the horizon
	loc     *time.Location
	step    time.Duration
	at      time.Time
	buckets int64
	covered Covered
	reqs    []request // what to read of each series
}

func (f *frame) start(i int) time.Time { return time.Unix(f.bounds[i], 0).In(f.loc) }

func (f *frame) partial(i int) bool {
	now := f.at.Unix()
	return f.bounds[i] <= now && now < f.bounds[i+1] || f.bounds[i] < f.kept[i] && f.kept[i] < f.bounds[i+1]
}

// fill calls zero, or blend with the numbers of two points and how far it is from the one to the other, for points that are not
// known, but could have been.
func (f *frame) fill(how Fill, known func(int) bool, zero func(int), blend func(i, a, b int, part float64)) {
	now := f.at.Unix()
	last := -1 // that is known
	for i := range len(f.bounds) - 1 {
		if known(i) {
			if how == FillLinear && last >= 0 {
				for j := last + 1; j < i; j++ {
					blend(j, last, i, float64(f.bounds[j]-f.bounds[last])/float64(f.bounds[i]-f.bounds[last]))
				}
			}
			last = i
			continue
		}
		if f.bounds[i] < f.kept[i] || f.bounds[i] > now {
			continue
		}
		switch {
		case how == FillZero:
			zero(i)
		case how == FillPrevious && last >= 0:
			blend(i, last, last, 0)
		}
	}
}

func (s *Store) frame(ctx context.Context, r Range, series []string) (*frame, error) {
	for _, name := range series {
		if err := checkSeries(name); err != nil {
			return nil, err
		}
	}
	if r.MaxPoints == 0 {
		r.MaxPoints = defaultMaxPoints
	}
	switch {
	case r.MaxPoints < 1 || r.MaxPoints > maxMaxPoints:
		return nil, fmt.Errorf("Range.MaxPoints must be 1 to %d, got %d", maxMaxPoints, r.MaxPoints)
	case !r.From.Before(r.To):
		return nil, errors.New("Range.To must be after From")
	case r.Calendar > Year:
		return nil, fmt.Errorf("Range.Calendar must be Day, Week, Month or Year, got %d", r.Calendar)
	case r.Calendar > 0 && r.Step != 0:
		return nil, errors.New("Range must not have both Step and Calendar")
	case r.Step < 0 || r.Step%time.Second != 0:
		return nil, fmt.Errorf("Range.Step must be whole seconds, got %v", r.Step)
	case r.Fill > FillLinear:
		return nil, fmt.Errorf("Range.Fill must be one of the constants, got %d", r.Fill)
	}
	if err := checkTimes(r.From, r.To); err != nil {
		return nil, err
	}
	at, buckets, err := s.ready(ctx)
	if err != nil {
		return nil, err
	}
	f := &frame{at: at.UTC(), buckets: buckets, loc: time.UTC}
	if r.Calendar > 0 {
		err = s.calendarBounds(f, r)
	} else {
		err = s.stepBounds(f, r)
	}
	if err != nil {
		return nil, err
	}
	horizon := s.levels.horizon(at.Unix())
	f.kept = f.bounds
	if f.bounds[0] < horizon {
		f.kept = make([]int64, len(f.bounds))
		for i, b := range f.bounds {
			f.kept[i] = max(b, horizon)
		}
		f.covered.Exact = false
	}
	f.covered.From, f.covered.To = timeOf(f.kept[0]).In(f.loc), timeOf(f.kept[len(f.kept)-1]).In(f.loc)
	if len(f.bounds)-1 > maxMaxPoints/max(1, len(series)) {
		return nil, ErrTooMany
	}
	f.reqs, err = s.requests(f.kept, at.Unix(), buckets, maxKeys/max(1, len(series)))
	return f, err
}

func (s *Store) calendarBounds(f *frame, r Range) error {
	if r.Location != nil {
		f.loc = r.Location
	}
	now := f.at.Unix()
	start, next := period(r.From, r.Calendar, f.loc)
	for {
		b := start.Unix()
		if b >= s.levels.horizon(now) && s.levels.snap(b, now) != b {
			return ErrResolution
		}
		f.bounds = append(f.bounds, b)
		if !start.Before(r.To) {
			break
		}
		if len(f.bounds) > r.MaxPoints {
			return ErrTooMany
		}
		start = next
		_, next = period(start, r.Calendar, f.loc)
	}
	f.covered.Exact = true
	return nil
}

// maxRoundStep is more seconds than there are between any two times that can be asked for.
const maxRoundStep = 1 << 50

// roundSteps are the widths that a Range without a Step may have, in seconds, if they will do.
var roundSteps = []int64{
	1, 2, 5, 10, 15, 20, 30, 60, 120, 300, 600, 900, 1200, 1800, 3600, 7200, 3 * 3600, 4 * 3600, 6 * 3600, 12 * 3600, 24 * 3600,
}

func (s *Store) stepBounds(f *frame, r Range) error {
	now := f.at.Unix()
	from, to := r.From.Unix(), seconds(r.To)
	step := int64(r.Step / time.Second)
	f.covered.Exact = true
	if step%s.levels[0].step != 0 {
		return ErrResolution
	}
	if step == 0 {
		step = 1
	}
	for { // a wider step may reach back to where it must be wider still
		first := max(floor(from, step), s.levels.horizon(now))
		l := s.levels[max(0, s.levels.finest(first, now))]
		wider := ceil(step, l.step)
		if r.Step == 0 {
			wider = roundStep(step, l.step, from, to, int64(r.MaxPoints))
		}
		if wider == step {
			break
		}
		step = wider
		f.covered.Exact = r.Step == 0
	}
	from, to = floor(from, step), ceil(to, step)
	if (to-from)/step > int64(r.MaxPoints) || step > math.MaxInt64/int64(time.Second) {
		return ErrTooMany
	}
	f.step = time.Duration(step) * time.Second
	f.bounds = make([]int64, 0, (to-from)/step+1)
	for b := from; b <= to; b += step {
		f.bounds = append(f.bounds, b)
	}
	return nil
}

// roundStep returns a width of at least least that is a multiple of unit, of which few enough cover an interval: a round one.
func roundStep(least, unit, from, to, points int64) int64 {
	fits := func(step int64) bool {
		return step >= least && step%unit == 0 && (ceil(to, step)-floor(from, step))/step <= points
	}
	for _, step := range roundSteps {
		if fits(step) {
			return step
		}
	}
	step := max(least, unit*roundSteps[len(roundSteps)-1])
	for step < maxRoundStep && !fits(step) {
		step *= 2
	}
	return step
}
