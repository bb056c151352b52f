package integration

import (
	"context"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/redispatterns/redispatterns/buffer"
	"github.com/redispatterns/redispatterns/cache"
	"github.com/redispatterns/redispatterns/featurestore"
	"github.com/redispatterns/redispatterns/internal/integration/redistest"
	"github.com/redispatterns/redispatterns/ratelimit"
	"github.com/redispatterns/redispatterns/timeseries"
)

// silenceUses are, by package, something that takes a round trip and returns an error if that fails. n differs from call to call.
var silenceUses = map[string]func(t *testing.T, client rueidis.Client, prefix string) func(ctx context.Context, n int) error{
	"cache": func(t *testing.T, client rueidis.Client, prefix string) func(context.Context, int) error {
		t.Helper()
		c, err := cache.New(client, prefix, cache.Options[int, int]{TTL: time.Minute})
		require.NoError(t, err)
		return func(ctx context.Context, n int) error {
			_, _, err := c.Get(ctx, n)
			return err
		}
	},
	"ratelimit": func(t *testing.T, client rueidis.Client, prefix string) func(context.Context, int) error {
		t.Helper()
		l, err := ratelimit.NewTokenBucket(client, ratelimit.PerSecond(100), ratelimit.Options{Prefix: prefix})
		require.NoError(t, err)
		return func(ctx context.Context, n int) error {
			_, err := l.Peek(ctx, strconv.Itoa(n))
			return err
		}
	},
	"buffer": func(t *testing.T, client rueidis.Client, prefix string) func(context.Context, int) error {
		t.Helper()
		b := newBuffer(t, client, []buffer.Column{{Name: "views", Op: buffer.Sum}}, buffer.Options{Prefix: prefix, OpTimeout: time.Second, AddTimeout: time.Second})
		return func(ctx context.Context, n int) error { return b.Add(ctx, strconv.Itoa(n), buffer.Int("views", 1)) }
	},
	"timeseries": func(t *testing.T, client rueidis.Client, prefix string) func(context.Context, int) error {
		t.Helper()
		s := newTimeseries(t, client, timeseries.Options{Prefix: prefix, Timeout: time.Second})
		return func(ctx context.Context, n int) error { return s.Counter(strconv.Itoa(n)).Incr(ctx, 1) }
	},
	"stream": func(t *testing.T, client rueidis.Client, prefix string) func(context.Context, int) error {
		t.Helper()
		s := newStream(t, client, prefix)
		return func(ctx context.Context, n int) error {
			_, err := s.Publish(ctx, n)
			return err
		}
	},
	"featurestore": func(t *testing.T, client rueidis.Client, prefix string) func(context.Context, int) error {
		t.Helper()
		v := newFeatures[int, featureA](t, client, "users", featurestore.Options{Prefix: prefix, OpTimeout: time.Second})
		return func(ctx context.Context, n int) error {
			_, err := v.Get(ctx, n)
			return err
		}
	},
}

// Connections fall silent and nobody says so. How long a package is without Redis then is for the client to say, with the
// settings that docs/choosing-a-redis.md recommends as with others.
func TestSilence_EndsWhenTheClientNotices(t *testing.T) {
	t.Parallel()
	for name, construct := range silenceUses {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newStreamProxy(t, redistest.Shared(t).Addr())
			client := redistest.Shared(t).Client(t, p.through, func(o *rueidis.ClientOption) { o.ConnWriteTimeout = 2 * time.Second })
			use := construct(t, client, redistest.Prefix(t))
			var wg sync.WaitGroup
			for n := range 64 { // so that connections are shared
				wg.Go(func() { _ = use(t.Context(), n) })
			}
			wg.Wait()
			require.Eventually(t, func() bool { return use(context.Background(), 64) == nil }, 10*time.Second, 10*time.Millisecond)
			p.silence()
			silent := time.Now()
			var worked time.Duration
			for n, inARow := 100, 0; inARow < 20; n++ {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				err := use(ctx, n)
				cancel()
				if inARow++; err != nil {
					inARow = 0
				} else if inARow == 1 {
					worked = time.Since(silent)
				}
				require.NoError(t, after(t.Context(), 10*time.Millisecond))
			}
			t.Log("without Redis for", worked)
			require.Less(t, worked, 6*time.Second) // a server of a busy machine; it is 11s or more without the setting
		})
	}
}
