package cache

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"
)

func TestQuick(t *testing.T) {
	cl, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{"127.0.0.1:6399"}})
	require.NoError(t, err)
	defer cl.Close()
	c, err := New[string, string](cl, fmt.Sprintf("q%d", time.Now().UnixNano()), Options[string, string]{TTL: time.Minute, Codec: String(), NegativeTTL: time.Minute})
	require.NoError(t, err)
	ctx := context.Background()
	var n atomic.Int32
	var wg sync.WaitGroup
	for range 200 {
		wg.Go(func() {
			v, err := c.Fetch(ctx, "a", func(ctx context.Context, k string) (string, error) {
				n.Add(1)
				time.Sleep(100 * time.Millisecond)
				return "v" + k, nil
			})
			require.NoError(t, err)
			require.Equal(t, "va", v)
		})
	}
	wg.Wait()
	require.EqualValues(t, 1, n.Load())
	m, err := c.FetchMany(ctx, []string{"a", "b", "c"}, func(ctx context.Context, ks []string) (map[string]string, error) {
		require.Equal(t, []string{"b", "c"}, ks)
		return map[string]string{"b": "B"}, nil
	})
	require.NoError(t, err)
	require.Equal(t, map[string]string{"a": "va", "b": "B"}, m)
	_, _, err = c.Get(ctx, "c")
	require.ErrorIs(t, err, ErrNotFound)
	require.NoError(t, c.Set(ctx, "c", "C"))
	v, ok, err := c.Get(ctx, "c")
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, "C", v)
	require.NoError(t, c.Delete(ctx, "c", "b"))
	_, ok, err = c.Get(ctx, "c")
	require.NoError(t, err)
	require.False(t, ok)
	require.NoError(t, c.Invalidate(ctx))
	m, err = c.GetMany(ctx, []string{"a", "b", "c"})
	require.NoError(t, err)
	require.Empty(t, m)
	_, err = c.Fetch(ctx, "p", func(ctx context.Context, k string) (string, error) { panic("x") })
	var pe *PanicError
	require.True(t, errors.As(err, &pe))
	t.Logf("%+v", c.Stats())
	require.NoError(t, c.Close(ctx))
}

func BenchmarkRaw(b *testing.B)   { bench(b, false) }
func BenchmarkCache(b *testing.B) { bench(b, true) }
func bench(b *testing.B, cache bool) {
	cl, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{"127.0.0.1:6399"}})
	require.NoError(b, err)
	defer cl.Close()
	c, err := New[string, string](cl, "bench", Options[string, string]{TTL: time.Minute, Codec: String(), NegativeTTL: time.Minute})
	require.NoError(b, err)
	ctx := context.Background()
	val := string(make([]byte, 300))
	keys := make([]string, 10000)
	raw := make([]string, 10000)
	for i := range keys {
		keys[i] = fmt.Sprint("key", i)
		raw[i] = "bench:::{" + keys[i] + "}"
		require.NoError(b, c.Set(ctx, keys[i], val))
	}
	b.SetParallelism(32)
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(p *testing.PB) {
		i := 0
		for p.Next() {
			i++
			if cache {
				c.Fetch(ctx, keys[i%10000], nil)
			} else {
				cl.Do(ctx, cl.B().Get().Key(raw[i%10000]).Build()).ToString()
			}
		}
	})
}
