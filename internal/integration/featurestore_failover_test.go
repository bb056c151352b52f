package integration

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/redispatterns/redispatterns/featurestore"
	"github.com/redispatterns/redispatterns/internal/integration/redistest"
)

func TestFeaturestore_SwitchesDuringFailovers(t *testing.T) {
	t.Parallel()
	t.Run("sentinel", func(t *testing.T) {
		t.Parallel()
		s := redistest.StartSentinel(t)
		client, key := s.Client(t), redistest.Prefix(t)
		change := func(change func(testing.TB)) func(string) {
			return func(string) {
				before := runIDOf(t, client, key)
				change(t)
				requireMoves(t, client, before, key)
			}
		}
		switchDuringFailovers(t, client, change(s.Failover), change(s.KillPrimary))
	})
	t.Run("cluster", func(t *testing.T) {
		t.Parallel()
		c := redistest.StartCluster(t, 1)
		switchDuringFailovers(t, c.Client(t), func(key string) { c.Failover(t, key) })
	})
}

// switchDuringFailovers reads while versions are loaded and switched and Redis fails over. What Redis loses may be missing
// or as before, but no read is of two versions or has a version's number with another one's name, or takes for ever; and
// when it is over, all goes on.
func switchDuringFailovers(t *testing.T, client rueidis.Client, failovers ...func(control string)) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	opts := featurestore.Options{Codec: featurestore.Packed, Prefix: redistest.Prefix(t), OpTimeout: 500 * time.Millisecond}
	writer := newFeatures[int, featureItem](t, client, "items", opts)
	ks := featureRange(0, 20)
	release := func(n int) error {
		r, err := writer.Begin(ctx, "v"+strconv.Itoa(n))
		if err != nil {
			return err
		}
		rows := featureSeq(ks, func(int) (featureItem, time.Time) { return featureItem{Price: float64(n)}, featureTime(0) })
		if _, err := r.Load(ctx, rows, featurestore.LoadOptions{SkipOrderCheck: n%2 == 0}); err != nil {
			return err
		}
		return r.Commit(ctx)
	}
	var next atomic.Int64
	releases := func() { // one that works, with a name that no earlier one had
		t.Helper()
		var err error
		require.Eventually(t, func() bool { err = release(int(next.Add(1))); return err == nil }, 30*time.Second, 10*time.Millisecond)
		require.NoError(t, err)
	}
	releases()
	var must atomic.Int64 // the version that must be read, if Redis does not fail over
	failed := make(chan error, 8)
	var whole [4]atomic.Int64 // reads by each reader
	var wg sync.WaitGroup
	for i := range whole {
		v := newFeatures[int, featureItem](t, client, "items", opts)
		wg.Go(func() {
			var rows []featurestore.Row[featureItem]
			for ctx.Err() == nil {
				least, began := must.Load(), time.Now()
				var err error
				rows, err = v.GetMany(ctx, ks, rows)
				if took := time.Since(began); took > 5*time.Second {
					failed <- fmt.Errorf("a read took %v", took)
					return
				}
				if err != nil {
					continue
				}
				lost := 0
				for _, row := range rows {
					switch {
					case row.Version != rows[0].Version:
						failed <- fmt.Errorf("%+v beside %+v", row, rows[0])
						return
					case row.Status == featurestore.Missing:
						lost++
					case row.Version != "v"+strconv.FormatFloat(row.Value.Price, 'f', 0, 64):
						failed <- fmt.Errorf("%+v", row)
						return
					}
				}
				if least > 0 && least == must.Load() && (lost > 0 || rows[0].Version != "v"+strconv.FormatInt(least, 10)) {
					failed <- fmt.Errorf("%d rows are missing in %s, which is not v%d", lost, rows[0].Version, least)
					return
				}
				if lost == 0 {
					whole[i].Add(1)
				}
			}
		})
	}
	goesOn := func() {
		t.Helper()
		var want [len(whole)]int64
		for i := range whole {
			want[i] = whole[i].Load() + 20
		}
		require.Eventually(t, func() bool {
			for i := range whole {
				if whole[i].Load() < want[i] {
					return len(failed) > 0
				}
			}
			return true
		}, 30*time.Second, time.Millisecond)
		select {
		case err := <-failed:
			require.NoError(t, err)
		default:
		}
	}
	for _, fail := range failovers {
		goesOn()
		switching, over := context.WithCancel(ctx)
		var switches sync.WaitGroup
		switches.Go(func() {
			for switching.Err() == nil {
				_ = release(int(next.Add(1))) // some work, some do not
			}
		})
		fail(opts.Prefix + ":@{items}")
		over()
		switches.Wait()
		releases()
		require.NoError(t, after(ctx, 30*time.Millisecond)) // in which all learn what is live
		must.Store(next.Load())
		goesOn()
		must.Store(0)
		require.Eventually(t, func() bool {
			out, err := writer.Put(ctx, 0, featureItem{Price: float64(next.Load())}, featureTime(1))
			return err == nil && out != featurestore.Older
		}, 20*time.Second, time.Millisecond)
		goesOn()
	}
	stop()
	wg.Wait()
	select {
	case err := <-failed:
		require.NoError(t, err)
	default:
	}
}

// featureStalledConn is a connection that sends nothing any more, once it has asked which version is live.
type featureStalledConn struct {
	net.Conn
	stalled <-chan struct{} // until when, if it is not closed
	control atomic.Bool
	on      *atomic.Bool
}

func (c *featureStalledConn) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte(":@{")) {
		c.control.Store(true)
	}
	return c.Conn.Write(b)
}

func (c *featureStalledConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.control.Load() && c.on.Load() {
		<-c.stalled
	}
	return n, err
}

// If Redis does not say which version is live, nor that it is another one than what is cached, a row that is missing in the
// old one is an error: the old version may be gone.
func TestFeaturestore_MissingMeansMissing(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		client func(tb testing.TB, opts ...func(*rueidis.ClientOption)) rueidis.Client
		hot    time.Duration
	}{
		"hot":     {redistest.Shared(t).Client, time.Minute},
		"cluster": {redistest.SharedCluster(t).Client, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			stalled := make(chan struct{})
			over := sync.OnceFunc(func() { close(stalled) })
			defer over() // before the clients are closed
			on := &atomic.Bool{}
			reading := c.client(t, func(o *rueidis.ClientOption) {
				o.DialCtxFn = func(ctx context.Context, addr string, dialer *net.Dialer, _ *tls.Config) (net.Conn, error) {
					conn, err := dialer.DialContext(ctx, "tcp", addr)
					if err != nil {
						return nil, err
					}
					return &featureStalledConn{Conn: conn, stalled: stalled, on: on}, nil
				}
			})
			opts := featurestore.Options{Prefix: redistest.Prefix(t), Codec: featurestore.Packed}
			admin := newFeatures[int, featureItem](t, c.client(t), "users", opts)
			opts.Hot, opts.OpTimeout = c.hot, 300*time.Millisecond
			v := newFeatures[int, featureItem](t, reading, "users", opts)
			ks := featureRange(0, 200)
			release := func(version string) {
				r, err := admin.Begin(ctx, version)
				require.NoError(t, err)
				_, err = r.Load(ctx, featureSeq(ks, func(int) (featureItem, time.Time) { return featureItem{Price: 1}, featureTime(1) }), featurestore.LoadOptions{})
				require.NoError(t, err)
				require.NoError(t, r.Commit(ctx))
			}
			release("v1")
			for _, k := range ks[:20] { // of what is not read before, nothing is cached
				_, err := v.Get(ctx, k)
				require.NoError(t, err)
			}
			on.Store(true)
			release("v2")
			require.NoError(t, admin.Drop(ctx, "v1"))
			for _, k := range ks[100:105] {
				row, err := v.Get(ctx, k)
				require.Equal(t, err != nil, row.Status == featurestore.Broken)
				require.NotEqual(t, featurestore.Missing, row.Status, "%+v", row)
			}
			rows, err := v.GetMany(ctx, ks[100:], nil)
			require.Error(t, err)
			broken := 0
			for _, row := range rows {
				require.NotEqual(t, featurestore.Missing, row.Status, "%+v", row)
				require.Equal(t, row.Err != nil, row.Status == featurestore.Broken)
				if row.Err != nil {
					broken++
				}
			}
			require.Positive(t, broken)
			over()
			require.Eventually(t, func() bool {
				rows, err := v.GetMany(ctx, ks, rows)
				return err == nil && rows[150].Status == featurestore.Partial && rows[150].Version == "v2"
			}, 20*time.Second, 10*time.Millisecond)
		})
	}
}
