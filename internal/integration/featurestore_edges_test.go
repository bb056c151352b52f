package integration

import (
	"context"
	"crypto/tls"
	"fmt"
	"math"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/redis/rueidis/rueidishook"
	"github.com/stretchr/testify/require"

	"github.com/redispatterns/redispatterns/featurestore"
	"github.com/redispatterns/redispatterns/featurestore/feast"
	"github.com/redispatterns/redispatterns/internal/integration/redistest"
)

type featureA struct {
	A int64 `feature:"a"`
}

type featureAB struct {
	A int64                   `feature:"a"`
	B featurestore.Opt[int64] `feature:"b"`
}

type featureB struct {
	B int64 `feature:"b"`
}

type featureHook struct {
	rueidishook.Hook
	before func(cmds []rueidis.Completed)
}

type featureSlowConn struct {
	net.Conn
	addr     string
	slow     *atomic.Bool
	slowAddr *atomic.Pointer[string]
}

type featureTwenty struct {
	F0  int64 `feature:"f0"`
	F1  int64 `feature:"f1"`
	F2  int64 `feature:"f2"`
	F3  int64 `feature:"f3"`
	F4  int64 `feature:"f4"`
	F5  int64 `feature:"f5"`
	F6  int64 `feature:"f6"`
	F7  int64 `feature:"f7"`
	F8  int64 `feature:"f8"`
	F9  int64 `feature:"f9"`
	F10 int64 `feature:"f10"`
	F11 int64 `feature:"f11"`
	F12 int64 `feature:"f12"`
	F13 int64 `feature:"f13"`
	F14 int64 `feature:"f14"`
	F15 int64 `feature:"f15"`
	F16 int64 `feature:"f16"`
	F17 int64 `feature:"f17"`
	F18 int64 `feature:"f18"`
	F19 int64 `feature:"f19"`
}

func (h *featureHook) DoMulti(client rueidis.Client, ctx context.Context, multi ...rueidis.Completed) []rueidis.RedisResult {
	if h.before != nil {
		h.before(multi)
	}
	return client.DoMulti(ctx, multi...)
}

func (h *featureHook) Do(client rueidis.Client, ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	return client.Do(ctx, cmd)
}

func (c *featureSlowConn) Write(b []byte) (int, error) {
	for c.slow.Load() && c.addr == *c.slowAddr.Load() {
		if err := after(context.Background(), 10*time.Millisecond); err != nil {
			return 0, err
		}
	}
	return c.Conn.Write(b)
}

// A row whose schema Redis does not know, by a writer that did not see DeleteAll, is written over all the same.
func TestFeaturestore_RowsOfForgottenSchemasAreWrittenOver(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	opts := featurestore.Options{Prefix: redistest.Prefix(t), OpTimeout: time.Second}
	old := newFeatures[int, featureA](t, client, "users", opts)
	admin := newFeatures[int, featureA](t, client, "users", opts)
	putFeatures(t, old, 1, featureA{1}, featureTime(1))
	_, err := admin.DeleteAll(t.Context())
	require.NoError(t, err)
	putFeatures(t, old, 1, featureA{2}, featureTime(2)) // later, not meanwhile
	h := &featureHook{}
	now := newFeatures[int, featureAB](t, rueidishook.WithHook(client, h), "users", opts)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
	defer cancel()
	began := time.Now()
	out, err := now.Put(ctx, 1, featureAB{A: 3}, featureTime(3))
	require.Equal(t, featurestore.Applied, out)
	require.NoError(t, err)
	require.Less(t, time.Since(began), 3*time.Second)
	ctx2, cancel2 := context.WithTimeout(t.Context(), 4*time.Second)
	defer cancel2()
	st, err := now.Load(ctx2, featureSeq([]int{1}, func(int) (featureAB, time.Time) { return featureAB{A: 3}, featureTime(4) }), featurestore.LoadOptions{})
	require.NoError(t, err, "%+v", st)
}

// Once a feature has moved, writes of its old view leave it alone.
func TestFeaturestore_FeatureMovesToAnotherView(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	for _, codec := range []featurestore.Codec{featurestore.Fields} {
		opts := featurestore.Options{Prefix: redistest.Prefix(t), Codec: codec, Share: true}
		before := newFeatures[int, featureAB](t, client, "users", opts)
		putFeatures(t, before, 1, featureAB{A: 1, B: featurestore.Some(int64(1))}, featureTime(1))
		// the next deploy
		users := newFeatures[int, featureA](t, client, "users", opts)
		profile := newFeatures[int, featureB](t, client, "profile", opts)
		putFeatures(t, users, 1, featureA{2}, featureTime(2))
		putFeatures(t, profile, 1, featureB{7}, featureTime(2))
		putFeatures(t, users, 1, featureA{3}, featureTime(3))
		row, err := profile.Get(t.Context(), 1)
		require.NoError(t, err)
		require.Equal(t, int64(7), row.Value.B, "%v %+v", codec, row)
		_, err = users.Delete(t.Context(), 1)
		require.NoError(t, err)
	}
}

// A process that has not written for a while asks what is live before it does.
func TestFeaturestore_IdleWriterAsksWhatIsLive(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	ctx := t.Context()
	opts := featurestore.Options{Prefix: redistest.Prefix(t), Codec: featurestore.Packed}
	admin, writer := newFeatures[int, featureA](t, client, "users", opts), newFeatures[int, featureA](t, client, "users", opts)
	release := func(version string, ks ...int) {
		r, err := admin.Begin(ctx, version)
		require.NoError(t, err)
		_, err = r.Load(ctx, featureSeq(ks, func(int) (featureA, time.Time) { return featureA{1}, featureTime(1) }), featurestore.LoadOptions{SkipOrderCheck: true})
		require.NoError(t, err)
		require.NoError(t, r.Commit(ctx))
	}
	release("blue", 1)
	putFeatures(t, writer, 1, featureA{2}, featureTime(2))
	release("green", 1)
	require.NoError(t, admin.Drop(ctx, "blue"))
	putFeatures(t, writer, 666, featureA{666}, featureTime(3))
	ghost, err := admin.Pin("blue").Get(ctx, 666)
	require.NoError(t, err)
	require.Equal(t, featurestore.Missing, ghost.Status, "an orphan in a dropped version, without TTL: %v", featureKeys(t, client, opts.Prefix))
	_, err = admin.Delete(ctx, 666)
	require.NoError(t, err)
	release("blue", 1)
	row, err := admin.Get(ctx, 666)
	require.NoError(t, err)
	require.Equal(t, featurestore.Missing, row.Status, "a row that is live, though release blue never loaded it and it was deleted: %+v", row)
}

// Many reads that begin at once, a while after Commit, are all of the new version.
func TestFeaturestore_ReadsAfterCommitAreNew(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	ctx := t.Context()
	opts := featurestore.Options{Prefix: redistest.Prefix(t), Codec: featurestore.Packed}
	admin, v := newFeatures[int, featureA](t, client, "users", opts), newFeatures[int, featureA](t, client, "users", opts)
	old := 0
	for n := range 8 {
		r, err := admin.Begin(ctx, fmt.Sprint("v", n))
		require.NoError(t, err)
		ks := []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
		_, err = r.Load(ctx, featureSeq(ks, func(int) (featureA, time.Time) { return featureA{int64(n)}, featureTime(1) }), featurestore.LoadOptions{SkipOrderCheck: true})
		require.NoError(t, err)
		_, err = v.Get(ctx, 0)
		require.NoError(t, err)
		require.NoError(t, r.Commit(ctx))
		require.NoError(t, after(ctx, 30*time.Millisecond))
		var wg sync.WaitGroup
		var mu sync.Mutex
		start := make(chan struct{})
		for _, k := range ks {
			wg.Go(func() {
				<-start
				row, err := v.Get(context.Background(), k)
				mu.Lock()
				defer mu.Unlock()
				if err == nil && row.Version != fmt.Sprint("v", n) {
					old++
				}
			})
		}
		close(start)
		wg.Wait()
	}
	require.Zero(t, old)
}

// A read whose process has asked what is live, in vain so far, asks for itself.
func TestFeaturestore_ReadsDoNotWaitForAnothersAnswer(t *testing.T) {
	t.Parallel()
	plain := redistest.Shared(t).Client(t)
	ctx := t.Context()
	opts := featurestore.Options{Prefix: redistest.Prefix(t), Codec: featurestore.Packed}
	hook := &featureHook{}
	admin := newFeatures[int, featureA](t, plain, "users", opts)
	v := newFeatures[int, featureA](t, rueidishook.WithHook(plain, hook), "users", opts)
	release := func(version string) {
		r, err := admin.Begin(ctx, version)
		require.NoError(t, err)
		_, err = r.Load(ctx, featureSeq([]int{1}, func(int) (featureA, time.Time) { return featureA{1}, featureTime(1) }), featurestore.LoadOptions{})
		require.NoError(t, err)
		require.NoError(t, r.Commit(ctx))
	}
	release("v1")
	_, err := v.Get(ctx, 1)
	require.NoError(t, err)
	release("v2")
	require.NoError(t, after(ctx, 150*time.Millisecond))
	asked, goOn := make(chan struct{}), make(chan struct{})
	var blocked atomic.Bool
	hook.before = func([]rueidis.Completed) {
		if blocked.CompareAndSwap(false, true) {
			close(asked)
			<-goOn
		}
	}
	done := make(chan struct{})
	go func() { defer close(done); _, _ = v.Get(context.Background(), 1) }()
	<-asked
	row, err := v.Get(ctx, 1)
	close(goOn)
	<-done
	require.NoError(t, err)
	require.Equal(t, "v2", row.Version, "150ms after Commit")
}

// A writer of Feast knows of another schema a second after its first Put, and leaves none of its features behind.
func TestFeaturestore_FeastLearnsOtherSchemas(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	opts := featurestore.Options{Prefix: redistest.Prefix(t), Codec: featurestore.Feast}
	old := newFeatures[int, featureA](t, client, "users", opts)
	putFeatures(t, old, 1, featureA{1}, featureTime(1))
	now := newFeatures[int, featureAB](t, client, "users", opts)
	putFeatures(t, now, 1, featureAB{A: 2, B: featurestore.Some(int64(2))}, featureTime(2))
	require.NoError(t, after(t.Context(), 1100*time.Millisecond))
	putFeatures(t, old, 1, featureA{3}, featureTime(3))
	row, err := now.Get(t.Context(), 1)
	require.NoError(t, err)
	require.Equal(t, featureAB{A: 3}, row.Value, "b is of event time 2, the row says %v", row.EventTime)
}

// All ends with an error if its version is dropped meanwhile.
func TestFeaturestore_AllSaysThatItsVersionWasDropped(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	ctx := t.Context()
	opts := featurestore.Options{Prefix: redistest.Prefix(t), Codec: featurestore.Packed}
	v := newFeatures[int, featureA](t, client, "users", opts)
	ks := make([]int, 5000)
	for i := range ks {
		ks[i] = i
	}
	release := func(version string, ks []int) {
		r, err := v.Begin(ctx, version)
		require.NoError(t, err)
		_, err = r.Load(ctx, featureSeq(ks, func(int) (featureA, time.Time) { return featureA{1}, featureTime(1) }), featurestore.LoadOptions{SkipOrderCheck: true})
		require.NoError(t, err)
		require.NoError(t, r.Commit(ctx))
	}
	release("v1", ks)
	n := 0
	var failed error
	for _, row := range v.All(ctx) {
		if row.Err != nil {
			failed = row.Err
			break
		}
		if n++; n == 1 {
			release("v2", ks)
			require.NoError(t, v.Drop(ctx, "v1"))
		}
	}
	require.True(t, n == len(ks) || failed != nil, "All ended well after %d of %d rows", n, len(ks))
}

// A time that nobody can have written is later than none.
func TestFeaturestore_ImpossibleTimesAreWrittenOver(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	ctx := t.Context()
	for codec, field := range map[featurestore.Codec][2]string{
		featurestore.Packed: {"users", "hello wonderful world"},
		featurestore.Fields: {"_ts:users", "1700000000123456789"}, // nanoseconds, by somebody else's job
	} {
		opts := featurestore.Options{Prefix: redistest.Prefix(t), Codec: codec}
		v := newFeatures[int, featureA](t, client, "users", opts)
		require.NoError(t, do(t, client, opts.Prefix+":users:{1}", "HSET", field[0], field[1]).Error())
		row, err := v.Get(ctx, 1)
		require.Error(t, err)
		require.Equal(t, featurestore.Broken, row.Status)
		out, err := v.Put(ctx, 1, featureA{1}, time.Now())
		require.NoError(t, err)
		require.NotEqual(t, featurestore.Older, out, "%v: no row is there that is later", codec)
	}
}

// An event time whose microseconds are no int64 is not taken for another one.
func TestFeaturestore_EventTimesOutOfBoundsAreRefused(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	v := newFeatures[int, featureA](t, client, "users", featurestore.Options{})
	for i, at := range []time.Time{time.Unix(1<<58+1_700_000_000, 0), time.Unix(-1<<58+1_700_000_000, 0)} {
		out, err := v.Put(t.Context(), i, featureA{1}, at)
		row, _ := v.Get(t.Context(), i)
		require.ErrorIs(t, err, featurestore.ErrInvalid, "%v: row of %v", out, row.EventTime)
	}
}

// Keys of one template that are those of another one, too, are not touched.
func TestFeaturestore_TemplatesMayOverlap(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	ctx := t.Context()
	p := redistest.Prefix(t)
	users := newFeatures[string, featureA](t, client, "users", featurestore.Options{Prefix: p, Key: p + "user:%v"})
	prefs := newFeatures[string, featureA](t, client, "prefs", featurestore.Options{Prefix: p, Key: p + "user:%v:prefs"})
	putFeatures(t, users, "42", featureA{1}, featureTime(1))
	putFeatures(t, prefs, "42", featureA{2}, featureTime(1))
	for k, row := range users.All(ctx) {
		require.Equal(t, "42", k, "%+v is not a row of users", row)
	}
	_, err := users.DeleteAll(ctx)
	require.NoError(t, err)
	row, err := prefs.Get(ctx, "42")
	require.NoError(t, err)
	require.Equal(t, int64(2), row.Value.A, "deleting users deleted prefs: %+v", row)
}

// What others keep under a template is no row.
func TestFeaturestore_AllOfATemplateLeavesOutOthers(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	p := redistest.Prefix(t)
	v := newFeatures[string, featureA](t, client, "users", featurestore.Options{Prefix: p, Key: p + "user:%v"})
	putFeatures(t, v, "42", featureA{1}, featureTime(1))
	require.NoError(t, do(t, client, p+"user:42:sessions", "SADD", "x").Error())
	n := 0
	for k, row := range v.All(t.Context()) {
		n++
		if k != "42" {
			t.Logf("%q: %v %v", k, row.Status, row.Err)
		}
	}
	require.Equal(t, 1, n)
}

// Patch leaves features that its process does not know, and a later Put of the same process does not.
func TestFeaturestore_PatchLeavesFeaturesOfOtherSchemas(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	opts := featurestore.Options{Prefix: redistest.Prefix(t)}
	now := newFeatures[int, featureAB](t, client, "users", opts)
	putFeatures(t, now, 1, featureAB{A: 1, B: featurestore.Some(int64(1))}, featureTime(1))
	old := newFeatures[int, featureA](t, client, "users", opts)
	_, err := old.Patch(t.Context(), 1, featureTime(2), featurestore.To("a", 2))
	require.NoError(t, err)
	row, err := now.Get(t.Context(), 1)
	require.NoError(t, err)
	require.Equal(t, featureAB{A: 2, B: featurestore.Some(int64(1))}, row.Value)
	putFeatures(t, old, 1, featureA{3}, featureTime(3))
	row, err = now.Get(t.Context(), 1)
	require.NoError(t, err)
	require.Equal(t, featureAB{A: 3}, row.Value)
	_, err = now.Patch(t.Context(), 2, featureTime(1), featurestore.To("b", nil))
	require.NoError(t, err)
	_, err = old.Patch(t.Context(), 2, featureTime(2), featurestore.To("a", 2))
	require.NoError(t, err)
	row, err = now.Get(t.Context(), 2)
	require.NoError(t, err)
	require.Equal(t, featureAB{A: 2, B: featurestore.Opt[int64]{State: featurestore.Null}}, row.Value)
}

// However many features a view has had, its rows can be written and deleted.
func TestFeaturestore_ManySchemasAreNoBurden(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	opts := featurestore.Options{Prefix: redistest.Prefix(t)}
	first := newFeatures[int, featureA](t, client, "users", opts)
	putFeatures(t, first, 1, featureA{1}, featureTime(1))
	marks := ""
	for i := range 9 { // as nine deploys with 1,000 features each leave it
		list := ""
		for j := range 1000 {
			list += fmt.Sprintf("f%d ", i*1000+j)
		}
		marks += fmt.Sprintf("+%08x", i)
		require.NoError(t, do(t, client, opts.Prefix+":@{users}", "HSET", fmt.Sprintf("s:%08x", i), list).Error())
	}
	key := opts.Prefix + ":users:{1}"
	require.NoError(t, do(t, client, key, "HSET", "_ts:users", "1700000001000000 "+marks[1:], "f8999", "1").Error())
	v := newFeatures[int, featureA](t, client, "users", opts)
	out, err := v.Put(t.Context(), 1, featureA{2}, featureTime(2))
	row, _ := v.Get(t.Context(), 1)
	require.NoError(t, err, "%v, and the row is %+v", out, row)
	n, err := do(t, client, key, "HLEN").AsInt64()
	require.NoError(t, err)
	require.Equal(t, int64(2), n)
	_, err = v.Delete(t.Context(), 1)
	require.NoError(t, err)
}

// A read that gives up, since the live version keeps changing, leaves no rows of an earlier read.
func TestFeaturestore_ReadThatGivesUpLeavesNoOldRows(t *testing.T) {
	t.Parallel()
	plain := redistest.Shared(t).Client(t)
	ctx := t.Context()
	opts := featurestore.Options{Prefix: redistest.Prefix(t), Codec: featurestore.Packed}
	admin := newFeatures[int, featureA](t, plain, "users", opts)
	for _, version := range []string{"v1", "v2"} {
		r, err := admin.Begin(ctx, version)
		require.NoError(t, err)
		_, err = r.Load(ctx, featureSeq([]int{1, 2}, func(i int) (featureA, time.Time) { return featureA{int64(i) + 1}, featureTime(1) }), featurestore.LoadOptions{})
		require.NoError(t, err)
		require.NoError(t, r.Commit(ctx))
	}
	n := 0
	hook := &featureHook{}
	v := newFeatures[int, featureA](t, rueidishook.WithHook(plain, hook), "users", opts)
	rows, err := v.GetMany(ctx, []int{1, 2}, nil)
	require.NoError(t, err)
	numbers, _, err := v.Matrix(ctx, []int{1, 2}, nil, -1)
	require.NoError(t, err)
	require.NoError(t, after(ctx, 600*time.Millisecond))
	hook.before = func([]rueidis.Completed) {
		n++
		_ = after(ctx, 30*time.Millisecond)
		require.NoError(t, admin.Rollback(ctx, fmt.Sprint("v", n%2+1)))
	}
	rows, err = v.GetMany(ctx, []int{2, 1}, rows)
	if err != nil {
		for i := range rows {
			require.Error(t, rows[i].Err, "row of another entity: %+v", rows[i])
		}
	}
	numbers, status, err := v.Matrix(ctx, []int{2, 1}, numbers, -1)
	if err != nil {
		require.Equal(t, []float32{-1, -1}, numbers, "%v", status)
		require.Equal(t, featurestore.Broken, status[0])
	}
}

// Another view's "007" is not the entity 7.
func TestFeaturestore_NumbersAreWrittenInOneWay(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	opts := featurestore.Options{Prefix: redistest.Prefix(t), Share: true}
	a := newFeatures[int, featureA](t, client, "a", opts)
	b := newFeatures[string, featureB](t, client, "b", opts)
	putFeatures(t, a, 7, featureA{1}, featureTime(1))
	putFeatures(t, b, "007", featureB{1}, featureTime(1))
	putFeatures(t, b, "+7", featureB{1}, featureTime(1))
	n := 0
	for range a.All(t.Context()) {
		n++
	}
	require.Equal(t, 1, n)
}

// A Packed view may have the name of another one's feature.
func TestFeaturestore_ViewsMayHaveTheNameOfAFeature(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	opts := featurestore.Options{Prefix: redistest.Prefix(t)}
	fields := newFeatures[int, featureA](t, client, "users", opts)
	opts.Codec = featurestore.Packed
	packed := newFeatures[int, featureB](t, client, "a", opts)
	putFeatures(t, packed, 1, featureB{1}, featureTime(1))
	putFeatures(t, fields, 1, featureA{1}, featureTime(1))
	_, err := packed.Get(t.Context(), 1)
	require.NoError(t, err)
}

// Drop does not take a version for live because the server's clock was set back.
func TestFeaturestore_DropAfterTheClockWasSetBack(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	ctx := t.Context()
	opts := featurestore.Options{Prefix: redistest.Prefix(t), Codec: featurestore.Packed}
	v := newFeatures[int, featureA](t, client, "users", opts)
	for _, version := range []string{"v1", "v2"} {
		r, err := v.Begin(ctx, version)
		require.NoError(t, err)
		require.NoError(t, r.Commit(ctx))
	}
	now, err := client.Do(ctx, client.B().Time().Build()).ToArray()
	require.NoError(t, err)
	s, _ := now[0].AsInt64()
	require.NoError(t, do(t, client, opts.Prefix+":@{users}", "HSET", "left:v1", fmt.Sprint(s+1)).Error())
	require.NoError(t, v.Drop(ctx, "v1"))
}

// The answer to what is live may come long before the rows, from another node of a Cluster.
func TestFeaturestore_LateRowsOfAClusterAreReadAgain(t *testing.T) {
	t.Parallel()
	cluster := redistest.SharedCluster(t)
	var slow atomic.Bool
	var slowAddr atomic.Pointer[string]
	dialer := &net.Dialer{}
	reading := cluster.Client(t, func(o *rueidis.ClientOption) {
		o.PipelineMultiplex = -1
		o.DialCtxFn = func(ctx context.Context, addr string, _ *net.Dialer, _ *tls.Config) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, "tcp", addr)
			if err != nil {
				return nil, err
			}
			return &featureSlowConn{Conn: conn, addr: addr, slow: &slow, slowAddr: &slowAddr}, nil
		}
	})
	client := cluster.Client(t)
	t.Cleanup(func() { slow.Store(false) }) // or the clients would not close
	ctx := t.Context()
	opts := featurestore.Options{Prefix: redistest.Prefix(t), Codec: featurestore.Packed, OpTimeout: 20 * time.Second}
	admin, v := newFeatures[int, featureA](t, client, "users", opts), newFeatures[int, featureA](t, reading, "users", opts)
	ks := make([]int, 50)
	for i := range ks {
		ks[i] = i
	}
	release := func(version string) {
		r, err := admin.Begin(ctx, version)
		require.NoError(t, err)
		_, err = r.Load(ctx, featureSeq(ks, func(int) (featureA, time.Time) { return featureA{1}, featureTime(1) }), featurestore.LoadOptions{})
		require.NoError(t, err)
		require.NoError(t, r.Commit(ctx))
	}
	release("v1")
	_, err := v.GetMany(ctx, ks, nil)
	require.NoError(t, err)
	for n, addr := range cluster.Addrs() { // one of them has the control key
		slowAddr.Store(&addr)
		version := fmt.Sprint("v", n+1)
		require.NoError(t, after(ctx, 600*time.Millisecond))
		slow.Store(true)
		done := make(chan []featurestore.Row[featureA])
		go func() {
			rows, err := v.GetMany(context.Background(), ks, nil)
			if err != nil {
				t.Error(err)
			}
			done <- rows
		}()
		require.NoError(t, after(ctx, 300*time.Millisecond))
		release(fmt.Sprint("v", n+2))
		require.NoError(t, admin.Drop(ctx, version))
		slow.Store(false)
		missing := 0
		rows := <-done
		for _, row := range rows {
			if row.Status == featurestore.Missing {
				missing++
			}
		}
		require.Zero(t, missing, "of 50 rows read of %q with node %s late", rows[0].Version, addr)
	}
}

// Rows of many features are read alone where their hash has much else.
func TestFeaturestore_WideRowsBesidesMuchElse(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	ctx := t.Context()
	opts := featurestore.Options{Prefix: redistest.Prefix(t)}
	v := newFeatures[int, featureTwenty](t, client, "users", opts)
	putFeatures(t, v, 1, featureTwenty{F0: 1}, featureTime(1))
	key := opts.Prefix + ":users:{1}"
	for i := range 39 {
		args := []string{"HSET"}
		for j := range 100 {
			args = append(args, fmt.Sprintf("other%d", i*100+j), strings.Repeat("x", 1000))
		}
		require.NoError(t, do(t, client, key, args...).Error())
	}
	narrow, err := v.Select("f0", "f1", "f2", "f3", "f4", "f5", "f6", "f7", "f8", "f9", "f10", "f11", "f12", "f13", "f14", "f15", "f16", "f17")
	require.NoError(t, err)
	took := func(p *featurestore.Projection[int, featureTwenty]) time.Duration {
		best := time.Hour
		for range 10 {
			began := time.Now()
			_, err := p.Get(ctx, 1)
			require.NoError(t, err)
			best = min(best, time.Since(began))
		}
		return best
	}
	a, b := took(narrow), took(&v.Projection)
	require.Less(t, b, 10*a+5*time.Millisecond, "18 features: %v, 20 features: %v", a, b)
}

// Views of one name in two projects have nothing in common.
func TestFeaturestore_FeastProjectsAreApart(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	p := redistest.Prefix(t)
	opts := featurestore.Options{Prefix: p, Codec: featurestore.Feast, Feast: featurestore.FeastOptions{Project: p + "prod"}}
	other := opts
	other.Feast.Project = p + "dev"
	dev := newFeatures[int, featureAB](t, client, "users", other)
	putFeatures(t, dev, 1, featureAB{}, featureTime(1))
	prod := newFeatures[int, featureA](t, client, "users", opts) // reads and writes a part of what Python does
	key, err := feast.AppendKey(nil, feast.KeyV3, opts.Feast.Project, feast.Join{Name: "id", Value: feast.Value{Type: feast.Int64, Int: 1}})
	require.NoError(t, err)
	require.NoError(t, do(t, client, string(key), "HSET", feast.Field("users", "b"), "\x20\x05").Error())
	putFeatures(t, prod, 1, featureA{1}, featureTime(2))
	n, err := do(t, client, string(key), "HEXISTS", feast.Field("users", "b")).AsInt64()
	require.NoError(t, err)
	require.Equal(t, int64(1), n, "project prod's b was deleted because project dev has a schema with one")
}

// Hashes that have much else are read in one pipeline.
func TestFeaturestore_HugeHashesAreReadTogether(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	proxy := redistest.NewProxy(t, server.Addr())
	client := server.Client(t)
	ctx := t.Context()
	opts := featurestore.Options{Prefix: redistest.Prefix(t), OpTimeout: time.Second}
	w := newFeatures[int, featureTwenty](t, client, "users", opts)
	args := []string{"HSET"}
	for j := range 4500 {
		args = append(args, fmt.Sprintf("other%d", j), "")
	}
	ks := make([]int, 50)
	for i := range ks {
		ks[i] = i
		putFeatures(t, w, i, featureTwenty{F0: int64(i)}, featureTime(1))
		require.NoError(t, do(t, client, fmt.Sprintf("%s:users:{%d}", opts.Prefix, i), args...).Error())
	}
	far := server.Client(t, proxy.Through)
	v := newFeatures[int, featureTwenty](t, far, "users", opts)
	_, err := v.Get(ctx, 0)
	require.NoError(t, err)
	proxy.Latency(t, 40*time.Millisecond)
	began := time.Now()
	_, err = v.GetMany(ctx, ks, nil)
	require.NoError(t, err, "after %v, of 25 round trips of 40ms in OpTimeout", time.Since(began))
}

// Views that do not share their hashes may have features and entities of the same names.
func TestFeaturestore_ViewsOfOnePrefixAreApart(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	opts := featurestore.Options{Prefix: redistest.Prefix(t)}
	users, products := newFeatures[int64, featureA](t, client, "users", opts), newFeatures[int64, featureA](t, client, "products", opts)
	putFeatures(t, users, 42, featureA{1}, featureTime(1))
	putFeatures(t, products, 42, featureA{999}, featureTime(1))
	row, err := users.Get(t.Context(), 42)
	require.NoError(t, err)
	require.Equal(t, int64(1), row.Value.A, "the product's: %+v", row)
}

// Numbers that float32 cannot hold are refused, and embedded features are not ignored.
func TestFeaturestore_FloatsThatOverflowAreRefused(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	type narrow struct {
		F float64   `feature:"f,f32"`
		V []float64 `feature:"v,f32"`
	}
	eachFeatureCodec(t, func(t *testing.T, codec featurestore.Codec) {
		v := newFeatures[int, narrow](t, client, "narrow", featurestore.Options{Codec: codec})
		for _, row := range []narrow{{F: 1e300}, {F: -1e300}, {V: []float64{1, 1e300}}} {
			_, err := v.Put(t.Context(), 1, row, featureTime(1))
			require.ErrorIs(t, err, featurestore.ErrInvalid)
		}
		putFeatures(t, v, 1, narrow{F: math.Inf(1)}, featureTime(1))
	})
	type embedded struct {
		featureA

		B int64 `feature:"b"`
	}
	_, err := featurestore.NewView[int, embedded](client, "users", featurestore.Options{})
	require.ErrorContains(t, err, "embedded")
}
