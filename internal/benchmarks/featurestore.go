package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"reflect"
	"strconv"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/featurestore"
)

const (
	featureEntities = 2_000
	featureMany     = 100   // rows of a batch
	featureLoad     = 5_000 // rows of a load
	featurePipeline = 500   // rows of a pipeline
)

// featureFifty is a row of mixed features, in sevenths: two counts, three floats, a bool, a short text.
type featureFifty struct {
	F00 int64   `feature:"orders_count_last_7_days_00"`
	F01 float64 `feature:"basket_value_average_01"`
	F02 float64 `feature:"conversion_rate_30_days_02"`
	F03 bool    `feature:"is_active_subscriber_03"`
	F04 string  `feature:"preferred_channel_name_04"`
	F05 int64   `feature:"returns_count_last_90d_05"`
	F06 float64 `feature:"session_length_average_06"`
	F07 int64   `feature:"orders_count_last_7_days_07"`
	F08 float64 `feature:"basket_value_average_08"`
	F09 float64 `feature:"conversion_rate_30_days_09"`
	F10 bool    `feature:"is_active_subscriber_10"`
	F11 string  `feature:"preferred_channel_name_11"`
	F12 int64   `feature:"returns_count_last_90d_12"`
	F13 float64 `feature:"session_length_average_13"`
	F14 int64   `feature:"orders_count_last_7_days_14"`
	F15 float64 `feature:"basket_value_average_15"`
	F16 float64 `feature:"conversion_rate_30_days_16"`
	F17 bool    `feature:"is_active_subscriber_17"`
	F18 string  `feature:"preferred_channel_name_18"`
	F19 int64   `feature:"returns_count_last_90d_19"`
	F20 float64 `feature:"session_length_average_20"`
	F21 int64   `feature:"orders_count_last_7_days_21"`
	F22 float64 `feature:"basket_value_average_22"`
	F23 float64 `feature:"conversion_rate_30_days_23"`
	F24 bool    `feature:"is_active_subscriber_24"`
	F25 string  `feature:"preferred_channel_name_25"`
	F26 int64   `feature:"returns_count_last_90d_26"`
	F27 float64 `feature:"session_length_average_27"`
	F28 int64   `feature:"orders_count_last_7_days_28"`
	F29 float64 `feature:"basket_value_average_29"`
	F30 float64 `feature:"conversion_rate_30_days_30"`
	F31 bool    `feature:"is_active_subscriber_31"`
	F32 string  `feature:"preferred_channel_name_32"`
	F33 int64   `feature:"returns_count_last_90d_33"`
	F34 float64 `feature:"session_length_average_34"`
	F35 int64   `feature:"orders_count_last_7_days_35"`
	F36 float64 `feature:"basket_value_average_36"`
	F37 float64 `feature:"conversion_rate_30_days_37"`
	F38 bool    `feature:"is_active_subscriber_38"`
	F39 string  `feature:"preferred_channel_name_39"`
	F40 int64   `feature:"returns_count_last_90d_40"`
	F41 float64 `feature:"session_length_average_41"`
	F42 int64   `feature:"orders_count_last_7_days_42"`
	F43 float64 `feature:"basket_value_average_43"`
	F44 float64 `feature:"conversion_rate_30_days_44"`
	F45 bool    `feature:"is_active_subscriber_45"`
	F46 string  `feature:"preferred_channel_name_46"`
	F47 int64   `feature:"returns_count_last_90d_47"`
	F48 float64 `feature:"session_length_average_48"`
	F49 int64   `feature:"orders_count_last_7_days_49"`
}

// featureTen is a fifth of one.
type featureTen struct {
	F00 int64   `feature:"orders_count_last_7_days_00"`
	F01 float64 `feature:"basket_value_average_01"`
	F02 float64 `feature:"conversion_rate_30_days_02"`
	F03 bool    `feature:"is_active_subscriber_03"`
	F04 string  `feature:"preferred_channel_name_04"`
	F05 int64   `feature:"returns_count_last_90d_05"`
	F06 float64 `feature:"session_length_average_06"`
	F07 int64   `feature:"orders_count_last_7_days_07"`
	F08 float64 `feature:"basket_value_average_08"`
	F09 float64 `feature:"conversion_rate_30_days_09"`
}

// fill gives a row values as features have them: floats of all bits, small counts, short texts.
func fill(row any, rnd *rand.Rand) {
	v := reflect.ValueOf(row).Elem()
	for i := range v.NumField() {
		switch f := v.Field(i); f.Kind() {
		case reflect.Int64:
			f.SetInt(rnd.Int64N(5_000))
		case reflect.Float64:
			f.SetFloat(rnd.Float64() * 100)
		case reflect.Bool:
			f.SetBool(rnd.IntN(2) == 0)
		default:
			f.SetString([]string{"email", "push", "sms", "partner"}[rnd.IntN(4)])
		}
	}
}

// texts returns a row as the arguments of HSET: what one writes who has no featurestore.
func texts(row any, suffix string) (pairs []any, names []string) {
	v := reflect.ValueOf(row).Elem()
	for i := range v.NumField() {
		name := v.Type().Field(i).Tag.Get("feature") + suffix
		pairs = append(pairs, name, fmt.Sprint(v.Field(i).Interface()))
		names = append(names, name)
	}
	return pairs, names
}

// featureBench is what the cases share: the same rows in three forms.
type featureBench struct {
	*bench
	client rueidis.Client
	peer   *goredis.Client
	rows   []featureFifty
	fields *featurestore.View[int, featureFifty]
	packed *featurestore.View[int, featureFifty]
	texts  [][]any // as go-redis writes them
	names  []string
	chunks []string // fields of a packed row
}

func featurestoreCases(b *bench) []benchCase {
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{b.addr}})
	if err != nil {
		b.fail(err)
		return nil
	}
	b.closes = append(b.closes, client.Close)
	f := &featureBench{bench: b, client: client, peer: goredis.NewClient(&goredis.Options{Addr: b.addr, PoolSize: 64})}
	b.closes = append(b.closes, func() { _ = f.peer.Close() })
	f.fields = newFeatureView[featureFifty](b, client, b.prefix+"fields", "users", featurestore.Fields, true)
	f.packed = newFeatureView[featureFifty](b, client, b.prefix+"packed", "users", featurestore.Packed, true)
	rnd := rand.New(rand.NewPCG(1, 1))
	f.rows = make([]featureFifty, featureEntities)
	for i := range f.rows {
		fill(&f.rows[i], rnd)
		pairs, names := texts(&f.rows[i], "")
		f.texts, f.names = append(f.texts, pairs), names
	}
	ctx := context.Background()
	for _, v := range []*featurestore.View[int, featureFifty]{f.fields, f.packed} {
		_, err := v.Load(ctx, f.events(0, featureEntities), featurestore.LoadOptions{})
		b.fail(err)
	}
	b.fail(f.loadPeer(ctx, f.textKey, 0, featureEntities))
	f.chunks, err = client.Do(ctx, client.B().Hkeys().Key(f.packedKey(0)).Build()).AsStrSlice()
	b.fail(err)
	cases := []benchCase{f.getCase("fields", f.fields), f.getCase("packed", f.packed), f.manyCase("fields", f.fields), f.manyCase("packed", f.packed)}
	cases = append(cases, f.bytesCase())
	return append(append(cases, f.loadCase("packed", featurestore.Packed)...), f.loadCase("fields", featurestore.Fields)...)
}

func newFeatureView[T any](b *bench, client rueidis.Client, prefix, name string, codec featurestore.Codec, share bool) *featurestore.View[int, T] {
	opts := featurestore.Options{Prefix: prefix, Codec: codec, Share: share, TTL: time.Hour, OpTimeout: 30 * time.Second}
	if codec == featurestore.Feast {
		opts.Feast = featurestore.FeastOptions{Project: prefix, JoinKey: "user_id"}
	}
	v, err := featurestore.NewView[int, T](client, name, opts)
	b.fail(err)
	return v
}

func (f *featureBench) textKey(i int) string { return f.prefix + "text:{" + strconv.Itoa(i) + "}" }

func (f *featureBench) packedKey(i int) string { return f.prefix + "packed:{" + strconv.Itoa(i) + "}" }

func (f *featureBench) events(from, n int) iter.Seq2[int, featurestore.Event[featureFifty]] {
	at := time.Now()
	return func(yield func(int, featurestore.Event[featureFifty]) bool) {
		for i := from; i < from+n; i++ {
			if !yield(i, featurestore.Event[featureFifty]{Value: f.rows[i%featureEntities], At: at}) {
				return
			}
		}
	}
}

func (f *featureBench) loadPeer(ctx context.Context, key func(int) string, from, n int) error {
	for begin := from; begin < from+n; begin += featurePipeline {
		pipe := f.peer.Pipeline()
		for i := begin; i < min(begin+featurePipeline, from+n); i++ {
			pipe.HSet(ctx, key(i), f.texts[i%featureEntities]...)
			pipe.Expire(ctx, key(i), time.Hour)
		}
		if _, err := pipe.Exec(ctx); err != nil {
			return err
		}
	}
	return nil
}

var errNoFeatures = errors.New("rows are missing")

// getCase reads one row.
func (f *featureBench) getCase(name string, v *featurestore.View[int, featureFifty]) benchCase {
	at := func(worker, n int) int { return (worker*7919 + n) % featureEntities }
	return benchCase{name: "featurestore/get_1x50_" + name, goroutines: 64, contestants: []contestant{
		{name: name, do: func(ctx context.Context, w, n int) error {
			row, err := v.Get(ctx, at(w, n))
			if err == nil && row.Status != featurestore.Found {
				err = errNoFeatures
			}
			return err
		}},
		{name: "goredis_hmget_map", do: func(ctx context.Context, w, n int) error {
			values, err := f.peer.HMGet(ctx, f.textKey(at(w, n)), f.names...).Result()
			row := make(map[string]any, len(values))
			for i, value := range values {
				row[f.names[i]] = value
			}
			return err
		}},
		{name: "goredis_hgetall_map", do: func(ctx context.Context, w, n int) error {
			row, err := f.peer.HGetAll(ctx, f.textKey(at(w, n))).Result()
			if err == nil && len(row) != len(f.names) {
				err = errNoFeatures
			}
			return err
		}},
		{name: "rueidis_hmget", do: func(ctx context.Context, w, n int) error {
			key, names := f.textKey(at(w, n)), f.names
			if name == "packed" {
				key, names = f.packedKey(at(w, n)), f.chunks
			}
			_, err := f.client.Do(ctx, f.client.B().Hmget().Key(key).Field(names...).Build()).ToArray()
			return err
		}},
	}}
}

// manyCase reads 100 rows.
func (f *featureBench) manyCase(name string, v *featurestore.View[int, featureFifty]) benchCase {
	const goroutines = 64
	keys, dst := make([][]int, goroutines), make([][]featurestore.Row[featureFifty], goroutines)
	for w := range keys {
		keys[w] = make([]int, featureMany)
	}
	at := func(w, n int) []int {
		for i := range keys[w] {
			keys[w][i] = (w*7919 + n*featureMany + i) % featureEntities
		}
		return keys[w]
	}
	return benchCase{name: "featurestore/many_100x50_" + name, goroutines: goroutines, contestants: []contestant{
		{name: name, do: func(ctx context.Context, w, n int) (err error) {
			if dst[w], err = v.GetMany(ctx, at(w, n), dst[w]); err == nil && dst[w][0].Status != featurestore.Found {
				err = errNoFeatures
			}
			return err
		}},
		{name: "goredis_hmget", do: func(ctx context.Context, w, n int) error {
			pipe := f.peer.Pipeline()
			for _, k := range at(w, n) {
				pipe.HMGet(ctx, f.textKey(k), f.names...)
			}
			_, err := pipe.Exec(ctx)
			return err
		}},
		{name: "rueidis_hmget", do: func(ctx context.Context, w, n int) error {
			commands := make([]rueidis.Completed, featureMany)
			for i, k := range at(w, n) {
				key, names := f.textKey(k), f.names
				if name == "packed" {
					key, names = f.packedKey(k), f.chunks
				}
				commands[i] = f.client.B().Hmget().Key(key).Field(names...).Build()
			}
			for _, reply := range f.client.DoMulti(ctx, commands...) {
				if _, err := reply.ToArray(); err != nil {
					return err
				}
			}
			return nil
		}},
	}}
}

// bytesCase is what 50 features in 5 views take per entity, by MEMORY USAGE.
func (f *featureBench) bytesCase() benchCase {
	const entities = 500
	ctx, rnd := context.Background(), rand.New(rand.NewPCG(2, 2))
	var packed, feast []*featurestore.View[int, featureTen]
	// As short as names of keys are, since they are of what is weighed. Nothing else in this server has them.
	const short = "features"
	names := []string{"orders", "baskets", "sessions", "returns", "devices"}
	for _, name := range names {
		packed = append(packed, newFeatureView[featureTen](f.bench, f.client, short, name, featurestore.Packed, true))
		feast = append(feast, newFeatureView[featureTen](f.bench, f.client, short, name, featurestore.Feast, false))
	}
	if f.failed != nil {
		return benchCase{}
	}
	at := time.Now()
	for i := range entities {
		for j, name := range names {
			var row featureTen
			fill(&row, rnd)
			for _, v := range []*featurestore.View[int, featureTen]{packed[j], feast[j]} {
				_, err := v.Put(ctx, i, row, at)
				f.fail(err)
			}
			pairs, _ := texts(&row, "_"+name)
			f.fail(f.peer.HSet(ctx, short+"-text:{"+strconv.Itoa(i)+"}", append(pairs, "_ts:"+name, at.UnixMicro())...).Err())
		}
	}
	size := func(pattern string) float64 {
		total := int64(0)
		keys, err := f.peer.Keys(ctx, pattern).Result()
		f.fail(err)
		for _, key := range keys {
			used, err := f.client.Do(ctx, f.client.B().MemoryUsage().Key(key).Samples(0).Build()).AsInt64()
			f.fail(err)
			total += used
		}
		if len(keys) != entities {
			f.fail(fmt.Errorf("%s: %d keys, not %d", pattern, len(keys), entities))
			return 1
		}
		return float64(entities) / float64(total)
	}
	return benchCase{
		name: "featurestore/bytes", goroutines: 1, contestants: []contestant{{name: "packed"}, {name: "feast"}, {name: "text_hash"}},
		fixed: []float64{size(short + ":{*}"), size("*user_id*" + short), size(short + "-text:{*}")},
	}
}

// loadCase writes rows over those of the turn before: in order, and without a look at it, as a release is loaded.
func (f *featureBench) loadCase(name string, codec featurestore.Codec) []benchCase {
	v := newFeatureView[featureFifty](f.bench, f.client, f.prefix+"load"+name, "users", codec, false)
	if f.failed != nil {
		return nil
	}
	release, err := v.Begin(context.Background(), "v1")
	f.fail(err)
	check := func(stats featurestore.LoadStats, err error) error {
		if err == nil && stats.Applied+stats.Same != featureLoad {
			err = errNoFeatures
		}
		return err
	}
	peer := func(i int) string { return f.prefix + "loadtext:{" + strconv.Itoa(i) + "}" }
	goRedis := contestant{name: "goredis_hset_expire", do: func(ctx context.Context, _, _ int) error { return f.loadPeer(ctx, peer, 0, featureLoad) }}
	return []benchCase{
		{name: "featurestore/load_" + name, goroutines: 1, contestants: []contestant{{name: name, do: func(ctx context.Context, _, _ int) error {
			return check(release.Load(ctx, f.events(0, featureLoad), featurestore.LoadOptions{SkipOrderCheck: true}))
		}}, goRedis}},
		{name: "featurestore/load_checked_" + name, goroutines: 1, contestants: []contestant{{name: name, do: func(ctx context.Context, _, _ int) error {
			return check(v.Load(ctx, f.events(0, featureLoad), featurestore.LoadOptions{}))
		}}, goRedis}},
	}
}
