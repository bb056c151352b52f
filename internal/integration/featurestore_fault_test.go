package integration

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/redis/rueidis/rueidishook"
	"github.com/stretchr/testify/require"

	"github.com/redispatterns/redispatterns/featurestore"
	"github.com/redispatterns/redispatterns/internal/integration/redistest"
)

// featureTrips counts round trips of connections: writes that come after a read.
type featureTrips struct {
	mu    sync.Mutex
	trips map[string]int
}

func (f *featureTrips) through(o *rueidis.ClientOption) {
	o.PipelineMultiplex = -1 // one connection per node
	o.DisableAutoPipelining = false
	dialer := &net.Dialer{}
	o.DialCtxFn = func(ctx context.Context, addr string, _ *net.Dialer, _ *tls.Config) (net.Conn, error) {
		conn, err := dialer.DialContext(ctx, "tcp", addr)
		return &featureConn{Conn: conn, trips: f, addr: addr, replied: true}, err
	}
}

// count returns the trips to each node that fn takes.
func (f *featureTrips) count(fn func()) map[string]int {
	f.mu.Lock()
	f.trips = map[string]int{}
	f.mu.Unlock()
	fn()
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.trips)
}

type featureConn struct {
	net.Conn
	trips   *featureTrips
	addr    string
	replied bool
}

func (c *featureConn) Write(b []byte) (int, error) {
	c.trips.mu.Lock()
	if c.replied && c.trips.trips != nil {
		c.trips.trips[c.addr]++
	}
	c.replied = false
	c.trips.mu.Unlock()
	return c.Conn.Write(b)
}

func (c *featureConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.trips.mu.Lock()
	c.replied = true
	c.trips.mu.Unlock()
	return n, err
}

func TestFeaturestore_OneRoundTrip(t *testing.T) {
	t.Parallel()
	for name, connect := range map[string]func(opts ...func(*rueidis.ClientOption)) rueidis.Client{
		"single": func(opts ...func(*rueidis.ClientOption)) rueidis.Client {
			return redistest.Shared(t).Client(t, opts...)
		},
		"cluster": func(opts ...func(*rueidis.ClientOption)) rueidis.Client {
			return redistest.SharedCluster(t).Client(t, opts...)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			var trips featureTrips
			client := connect(trips.through)
			opts := featurestore.Options{Codec: featurestore.Packed, Prefix: redistest.Prefix(t)}
			users, items := newFeatures[int, featureRow](t, client, "users", opts), newFeatures[int, featureItem](t, client, "items", opts)
			ks := make([]int, 50)
			for i := range ks {
				ks[i] = i % 40
			}
			_, err := users.Load(ctx, featureSeq(ks, func(i int) (featureRow, time.Time) { return featureRow{N: int64(ks[i])}, featureTime(0) }), featurestore.LoadOptions{})
			require.NoError(t, err)
			r, err := items.Begin(ctx, "v1")
			require.NoError(t, err)
			_, err = r.Load(ctx, featureSeq(ks, func(i int) (featureItem, time.Time) { return featureItem{Price: float64(ks[i])}, featureTime(0) }), featurestore.LoadOptions{})
			require.NoError(t, err)
			require.NoError(t, r.Commit(ctx))
			for _, node := range client.Nodes() { // reads do not need any script
				_ = node.Do(ctx, node.B().ScriptFlush().Build()).Error() // a replica refuses
			}
			pinned := items.Pin("v1")
			for what, read := range map[string]func(){
				"one":    func() { must(users.Get(ctx, 1))(t) },
				"pinned": func() { must(pinned.GetMany(ctx, ks, nil))(t) },
				"many": func() {
					rows := must(users.GetMany(ctx, ks, nil))(t)
					for i, row := range rows {
						require.Equal(t, int64(ks[i]), row.Value.N)
					}
				},
				"batch": func() {
					var b featurestore.Batch
					u, i, p := users.InMany(&b, ks), items.InMany(&b, ks), pinned.InMany(&b, ks)
					require.NoError(t, b.Exec(ctx))
					for n := range ks {
						require.Equal(t, int64(ks[n]), u.Rows()[n].Value.N)
						require.InDelta(t, float64(ks[n]), i.Rows()[n].Value.Price, 0)
						require.Equal(t, i.Rows()[n].Value, p.Rows()[n].Value)
					}
				},
			} {
				var counts map[string]int
				for range 5 { // the client pings now and then; it cannot make fewer trips of more
					if counts = trips.count(read); len(counts) > 0 && slices.Max(slices.Collect(maps.Values(counts))) == 1 {
						break
					}
				}
				for node, n := range counts {
					require.Equal(t, 1, n, "%s: %s", what, node)
				}
				require.NotEmpty(t, counts, what)
			}
		})
	}
}

// featureCommands counts what is sent, by name.
type featureCommands struct {
	rueidishook.Hook
	mu   sync.Mutex
	sent map[string]int
}

func (h *featureCommands) DoMulti(client rueidis.Client, ctx context.Context, multi ...rueidis.Completed) []rueidis.RedisResult {
	h.mu.Lock()
	for _, c := range multi {
		h.sent[c.Commands()[0]]++
	}
	h.mu.Unlock()
	return client.DoMulti(ctx, multi...)
}

func (h *featureCommands) Do(client rueidis.Client, ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	return client.Do(ctx, cmd)
}

// Views that share have an entity's rows in one hash, which one command reads; a key that comes twice is read once.
func TestFeaturestore_OneCommandPerEntity(t *testing.T) {
	t.Parallel()
	hook := &featureCommands{sent: map[string]int{}}
	client := rueidishook.WithHook(redistest.Shared(t).Client(t), hook)
	opts := featurestore.Options{Prefix: redistest.Prefix(t), Share: true}
	users, items := newFeatures[int, featureRow](t, client, "users", opts), newFeatures[int, featureItem](t, client, "items", opts)
	for i := range 3 {
		putFeatures(t, users, i, featureRow{N: int64(i)}, featureTime(0))
		putFeatures(t, items, i, featureItem{Price: float64(i)}, featureTime(0))
	}
	clear(hook.sent)
	var b featurestore.Batch
	u, i, again := users.InMany(&b, []int{0, 1, 2, 0}), items.InMany(&b, []int{2, 1, 1}), users.In(&b, 2)
	require.NoError(t, b.Exec(t.Context()))
	require.Equal(t, 3, hook.sent["HMGET"])
	require.LessOrEqual(t, hook.sent["HGET"], 3)
	require.Equal(t, int64(2), u.Rows()[2].Value.N)
	require.Equal(t, u.Rows()[0], u.Rows()[3])
	require.InDelta(t, 2.0, i.Rows()[0].Value.Price, 0)
	require.InDelta(t, 1.0, i.Rows()[2].Value.Price, 0)
	require.Equal(t, u.Rows()[2], again.Row())
}

func TestFeaturestore_ProjectionIsSharedByMany(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	eachFeatureCodec(t, func(t *testing.T, codec featurestore.Codec) {
		v := newFeatures[int, featureRow](t, client, "users", featurestore.Options{Codec: codec})
		for i := range 16 {
			putFeatures(t, v, i, featureRow{N: int64(i), Tier: strconv.Itoa(i), Vec: featurestore.Some([3]float32{float32(i)})}, featureTime(0))
		}
		p, err := v.Select("tier", "n", "vec")
		require.NoError(t, err)
		var wg sync.WaitGroup
		failed := make(chan error, 256)
		for g := range 256 {
			wg.Go(func() {
				var rows []featurestore.Row[featureRow]
				for n := range 5 {
					ks := []int{g % 16, (g + n) % 16, g % 16}
					var err error
					rows, err = p.GetMany(context.Background(), ks, rows)
					for i, k := range ks {
						if want := (featureRow{N: int64(k), Tier: strconv.Itoa(k), Vec: featurestore.Some([3]float32{float32(k)})}); err == nil && rows[i].Value != want {
							err = fmt.Errorf("%d: %+v", k, rows[i])
						}
					}
					if err != nil {
						failed <- err
						return
					}
				}
			})
		}
		wg.Wait()
		close(failed)
		require.NoError(t, <-failed)
	})
}

// Versions are switched while many read: each reply is of one version, with all rows, and as new as promised.
func TestFeaturestore_SwitchUnderLoad(t *testing.T) {
	t.Parallel()
	for name, client := range map[string]rueidis.Client{
		"single": redistest.Shared(t).Client(t), "cluster": redistest.SharedCluster(t).Client(t),
		"resp2": redistest.Shared(t).Client(t, func(o *rueidis.ClientOption) { o.AlwaysRESP2, o.DisableCache = true, true }),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, hot := range []time.Duration{0, time.Minute} {
				switchUnderLoad(t, client, hot)
			}
		})
	}
}

func switchUnderLoad(t *testing.T, client rueidis.Client, hot time.Duration) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	opts := featurestore.Options{Codec: featurestore.Packed, Prefix: redistest.Prefix(t), Hot: hot}
	writer := newFeatures[int, featureItem](t, client, "items", opts)
	ks := []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}
	release := func(n int) {
		r, err := writer.Begin(ctx, "v"+strconv.Itoa(n))
		require.NoError(t, err)
		_, err = r.Load(ctx, featureSeq(ks, func(int) (featureItem, time.Time) { return featureItem{Price: float64(n)}, featureTime(0) }), featurestore.LoadOptions{SkipOrderCheck: true})
		require.NoError(t, err)
		require.NoError(t, r.Commit(ctx))
	}
	release(1)
	var committed atomic.Int64
	committed.Store(1)
	var since atomic.Int64 // when that was, in nanoseconds since began
	began := time.Now()
	failed := make(chan error, 8)
	reads := atomic.Int64{}
	var wg sync.WaitGroup
	for range 8 {
		v := newFeatures[int, featureItem](t, client, "items", opts)
		wg.Go(func() {
			var rows []featurestore.Row[featureItem]
			for ctx.Err() == nil {
				least, age := committed.Load(), time.Since(began)-time.Duration(since.Load())
				var err error
				if rows, err = v.GetMany(context.Background(), ks, rows); err != nil {
					failed <- err
					return
				}
				for i := range rows {
					n := strconv.FormatFloat(rows[i].Value.Price, 'f', 0, 64)
					if rows[i].Version != rows[0].Version || rows[i].Version != "v"+n || rows[i].Status == featurestore.Missing {
						failed <- fmt.Errorf("%+v beside %+v", rows[i], rows[0])
						return
					}
				}
				if hot == 0 && age > 20*time.Millisecond && rows[0].Value.Price < float64(least) && committed.Load() < 100 {
					failed <- fmt.Errorf("version %s, %v after %d became live", rows[0].Version, age, least)
					return
				}
				reads.Add(1)
			}
		})
	}
	versions := 6
	if soak() {
		versions = 60
	}
	for n := 2; n <= versions; n++ {
		release(n)
		since.Store(int64(time.Since(began)))
		committed.Store(int64(n))
		want := reads.Load() + 20
		require.Eventually(t, func() bool { return reads.Load() >= want || len(failed) > 0 }, 20*time.Second, time.Millisecond)
	}
	committed.Store(100) // from now on older ones may be right
	require.NoError(t, writer.Rollback(ctx, "v2"))
	row, err := writer.Get(ctx, 0)
	require.NoError(t, err)
	if hot == 0 {
		require.Equal(t, "v2", row.Version)
	}
	if hot > 0 { // which takes seconds
		stop()
		wg.Wait()
		close(failed)
		require.NoError(t, <-failed)
		return
	}
	require.NoError(t, writer.Drop(ctx, "v3"))
	want := reads.Load() + 20
	require.Eventually(t, func() bool { return reads.Load() >= want || len(failed) > 0 }, 20*time.Second, time.Millisecond)
	stop()
	wg.Wait()
	close(failed)
	require.NoError(t, <-failed)
	gone, err := writer.Pin("v3").Get(context.Background(), 0)
	require.NoError(t, err)
	require.Equal(t, featurestore.Missing, gone.Status)
}

const featureRows = 20_000

// featurestoreChild begins a version and loads it, saying how far it is.
func featurestoreChild() error {
	user := os.Getenv("FEATURESTORE_USER")
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{os.Getenv("FEATURESTORE_ADDR")}, Username: user, Password: user})
	if err != nil {
		return err
	}
	defer client.Close()
	ctx := context.Background()
	v, err := featurestore.NewView[int, featureItem](client, "items", featurestore.Options{
		Codec: featurestore.Packed, Prefix: os.Getenv("FEATURESTORE_PREFIX"), OpTimeout: 10 * time.Second,
	})
	if err != nil {
		return err
	}
	r, err := v.Begin(ctx, "v2")
	if err != nil {
		return err
	}
	rows := func(yield func(int, featurestore.Event[featureItem]) bool) {
		for i := range featureRows {
			if !yield(i, featurestore.Event[featureItem]{Value: featureItem{Price: 2}, At: featureTime(0)}) {
				return
			}
		}
	}
	opts := featurestore.LoadOptions{Batch: 10, SkipOrderCheck: user != "", Progress: func(featurestore.LoadStats) { fmt.Println() }}
	if _, err = r.Load(ctx, rows, opts); err != nil {
		return err
	}
	return r.Commit(ctx)
}

func TestFeaturestore_KilledLoaderLeavesTheOldVersion(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	client := server.Client(t)
	prefix := redistest.Prefix(t)
	v := newFeatures[int, featureItem](t, client, "items", featurestore.Options{Codec: featurestore.Packed, Prefix: prefix})
	old, err := v.Begin(t.Context(), "v1")
	require.NoError(t, err)
	ks := []int{0, 1, 2, 500}
	_, err = old.Load(t.Context(), featureSeq(ks, func(int) (featureItem, time.Time) { return featureItem{Price: 1}, featureTime(0) }), featurestore.LoadOptions{})
	require.NoError(t, err)
	require.NoError(t, old.Commit(t.Context()))

	cmd := child(t, "featurestore", "FEATURESTORE_ADDR="+server.Addr(), "FEATURESTORE_PREFIX="+prefix)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	_, err = out.Read(make([]byte, 1)) // it is in the middle
	require.NoError(t, err)
	require.NoError(t, cmd.Process.Kill())
	require.Error(t, cmd.Wait())

	half, err := v.Pin("v2").Get(t.Context(), 0)
	require.NoError(t, err)
	require.InDelta(t, 2.0, half.Value.Price, 0)
	rows, err := v.GetMany(t.Context(), ks, nil)
	require.NoError(t, err)
	for _, row := range rows {
		require.Equal(t, "v1", row.Version)
		require.InDelta(t, 1.0, row.Value.Price, 0)
	}
	// Another process goes on with it, or gives it up.
	again, err := v.Begin(t.Context(), "v2")
	require.NoError(t, err)
	require.NoError(t, again.Abort(t.Context()))
	require.Equal(t, []string{prefix + ":@{items}", prefix + ":items@v1:{0}", prefix + ":items@v1:{1}", prefix + ":items@v1:{2}", prefix + ":items@v1:{500}"},
		featureKeys(t, client, prefix))
}

// So does one whose user may not RESTORE, over rows that were there half before; and who loads it again repairs it.
func TestFeaturestore_KilledLoaderWithoutRestore(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	client := server.Client(t)
	prefix := redistest.Prefix(t)
	send(t, client, "ACL", "SETUSER", prefix, "on", ">"+prefix, "+@all", "-restore", "&*", "~*")
	t.Cleanup(func() {
		require.NoError(t, client.Do(context.WithoutCancel(t.Context()), client.B().AclDeluser().Username(prefix).Build()).Error())
	})
	v := newFeatures[int, featureItem](t, client, "items", featurestore.Options{Codec: featurestore.Packed, Prefix: prefix})
	ks := featureRange(0, 300)
	load := func(version string, price float64) *featurestore.Release[int, featureItem] {
		r, err := v.Begin(t.Context(), version)
		require.NoError(t, err)
		_, err = r.Load(t.Context(), featureSeq(ks, func(int) (featureItem, time.Time) { return featureItem{Price: price}, featureTime(9) }), featurestore.LoadOptions{SkipOrderCheck: true})
		require.NoError(t, err)
		return r
	}
	prices := func(p *featurestore.Projection[int, featureItem]) (missing int, prices map[float64]int) {
		rows, err := p.GetMany(t.Context(), ks, nil)
		require.NoError(t, err)
		prices = map[float64]int{}
		for _, row := range rows {
			require.NoError(t, row.Err)
			if row.Status == featurestore.Missing {
				missing++
			} else {
				prices[row.Value.Price]++
			}
		}
		return missing, prices
	}
	require.NoError(t, load("v1", 1).Commit(t.Context()))
	load("v2", 3)

	cmd := child(t, "featurestore", "FEATURESTORE_ADDR="+server.Addr(), "FEATURESTORE_PREFIX="+prefix, "FEATURESTORE_USER="+prefix)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	_, err = out.Read(make([]byte, 1))
	require.NoError(t, err)
	require.NoError(t, cmd.Process.Kill())
	require.Error(t, cmd.Wait())

	_, live := prices(&v.Projection)
	require.Equal(t, map[float64]int{1: 300}, live)
	missing, half := prices(v.Pin("v2"))
	require.Positive(t, half[2])
	require.Equal(t, 300, missing+half[2]+half[3], "rows are whole or not there")
	require.NoError(t, load("v2", 4).Commit(t.Context()))
	_, live = prices(&v.Projection)
	require.Equal(t, map[float64]int{4: 300}, live)
}

func TestFeaturestore_LoadIsBoundedPacedAndResumed(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	eachFeatureCodec(t, func(t *testing.T, codec featurestore.Codec) {
		v := newFeatures[int, featureItem](t, client, "items", featurestore.Options{Codec: codec, NaN: featurestore.NaNFails})
		const n, batch = 1000, 50
		broken := errors.New("the source broke")
		var given, done int64
		source := func(until int64) func(func(int, featurestore.Event[featureItem]) bool) {
			given = 0
			return func(yield func(int, featurestore.Event[featureItem]) bool) {
				for i := range n {
					if given++; given > until {
						return
					}
					require.LessOrEqual(t, given-done, int64(2*batch+1), "more than two batches are in memory")
					at := featureTime(0)
					if i%100 == 7 {
						at = time.Time{} // which cannot be
					}
					if !yield(i, featurestore.Event[featureItem]{Value: featureItem{Price: float64(i)}, At: at}) {
						return
					}
				}
			}
		}
		var invalid []int64
		opts := featurestore.LoadOptions{
			Batch: batch, Progress: func(s featurestore.LoadStats) { done = s.Done },
			Invalid: func(row int64, err error) {
				require.ErrorIs(t, err, featurestore.ErrInvalid)
				invalid = append(invalid, row)
			},
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		interrupted := opts
		interrupted.Progress = func(s featurestore.LoadStats) {
			if done = s.Done; done == 6*batch {
				cancel(broken)
			}
		}
		first, err := v.Load(ctx, source(n), interrupted)
		require.ErrorIs(t, err, context.Canceled)
		require.GreaterOrEqual(t, first.Done, int64(6*batch))
		require.Less(t, first.Done, int64(n))
		opts.Skip, opts.RowsPerSecond = first.Done, 4000
		done = first.Done
		invalid = slices.DeleteFunc(invalid, func(row int64) bool { return row >= first.Done })
		began := time.Now()
		rest, err := v.Load(t.Context(), source(n), opts)
		require.NoError(t, err)
		require.Equal(t, int64(n), rest.Done)
		require.GreaterOrEqual(t, time.Since(began), time.Duration(n-first.Done-batch)*time.Second/4000)
		require.Equal(t, int64(n), first.Done+rest.Applied+rest.Same+rest.Invalid)
		require.Equal(t, []int64{7, 107, 207, 307, 407, 507, 607, 707, 807, 907}, invalid)
		all := 0
		for k, row := range v.All(t.Context()) {
			require.NoError(t, row.Err)
			require.InDelta(t, float64(k), row.Value.Price, 0)
			all++
		}
		require.Equal(t, n-10, all)
		again, err := v.Load(t.Context(), source(100), featurestore.LoadOptions{})
		require.NoError(t, err)
		require.Equal(t, [2]int64{99, 1}, [2]int64{again.Same, again.Invalid})
	})
}

func TestFeaturestore_HotRowsAreServedFromMemory(t *testing.T) {
	t.Parallel()
	var trips featureTrips
	client := redistest.Shared(t).Client(t, trips.through)
	other := redistest.Shared(t).Client(t)
	prefix := redistest.Prefix(t)
	hot := newFeatures[int, featureItem](t, client, "items", featurestore.Options{Prefix: prefix, Hot: time.Minute, MaxAge: time.Hour})
	writer := newFeatures[int, featureItem](t, other, "items", featurestore.Options{Prefix: prefix})
	now := time.Now()
	price := func(k int) float64 {
		row, err := hot.Get(t.Context(), k)
		require.NoError(t, err)
		require.NotEqual(t, featurestore.Missing, row.Status)
		return row.Value.Price
	}
	putFeatures(t, writer, 1, featureItem{Price: 1}, now)
	require.InDelta(t, 1.0, price(1), 0)
	require.Eventually(t, func() bool { return len(trips.count(func() { price(1) })) == 0 }, 10*time.Second, time.Millisecond, "it is not cached")
	putFeatures(t, writer, 1, featureItem{Price: 2}, now)
	require.Eventually(t, func() bool {
		row, err := hot.Get(context.Background(), 1)
		return err == nil && row.Value.Price == 2
	}, 10*time.Second, time.Millisecond, "it is not invalidated")
	// What is in memory ages all the same.
	aging := newFeatures[int, featureItem](t, client, "items", featurestore.Options{Prefix: prefix, Hot: time.Minute, MaxAge: 300 * time.Millisecond})
	putFeatures(t, writer, 2, featureItem{Price: 1}, time.Now())
	require.Eventually(t, func() bool {
		row, err := aging.Get(context.Background(), 2)
		return err == nil && row.Status == featurestore.Stale
	}, 10*time.Second, 10*time.Millisecond)
}

// A Redis that does not answer is told in time, one that comes back is asked again, and what it does not know any more of scripts or
// schemas is told to it.
func TestFeaturestore_RedisIsDown(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr())
	client := server.Client(t, proxy.Through)
	v := newFeatures[int, featureRow](t, client, "users", featurestore.Options{OpTimeout: 300 * time.Millisecond})
	putFeatures(t, v, 1, featureRow{N: 1}, featureTime(0))
	proxy.BlackHole(t)
	began := time.Now()
	rows, err := v.GetMany(t.Context(), []int{1, 2}, nil)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Equal(t, featurestore.Broken, rows[1].Status)
	require.ErrorIs(t, rows[1].Err, context.DeadlineExceeded)
	_, err = v.Put(t.Context(), 1, featureRow{N: 2}, featureTime(1))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Less(t, time.Since(began), 5*time.Second)
	proxy.Restore(t)
	require.Eventually(t, func() bool {
		_, err := v.Put(context.Background(), 1, featureRow{N: 3}, featureTime(2))
		return err == nil
	}, 20*time.Second, 10*time.Millisecond)
	server.Kill(t)
	_, err = v.Get(t.Context(), 1)
	require.Error(t, err)
	server.Restart(t)
	require.Eventually(t, func() bool {
		_, err := v.Put(context.Background(), 1, featureRow{N: 4}, featureTime(3))
		return err == nil
	}, 20*time.Second, 10*time.Millisecond)
	row, err := v.Get(t.Context(), 1)
	require.NoError(t, err)
	require.Equal(t, int64(4), row.Value.N)
	// Full: writes fail and say so, reads go on, and what is deleted makes room.
	fillUp(t, server, "1")
	_, err = v.Put(t.Context(), 2, featureRow{N: 4}, featureTime(3))
	require.ErrorContains(t, err, "OOM")
	row, err = v.Get(t.Context(), 1)
	require.NoError(t, err)
	require.Equal(t, int64(4), row.Value.N)
}

// Random histories of writes and reads, against a model.
func TestFeaturestore_RandomHistories(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	eachFeatureCodec(t, func(t *testing.T, codec featurestore.Codec) {
		v := newFeatures[int, featureRow](t, client, "users", featurestore.Options{Codec: codec})
		type entry struct {
			row featureRow
			at  time.Time
		}
		model := map[int]entry{}
		rnd := rand.New(rand.NewPCG(1, uint64(codec)))
		steps := 300
		if soak() {
			steps = 20_000
		}
		for range steps {
			k, at := rnd.IntN(5), featureTime(rnd.IntN(50))
			have, exists := model[k]
			want := featurestore.Applied
			switch {
			case exists && have.at.After(at):
				want = featurestore.Older
			case exists && have.at.Equal(at):
				want = featurestore.Same
			}
			row := featureRow{N: rnd.Int64(), Tier: strconv.Itoa(rnd.IntN(9)), Rate: featurestore.Opt[float64]{V: .5, State: featurestore.Default}}
			switch rnd.IntN(3) {
			case 0:
				row.Geo.State = featurestore.Null
			case 1:
				row.Geo = featurestore.Some("x")
			}
			var out featurestore.Outcome
			var err error
			switch rnd.IntN(10) {
			case 0:
				_, err = v.Delete(t.Context(), k)
				delete(model, k)
				require.NoError(t, err)
				continue
			case 1, 2, 3:
				if !exists {
					continue
				}
				next := have.row
				next.Tier, next.Geo = row.Tier, featurestore.Opt[string]{State: featurestore.Null}
				row = next
				out, err = v.Patch(t.Context(), k, at, featurestore.To("tier", row.Tier), featurestore.To("geo", nil))
			default:
				out, err = v.Put(t.Context(), k, row, at)
			}
			require.NoError(t, err)
			require.Equal(t, want, out)
			if out != featurestore.Older {
				model[k] = entry{row, at}
			}
			got, err := v.Get(t.Context(), k)
			require.NoError(t, err)
			require.Equal(t, model[k].row, got.Value)
			require.True(t, model[k].at.Equal(got.EventTime))
		}
	})
}
