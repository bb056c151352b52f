package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/timeseries"
)

const (
	timeseriesDay    = 8640 // buckets of ten seconds
	timeseriesSpread = 10_000
	timeseriesStored = 20 // series whose memory is compared
)

var errWrongSum = errors.New("wrong sum")

// timeseriesCases count hits, and read what was counted. Their peer is what the pattern is known for: a key per bucket of ten
// seconds, INCR and EXPIRE per event, and a GET per bucket to read.
func timeseriesCases(b *bench) []benchCase {
	ctx := context.Background()
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{b.addr}})
	if err != nil {
		b.fail(err)
		return nil
	}
	b.closes = append(b.closes, client.Close)
	newStore := func(name string, opts timeseries.Options) *timeseries.Store {
		opts.Prefix, opts.Timeout = b.prefix+name, 10*time.Second
		s, err := timeseries.New(client, "bench", opts)
		b.fail(err)
		b.closes = append(b.closes, func() { _ = s.Close(context.Background()) })
		return s
	}
	// The day before is kept in full at ten seconds, so that all of its times can be asked for.
	kept := []timeseries.Resolution{
		{Step: 10 * time.Second, Keep: 72 * time.Hour}, {Step: time.Minute, Keep: 7 * 24 * time.Hour}, {Step: time.Hour, Keep: 400 * 24 * time.Hour},
	}
	stored := newStore("day", timeseries.Options{Resolutions: kept, FlushEvery: time.Hour})
	now, err := stored.Now(ctx)
	b.fail(err)
	day := now.Truncate(24*time.Hour).AddDate(0, 0, -1)
	bucketKey := func(series string, t time.Time) string {
		return b.prefix + "talk:" + series + ":" + strconv.FormatInt(t.Unix()/10, 10)
	}
	days := func(i int) time.Time { return day.Add(time.Duration(i) * 10 * time.Second) }
	count := func(i int) int64 { return int64(i*2654435761) >> 7 % 4096 }
	sums := make([]int64, timeseriesDay+1) // before each bucket
	for i := range timeseriesDay {
		sums[i+1] = sums[i] + count(i)
	}
	var usedBefore float64
	for n := range timeseriesStored + 1 {
		if n == 1 { // connections and scripts have their memory
			usedBefore = timeseriesMemory(b, client)
		}
		for i := range timeseriesDay {
			b.fail(stored.Counter("hits"+strconv.Itoa(n)).IncrAt(ctx, days(i), count(i)))
		}
		b.fail(stored.Flush(ctx))
	}
	usedOurs := timeseriesMemory(b, client)
	for n := range timeseriesStored {
		cmds := make(rueidis.Commands, timeseriesDay)
		for i := range cmds {
			cmds[i] = client.B().Set().Key(bucketKey("hits"+strconv.Itoa(n), days(i))).Value(strconv.FormatInt(count(i), 10)).ExSeconds(86400).Build()
		}
		for _, r := range client.DoMulti(ctx, cmds...) {
			b.fail(r.Error())
		}
	}
	usedTalk := timeseriesMemory(b, client)

	hits := stored.Counter("hits0")
	gets := func(ctx context.Context, buckets int) (int64, error) {
		cmds := make(rueidis.Commands, buckets)
		for i := range cmds {
			cmds[i] = client.B().Get().Key(bucketKey("hits0", days(i))).Build()
		}
		var sum int64
		for _, r := range client.DoMulti(ctx, cmds...) {
			n, err := r.AsInt64()
			if err != nil {
				return 0, err
			}
			sum += n
		}
		return sum, nil
	}
	check := func(got int64, err error, want int64) error {
		if err == nil && got != want {
			return errWrongSum
		}
		return err
	}
	cases := []benchCase{
		{name: "timeseries/today", goroutines: 1, contestants: []contestant{
			{"sum", func(ctx context.Context, _, _ int) error {
				i := rand.IntN(timeseriesDay) + 1
				total, err := hits.Sum(ctx, day, days(i))
				return check(total.Value, err, sums[i])
			}},
			{"get-per-bucket", func(ctx context.Context, _, _ int) error {
				i := rand.IntN(timeseriesDay) + 1
				n, err := gets(ctx, i)
				return check(n, err, sums[i])
			}},
		}},
		{name: "timeseries/day_chart", goroutines: 1, contestants: []contestant{
			{"range", func(ctx context.Context, _, _ int) error {
				series, err := hits.Range(ctx, timeseries.Range{From: day, To: day.AddDate(0, 0, 1), Step: 10 * time.Second})
				var sum int64
				for i := range series.Points {
					sum += series.Points[i].Value
				}
				return check(sum, err, sums[timeseriesDay])
			}},
			{"get-per-bucket", func(ctx context.Context, _, _ int) error {
				n, err := gets(ctx, timeseriesDay)
				return check(n, err, sums[timeseriesDay])
			}},
		}},
	}

	counted := newStore("hot", timeseries.Options{})
	gathered := newStore("gathered", timeseries.Options{FlushEvery: 100 * time.Millisecond})
	series := make([]string, timeseriesSpread)
	for i := range series {
		series[i] = "series-" + strconv.Itoa(i)
	}
	spread := func(w, n int) string { return series[(w*7919+n*31)%timeseriesSpread] }
	hot := func(int, int) string { return series[0] }
	incr := func(s *timeseries.Store, at func(int, int) string) func(context.Context, int, int) error {
		return func(ctx context.Context, w, n int) error { return s.Counter(at(w, n)).Incr(ctx, 1) }
	}
	do := func(ctx context.Context, cmds ...rueidis.Completed) error {
		for _, r := range client.DoMulti(ctx, cmds...) {
			if err := r.Error(); err != nil {
				return err
			}
		}
		return nil
	}
	talk := func(ctx context.Context, w, n int) error {
		k := bucketKey(hot(w, n), time.Now())
		return do(ctx, client.B().Incr().Key(k).Build(), client.B().Expire().Key(k).Seconds(6*3600).Build())
	}
	// One event in three resolutions, each a key per bucket, or a hash per 120 buckets as ours.
	levels := []struct{ step, keep int64 }{{10, 6 * 3600}, {60, 7 * 86400}, {3600, 400 * 86400}}
	fanOut := func(ctx context.Context, w, n int) error {
		cmds := make(rueidis.Commands, 0, 6)
		for _, l := range levels {
			k := b.prefix + "fan:" + spread(w, n) + ":" + strconv.FormatInt(l.step, 10) + ":" + strconv.FormatInt(time.Now().Unix()/l.step, 10)
			cmds = append(cmds, client.B().Incr().Key(k).Build(), client.B().Expire().Key(k).Seconds(l.keep).Build())
		}
		return do(ctx, cmds...)
	}
	fanHash := func(ctx context.Context, w, n int) error {
		cmds := make(rueidis.Commands, 0, 6)
		for _, l := range levels {
			bucket := time.Now().Unix() / l.step
			k := b.prefix + "hash:" + spread(w, n) + ":" + strconv.FormatInt(l.step, 10) + ":" + strconv.FormatInt(bucket/120, 10)
			cmds = append(cmds, client.B().Hincrby().Key(k).Field(strconv.FormatInt(bucket%120, 10)).Increment(1).Build(),
				client.B().Expire().Key(k).Seconds(l.keep).Nx().Build())
		}
		return do(ctx, cmds...)
	}
	for _, g := range []int{64, 512} {
		cases = append(cases, benchCase{name: "timeseries/incr_hot", goroutines: g, contestants: []contestant{
			{"incr", incr(counted, hot)}, {"incr-expire", talk},
		}})
	}
	buckets := float64(timeseriesStored * timeseriesDay)
	return append(cases,
		benchCase{name: "timeseries/incr_hot_coalesced", goroutines: 64, contestants: []contestant{
			{"incr", incr(gathered, hot)}, {"incr-expire", talk},
		}},
		benchCase{name: "timeseries/incr_spread", goroutines: 64, contestants: []contestant{
			{"incr", incr(counted, spread)}, {"incr-expire", fanOut}, {"hincrby-expire", fanHash},
		}},
		// Three resolutions together hold 8,640 + 1,440 + 24 buckets per day; the peer has the first alone.
		benchCase{
			name: "timeseries/bytes", goroutines: 1, contestants: []contestant{{name: "timeseries"}, {name: "key-per-bucket"}},
			fixed: []float64{buckets * (8640 + 1440 + 24) / 8640 / (usedOurs - usedBefore), buckets / (usedTalk - usedOurs)},
		},
	)
}

// timeseriesMemory returns how many bytes the server uses, but for clients.
func timeseriesMemory(b *bench, client rueidis.Client) float64 {
	info, err := client.Do(context.Background(), client.B().Info().Section("memory").Build()).ToString()
	b.fail(err)
	var used [2]float64
	for i, field := range []string{"used_memory:", "mem_clients_normal:"} {
		_, rest, _ := strings.Cut(info, field)
		line, _, _ := strings.Cut(rest, "\r")
		used[i], err = strconv.ParseFloat(line, 64)
		b.fail(err)
	}
	return used[0] - used[1]
}
