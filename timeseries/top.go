package timeseries

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/redis/rueidis"
)

// Ranked is a member of a top list: it was counted at most Count and at least Count-Error times, in the interval that is
// covered.
type Ranked struct {
	Member string
	Count  int64
	Error  int64
}

// TopTotal is a top list.
type TopTotal struct {
	Ranked []Ranked // the largest Count first
	Covered
}

// List returns the k members with the largest counts in [from, to), in one round trip. As long as all buckets have fewer
// than Options.TopSize members Error is 0. A member that is not among all those found was counted at most Error times;
// Error is at most what was counted in all, divided by TopSize.
func (t Top) List(ctx context.Context, from, to time.Time, k int) (TopTotal, error) {
	total, err := t.list(ctx, from, to, k)
	if err != nil {
		return TopTotal{}, fmt.Errorf("timeseries: top: %w", err)
	}
	return total, nil
}

func (t Top) list(ctx context.Context, from, to time.Time, k int) (total TopTotal, err error) {
	if k < 1 {
		return total, fmt.Errorf("k must be at least 1, got %d", k)
	}
	keys, covered, err := t.s.bucketKeys(ctx, kindTop, from, to, []string{t.series})
	total.Covered = covered
	if err != nil || len(keys) == 0 {
		return total, err
	}
	bound, cancel := t.s.bounds.Bound(ctx, sinceEpoch())
	defer cancel()
	cmds := make(rueidis.Commands, len(keys))
	for i, key := range keys {
		cmds[i] = t.s.client.B().Zrange().Key(key).Min("0").Max("-1").Withscores().Build()
	}
	// In a bucket that is full whoever is not in it may have been counted as often as the smallest, and whoever is, as often
	// before coming in.
	above := map[string]int64{} // what is surely counted
	var doubt int64
	for _, r := range t.s.client.DoMulti(bound, cmds...) {
		members, err := r.AsZScores()
		if err != nil {
			return total, err
		}
		var smallest int64
		if len(members) >= t.s.opts.TopSize {
			smallest = int64(members[0].Score)
		}
		doubt = saturated(doubt, smallest)
		for _, m := range members {
			above[m.Member] = saturated(above[m.Member], int64(m.Score)-smallest)
		}
	}
	total.Ranked = make([]Ranked, 0, len(above))
	for m, n := range above {
		total.Ranked = append(total.Ranked, Ranked{m, saturated(n, doubt), doubt})
	}
	slices.SortFunc(total.Ranked, func(a, b Ranked) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), strings.Compare(a.Member, b.Member))
	})
	total.Ranked = total.Ranked[:min(k, len(total.Ranked))]
	return total, nil
}

// saturated returns a+b, or the largest int64. Both are positive.
func saturated(a, b int64) int64 {
	if sum := a + b; sum >= a {
		return sum
	}
	return math.MaxInt64
}
