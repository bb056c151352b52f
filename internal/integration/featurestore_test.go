package integration

import (
	"context"
	"encoding/hex"
	"fmt"
	"iter"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/redispatterns/redispatterns/featurestore"
	"github.com/redispatterns/redispatterns/featurestore/feast"
	"github.com/redispatterns/redispatterns/internal/integration/redistest"
)

// featureRow is a row of the tests.
type featureRow struct {
	N    int64                        `feature:"n"`
	F    float64                      `feature:"f"`
	Tier string                       `feature:"tier"`
	On   bool                         `feature:"on"`
	Geo  featurestore.Opt[string]     `feature:"geo"`
	Rate featurestore.Opt[float64]    `feature:"rate,default=0.5"`
	Vec  featurestore.Opt[[3]float32] `feature:"vec"`
}

// featureItem is a row of another view.
type featureItem struct {
	Price float64                 `feature:"price"`
	Stock featurestore.Opt[int32] `feature:"stock"`
}

func newFeatures[K comparable, T any](t *testing.T, client rueidis.Client, name string, opts featurestore.Options) *featurestore.View[K, T] {
	t.Helper()
	if opts.Prefix == "" {
		opts.Prefix = redistest.Prefix(t)
	}
	if opts.OpTimeout == 0 {
		opts.OpTimeout = 10 * time.Second // a busy test machine is no fault of Redis
	}
	if opts.Codec == featurestore.Feast {
		if opts.Feast.Project == "" {
			opts.Feast.Project = opts.Prefix
		}
		if opts.Feast.JoinKey == "" {
			opts.Feast.JoinKey = "id"
		}
	}
	v, err := featurestore.NewView[K, T](client, name, opts)
	require.NoError(t, err)
	return v
}

var featureCodecs = []featurestore.Codec{featurestore.Fields, featurestore.Packed, featurestore.Feast}

func eachFeatureCodec(t *testing.T, fn func(t *testing.T, codec featurestore.Codec)) {
	t.Helper()
	for _, codec := range featureCodecs {
		t.Run(codec.String(), func(t *testing.T) {
			t.Parallel()
			fn(t, codec)
		})
	}
}

func featureTime(n int) time.Time { return time.Unix(1_700_000_000+int64(n), 0).UTC() }

func putFeatures[K comparable, T any](t *testing.T, v *featurestore.View[K, T], k K, value T, at time.Time) featurestore.Outcome {
	t.Helper()
	out, err := v.Put(t.Context(), k, value, at)
	require.NoError(t, err)
	return out
}

func featureSeq[K comparable, T any](ks []K, row func(i int) (T, time.Time)) iter.Seq2[K, featurestore.Event[T]] {
	return func(yield func(K, featurestore.Event[T]) bool) {
		for i, k := range ks {
			value, at := row(i)
			if !yield(k, featurestore.Event[T]{Value: value, At: at}) {
				return
			}
		}
	}
}

// Everything, everywhere.
func TestFeaturestore_OnEveryTarget(t *testing.T) {
	t.Parallel()
	redistest.EachTarget(t, func(t *testing.T, client rueidis.Client) {
		for _, codec := range featureCodecs {
			ctx := t.Context()
			v := newFeatures[string, featureRow](t, client, "users", featurestore.Options{Codec: codec, TTL: time.Hour, TTLJitter: time.Minute})
			row := featureRow{N: math.MaxInt64, F: math.Copysign(0, -1), Tier: "", Geo: featurestore.Some(""), Vec: featurestore.Some([3]float32{1, 2, 3})}
			row.Rate.State = featurestore.Null
			require.Equal(t, featurestore.Applied, putFeatures(t, v, "a", row, featureTime(2)))
			require.Equal(t, featurestore.Older, putFeatures(t, v, "a", featureRow{}, featureTime(1)))
			require.Equal(t, featurestore.Same, putFeatures(t, v, "a", row, featureTime(2)))
			got, err := v.Get(ctx, "a")
			require.NoError(t, err)
			require.Equal(t, featurestore.Partial, got.Status) // of the null
			require.Equal(t, featureTime(2), got.EventTime)
			row.Rate.V = 0.5
			require.Equal(t, row, got.Value)
			require.True(t, math.Signbit(got.Value.F))

			out, err := v.Patch(ctx, "a", featureTime(3), featurestore.To("tier", "gold"), featurestore.To("geo", nil), featurestore.To("rate", 0.25))
			require.NoError(t, err)
			require.Equal(t, featurestore.Applied, out)
			out, err = v.Patch(ctx, "a", featureTime(2), featurestore.To("tier", "old"))
			require.NoError(t, err)
			require.Equal(t, featurestore.Older, out)
			row.Tier, row.Rate, row.Geo = "gold", featurestore.Some(0.25), featurestore.Opt[string]{State: featurestore.Null}
			got, err = v.Get(ctx, "a")
			require.NoError(t, err)
			require.Equal(t, row, got.Value)

			ks := []string{"a", "none", "a", "}", "", "%", "x{y}"}
			for _, k := range ks[3:] {
				putFeatures(t, v, k, featureRow{Tier: k, Geo: featurestore.Some(k), Vec: featurestore.Some([3]float32{}), Rate: featurestore.Some(1.)}, featureTime(1))
			}
			rows, err := v.GetMany(ctx, ks, nil)
			require.NoError(t, err)
			require.Equal(t, row, rows[0].Value)
			require.Equal(t, rows[0], rows[2])
			require.Equal(t, featurestore.Missing, rows[1].Status)
			require.Equal(t, featurestore.Opt[float64]{V: 0.5, State: featurestore.Default}, rows[1].Value.Rate)
			for i, k := range ks[3:] {
				require.Equal(t, featurestore.Found, rows[3+i].Status)
				require.Equal(t, k, rows[3+i].Value.Tier)
			}
			seen := map[string]featureRow{}
			for k, r := range v.All(ctx) {
				require.NoError(t, r.Err)
				require.NotContains(t, seen, k)
				seen[k] = r.Value
			}
			require.Len(t, seen, 5)
			require.Equal(t, row, seen["a"])

			numbers, err := v.Select("vec", "n", "rate", "on")
			require.NoError(t, err)
			require.Equal(t, []string{"n", "on", "rate", "vec[0]", "vec[1]", "vec[2]"}, numbers.Columns())
			m, status, err := numbers.Matrix(ctx, []string{"a", "none"}, make([]float32, 1), -9)
			require.NoError(t, err)
			require.Equal(t, []float32{math.MaxInt64, 0, 0.25, 1, 2, 3, -9, -9, 0.5, -9, -9, -9}, m)
			require.Equal(t, []featurestore.Status{featurestore.Found, featurestore.Missing}, status)

			n, err := v.Delete(ctx, "a", "none", "}")
			require.NoError(t, err)
			require.Equal(t, 2, n)
			stats, err := v.Load(ctx, featureSeq([]string{"l1", "l2", "l1"}, func(i int) (featureRow, time.Time) {
				return featureRow{N: int64(i)}, featureTime(0)
			}), featurestore.LoadOptions{})
			require.NoError(t, err)
			require.Equal(t, [4]int64{3, 2, 0, 1}, [4]int64{stats.Done, stats.Applied, stats.Older, stats.Same})
			got, err = v.Get(ctx, "l1")
			require.NoError(t, err)
			require.Equal(t, int64(2), got.Value.N)
			n, err = v.DeleteAll(ctx)
			require.NoError(t, err)
			require.Equal(t, 5, n)
		}
	})
}

// Versions, everywhere.
func TestFeaturestore_VersionsOnEveryTarget(t *testing.T) {
	t.Parallel()
	redistest.EachTarget(t, func(t *testing.T, client rueidis.Client) {
		ctx := t.Context()
		opts := featurestore.Options{Codec: featurestore.Packed, Prefix: redistest.Prefix(t)}
		writer, reader := newFeatures[string, featureItem](t, client, "items", opts), newFeatures[string, featureItem](t, client, "items", opts)
		ks := []string{"a", "b", "c"}
		price := func(p float64) func(int) (featureItem, time.Time) {
			return func(int) (featureItem, time.Time) { return featureItem{Price: p}, featureTime(0) }
		}
		requireLive := func(version string, p float64) {
			t.Helper()
			require.NoError(t, after(ctx, 25*time.Millisecond)) // as long as a reader may not have heard of it
			rows, err := reader.GetMany(ctx, ks, nil)
			require.NoError(t, err)
			for _, row := range rows {
				require.Equal(t, version, row.Version)
				require.InDelta(t, p, row.Value.Price, 0)
			}
		}
		_, err := writer.Load(ctx, featureSeq(ks, price(1)), featurestore.LoadOptions{})
		require.NoError(t, err)
		requireLive("", 1)
		r, err := writer.Begin(ctx, "v2")
		require.NoError(t, err)
		stats, err := r.Load(ctx, featureSeq(ks, price(2)), featurestore.LoadOptions{SkipOrderCheck: true, Batch: 2})
		require.NoError(t, err)
		require.Equal(t, int64(3), stats.Applied)
		requireLive("", 1)
		require.ErrorIs(t, writer.Rollback(ctx, "v2"), featurestore.ErrVersion) // it is not complete
		other, err := writer.Begin(ctx, "v3")
		require.NoError(t, err)
		require.NoError(t, r.Commit(ctx))
		require.NoError(t, r.Commit(ctx)) // as if the reply had been lost
		requireLive("v2", 2)
		live, err := reader.Live(ctx)
		require.NoError(t, err)
		require.Equal(t, "v2", live)
		require.ErrorIs(t, other.Commit(ctx), featurestore.ErrConflict)
		_, err = r.Load(ctx, featureSeq(ks, price(9)), featurestore.LoadOptions{})
		require.ErrorIs(t, err, featurestore.ErrVersion)
		require.ErrorIs(t, writer.Drop(ctx, "v2"), featurestore.ErrVersion)
		_, err = writer.Begin(ctx, "v2")
		require.ErrorIs(t, err, featurestore.ErrVersion)
		require.NoError(t, other.Abort(ctx))
		require.ErrorIs(t, other.Commit(ctx), featurestore.ErrVersion)

		// A Put of a process that thinks that something else is live is not lost.
		_, err = reader.Put(ctx, "c", featureItem{Price: 2}, featureTime(1))
		require.NoError(t, err)
		require.NoError(t, writer.Rollback(ctx, ""))
		_, err = reader.Put(ctx, "d", featureItem{Price: 3}, featureTime(1)) // v2 has it too
		require.NoError(t, err)
		got, err := writer.Get(ctx, "d")
		require.NoError(t, err)
		require.InDelta(t, 3.0, got.Value.Price, 0)
		require.NoError(t, writer.Rollback(ctx, "v2"))
		requireLive("v2", 2)
		pinned, err := reader.Pin("").Get(ctx, "b")
		require.NoError(t, err)
		require.InDelta(t, 1.0, pinned.Value.Price, 0)
	})
}

// fit is what Get returns of a row with one feature.
type featureFloat struct {
	X featurestore.Opt[float64] `feature:"x"`
}

type featureInt struct {
	X featurestore.Opt[int64] `feature:"x"`
}

type featureText struct {
	X featurestore.Opt[string] `feature:"x"`
}

func TestFeaturestore_ValuesStayDistinct(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	eachFeatureCodec(t, func(t *testing.T, codec featurestore.Codec) {
		opts := featurestore.Options{Codec: codec}
		floats, ints, texts := newFeatures[int, featureFloat](t, client, "f", opts), newFeatures[int, featureInt](t, client, "i", opts), newFeatures[int, featureText](t, client, "s", opts)
		got, err := floats.Get(t.Context(), 99)
		require.NoError(t, err)
		require.Equal(t, featurestore.Missing, got.Status)
		for i, x := range []float64{0, math.Copysign(0, -1), math.Inf(1), math.Inf(-1), math.NaN(), 1<<53 + 1, math.SmallestNonzeroFloat64, math.MaxFloat64} {
			putFeatures(t, floats, i, featureFloat{featurestore.Some(x)}, featureTime(0))
			got, err := floats.Get(t.Context(), i)
			require.NoError(t, err)
			require.Equal(t, featurestore.Found, got.Status)
			if x != x {
				require.True(t, math.IsNaN(got.Value.X.V))
			} else {
				require.Equal(t, math.Float64bits(x), math.Float64bits(got.Value.X.V))
			}
		}
		for i, x := range []int64{0, math.MaxInt64, math.MinInt64, 1<<53 + 1, -1} {
			putFeatures(t, ints, i, featureInt{featurestore.Some(x)}, featureTime(0))
			got, err := ints.Get(t.Context(), i)
			require.NoError(t, err)
			require.Equal(t, featurestore.Some(x), got.Value.X)
		}
		for i, x := range []featurestore.Opt[string]{featurestore.Some(""), featurestore.Some("null"), {State: featurestore.Null}, {}} {
			putFeatures(t, texts, i, featureText{x}, featureTime(0))
			got, err := texts.Get(t.Context(), i)
			require.NoError(t, err)
			require.Equal(t, x, got.Value.X)
			require.Equal(t, i < 2, got.Status == featurestore.Found)
			require.Equal(t, featureTime(0), got.EventTime)
		}
	})
}

// The latest of many wins, and each is told what became of it.
func TestFeaturestore_LatestOfManyWritersWins(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	eachFeatureCodec(t, func(t *testing.T, codec featurestore.Codec) {
		v := newFeatures[string, featureRow](t, client, "users", featurestore.Options{Codec: codec})
		const writers = 1000
		times := rand.Perm(writers)
		for i := range 100 {
			times[i] = times[i+100] // some are the same
		}
		var outcomes [4]atomic.Int64
		var wg sync.WaitGroup
		for _, n := range times {
			wg.Go(func() {
				// Times differ by a microsecond, the least there is.
				at := featureTime(0).Add(time.Duration(n) * time.Microsecond)
				out, err := v.Put(context.Background(), "one", featureRow{N: int64(n), Tier: strconv.Itoa(n)}, at)
				if err == nil {
					outcomes[out].Add(1)
				}
			})
		}
		wg.Wait()
		latest := slices.Max(times)
		row, err := v.Get(t.Context(), "one")
		require.NoError(t, err)
		require.Equal(t, int64(latest), row.Value.N)
		require.Equal(t, strconv.Itoa(latest), row.Value.Tier)
		require.Equal(t, featureTime(0).Add(time.Duration(latest)*time.Microsecond), row.EventTime)
		require.Equal(t, int64(writers), outcomes[featurestore.Applied].Load()+outcomes[featurestore.Older].Load()+outcomes[featurestore.Same].Load())
		require.Positive(t, outcomes[featurestore.Applied].Load())
		require.Positive(t, outcomes[featurestore.Older].Load())
	})
}

func TestFeaturestore_RefusedWriteChangesNoTTL(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	eachFeatureCodec(t, func(t *testing.T, codec featurestore.Codec) {
		prefix, share := redistest.Prefix(t), codec != featurestore.Feast
		short := newFeatures[string, featureItem](t, client, "short", featurestore.Options{Codec: codec, Prefix: prefix, Share: share, TTL: time.Hour})
		long := newFeatures[string, featureText](t, client, "long", featurestore.Options{Codec: codec, Prefix: prefix, Share: share, TTL: 24 * time.Hour})
		forever := newFeatures[string, featureInt](t, client, "forever", featurestore.Options{Codec: codec, Prefix: prefix, Share: share})
		putFeatures(t, short, "a", featureItem{}, featureTime(5))
		var key string
		for _, k := range featureKeys(t, client, prefix) {
			if !strings.Contains(k, ":@") {
				key = k
			}
		}
		ttl := func() time.Duration {
			ms, err := do(t, client, key, "PTTL").AsInt64()
			require.NoError(t, err)
			return time.Duration(ms) * time.Millisecond
		}
		require.InDelta(t, time.Hour, ttl(), float64(time.Minute))
		require.NoError(t, do(t, client, key, "PEXPIRE", "100000").Error())
		require.Equal(t, featurestore.Older, putFeatures(t, short, "a", featureItem{}, featureTime(4)))
		require.Less(t, ttl(), 101*time.Second)
		require.Equal(t, featurestore.Same, putFeatures(t, short, "a", featureItem{}, featureTime(5)))
		require.InDelta(t, time.Hour, ttl(), float64(time.Minute))
		putFeatures(t, long, "a", featureText{}, featureTime(1))
		require.InDelta(t, 24*time.Hour, ttl(), float64(time.Minute))
		putFeatures(t, short, "a", featureItem{}, featureTime(6))
		require.InDelta(t, 24*time.Hour, ttl(), float64(time.Minute), "the other view's row must stay")
		putFeatures(t, forever, "a", featureInt{}, featureTime(1))
		require.Negative(t, ttl())
		putFeatures(t, short, "a", featureItem{}, featureTime(7))
		require.Negative(t, ttl())
	})
}

// featureKeys returns all keys that have the prefix or the project.
func featureKeys(t *testing.T, client rueidis.Client, prefix string) (keys []string) {
	t.Helper()
	for _, node := range client.Nodes() {
		for cursor := uint64(0); ; {
			entry, err := node.Do(t.Context(), node.B().Scan().Cursor(cursor).Match("*"+prefix+"*").Count(1000).Build()).AsScanEntry()
			require.NoError(t, err)
			keys = append(keys, entry.Elements...)
			if cursor = entry.Cursor; cursor == 0 {
				break
			}
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

type featureSchemaOne struct {
	Kept    int64                         `feature:"kept"`
	Dropped string                        `feature:"dropped"`
	Old     float64                       `feature:"old_name"`
	Retyped float64                       `feature:"retyped"`
	Nulled  featurestore.Opt[string]      `feature:"nulled"`
	Wide    featurestore.Opt[[50]float64] `feature:"wide"`
}

type featureSchemaTwo struct {
	Kept    int64                    `feature:"kept"`
	New     float64                  `feature:"new_name"`
	Retyped bool                     `feature:"retyped"`
	Nulled  featurestore.Opt[string] `feature:"nulled"`
}

func TestFeaturestore_SchemaChangeLeavesNoOldByte(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	eachFeatureCodec(t, func(t *testing.T, codec featurestore.Codec) {
		opts := featurestore.Options{Codec: codec, Prefix: redistest.Prefix(t), Share: codec != featurestore.Feast}
		old := newFeatures[string, featureSchemaOne](t, client, "users", opts)
		neighbour := newFeatures[string, featureItem](t, client, "items", opts)
		one := featureSchemaOne{1, "old", 2, 3, featurestore.Some("old"), featurestore.Some([50]float64{})}
		two := featureSchemaTwo{Kept: 4, New: 5, Retyped: true, Nulled: featurestore.Opt[string]{State: featurestore.Null}}
		hash := func() map[string]string {
			for _, k := range featureKeys(t, client, opts.Prefix) {
				if !strings.Contains(k, ":@") && k != opts.Prefix+":{fresh}" {
					h, err := do(t, client, k, "HGETALL").AsStrMap()
					require.NoError(t, err)
					if len(h) > 0 && !strings.Contains(k, "fresh") {
						return h
					}
				}
			}
			return nil
		}
		putFeatures(t, neighbour, "a", featureItem{Price: 7}, featureTime(0))
		alone := hash()
		putFeatures(t, old, "a", one, featureTime(1))
		now := newFeatures[string, featureSchemaTwo](t, client, "users", opts)
		putFeatures(t, now, "a", two, featureTime(2))
		after := hash()
		clean := newFeatures[string, featureSchemaTwo](t, client, "users", opts)
		_, err := clean.Delete(t.Context(), "a")
		require.NoError(t, err)
		require.Equal(t, alone, hash(), "Delete must leave the other view alone")
		putFeatures(t, clean, "a", two, featureTime(2))
		require.Equal(t, hash(), after, "what a row is must not depend on what was there")
		got, err := now.Get(t.Context(), "a")
		require.NoError(t, err)
		require.Equal(t, two, got.Value)

		row, err := old.Get(t.Context(), "a")
		require.ErrorIs(t, err, featurestore.ErrSkew)
		require.Equal(t, featurestore.Broken, row.Status)
		require.Zero(t, row.Value.Kept)
		if codec != featurestore.Packed {
			some, err := old.Select("dropped", "old_name", "kept")
			require.NoError(t, err)
			row, err := some.Get(t.Context(), "a")
			require.NoError(t, err)
			require.Equal(t, featurestore.Partial, row.Status)
			require.Equal(t, featureSchemaOne{Kept: 4}, row.Value)
		}

		// A process of the old schema writes again: nothing of the new one is left, though it was unknown when it began.
		if codec == featurestore.Feast { // Feast's rows do not tell their schema
			old = newFeatures[string, featureSchemaOne](t, client, "users", opts)
		}
		putFeatures(t, old, "a", one, featureTime(3))
		back := hash()
		_, err = old.Delete(t.Context(), "a")
		require.NoError(t, err)
		putFeatures(t, old, "a", one, featureTime(3))
		require.Equal(t, hash(), back)
	})
}

// Two views in one hash, of which one ages faster.
func TestFeaturestore_ViewsOfAnEntityAgeOnTheirOwn(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	eachFeatureCodec(t, func(t *testing.T, codec featurestore.Codec) {
		ctx, prefix, now := t.Context(), redistest.Prefix(t), time.Now()
		hour := featurestore.Options{Codec: codec, Prefix: prefix, Share: codec != featurestore.Feast, MaxAge: time.Hour, TTL: 48 * time.Hour, Stale: featurestore.StaleDrops}
		day := hour
		day.MaxAge = 24 * time.Hour
		fast, slow := newFeatures[string, featureItem](t, client, "fast", hour), newFeatures[string, featureText](t, client, "slow", day)
		put := func(age time.Duration) {
			putFeatures(t, fast, "a", featureItem{Price: 1}, now.Add(-age))
			putFeatures(t, slow, "a", featureText{featurestore.Some("x")}, now.Add(-age))
		}
		statuses := func() (a, b featurestore.Status) {
			var batch featurestore.Batch
			f, s := fast.In(&batch, "a"), slow.In(&batch, "a")
			require.NoError(t, batch.Exec(ctx))
			if f.Row().Status == featurestore.Stale {
				require.Zero(t, f.Row().Value)
			}
			return f.Row().Status, s.Row().Status
		}
		put(30 * time.Hour)
		a, b := statuses()
		require.Equal(t, []featurestore.Status{featurestore.Stale, featurestore.Stale}, []featurestore.Status{a, b})
		put(2 * time.Hour)
		a, b = statuses()
		require.Equal(t, []featurestore.Status{featurestore.Stale, featurestore.Found}, []featurestore.Status{a, b})
		put(time.Minute)
		a, b = statuses()
		require.Equal(t, []featurestore.Status{featurestore.Partial, featurestore.Found}, []featurestore.Status{a, b}) // stock is absent
		hour.Stale = featurestore.StaleFails
		failing := newFeatures[string, featureItem](t, client, "other", hour)
		putFeatures(t, failing, "a", featureItem{}, now.Add(-2*time.Hour))
		_, err := failing.Get(ctx, "a")
		require.ErrorIs(t, err, featurestore.ErrStale)
	})
}

func TestFeaturestore_PoisonIsOfItsRowAlone(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	eachFeatureCodec(t, func(t *testing.T, codec featurestore.Codec) {
		ctx, prefix := t.Context(), redistest.Prefix(t)
		v := newFeatures[int, featureRow](t, client, "users", featurestore.Options{Codec: codec, Prefix: prefix})
		n := 6
		keys := make([]string, n)
		for i := range n {
			before := featureKeys(t, client, prefix)
			putFeatures(t, v, i, featureRow{N: int64(i), Tier: strings.Repeat("t", 40)}, featureTime(0))
			for _, k := range featureKeys(t, client, prefix) {
				if !slices.Contains(before, k) && !strings.Contains(k, ":@") {
					keys[i] = k
				}
			}
		}
		field, huge := "n", "x"
		switch codec {
		case featurestore.Packed:
			whole, err := do(t, client, keys[1], "HGET", "users").ToString()
			require.NoError(t, err)
			field, huge = "users", whole[:3]+string([]byte{whole[3] | 0x20})+whole[4:11]+"\xff\xff\xff\xff\x0f"
			require.NoError(t, do(t, client, keys[4], "HSET", "users", whole[:20]).Error())
		case featurestore.Feast:
			field, huge = feast.Field("users", "n"), "\x20\xff"
		}
		require.NoError(t, do(t, client, keys[1], "HSET", field, huge).Error())
		require.NoError(t, do(t, client, keys[2], "HSET", field, "text in a number").Error())
		require.NoError(t, do(t, client, keys[3], "SET", "not a hash").Error())
		rows, err := v.GetMany(ctx, []int{0, 1, 2, 3, 4, 5}, nil)
		require.NoError(t, err)
		for i, row := range rows {
			bad := i >= 1 && i <= 3 || i == 4 && codec == featurestore.Packed
			require.Equal(t, bad, row.Status == featurestore.Broken, "%d: %v", i, row.Err)
			if bad {
				want := featurestore.ErrCorrupt
				if i == 2 && codec == featurestore.Packed { // it seems to be of some other schema
					want = featurestore.ErrSkew
				}
				require.ErrorIs(t, row.Err, want)
				require.Zero(t, row.Value.N)
				require.NotContains(t, row.Err.Error(), keys[i])
			} else {
				require.Equal(t, int64(i), row.Value.N)
			}
		}
		var failed []int64
		stats, err := v.Load(ctx, featureSeq([]int{0, 3, 5}, func(int) (featureRow, time.Time) { return featureRow{}, featureTime(1) }),
			featurestore.LoadOptions{Invalid: func(row int64, err error) {
				require.ErrorIs(t, err, featurestore.ErrCorrupt)
				failed = append(failed, row)
			}})
		require.NoError(t, err)
		require.Equal(t, []int64{1}, failed)
		require.Equal(t, [3]int64{3, 2, 1}, [3]int64{stats.Done, stats.Applied, stats.Invalid})
	})
}

type featureComposite struct {
	User string `entity:"user"`
	Item string `entity:"item"`
	Shop int32  `entity:"shop"`
}

func TestFeaturestore_KeysNeverCollide(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	eachFeatureCodec(t, func(t *testing.T, codec featurestore.Codec) {
		ctx := t.Context()
		v := newFeatures[featureComposite, featureRow](t, client, "users", featurestore.Options{Codec: codec})
		parts := []string{"", ":", "%", "%3A", "{", "}", "a:b", "a", "b", "\x00\xff", "{a}", "%25", "*", "["}
		var ks []featureComposite
		for _, a := range parts {
			for _, b := range parts {
				ks = append(ks, featureComposite{a, b, int32(len(ks) % 2)})
			}
		}
		tier := func(k featureComposite) string { return fmt.Sprintf("%q", k) }
		_, err := v.Load(ctx, featureSeq(ks, func(i int) (featureRow, time.Time) { return featureRow{Tier: tier(ks[i])}, featureTime(0) }), featurestore.LoadOptions{})
		require.NoError(t, err)
		rows, err := v.GetMany(ctx, ks, nil)
		require.NoError(t, err)
		for i, row := range rows {
			require.Equal(t, tier(ks[i]), row.Value.Tier)
		}
		n := 0
		for k, row := range v.All(ctx) {
			require.NoError(t, row.Err)
			require.Equal(t, tier(k), row.Value.Tier)
			n++
		}
		require.Equal(t, len(ks), n)
	})
}

// Deleting all of a project leaves those alone whose names end or begin alike, or match it as a pattern.
func TestFeaturestore_DeleteAllIsOfItsProjectAlone(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	eachFeatureCodec(t, func(t *testing.T, codec featurestore.Codec) {
		ctx, base := t.Context(), redistest.Prefix(t)
		views := map[string]*featurestore.View[string, featureItem]{}
		for _, project := range []string{"prod" + base, "my_prod" + base, "prod" + base + "2", "[p]rod" + base, "?rod" + base, "*" + base} {
			v := newFeatures[string, featureItem](t, client, "items", featurestore.Options{Codec: codec, Prefix: project})
			for i := range 5 {
				putFeatures(t, v, strconv.Itoa(i), featureItem{Price: 1}, featureTime(0))
			}
			views[project] = v
		}
		other := newFeatures[string, featureText](t, client, "other", featurestore.Options{Codec: codec, Prefix: "prod" + base})
		putFeatures(t, other, "1", featureText{featurestore.Some("x")}, featureTime(0))
		remaining := func(v *featurestore.View[string, featureItem]) (n int) {
			for range v.All(ctx) {
				n++
			}
			return n
		}
		for _, project := range []string{"*" + base, "?rod" + base, "[p]rod" + base, "prod" + base} {
			n, err := views[project].DeleteAll(ctx)
			require.NoError(t, err)
			require.Equal(t, 5, n)
			delete(views, project)
			for name, v := range views {
				require.Equal(t, 5, remaining(v), "%s after %s", name, project)
			}
		}
		row, err := other.Get(ctx, "1")
		require.NoError(t, err)
		require.Equal(t, "x", row.Value.X.V)
	})
}

func TestFeaturestore_TemplateReadsWhatAnybodyWrote(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	prefix := redistest.Prefix(t)
	users := newFeatures[int64, featureRow](t, client, "users", featurestore.Options{Key: prefix + "-user:%v"})
	key := prefix + "-user:123"
	require.NoError(t, do(t, client, key, "HSET", "tier", "gold", "n", "7", "on", "True").Error())
	row, err := users.Get(t.Context(), 123)
	require.NoError(t, err)
	require.Equal(t, featureRow{Tier: "gold", N: 7, On: true, Rate: featurestore.Opt[float64]{V: .5, State: featurestore.Default}}, row.Value)
	require.Equal(t, featurestore.Partial, row.Status)
	require.True(t, row.EventTime.IsZero())
	putFeatures(t, users, 123, featureRow{Tier: "silver", F: .1, Geo: featurestore.Opt[string]{State: featurestore.Null}}, featureTime(0))
	hash, err := do(t, client, key, "HGETALL").AsStrMap()
	require.NoError(t, err)
	require.Equal(t, "silver", hash["tier"])
	require.Equal(t, "0.1", hash["f"])
	require.Equal(t, "false", hash["on"])
	require.Regexp(t, `^1700000000000000 [0-9a-f]{8} geo$`, hash["_ts:users"])
	strict := newFeatures[int64, featureRow](t, client, "strict", featurestore.Options{Key: prefix + "-user:%v", MaxAge: time.Hour})
	row, err = strict.Get(t.Context(), 123)
	require.NoError(t, err)
	require.Equal(t, featurestore.Stale, row.Status, "what has no time cannot be fresh")
}

type featureDriver struct {
	ConvRate float32                 `feature:"conv_rate"`
	AccRate  float32                 `feature:"acc_rate"`
	Trips    featurestore.Opt[int64] `feature:"avg_daily_trips"`
}

// The bytes are those that Feast's Python SDK writes.
func TestFeaturestore_ReadsAndWritesFeast(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	project := redistest.Prefix(t)
	v := newFeatures[int64, featureDriver](t, client, "driver_hourly_stats", featurestore.Options{
		Codec: featurestore.Feast, Prefix: project, Feast: featurestore.FeastOptions{Project: project, JoinKey: "driver_id"},
	})
	raw := func(s string) string {
		b, err := hex.DecodeString(s)
		require.NoError(t, err)
		return string(b)
	}
	key := raw("0100000002000000090000006472697665725f69640400000008000000e903000000000000") + project
	want := map[string]string{
		raw("6160e3da"): raw("35f5696d3f"), raw("fa5e58ad"): raw("350000003f"), raw("18a5e5a3"): raw("20e907"),
		"_ts:driver_hourly_stats": raw("0880e2cfaa0610c0a9d33a"),
	}
	for f, value := range want {
		require.NoError(t, do(t, client, key, "HSET", f, value).Error())
	}
	row, err := v.Get(t.Context(), 1001)
	require.NoError(t, err)
	at := time.Unix(1700000000, 123e6).UTC()
	require.Equal(t, featurestore.Info{Status: featurestore.Found, EventTime: at}, row.Info)
	require.Equal(t, featureDriver{.92739803, .5, featurestore.Some[int64](1001)}, row.Value)

	require.NoError(t, do(t, client, key, "DEL").Error())
	putFeatures(t, v, 1001, row.Value, at)
	got, err := do(t, client, key, "HGETALL").AsStrMap()
	require.NoError(t, err)
	require.Equal(t, want, got)

	// Python's null is a field without bytes, and 1970 a time without them: none.
	require.NoError(t, do(t, client, key, "HSET", raw("18a5e5a3"), "", "_ts:driver_hourly_stats", "").Error())
	row, err = v.Get(t.Context(), 1001)
	require.NoError(t, err)
	require.Equal(t, featurestore.Null, row.Value.Trips.State)
	require.Equal(t, featurestore.Partial, row.Status)
	require.True(t, row.EventTime.IsZero())
	require.Equal(t, featurestore.Applied, putFeatures(t, v, 1001, row.Value, featureTime(0)), "no time is older than any")

	require.NoError(t, do(t, client, key, "HSET", raw("18a5e5a3"), raw("e00305")).Error()) // of a Feast to come
	_, err = v.Get(t.Context(), 1001)
	require.ErrorIs(t, err, featurestore.ErrSkew)
}

type featureWide struct {
	F00 featurestore.Opt[int64] `feature:"f00"`
	F01 featurestore.Opt[int64] `feature:"f01"`
	F02 featurestore.Opt[int64] `feature:"f02"`
	F03 featurestore.Opt[int64] `feature:"f03"`
	F04 featurestore.Opt[int64] `feature:"f04"`
	F05 featurestore.Opt[int64] `feature:"f05"`
	F06 featurestore.Opt[int64] `feature:"f06"`
	F07 featurestore.Opt[int64] `feature:"f07"`
	F08 featurestore.Opt[int64] `feature:"f08"`
	F09 featurestore.Opt[int64] `feature:"f09"`
	F10 featurestore.Opt[int64] `feature:"f10"`
	F11 featurestore.Opt[int64] `feature:"f11"`
	F12 featurestore.Opt[int64] `feature:"f12"`
	F13 featurestore.Opt[int64] `feature:"f13"`
	F14 featurestore.Opt[int64] `feature:"f14"`
	F15 featurestore.Opt[int64] `feature:"f15"`
	F16 featurestore.Opt[int64] `feature:"f16"`
	F17 featurestore.Opt[int64] `feature:"f17"`
	F18 featurestore.Opt[int64] `feature:"f18"`
	F19 featurestore.Opt[int64] `feature:"f19"`
	F20 featurestore.Opt[int64] `feature:"f20"`
	F21 featurestore.Opt[int64] `feature:"f21"`
	F22 featurestore.Opt[int64] `feature:"f22"`
	F23 featurestore.Opt[int64] `feature:"f23"`
}

// Rows of many features are read as whole hashes, in whatever order and among whatever else, however large.
func TestFeaturestore_WideRows(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	prefix := redistest.Prefix(t)
	wide := newFeatures[int, featureWide](t, client, "wide", featurestore.Options{Prefix: prefix, Share: true})
	items := newFeatures[int, featureItem](t, client, "items", featurestore.Options{Prefix: prefix, Share: true})
	var row featureWide
	row.F00, row.F05, row.F23 = featurestore.Some[int64](1), featurestore.Some[int64](5), featurestore.Some[int64](23)
	row.F07.State = featurestore.Null
	putFeatures(t, items, 1, featureItem{Price: 1}, featureTime(0))
	putFeatures(t, wide, 1, row, featureTime(1))
	row.F05, row.F10 = featurestore.Opt[int64]{}, featurestore.Some[int64](10)
	putFeatures(t, wide, 1, row, featureTime(2)) // now they are out of order
	row.F05 = featurestore.Some[int64](5)
	putFeatures(t, wide, 1, row, featureTime(3))
	key := prefix + ":{1}"
	for _, others := range []int{0, 1000, 20_000} {
		args := []string{"HSET"}
		for i := range others {
			args = append(args, "other-"+strconv.Itoa(i), "x")
		}
		if others > 0 {
			require.NoError(t, do(t, client, key, args...).Error())
		}
		rows, err := wide.GetMany(t.Context(), []int{1, 2, 1}, nil)
		require.NoError(t, err)
		require.Equal(t, row, rows[0].Value, "%d others", others)
		require.Equal(t, row, rows[2].Value)
		require.Equal(t, featurestore.Missing, rows[1].Status)
		require.Equal(t, featureTime(3), rows[0].EventTime)
	}
}
