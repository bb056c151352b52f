package timeseries

import (
	"context"
	"errors"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/redis/rueidis"
)

// fewFields are read one by one. For more it is cheaper to read the whole chunk.
const fewFields = 12

// request is the part of a chunk that is wanted.
type request struct {
	level   int
	chunk   int64
	targets []int32 // per bucket of the chunk, 1 + the number of the point that it is for
	wanted  int
}

// want notes that some buckets, n from the first on, are for a point.
func (q *request) want(first, n int64, point int) {
	for i := range q.targets[first : first+n] {
		q.targets[first+int64(i)] = int32(point) + 1
	}
	q.wanted += int(n)
}

// requests returns what to read for points that lie between bounds, each border being one that snap would return. If it were more
// than most it is ErrTooMany, before it is made.
func (s *Store) requests(bounds []int64, now, buckets int64, most int) ([]request, error) {
	var reqs []request
	var current [maxLevels]struct{ index, start, end int64 } // each level's last request, and its chunk
	for r := range current {
		current[r].end = math.MinInt64
	}
	var spare []int32                        // to make targets of
	last, covered := 0, int64(math.MinInt64) // the level of the last row, and its end
	limit := s.limit(now)
	if largest := s.levels[len(s.levels)-1].step * buckets; (min(bounds[len(bounds)-1], limit)-bounds[0])/largest > int64(most) {
		return nil, ErrTooMany
	}
	for i := range len(bounds) - 1 {
		from, to := bounds[i], min(bounds[i+1], limit)
		if c, step := &current[last], s.levels[last].step; from == covered && to-from == step && to <= c.end {
			// As in most charts, the point is the next bucket. It is kept, for the one before it is.
			reqs[c.index].want((from-c.start)/step, 1, i)
			covered = to
			continue
		}
		err := s.levels.cover(from, to, now, func(r int, start, end int64) error {
			last, covered = r, end
			c, step := &current[r], s.levels[r].step
			width := step * buckets
			for start < end {
				if start >= c.end {
					if len(reqs) >= most {
						return ErrTooMany
					}
					c.start = floor(start, width)
					c.end = c.start + width
					c.index = int64(len(reqs))
					if spare = spare[min(int(buckets), len(spare)):]; len(spare) == 0 {
						spare = make([]int32, 8*buckets)
					}
					reqs = append(reqs, request{level: r, chunk: c.start / width, targets: spare[:buckets]})
				}
				until := min(end, c.end)
				reqs[c.index].want((start-c.start)/step, (until-start)/step, i)
				start = until
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return reqs, nil
}

// limit is a border after which there cannot be any events.
func (s *Store) limit(now int64) int64 {
	return ceil(now+int64(s.opts.MaxFuture/time.Second)+1, s.levels[len(s.levels)-1].step)
}

// fetch reads, in one round trip, what series have in some chunks, and calls add for each bucket that is there.
func (s *Store) fetch(ctx context.Context, kind byte, series []string, reqs []request, buckets int64, add func(series, point int, v value) error) error {
	if len(reqs)*len(series) == 0 {
		return nil
	}
	noDump := s.noDump.Load()
	cmds := make(rueidis.Commands, 0, len(reqs)*len(series))
	keys := make([]string, 0, cap(cmds))
	bases := make([]string, len(s.levels))
	for _, name := range series {
		for r, l := range s.levels {
			bases[r] = s.keys.base(kind, name, l.step, buckets)
		}
		for _, q := range reqs {
			k := at(bases[q.level], q.chunk)
			keys = append(keys, k)
			switch {
			case q.wanted <= fewFields:
				fields := make([]string, 0, fewFields)
				for i, target := range q.targets {
					if target > 0 {
						fields = append(fields, strconv.Itoa(i))
					}
				}
				cmds = append(cmds, s.client.B().Hmget().Key(k).Field(fields...).Build())
			case noDump:
				cmds = append(cmds, s.client.B().Hgetall().Key(k).Build())
			default:
				cmds = append(cmds, s.client.B().Dump().Key(k).Build())
			}
		}
	}
	bound, cancel := s.bounds.Bound(ctx, sinceEpoch())
	defer cancel()
	var again []int
	var pairs []pair
	var err error
	for i, r := range s.client.DoMulti(bound, cmds...) {
		q := &reqs[i%len(reqs)]
		pairs, err = pairsOf(pairs[:0], r, q, noDump)
		if errors.Is(err, errDump) {
			if errors.Is(err, errNoDump) {
				s.noDump.Store(true)
			}
			again = append(again, i)
			continue
		}
		if err == nil {
			err = q.deliver(pairs, i/len(reqs), add)
		}
		if err != nil {
			return err
		}
	}
	if len(again) == 0 {
		return nil
	}
	cmds = cmds[:0]
	for _, i := range again {
		cmds = append(cmds, s.client.B().Hgetall().Key(keys[i]).Build())
	}
	for j, r := range s.client.DoMulti(bound, cmds...) {
		q := &reqs[again[j]%len(reqs)]
		if pairs, err = pairsOf(pairs[:0], r, q, true); err == nil {
			err = q.deliver(pairs, again[j]/len(reqs), add)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// pair is a field of a chunk and what it holds.
type pair struct {
	field int64
	v     value
}

// pairsOf appends what a reply has to pairs. errDump means that it must be asked for in another way.
func pairsOf(pairs []pair, r rueidis.RedisResult, q *request, noDump bool) ([]pair, error) {
	emit := func(field int64, v value) { pairs = append(pairs, pair{field, v}) }
	switch {
	case q.wanted <= fewFields:
		values, err := r.ToArray()
		if err != nil {
			return pairs, err
		}
		if len(values) != q.wanted {
			return pairs, errReply
		}
		i := 0
		for field, target := range q.targets {
			if target == 0 {
				continue
			}
			if text, err := values[i].ToString(); err == nil {
				emit(int64(field), value{text: text, isText: true})
			}
			i++
		}
		return pairs, nil
	case noDump:
		hash, err := r.AsStrMap()
		for field, text := range hash {
			n, err := strconv.ParseInt(field, 10, 64)
			if err != nil {
				return pairs, errReply
			}
			emit(n, value{text: text, isText: true})
		}
		return pairs, err
	}
	dump, err := r.ToString()
	if err != nil {
		e, _ := rueidis.IsRedisErr(err)
		switch {
		case rueidis.IsRedisNil(err):
			return pairs, nil
		case e == nil:
		case strings.HasPrefix(e.Error(), "NOPERM"), strings.Contains(e.Error(), "unknown command"):
			return pairs, errNoDump
		case strings.HasPrefix(e.Error(), "WRONGTYPE"): // miniredis
			return pairs, errDump
		}
		return pairs, err
	}
	return pairs, decodeDump(dump, emit)
}

// deliver calls add with the pairs that are wanted.
func (q *request) deliver(pairs []pair, series int, add func(series, point int, v value) error) error {
	for _, p := range pairs {
		if p.field < 0 || p.field >= int64(len(q.targets)) || q.targets[p.field] == 0 {
			continue
		}
		if err := add(series, int(q.targets[p.field])-1, p.v); err != nil {
			return err
		}
	}
	return nil
}
