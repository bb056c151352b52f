package integration

import (
	"context"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/redispatterns/redispatterns/cache"
)

// TestCache_UsersMayTestWithMiniredis keeps a promise to users' tests; miniredis stands in for no server here.
func TestCache_UsersMayTestWithMiniredis(t *testing.T) {
	t.Parallel()
	for name, single := range map[string]bool{"single": true, "cluster": false} { // it answers CLUSTER commands
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			mini := miniredis.RunT(t)
			client, err := rueidis.NewClient(rueidis.ClientOption{
				InitAddress: []string{mini.Addr()}, DisableCache: true, ForceSingleClient: single,
			})
			require.NoError(t, err)
			t.Cleanup(client.Close)
			c := newCache(t, client, "p", cache.Options[string, string]{TTL: time.Minute, StaleTTL: time.Minute, NegativeTTL: time.Minute, Jitter: -1})
			src := newSource("one")
			for range 3 {
				v, err := c.Fetch(ctx, "k", src.load)
				require.NoError(t, err)
				require.Equal(t, "one", v)
			}
			require.EqualValues(t, 1, src.loads.Load())
			_, err = c.FetchMany(ctx, []string{"k", "none"}, func(context.Context, []string) (map[string]string, error) { return nil, nil })
			require.NoError(t, err)
			_, _, err = c.Get(ctx, "none")
			require.ErrorIs(t, err, cache.ErrNotFound)
			mini.FastForward(90 * time.Second) // the value is stale now
			src.set("two")
			require.Eventually(t, func() bool {
				v, err := c.Fetch(ctx, "k", src.load)
				require.NoError(t, err)
				return v == "two"
			}, 10*time.Second, time.Millisecond)
			require.NoError(t, c.Set(ctx, "k", "three"))
			require.NoError(t, c.Segment("other").Invalidate(ctx))
			v, err := c.Fetch(ctx, "k", noLoad)
			require.NoError(t, err)
			require.Equal(t, "three", v)
			require.NoError(t, c.Invalidate(ctx))
			_, ok, err := c.Get(ctx, "k")
			require.NoError(t, err)
			require.False(t, ok)
			require.NoError(t, c.Delete(ctx, "k"))
			require.Zero(t, c.Stats().Errors)
		})
	}
}
