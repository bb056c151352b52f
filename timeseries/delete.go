package timeseries

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/redis/rueidis"
)

const (
	unlinkKeys     = 500 // per command
	deleteCommands = 100 // per round trip
	maxDelete      = 1_000_000
)

// Delete removes all that series has in [from, to): its counter, statistics, distinct count and top list. Both must be borders of
// the largest buckets, else it is ErrResolution, for what many events add up to cannot be taken apart. Two zero times stand for
// everything. After an error some may be left: repeat it. It does not reach what processes have not written yet. One that
// would be of more than a million keys deletes nothing and is ErrTooMany: ask for shorter intervals.
func (s *Store) Delete(ctx context.Context, series string, from, to time.Time) error {
	if err := s.delete(ctx, series, from, to); err != nil {
		return fmt.Errorf("timeseries: delete: %w", err)
	}
	return nil
}

func (s *Store) delete(ctx context.Context, series string, from, to time.Time) error {
	if err := checkSeries(series); err != nil {
		return err
	}
	at, buckets, err := s.ready(ctx)
	if err != nil {
		return err
	}
	now := at.Unix()
	first, last := int64(math.MinInt64), s.limit(now)
	if !from.IsZero() || !to.IsZero() {
		if err := checkTimes(from, to); err != nil {
			return err
		}
		if to.Before(from) {
			return errors.New("the interval ends before it begins")
		}
		for _, t := range []time.Time{from, to} {
			if !t.Equal(timeOf(floor(t.Unix(), s.levels[len(s.levels)-1].step))) {
				return ErrResolution
			}
		}
		first, last = from.Unix(), min(last, to.Unix())
	}
	var low, high [maxLevels]int64 // buckets of each level
	var all int64
	for r, l := range s.levels {
		low[r] = max(first, floor(now-l.keep-(buckets+2)*l.step, l.step)) / l.step // nothing is older
		high[r] = last / l.step
		n := max(0, high[r]-low[r])
		all += 2*n + 2*n/buckets
	}
	if all > maxDelete {
		return ErrTooMany
	}
	d := deletion{s: s}
	for r, l := range s.levels {
		low, high := low[r], high[r]
		for _, kind := range []byte{kindDistinct, kindTop} {
			base := s.keys.base(kind, series, l.step, buckets)
			for b := low; b < high && d.err == nil; b++ {
				d.unlink(ctx, base+strconv.FormatInt(b, 10))
			}
		}
		for _, kind := range []byte{kindCounter, kindStats} {
			base := s.keys.base(kind, series, l.step, buckets)
			for b := low; b < high && d.err == nil; {
				chunk := floor(b, buckets) / buckets
				end := (chunk + 1) * buckets
				key := base + strconv.FormatInt(chunk, 10)
				if b == chunk*buckets && end <= high {
					d.unlink(ctx, key)
				} else {
					fields := make([]string, 0, buckets)
					for f := b; f < min(end, high); f++ {
						fields = append(fields, strconv.FormatInt(f-chunk*buckets, 10))
					}
					d.do(ctx, s.client.B().Hdel().Key(key).Field(fields...).Build())
				}
				b = end
			}
		}
	}
	d.flush(ctx)
	d.run(ctx)
	return d.err
}

// deletion gathers keys into commands, and commands into round trips. After an error it does nothing more.
type deletion struct {
	s    *Store
	keys []string
	cmds rueidis.Commands
	err  error
}

func (d *deletion) unlink(ctx context.Context, key string) {
	if d.keys = append(d.keys, key); len(d.keys) == unlinkKeys {
		d.flush(ctx)
	}
}

func (d *deletion) flush(ctx context.Context) {
	if len(d.keys) > 0 {
		d.do(ctx, d.s.client.B().Unlink().Key(d.keys...).Build())
		d.keys = d.keys[:0]
	}
}

func (d *deletion) do(ctx context.Context, cmd rueidis.Completed) {
	if d.cmds = append(d.cmds, cmd); len(d.cmds) == deleteCommands {
		d.run(ctx)
	}
}

func (d *deletion) run(ctx context.Context) {
	if d.err == nil && len(d.cmds) > 0 {
		bound, cancel := d.s.bounds.Bound(ctx, sinceEpoch())
		defer cancel()
		for _, r := range d.s.client.DoMulti(bound, d.cmds...) {
			if err := r.Error(); err != nil && d.err == nil {
				d.err = err
			}
		}
	}
	d.cmds = d.cmds[:0]
}
