package integration

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strconv"
	"strings"
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

// featureGate sees the round trips that ask for rows, and what it does with them is on's business.
type featureGate struct {
	redistest.PassThrough
	mu    sync.Mutex
	trips [][]string // the keys of the rows of each
	on    func(ctx context.Context, rows []string)
}

func (g *featureGate) pass(ctx context.Context, commands ...[]string) {
	var rows []string
	for _, c := range commands {
		if c[0] == "HMGET" {
			rows = append(rows, c[1])
		}
	}
	if len(rows) == 0 {
		return
	}
	g.mu.Lock()
	g.trips = append(g.trips, rows)
	on := g.on
	g.mu.Unlock()
	if on != nil {
		on(ctx, rows)
	}
}

func (g *featureGate) Do(client rueidis.Client, ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	g.pass(ctx, cmd.Commands())
	return client.Do(ctx, cmd)
}

func (g *featureGate) DoMulti(client rueidis.Client, ctx context.Context, multi ...rueidis.Completed) []rueidis.RedisResult {
	commands := make([][]string, len(multi))
	for i, cmd := range multi {
		commands[i] = cmd.Commands()
	}
	g.pass(ctx, commands...)
	return client.DoMulti(ctx, multi...)
}

func (g *featureGate) DoMultiCache(client rueidis.Client, ctx context.Context, multi ...rueidis.CacheableTTL) []rueidis.RedisResult {
	commands := make([][]string, len(multi))
	for i, cmd := range multi {
		commands[i] = cmd.Cmd.Commands()
	}
	g.pass(ctx, commands...)
	return client.DoMultiCache(ctx, multi...)
}

// begin forgets the round trips so far and does on with those that come.
func (g *featureGate) begin(on func(ctx context.Context, rows []string)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.trips, g.on = nil, on
}

func (g *featureGate) seen() [][]string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([][]string(nil), g.trips...)
}

// await waits until n round trips have been seen, and a moment longer for more.
func (g *featureGate) await(t *testing.T, n int) {
	t.Helper()
	require.Eventually(t, func() bool { return len(g.seen()) >= n }, 10*time.Second, time.Millisecond)
	require.NoError(t, after(t.Context(), 20*time.Millisecond))
	require.Len(t, g.seen(), n)
}

// shut begins with a gate that holds the rows for which it says so until open is called, or their patience ends.
func (g *featureGate) shut(t *testing.T, holds func(rows []string) bool) (open func()) {
	t.Helper()
	opened := make(chan struct{})
	open = sync.OnceFunc(func() { close(opened) })
	t.Cleanup(open)
	g.begin(func(ctx context.Context, rows []string) {
		if holds(rows) {
			select {
			case <-opened:
			case <-ctx.Done():
			}
		}
	})
	return open
}

func featureHoldsAll([]string) bool { return true }

// featureHolds is of the entities 0 to 3, which tests let go first.
func featureHolds(rows []string) bool {
	return len(rows) == 1 && strings.Contains("{0}{1}{2}{3}", rows[0][strings.Index(rows[0], "{"):]) //nolint:gocritic // of a list
}

type featureGot struct {
	k    int
	row  featurestore.Row[featureItem]
	err  error
	took time.Duration
}

// require checks that it is the row of its entity.
func (g *featureGot) require(t *testing.T) {
	t.Helper()
	require.NoError(t, g.err)
	require.Equal(t, featurestore.Found, g.row.Status)
	require.Equal(t, featureItem{Price: float64(g.k), Stock: featurestore.Some(int32(g.k))}, g.row.Value)
}

type featureItems = featurestore.Projection[int, featureItem]

// getFeatures gets rows of entities at the same time.
func getFeatures(ctx context.Context, p *featureItems, ks ...int) []<-chan featureGot {
	all := make([]<-chan featureGot, len(ks))
	for i, k := range ks {
		got := make(chan featureGot, 1)
		all[i] = got
		go func() {
			began := time.Now()
			row, err := p.Get(ctx, k)
			got <- featureGot{k, row, err, time.Since(began)}
		}()
	}
	return all
}

func featureRange(from, to int) (ks []int) {
	for k := from; k < to; k++ {
		ks = append(ks, k)
	}
	return ks
}

// newGatedFeatures returns a view with rows of the entities below n, and the gate that its round trips go through.
func newGatedFeatures(t *testing.T, client rueidis.Client, n int, opts featurestore.Options) (*featurestore.View[int, featureItem], *featureGate) {
	t.Helper()
	gate := &featureGate{}
	if opts.Prefix == "" {
		opts.Prefix = redistest.Prefix(t)
	}
	v := newFeatures[int, featureItem](t, rueidishook.WithHook(client, gate), "items", opts)
	stats, err := v.Load(t.Context(), featureSeq(featureRange(0, n), func(k int) (featureItem, time.Time) {
		return featureItem{Price: float64(k), Stock: featurestore.Some(int32(k))}, featureTime(0)
	}), featurestore.LoadOptions{})
	require.NoError(t, err)
	require.Equal(t, int64(n), stats.Applied)
	return v, gate
}

// Gets that come at a time share round trips: four are under way, the rest go in one each time that one ends, or at once if they
// are 64.
func TestFeaturestoreGather_GetsShareRoundTrips(t *testing.T) {
	t.Parallel()
	v, gate := newGatedFeatures(t, redistest.Shared(t).Client(t), 200, featurestore.Options{OpTimeout: time.Minute}) // nobody loses patience
	selected, err := v.Select("stock", "price")
	require.NoError(t, err)
	for _, p := range []*featureItems{&v.Projection, selected, v.Pin("")} {
		open := gate.shut(t, featureHoldsAll)
		got := getFeatures(t.Context(), p, featureRange(0, 4)...)
		gate.await(t, 4)
		got = append(got, getFeatures(t.Context(), p, featureRange(4, 44)...)...)
		gate.await(t, 4)
		open()
		for _, one := range got {
			g := <-one
			g.require(t)
		}
		rows := map[string]int{}
		for _, trip := range gate.seen() {
			for _, key := range trip {
				rows[key]++
			}
		}
		require.Len(t, rows, 44)
		for key, n := range rows {
			require.Equal(t, 1, n, key)
		}
		require.LessOrEqual(t, len(gate.seen()), 8, "four, and one for each that ended at most")
	}
	open := gate.shut(t, featureHoldsAll)
	got := getFeatures(t.Context(), &v.Projection, featureRange(0, 4)...)
	gate.await(t, 4)
	got = append(got, getFeatures(t.Context(), &v.Projection, featureRange(4, 200)...)...)
	gate.await(t, 7) // three of 64 have not waited for the four
	open()
	for _, one := range got {
		g := <-one
		g.require(t)
	}
	for _, trip := range gate.seen() {
		require.LessOrEqual(t, len(trip), 64)
	}
	// Of another projection's rows none go along, and one alone goes by itself at once.
	open = gate.shut(t, featureHoldsAll)
	got = getFeatures(t.Context(), &v.Projection, featureRange(0, 10)...)
	gate.await(t, 4)
	got = append(got, getFeatures(t.Context(), selected, 10)...)
	gate.await(t, 5)
	open()
	for _, one := range got {
		g := <-one
		g.require(t)
	}
}

// Neither in a Cluster nor from the client-side cache does anybody wait for others.
func TestFeaturestoreGather_NotHotNorInACluster(t *testing.T) {
	t.Parallel()
	for name, client := range map[string]rueidis.Client{"hot": redistest.Shared(t).Client(t), "cluster": redistest.SharedCluster(t).Client(t)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			opts := featurestore.Options{}
			if name == "hot" {
				opts.Hot = time.Minute
			}
			v, gate := newGatedFeatures(t, client, 30, opts)
			open := gate.shut(t, featureHoldsAll)
			got := getFeatures(t.Context(), &v.Projection, featureRange(0, 30)...)
			gate.await(t, 30)
			open()
			for _, one := range got {
				g := <-one
				g.require(t)
			}
		})
	}
}

// Who waits for others to go with goes when its ctx ends, and the others do not notice.
func TestFeaturestoreGather_EachHasItsOwnContext(t *testing.T) {
	t.Parallel()
	reads := make(chan featurestore.ReadInfo, 100)
	opts := featurestore.Options{Hooks: featurestore.Hooks{Read: func(_ context.Context, info featurestore.ReadInfo) { reads <- info }}}
	v, gate := newGatedFeatures(t, redistest.Shared(t).Client(t), 40, opts)
	first, second := make(chan struct{}), make(chan struct{})
	openFirst, openSecond := sync.OnceFunc(func() { close(first) }), sync.OnceFunc(func() { close(second) })
	t.Cleanup(openFirst)
	t.Cleanup(openSecond)
	gate.begin(func(_ context.Context, rows []string) {
		if featureHolds(rows) {
			<-first
		} else {
			<-second
		}
	})
	good := getFeatures(t.Context(), &v.Projection, 0, 1, 2, 3)
	gate.await(t, 4)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	brief, done := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer done()
	good = append(good, getFeatures(t.Context(), &v.Projection, featureRange(4, 20)...)...)
	late := getFeatures(brief, &v.Projection, 30, 31)
	gone := getFeatures(ctx, &v.Projection, 32, 33)
	lateBut, cancelLater := context.WithCancel(t.Context())
	defer cancelLater()
	taken := getFeatures(lateBut, &v.Projection, 34, 35)
	requireGone := func(want error, all []<-chan featureGot) {
		t.Helper()
		for _, one := range all {
			g := <-one
			require.ErrorIs(t, g.err, want)
			require.Equal(t, featurestore.Broken, g.row.Status)
			require.ErrorIs(t, g.row.Err, want)
			require.Zero(t, g.row.Value)
			require.Less(t, g.took, time.Second)
			info := <-reads
			require.ErrorIs(t, info.Err, want)
			require.Equal(t, featurestore.Counts{Broken: 1}, info.Counts)
		}
	}
	requireGone(context.DeadlineExceeded, late)
	cancel()
	requireGone(context.Canceled, gone)
	require.Len(t, gate.seen(), 4)
	openFirst()
	require.Eventually(t, func() bool { return len(gate.seen()) > 4 }, 10*time.Second, time.Millisecond)
	for range 4 { // those that were alone
		<-reads
	}
	cancelLater() // while its round trip is under way
	requireGone(context.Canceled, taken)
	openSecond()
	for _, one := range good {
		g := <-one
		g.require(t)
	}
	for range 16 {
		require.Equal(t, featurestore.Counts{Found: 1}, (<-reads).Counts)
	}
	require.Empty(t, reads, "more than one for each Get")
	for _, trip := range gate.seen() {
		for _, key := range trip {
			for k := range 4 {
				require.NotContains(t, key, "{3"+strconv.Itoa(k)+"}", "nobody waited for it any more")
			}
		}
	}
}

// Four round trips that hang hold the others up for an eighth of the time that they have.
func TestFeaturestoreGather_ThoseUnderWayHang(t *testing.T) {
	t.Parallel()
	const opTimeout = 4 * time.Second
	v, gate := newGatedFeatures(t, redistest.Shared(t).Client(t), 40, featurestore.Options{OpTimeout: opTimeout})
	open := gate.shut(t, featureHolds)
	stuck := getFeatures(t.Context(), &v.Projection, 0, 1, 2, 3)
	gate.await(t, 4)
	for _, one := range getFeatures(t.Context(), &v.Projection, featureRange(4, 40)...) {
		g := <-one
		g.require(t)
		require.Less(t, g.took, opTimeout/2)
		require.GreaterOrEqual(t, g.took, opTimeout/8*3/4)
	}
	for _, one := range stuck {
		require.Empty(t, one)
	}
	open()
	for _, one := range stuck {
		g := <-one
		g.require(t)
	}
}

// A server that does not answer is told to each within its time, and all is well when it is back. One key that the user may not
// read, or that is something else, is of its caller alone.
func TestFeaturestoreGather_ServerFaults(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr())
	admin, prefix := server.Client(t), redistest.Prefix(t)
	const n, opTimeout = 40, 2 * time.Second
	user := []string{"ACL", "SETUSER", "u", "on", ">p", "+@all", "&*", "~" + prefix + ":@*"}
	for k := range 60 {
		if k != 21 {
			user = append(user, "~"+prefix+":{"+strconv.Itoa(k)+"}")
		}
	}
	send(t, admin, user...)
	type seen struct {
		counts featurestore.Counts
		err    string
	}
	type kKey struct{}
	var reads sync.Map
	opts := featurestore.Options{Prefix: prefix, Share: true, OpTimeout: opTimeout, MaxAge: 30 * 365 * 24 * time.Hour, Stale: featurestore.StaleFails, Hooks: featurestore.Hooks{
		Read: func(ctx context.Context, info featurestore.ReadInfo) {
			if k, ok := ctx.Value(kKey{}).(int); ok {
				reads.Store(k, seen{info.Counts, fmt.Sprint(info.Err)})
			}
		},
	}}
	newGatedFeatures(t, admin, n, featurestore.Options{Prefix: prefix, Share: true})
	send(t, admin, "DEL", prefix+":{22}")
	send(t, admin, "SET", prefix+":{22}", "not a hash")
	send(t, admin, "HSET", prefix+":{23}", "price", "not a number")
	send(t, admin, "DEL", prefix+":{24}")
	writer := newFeatures[int, featureItem](t, admin, "items", featurestore.Options{Prefix: prefix, Share: true})
	send(t, admin, "DEL", prefix+":{25}")
	putFeatures(t, writer, 25, featureItem{Price: 25}, time.UnixMicro(1)) // which is stale
	gate := &featureGate{}
	client := rueidishook.WithHook(server.Client(t, proxy.Through, func(o *rueidis.ClientOption) { o.Username, o.Password = "u", "p" }), gate)
	v := newFeatures[int, featureItem](t, client, "items", opts)
	_, err := v.Get(t.Context(), 0)
	require.NoError(t, err)

	all := featureRange(4, n)
	alone := map[int]featureGot{}
	for _, k := range all {
		row, err := v.Get(context.WithValue(t.Context(), kKey{}, k), k)
		alone[k] = featureGot{k: k, row: row, err: err}
	}
	aloneReads := map[int]any{}
	for _, k := range all {
		aloneReads[k], _ = reads.LoadAndDelete(k)
	}
	for k, why := range map[int]string{21: "NOPERM", 22: "corrupt", 23: "corrupt", 25: "stale"} {
		require.ErrorContains(t, alone[k].err, why)
	}
	require.Equal(t, featurestore.Missing, alone[24].row.Status)
	// With the one that is refused, and without: a trip that has one such tells the others' errors otherwise.
	for _, refused := range []bool{true, false} {
		open := gate.shut(t, featureHolds)
		first := getFeatures(t.Context(), &v.Projection, 0, 1, 2, 3)
		gate.await(t, 4)
		var got []<-chan featureGot
		for _, k := range all {
			if k != 21 || refused {
				got = append(got, getFeatures(context.WithValue(t.Context(), kKey{}, k), &v.Projection, k)...)
			}
		}
		gate.await(t, 4)
		open()
		for _, one := range append(first, got...) {
			g := <-one
			if g.k < 4 {
				g.require(t)
				continue
			}
			require.Equal(t, alone[g.k].row, g.row)
			require.Equal(t, fmt.Sprint(alone[g.k].err), fmt.Sprint(g.err))
			info, _ := reads.LoadAndDelete(g.k)
			require.Equal(t, aloneReads[g.k], info, "what the hook is told of %d", g.k)
		}
	}

	gate.begin(nil)
	proxy.BlackHole(t)
	began := time.Now()
	brief, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	got, late := getFeatures(t.Context(), &v.Projection, featureRange(0, 20)...), getFeatures(brief, &v.Projection, featureRange(26, 40)...)
	for _, one := range late {
		g := <-one
		require.ErrorIs(t, g.err, context.DeadlineExceeded)
		require.Less(t, g.took, opTimeout/2)
	}
	for _, one := range got {
		g := <-one
		require.ErrorIs(t, g.err, context.DeadlineExceeded)
		require.Equal(t, featurestore.Broken, g.row.Status)
	}
	require.Less(t, time.Since(began), 2*opTimeout)
	proxy.Restore(t)
	require.Eventually(t, func() bool {
		_, err := v.Get(context.Background(), 0)
		return err == nil
	}, 20*time.Second, 10*time.Millisecond)
	for _, one := range getFeatures(t.Context(), &v.Projection, featureRange(0, 20)...) {
		g := <-one
		g.require(t)
	}
	requireFeaturesShare(t, &v.Projection, gate)
}

// requireFeaturesShare requires that four round trips are under way at most, and not fewer.
func requireFeaturesShare(t *testing.T, p *featureItems, gate *featureGate) {
	t.Helper()
	open := gate.shut(t, featureHoldsAll)
	got := getFeatures(t.Context(), p, featureRange(0, 20)...)
	gate.await(t, 4)
	open()
	for _, one := range got {
		g := <-one
		g.require(t)
	}
}

// A client around rueidis' may panic, or end the goroutine, as require does in tests: those who went along are told.
func TestFeaturestoreGather_AClientPanics(t *testing.T) {
	t.Parallel()
	v, gate := newGatedFeatures(t, redistest.Shared(t).Client(t), 20, featurestore.Options{})
	for name, fail := range map[string]func(){"panic: ouch": func() { panic("ouch") }, "Goexit": runtime.Goexit} {
		for range 3 {
			open := gate.shut(t, featureHolds)
			held := gate.on
			gate.begin(func(ctx context.Context, rows []string) {
				held(ctx, rows)
				if !featureHolds(rows) {
					fail()
				}
			})
			first := getFeatures(t.Context(), &v.Projection, 0, 1, 2, 3)
			gate.await(t, 4)
			got := getFeatures(t.Context(), &v.Projection, featureRange(4, 20)...)
			gate.await(t, 4)
			open()
			for _, one := range append(first, got...) {
				g := <-one
				if g.k < 4 {
					g.require(t)
					continue
				}
				require.ErrorContains(t, g.err, "client", name)
				if name != "Goexit" {
					require.ErrorContains(t, g.err, "ouch")
				}
				require.Equal(t, featurestore.Broken, g.row.Status)
				require.Error(t, g.row.Err)
			}
			// Alone, it is the caller's.
			alone := make(chan any, 1)
			go func() {
				defer func() { alone <- recover() }()
				_, _ = v.Get(context.Background(), 10)
			}()
			if got := <-alone; name != "Goexit" {
				require.Equal(t, "ouch", got)
			}
		}
	}
	gate.begin(nil)
	requireFeaturesShare(t, &v.Projection, gate)
}

// featureBlob has a feature that is memory, and one with a default.
type featureBlob struct {
	Owner int64                       `feature:"owner"`
	N     int64                       `feature:"n"`
	Blob  []byte                      `feature:"blob"`
	Vec   []float64                   `feature:"vec"`
	Rate  featurestore.Opt[float64]   `feature:"rate,default=0.5"`
	Note  featurestore.Opt[[]byte]    `feature:"note"`
	Tail  featurestore.Opt[[]float32] `feature:"tail"`
}

func featureBlobOf(k, n int) featureBlob {
	b := featureBlob{Owner: int64(k), N: int64(n), Blob: []byte(strings.Repeat(strconv.Itoa(n)+",", 1+n%40)), Vec: []float64{float64(k), float64(n)}}
	if n%2 == 0 {
		b.Note, b.Tail = featurestore.Some([]byte{byte(n), byte(k)}), featurestore.Some([]float32{float32(n)})
	}
	b.Rate = featurestore.Opt[float64]{V: 0.5, State: featurestore.Default}
	return b
}

// Many read and write at random, and give up at random: each gets its own entity's row, no older than it was when it asked, and in
// memory that is nobody else's.
func TestFeaturestoreGather_RandomHistories(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	for _, codec := range []featurestore.Codec{featurestore.Fields, featurestore.Packed} {
		t.Run(codec.String(), func(t *testing.T) {
			t.Parallel()
			const entities, readers = 12, 80
			prefix := redistest.Prefix(t)
			gate := &featureGate{on: func(ctx context.Context, _ []string) { _ = after(ctx, rand.N(time.Millisecond)) }}
			writer := newFeatures[int, featureBlob](t, client, "blobs", featurestore.Options{Codec: codec, Prefix: prefix, Share: true})
			v := newFeatures[int, featureBlob](t, rueidishook.WithHook(client, gate), "blobs", featurestore.Options{Codec: codec, Prefix: prefix, Share: true})
			some, err := v.Select("owner", "vec", "n")
			require.NoError(t, err)
			require.NoError(t, do(t, client, prefix+":{1000}", "SET", "x").Error())
			var written, begun [entities]atomic.Int64
			for k := range entities {
				putFeatures(t, writer, k, featureBlobOf(k, 0), featureTime(0))
			}
			length := 700 * time.Millisecond
			if soak() {
				length = 20 * time.Second
			}
			ctx, cancel := context.WithTimeout(t.Context(), length)
			defer cancel()
			var wg sync.WaitGroup
			for k := range entities {
				wg.Go(func() {
					for n := 1; ctx.Err() == nil; n++ {
						begun[k].Store(int64(n))
						if _, err := writer.Put(t.Context(), k, featureBlobOf(k, n), featureTime(n)); err != nil {
							t.Error(err)
							return
						}
						written[k].Store(int64(n))
						_ = after(ctx, 2*time.Millisecond)
					}
				})
			}
			var reads, gone, others atomic.Int64
			read := func() error {
				brief, done := t.Context(), func() {}
				if rand.N(10) == 0 {
					brief, done = context.WithTimeout(brief, rand.N(2*time.Millisecond))
				}
				defer done()
				k := rand.N(entities)
				switch rand.N(12) {
				case 0:
					row, err := v.Get(brief, 1000)
					if !errors.Is(err, featurestore.ErrCorrupt) && !errors.Is(err, context.DeadlineExceeded) || row.Status != featurestore.Broken || len(row.Value.Blob) > 0 {
						return fmt.Errorf("of a key that is no hash: %+v %w", row, err)
					}
					others.Add(1)
					return nil
				case 1:
					row, err := v.Get(brief, 2000)
					if !errors.Is(err, context.DeadlineExceeded) && (err != nil || row.Status != featurestore.Missing || row.Value.Rate.V != 0.5 || row.Value.Owner != 0 || len(row.Value.Blob) > 0) {
						return fmt.Errorf("of nothing: %+v %w", row, err)
					}
					others.Add(1)
					return nil
				}
				p, least := &v.Projection, written[k].Load()
				if rand.N(3) == 0 {
					p = some
				}
				row, err := p.Get(brief, k)
				// A connection's deadline may be noticed before that of the context that it was made of.
				if _, bounded := brief.Deadline(); bounded && errors.Is(err, context.DeadlineExceeded) {
					gone.Add(1)
					if row.Status != featurestore.Broken || p == &v.Projection && row.Value.Rate != (featurestore.Opt[float64]{V: 0.5, State: featurestore.Default}) {
						return fmt.Errorf("%+v of who gave up", row)
					}
					return nil
				}
				if err != nil {
					return err
				}
				most := begun[k].Load()
				want := featureBlobOf(k, int(row.Value.N))
				if p == some {
					want = featureBlob{Owner: want.Owner, N: want.N, Vec: want.Vec}
				}
				if got := fmt.Sprint(row.Value); got != fmt.Sprint(want) || !row.EventTime.Equal(featureTime(int(row.Value.N))) {
					return fmt.Errorf("%v, expected %v", got, want)
				}
				if n := row.Value.N; n < least || n > most {
					return fmt.Errorf("%d of entity %d, expected %d to %d", n, k, least, most)
				}
				for i := range row.Value.Blob { // which is the caller's
					row.Value.Blob[i] = '!'
				}
				for i := range row.Value.Vec {
					row.Value.Vec[i] = -1
				}
				reads.Add(1)
				return nil
			}
			for range readers {
				wg.Go(func() {
					for ctx.Err() == nil {
						if err := read(); err != nil {
							t.Error(err)
							cancel()
							return
						}
					}
				})
			}
			wg.Wait()
			shared := 0
			for _, trip := range gate.seen() {
				if len(trip) > 1 {
					shared++
				}
			}
			t.Log(reads.Load(), "rows,", gone.Load(), "given up,", others.Load(), "others,", len(gate.seen()), "round trips,", shared, "of several")
			require.Greater(t, reads.Load(), int64(50))
			for _, n := range []int64{gone.Load(), others.Load(), int64(shared)} {
				require.Positive(t, n)
			}
		})
	}
}

// Versions change while Gets gather: each row is whole, of the version that it says, and of the new one soon.
func TestFeaturestoreGather_VersionsChange(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	gate := &featureGate{on: func(ctx context.Context, _ []string) { _ = after(ctx, rand.N(2*time.Millisecond)) }}
	opts := featurestore.Options{Prefix: redistest.Prefix(t)}
	writer := newFeatures[int, featureItem](t, client, "items", opts)
	v := newFeatures[int, featureItem](t, rueidishook.WithHook(client, gate), "items", opts)
	const entities, late = 20, 300 * time.Millisecond // 20ms and a round trip, on a busy machine
	var committed atomic.Int64                        // the version, times 2^48, and when that was
	began := time.Now()
	release := func(n int) {
		r, err := writer.Begin(t.Context(), "v"+strconv.Itoa(n))
		require.NoError(t, err)
		_, err = r.Load(t.Context(), featureSeq(featureRange(0, entities), func(k int) (featureItem, time.Time) {
			return featureItem{Price: float64(n), Stock: featurestore.Some(int32(k))}, featureTime(n)
		}), featurestore.LoadOptions{SkipOrderCheck: true})
		require.NoError(t, err)
		require.NoError(t, r.Commit(t.Context()))
		committed.Store(int64(n)<<48 | int64(time.Since(began)))
	}
	release(1)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var reads atomic.Int64
	var wg sync.WaitGroup
	for range 60 {
		wg.Go(func() {
			for ctx.Err() == nil {
				k, last := rand.N(entities), committed.Load()
				age := time.Since(began) - time.Duration(last&(1<<48-1))
				row, err := v.Get(t.Context(), k)
				n := int(row.Value.Price)
				switch {
				case err != nil, row.Status != featurestore.Found, row.Value.Stock.V != int32(k), row.Version != "v"+strconv.Itoa(n), !row.EventTime.Equal(featureTime(n)):
					t.Errorf("%d: %+v %v", k, row, err)
					return
				case age > late && n < int(last>>48):
					t.Errorf("%s, %v after v%d became live", row.Version, age, last>>48)
					return
				}
				reads.Add(1)
			}
		})
	}
	for n := 2; n <= 8; n++ {
		want := reads.Load() + 300
		require.Eventually(t, func() bool { return reads.Load() >= want || t.Failed() }, 20*time.Second, time.Millisecond)
		release(n)
	}
	require.NoError(t, after(t.Context(), late+50*time.Millisecond))
	stop()
	wg.Wait()
	shared := 0
	for _, trip := range gate.seen() {
		if len(trip) > 4 {
			shared++
		}
	}
	require.Positive(t, shared)
}
