package timeseries

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/redis/rueidis"
)

// maxUnionKeys bounds what Union reads in a cluster, of 12 KB each at most.
const maxUnionKeys = 2000

// DistinctTotal is how many different members there were.
type DistinctTotal struct {
	Count int64 // an estimate, with a standard error of 0.81 %
	Covered
}

// Count estimates how many different members there were in [from, to), in one round trip and one command.
func (d Distinct) Count(ctx context.Context, from, to time.Time) (DistinctTotal, error) {
	return d.Union(ctx, from, to)
}

// Union estimates how many different members there were in [from, to) in this series and others together. It is one round trip and
// one command; in a cluster the states of all buckets are read, up to 12 KB for each, and merged here, with the same result: if that
// were more than 2000 it returns [ErrTooMany].
func (d Distinct) Union(ctx context.Context, from, to time.Time, others ...string) (DistinctTotal, error) {
	total, err := d.union(ctx, from, to, append([]string{d.series}, others...))
	if err != nil {
		return DistinctTotal{}, fmt.Errorf("timeseries: distinct: %w", err)
	}
	return total, nil
}

func (d Distinct) union(ctx context.Context, from, to time.Time, series []string) (total DistinctTotal, err error) {
	keys, covered, err := d.s.bucketKeys(ctx, kindDistinct, from, to, series)
	if err != nil || len(keys) == 0 {
		return DistinctTotal{Covered: covered}, err
	}
	total.Covered = covered
	bound, cancel := d.s.bounds.Bound(ctx, sinceEpoch())
	defer cancel()
	client := d.s.client
	if !d.s.cluster || len(series) == 1 {
		total.Count, err = client.Do(bound, client.B().Pfcount().Key(keys...).Build()).AsInt64()
		return total, err
	}
	if len(keys) > maxUnionKeys {
		return total, ErrTooMany
	}
	cmds := make(rueidis.Commands, len(keys))
	for i, k := range keys {
		cmds[i] = client.B().Get().Key(k).Build()
	}
	var all registers
	for _, r := range client.DoMulti(bound, cmds...) {
		state, err := r.ToString()
		if rueidis.IsRedisNil(err) {
			continue
		}
		if err == nil {
			err = all.merge(state)
		}
		if err != nil {
			return total, err
		}
	}
	total.Count = all.count()
	return total, nil
}

// bucketKeys returns the keys of the buckets that make up [from, to), of a kind that has a key for each.
func (s *Store) bucketKeys(ctx context.Context, kind byte, from, to time.Time, series []string) ([]string, Covered, error) {
	now, buckets, err := s.ready(ctx)
	if err != nil {
		return nil, Covered{}, err
	}
	bounds, covered, err := s.interval(from, to, now)
	if err != nil {
		return nil, Covered{}, err
	}
	var keys []string
	for _, name := range series {
		if err := checkSeries(name); err != nil {
			return nil, covered, err
		}
		bases := make([]string, len(s.levels))
		for r, l := range s.levels {
			bases[r] = s.keys.base(kind, name, l.step, buckets)
		}
		err := s.levels.cover(bounds[0], min(bounds[1], s.limit(now.Unix())), now.Unix(), func(r int, start, end int64) error {
			step := s.levels[r].step
			if (end-start)/step > int64(maxKeys-len(keys)) {
				return ErrTooMany
			}
			for ; start < end; start += step {
				keys = append(keys, at(bases[r], start/step))
			}
			return nil
		})
		if err != nil {
			return nil, covered, err
		}
	}
	return keys, covered, nil
}

const (
	hllRegisters = 1 << 14
	hllHeader    = 16 // "HYLL", the encoding, and a count that may be out of date
	hllBits      = 6  // per register, in the dense encoding
	hllMost      = 64 - 14 + 1
)

// registers are the state of a HyperLogLog as Redis has them, which is documented in its hyperloglog.c.
type registers [hllRegisters]uint8

// merge takes the larger of each register and one of a Redis string.
func (g *registers) merge(s string) error {
	if len(s) < hllHeader || s[:4] != "HYLL" {
		return errReply
	}
	encoding, body := s[4], s[hllHeader:]
	if encoding == 0 {
		if len(body) < hllRegisters*hllBits/8 {
			return errReply
		}
		for i := range g { // registers lie one after the other, from the lowest bit on
			bit := i * hllBits
			v := uint16(body[bit/8])
			if bit/8+1 < len(body) {
				v |= uint16(body[bit/8+1]) << 8
			}
			g[i] = max(g[i], min(uint8(v>>(bit%8))&63, hllMost))
		}
		return nil
	}
	if encoding != 1 {
		return errReply
	}
	at := 0
	for i := 0; i < len(body); i++ {
		b, run, v := body[i], 0, uint8(0)
		switch b >> 6 {
		case 0: // up to 64 zeros
			run = int(b) + 1
		case 1: // up to 16384 zeros
			i++
			if i == len(body) {
				return errReply
			}
			run = int(b&63)<<8 + int(body[i]) + 1
		default: // up to 4 registers of a value
			run, v = int(b&3)+1, b>>2&31+1
		}
		if at+run > hllRegisters {
			return errReply
		}
		for range run {
			g[at] = max(g[at], v)
			at++
		}
	}
	if at != hllRegisters {
		return errReply
	}
	return nil
}

// count is the improved estimator of Ertl, "New cardinality estimation algorithms for HyperLogLog sketches" (2017), which
// Redis has too.
func (g *registers) count() int64 {
	var histogram [hllMost + 1]float64
	for _, v := range g {
		histogram[v]++
	}
	const m = float64(hllRegisters)
	z := m * tau(1-histogram[hllMost]/m)
	for k := hllMost - 1; k >= 1; k-- {
		z = (z + histogram[k]) / 2
	}
	z += m * sigma(histogram[0]/m)
	return int64(math.Round(m * m / (2 * math.Ln2 * z)))
}

func sigma(x float64) float64 {
	if x == 1 {
		return math.Inf(1)
	}
	sum, weight := x, 1.0
	for {
		x *= x
		before := sum
		sum += x * weight
		weight *= 2
		if sum == before {
			return sum
		}
	}
}

func tau(x float64) float64 {
	if x == 0 || x == 1 {
		return 0
	}
	sum, weight := 1-x, 1.0
	for {
		x = math.Sqrt(x)
		before := sum
		weight /= 2
		sum -= (1 - x) * (1 - x) * weight
		if sum == before {
			return sum / 3
		}
	}
}
