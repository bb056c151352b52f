package integration

import (
	"context"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/redis/rueidis/rueidishook"
	"github.com/stretchr/testify/require"

	"github.com/redispatterns/redispatterns/featurestore"
	"github.com/redispatterns/redispatterns/internal/integration/redistest"
)

// featureLate does something before and after a pipeline, or a command, that has a word in it. Either may be nil, and is done once.
type featureLate struct {
	redistest.PassThrough
	word          string
	before, after func()
	on            atomic.Bool
}

func (h *featureLate) around(commands []rueidis.Completed, send func()) {
	late := slices.ContainsFunc(commands, func(c rueidis.Completed) bool { return slices.Contains(c.Commands(), h.word) })
	if !late || !h.on.CompareAndSwap(true, false) {
		send()
		return
	}
	if h.before != nil {
		h.before()
	}
	send()
	if h.after != nil {
		h.after()
	}
}

func (h *featureLate) Do(client rueidis.Client, ctx context.Context, cmd rueidis.Completed) (reply rueidis.RedisResult) {
	h.around([]rueidis.Completed{cmd}, func() { reply = client.Do(ctx, cmd) })
	return reply
}

func (h *featureLate) DoMulti(client rueidis.Client, ctx context.Context, multi ...rueidis.Completed) (replies []rueidis.RedisResult) {
	h.around(multi, func() { replies = client.DoMulti(ctx, multi...) })
	return replies
}

// featureTextOnly has a feature of any length.
type featureTextOnly struct {
	S string `feature:"s"`
}

func TestFeaturestoreLate_ReadsWhileAllIsDeleted(t *testing.T) {
	t.Parallel()
	h := &featureLate{word: "HMGET"}
	v := newFeatures[int, featureA](t, rueidishook.WithHook(redistest.Shared(t).Client(t), h), "users", featurestore.Options{})
	h.after = func() {
		_, err := v.DeleteAll(t.Context())
		require.NoError(t, err)
	}
	for range 5 {
		putFeatures(t, v, 1, featureA{1}, featureTime(1))
		_, err := v.GetMany(t.Context(), []int{1}, nil) // so that the next one knows what is live
		require.NoError(t, err)
		h.on.Store(true)
		rows, err := v.GetMany(t.Context(), []int{1}, nil)
		require.NoError(t, err)
		require.Contains(t, []featurestore.Status{featurestore.Found, featurestore.Missing}, rows[0].Status)
		require.False(t, h.on.Load())
	}
}

// A Commit of which the reply comes after another process has rolled back does not bring the version back.
func TestFeaturestoreLate_CommitIsAsOldAsItsCommand(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	ctx := t.Context()
	opts := featurestore.Options{Prefix: redistest.Prefix(t)}
	h := &featureLate{word: "loading"}
	v := newFeatures[int, featureA](t, rueidishook.WithHook(client, h), "users", opts)
	other := newFeatures[int, featureA](t, client, "users", opts)
	for n, version := range []string{"v1", "v2"} {
		r, err := v.Begin(ctx, version)
		require.NoError(t, err)
		_, err = r.Load(ctx, featureSeq([]int{1}, func(int) (featureA, time.Time) { return featureA{int64(n)}, featureTime(1) }), featurestore.LoadOptions{})
		require.NoError(t, err)
		if n == 0 {
			require.NoError(t, r.Commit(ctx))
		}
	}
	second, err := v.Begin(ctx, "v2") // once more, now that v1 is live
	require.NoError(t, err)
	var versions []string
	get := func() {
		row, err := v.Get(ctx, 1)
		require.NoError(t, err)
		versions = append(versions, row.Version)
	}
	h.after = func() {
		require.NoError(t, other.Rollback(ctx, "v1"))
		require.NoError(t, after(ctx, 30*time.Millisecond))
		get()
	}
	h.on.Store(true)
	require.NoError(t, second.Commit(ctx))
	get()
	require.Equal(t, []string{"v1", "v1"}, versions)
	require.NoError(t, v.Rollback(ctx, "v2"))
	get()
	require.Equal(t, "v2", versions[2], "what the process itself has switched to it reads at once")
}

// Redis may have forgotten the script that writes and not the one that asks what is live.
func TestFeaturestoreLate_PutAsksAgainAfterItsScriptWasUnknown(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t)
	ctx := t.Context()
	h := &featureLate{word: "EVAL"}
	v := newFeatures[int, featureA](t, rueidishook.WithHook(client, h), "users", featurestore.Options{Prefix: "p"})
	other := newFeatures[int, featureA](t, client, "users", featurestore.Options{Prefix: "p"})
	putFeatures(t, v, 1, featureA{1}, featureTime(1))
	send(t, client, "SCRIPT", "FLUSH")
	r, err := other.Begin(ctx, "v1")
	require.NoError(t, err)
	_, err = r.Load(ctx, featureSeq([]int{2}, func(int) (featureA, time.Time) { return featureA{2}, featureTime(1) }), featurestore.LoadOptions{SkipOrderCheck: true})
	require.NoError(t, err)
	h.before = func() { require.NoError(t, r.Commit(ctx)) }
	h.on.Store(true)
	putFeatures(t, v, 1, featureA{3}, featureTime(2))
	require.False(t, h.on.Load())
	row, err := v.Pin("v1").Get(ctx, 1)
	require.NoError(t, err)
	require.Equal(t, int64(3), row.Value.A)
}

// Of a Cluster, the node that says what is live may do so long before the row is written elsewhere: then it is asked again.
func TestFeaturestoreLate_PutAsksAgainWhenNodesWereSlow(t *testing.T) {
	t.Parallel()
	server := redistest.SharedCluster(t)
	client := server.Client(t)
	ctx := t.Context()
	opts := featurestore.Options{Prefix: redistest.Prefix(t)}
	h := &featureLate{word: "EVALSHA"}
	v := newFeatures[int, featureA](t, rueidishook.WithHook(client, h), "users", opts)
	other := newFeatures[int, featureA](t, client, "users", opts)
	putFeatures(t, v, 1, featureA{1}, featureTime(1))
	r, err := other.Begin(ctx, "v1")
	require.NoError(t, err)
	_, err = r.Load(ctx, featureSeq([]int{2}, func(int) (featureA, time.Time) { return featureA{2}, featureTime(1) }), featurestore.LoadOptions{SkipOrderCheck: true})
	require.NoError(t, err)
	h.after = func() {
		require.NoError(t, r.Commit(ctx))
		require.NoError(t, after(ctx, 30*time.Millisecond))
	}
	h.on.Store(true)
	putFeatures(t, v, 1, featureA{3}, featureTime(2))
	require.False(t, h.on.Load())
	row, err := v.Pin("v1").Get(ctx, 1)
	require.NoError(t, err)
	require.Equal(t, int64(3), row.Value.A)
}

// Of two rows of an entity with the same event time the second one stays, also if the first one has to be sent again.
func TestFeaturestoreLate_RowsThatAreSentAgainStayInOrder(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	send(t, server.Client(t), "ACL", "SETUSER", "u", "on", ">p", "+@all", "-restore", "&*", "~*")
	user := server.Client(t, func(o *rueidis.ClientOption) { o.Username, o.Password = "u", "p" })
	for _, unchecked := range []bool{false, true} {
		v := newFeatures[int, featureTextOnly](t, user, "texts", featurestore.Options{})
		long := strings.Repeat("x", 100) // too long for RESTORE
		texts := []string{"first", long, "alone", "third", long + "y"}
		stats, err := v.Load(t.Context(), featureSeq([]int{1, 1, 2, 3, 3}, func(i int) (featureTextOnly, time.Time) {
			return featureTextOnly{texts[i]}, featureTime(1)
		}), featurestore.LoadOptions{SkipOrderCheck: unchecked})
		require.NoError(t, err)
		require.Equal(t, int64(5), stats.Done)
		rows, err := v.GetMany(t.Context(), []int{1, 2, 3}, nil)
		require.NoError(t, err)
		require.Equal(t, []string{long, "alone", long + "y"}, []string{rows[0].Value.S, rows[1].Value.S, rows[2].Value.S})
	}
}

// What a source or Redis held up is not made up for, and not counted as Redis' time.
func TestFeaturestoreLate_LoadKeepsItsPace(t *testing.T) {
	t.Parallel()
	var last time.Duration
	v := newFeatures[int, featureA](t, redistest.Shared(t).Client(t), "users", featurestore.Options{Hooks: featurestore.Hooks{
		Write: func(_ context.Context, info featurestore.WriteInfo) { last = info.Took },
	}})
	began, resumed := time.Now(), time.Time{}
	stats, err := v.Load(t.Context(), featureSeq(featureRange(0, 600), func(i int) (featureA, time.Time) {
		if i == 100 {
			require.NoError(t, after(t.Context(), 600*time.Millisecond))
			resumed = time.Now()
		}
		return featureA{int64(i)}, featureTime(1)
	}), featurestore.LoadOptions{Batch: 50, RowsPerSecond: 1000})
	require.NoError(t, err)
	require.Equal(t, int64(600), stats.Applied)
	require.GreaterOrEqual(t, time.Since(resumed), 440*time.Millisecond)
	require.Less(t, last, time.Since(began)/2)
}

func TestFeaturestoreLate_LoadThatCannotBeginHasWhatItSkips(t *testing.T) {
	t.Parallel()
	v := newFeatures[int, featureA](t, redistest.Shared(t).Client(t), "users", featurestore.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	stats, err := v.Load(ctx, featureSeq([]int{1}, func(int) (featureA, time.Time) { return featureA{1}, featureTime(1) }), featurestore.LoadOptions{Skip: 7})
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, int64(7), stats.Done)
}

// Patch needs to read nothing but the time: it mends what cannot be read, and leaves what is of another type.
func TestFeaturestoreLate_PatchMends(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	ctx := t.Context()
	for _, codec := range []featurestore.Codec{featurestore.Fields, featurestore.Feast} {
		opts := featurestore.Options{Prefix: redistest.Prefix(t), Codec: codec}
		type texts struct {
			A string                  `feature:"a"`
			B featurestore.Opt[int64] `feature:"b"`
		}
		before := newFeatures[int, texts](t, client, "users", opts)
		v := newFeatures[int, featureAB](t, client, "users", opts)
		putFeatures(t, before, 1, texts{A: "not a number", B: featurestore.Opt[int64]{State: featurestore.Null}}, featureTime(1))
		_, err := v.Get(ctx, 1)
		require.ErrorIs(t, err, featurestore.ErrSkew, codec)
		out, err := v.Patch(ctx, 1, featureTime(2), featurestore.To("b", 5))
		require.NoError(t, err, codec)
		require.Equal(t, featurestore.Applied, out)
		row, err := before.Get(ctx, 1)
		require.NoError(t, err)
		require.Equal(t, texts{A: "not a number", B: featurestore.Some(int64(5))}, row.Value)
		_, err = v.Patch(ctx, 1, featureTime(3), featurestore.To("b", nil))
		require.NoError(t, err)
		_, err = v.Patch(ctx, 1, featureTime(4), featurestore.To("a", 6))
		require.NoError(t, err)
		mended, err := v.Get(ctx, 1)
		require.NoError(t, err)
		require.Equal(t, featureAB{A: 6, B: featurestore.Opt[int64]{State: featurestore.Null}}, mended.Value)
	}
}

// The rows of a version go whole, whatever is known of their schemas.
func TestFeaturestoreLate_DropOfForgottenSchemas(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	ctx := t.Context()
	opts := featurestore.Options{Prefix: redistest.Prefix(t)}
	before := newFeatures[int, featureAB](t, client, "users", opts)
	r, err := before.Begin(ctx, "v1")
	require.NoError(t, err)
	_, err = r.Load(ctx, featureSeq(featureRange(0, 100), func(i int) (featureAB, time.Time) {
		return featureAB{A: int64(i), B: featurestore.Some(int64(1))}, featureTime(1)
	}), featurestore.LoadOptions{})
	require.NoError(t, err)
	require.NoError(t, client.Do(ctx, client.B().Del().Key(opts.Prefix+":@{users}").Build()).Error()) // evicted
	v := newFeatures[int, featureA](t, client, "users", opts)
	require.NoError(t, v.Drop(ctx, "v1"))
	require.Equal(t, []string{opts.Prefix + ":@{users}"}, featureKeys(t, client, opts.Prefix))
}

// Lengths at which an entry of a listpack takes one byte more, before or after it.
func TestFeaturestoreDump_LengthsOfEntries(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t)
	send(t, client, "CONFIG", "SET", "hash-max-listpack-value", "3000000")
	v := newFeatures[int, featureMany](t, client, "texts", featurestore.Options{})
	lengths := []int{1, 62, 63, 64, 124, 125, 126, 127, 4094, 4095, 4096, 16376, 16377, 16378, 16379, 2097144, 2097145, 2097146, 2097147}
	for _, n := range lengths {
		var value featureMany
		for i := range 40 {
			value.all()[i] = featurestore.Some("v")
		}
		value.all()[13] = featurestore.Some(strings.Repeat("x", n))
		putFeatures(t, v, n, value, featureTime(n))
		row, err := v.Get(t.Context(), n)
		require.NoError(t, err)
		require.Equal(t, featureTime(n), row.EventTime, n)
		for i, f := range row.Value.all() {
			require.Equal(t, value.all()[i].State, f.State, n)
			require.Len(t, f.V, len(value.all()[i].V), n)
		}
	}
}

// What is deleted makes room, also of a version that was being loaded.
func TestFeaturestoreLate_AFullRedisCanBeEmptied(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t)
	ctx := t.Context()
	for codec, view := range map[featurestore.Codec]string{featurestore.Fields: "fields", featurestore.Packed: "packed"} {
		fillUp(t, server, "0")
		v := newFeatures[int, featureA](t, client, view, featurestore.Options{Prefix: "p", Codec: codec})
		putFeatures(t, v, 1, featureA{1}, featureTime(1))
		putFeatures(t, v, 2, featureA{1}, featureTime(1))
		r, err := v.Begin(ctx, "v1")
		require.NoError(t, err)
		_, err = r.Load(ctx, featureSeq([]int{3}, func(int) (featureA, time.Time) { return featureA{2}, featureTime(1) }), featurestore.LoadOptions{})
		require.NoError(t, err)
		fillUp(t, server, "1")
		_, err = v.Put(ctx, 4, featureA{1}, featureTime(1))
		require.ErrorContains(t, err, "OOM")
		n, err := v.Delete(ctx, 1)
		require.NoError(t, err)
		require.Equal(t, 1, n)
		require.NoError(t, r.Abort(ctx))
		n, err = v.DeleteAll(ctx)
		require.NoError(t, err)
		require.Equal(t, 1, n)
		keys, err := client.Do(ctx, client.B().Dbsize().Build()).AsInt64()
		require.NoError(t, err)
		require.Zero(t, keys)
	}
}

// What a write depends on is not read from replicas, which may lag.
func TestFeaturestoreLate_WritesAskThePrimary(t *testing.T) {
	t.Parallel()
	h := &readOnlySpy{}
	v := newFeatures[int, featureA](t, rueidishook.WithHook(redistest.Shared(t).Client(t), h), "users", featurestore.Options{})
	putFeatures(t, v, 1, featureA{1}, featureTime(1))
	_, err := v.Patch(t.Context(), 1, featureTime(2), featurestore.To("a", int64(2)))
	require.NoError(t, err)
	written := h.seen()
	require.NotContains(t, written, "HGETALL")
	require.NotContains(t, written, "HMGET")
	_, err = v.Get(t.Context(), 1)
	require.NoError(t, err)
	require.Contains(t, h.seen(), "HMGET", "a read may")
}

// Nor does it matter which of a pipeline's scripts Redis has forgotten: of two rows of an entity the second one stays.
func TestFeaturestoreLate_ForgottenScriptsKeepTheOrder(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t)
	v := newFeatures[int, featureTextOnly](t, client, "users", featurestore.Options{Prefix: "p"})
	rows := []string{"short", strings.Repeat("long", 100)} // by load.lua and by put.lua
	for _, order := range [][2]int{{0, 1}, {1, 0}} {
		for _, known := range rows {
			send(t, client, "SCRIPT", "FLUSH")
			for range 2 {
				_, err := v.Load(t.Context(), featureSeq([]int{0}, func(int) (featureTextOnly, time.Time) { return featureTextOnly{known}, featureTime(1) }), featurestore.LoadOptions{})
				require.NoError(t, err)
			}
			_, err := v.Load(t.Context(), func(yield func(int, featurestore.Event[featureTextOnly]) bool) {
				for _, i := range order {
					if !yield(1, featurestore.Event[featureTextOnly]{Value: featureTextOnly{rows[i]}, At: featureTime(1)}) {
						return
					}
				}
			}, featurestore.LoadOptions{})
			require.NoError(t, err)
			row, err := v.Get(t.Context(), 1)
			require.NoError(t, err)
			require.Equal(t, rows[order[1]], row.Value.S)
		}
	}
}
