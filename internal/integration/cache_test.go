package integration

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/redis/rueidis/rueidishook"
	"github.com/stretchr/testify/require"

	"github.com/redispatterns/redispatterns/cache"
	"github.com/redispatterns/redispatterns/internal/integration/redistest"
)

// newCache returns a cache of strings that is closed, and must be idle by then, at the end of the test.
func newCache(t *testing.T, client rueidis.Client, prefix string, opts cache.Options[string, string]) *cache.Cache[string, string] {
	t.Helper()
	if opts.TTL == 0 {
		opts.TTL = time.Minute
	}
	if opts.Codec == nil {
		opts.Codec = cache.String()
	}
	if opts.OpTimeout == 0 {
		opts.OpTimeout = 5 * time.Second // a busy test machine is no reason to fail open
	}
	c, err := cache.New(client, prefix, opts)
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		require.NoError(t, c.Close(ctx))
	})
	return c
}

// source is what a cache stands before. It counts its loads.
type source struct {
	loads atomic.Int64
	value atomic.Pointer[string]
	err   atomic.Pointer[error]
}

func newSource(value string) *source {
	s := &source{}
	s.value.Store(&value)
	return s
}

func (s *source) set(value string) { s.value.Store(&value) }
func (s *source) fail(err error)   { s.err.Store(&err) }

func (s *source) load(context.Context, string) (string, error) {
	s.loads.Add(1)
	if err := s.err.Load(); err != nil && *err != nil {
		return "", *err
	}
	return *s.value.Load(), nil
}

func noLoad(context.Context, string) (string, error) { return "", errors.New("load was called") }

func noLoadMany(context.Context, []string) (map[string]string, error) {
	return nil, errors.New("load was called")
}

// after is how loads in tests take time.
func after(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func entryKey(prefix, id string) string { return prefix + ":::{" + id + "}" }

func do(t *testing.T, client rueidis.Client, key string, args ...string) rueidis.RedisResult {
	t.Helper()
	cmd := client.B().Arbitrary(args[0]).Keys(key).Args(args[1:]...).Build()
	result := client.Do(t.Context(), cmd)
	if err := result.Error(); err != nil && !rueidis.IsRedisNil(err) {
		require.NoError(t, err)
	}
	return result
}

func exists(t *testing.T, client rueidis.Client, key string) bool {
	t.Helper()
	n, err := do(t, client, key, "EXISTS").AsInt64()
	require.NoError(t, err)
	return n == 1
}

func TestCache_DoesItsJobEverywhere(t *testing.T) {
	t.Parallel()
	redistest.EachTarget(t, func(t *testing.T, client rueidis.Client) {
		ctx := t.Context()
		prefix := redistest.Prefix(t)
		c := newCache(t, client, prefix, cache.Options[string, string]{NegativeTTL: time.Minute})
		src := newSource("one")

		for range 3 {
			v, err := c.Fetch(ctx, "k", src.load)
			require.NoError(t, err)
			require.Equal(t, "one", v)
		}
		require.EqualValues(t, 1, src.loads.Load(), "the second and third are hits")

		_, err := c.Fetch(ctx, "none", func(context.Context, string) (string, error) {
			return "", fmt.Errorf("no row: %w", cache.ErrNotFound)
		})
		require.ErrorIs(t, err, cache.ErrNotFound)
		_, err = c.Fetch(ctx, "none", noLoad)
		require.ErrorIs(t, err, cache.ErrNotFound, "that there is none is remembered")
		_, _, err = c.Get(ctx, "none")
		require.ErrorIs(t, err, cache.ErrNotFound)

		require.NoError(t, c.Set(ctx, "none", "now there is"))
		v, ok, err := c.Get(ctx, "none")
		require.NoError(t, err)
		require.True(t, ok)
		require.Equal(t, "now there is", v)

		var asked []string
		many, err := c.FetchMany(ctx, []string{"k", "a", "b", "c", "a"}, func(_ context.Context, keys []string) (map[string]string, error) {
			asked = append(asked, keys...)
			return map[string]string{"a": "A", "b": "B"}, nil
		})
		require.NoError(t, err)
		require.Equal(t, map[string]string{"k": "one", "a": "A", "b": "B"}, many)
		require.Equal(t, []string{"a", "b", "c"}, asked, "one call for the misses, each key once")
		many, err = c.FetchMany(ctx, []string{"k", "a", "b", "c"}, noLoadMany)
		require.NoError(t, err)
		require.Len(t, many, 3)

		require.NoError(t, c.SetMany(ctx, map[string]string{"x": "X", "y": "Y"}))
		many, err = c.GetMany(ctx, []string{"x", "y", "z", "c"})
		require.NoError(t, err)
		require.Equal(t, map[string]string{"x": "X", "y": "Y"}, many)

		require.NoError(t, c.Delete(ctx, "x", "k"))
		many, err = c.GetMany(ctx, []string{"x", "y", "k"})
		require.NoError(t, err)
		require.Equal(t, map[string]string{"y": "Y"}, many)

		require.NoError(t, c.Invalidate(ctx))
		many, err = c.GetMany(ctx, []string{"x", "y", "a", "b", "none"})
		require.NoError(t, err)
		require.Empty(t, many)
		src.set("two")
		v, err = c.Fetch(ctx, "k", src.load)
		require.NoError(t, err)
		require.Equal(t, "two", v)
	})
}

func TestCache_SegmentsAreInvalidatedAlone(t *testing.T) {
	t.Parallel()
	redistest.EachTarget(t, func(t *testing.T, client rueidis.Client) {
		ctx := t.Context()
		prefix := redistest.Prefix(t)
		v1 := newCache(t, client, prefix, cache.Options[string, string]{Version: "1"})
		v2 := newCache(t, client, prefix, cache.Options[string, string]{Version: "2"})
		var ids []string
		for i := range 100 { // so many lie in all ranges of slots
			ids = append(ids, "id"+strconv.Itoa(i))
		}
		segments := []string{"", "a", "b", "a:b", "a{b}", "%3A", "ü \x00"}
		fill := func(c *cache.Cache[string, string], version string) {
			for _, s := range segments {
				values := map[string]string{}
				for _, id := range ids {
					values[id] = version + "/" + s + "/" + id
				}
				require.NoError(t, c.Segment(s).SetMany(ctx, values))
			}
		}
		count := func(c *cache.Cache[string, string], version, s string) int {
			values, err := c.Segment(s).GetMany(ctx, ids)
			require.NoError(t, err)
			for id, v := range values {
				require.Equal(t, version+"/"+s+"/"+id, v, "versions and segments do not see each other's values")
			}
			return len(values)
		}
		fill(v1, "1")
		fill(v2, "2")
		for i, s := range segments {
			for j, other := range segments {
				want := len(ids)
				if j < i {
					want = 0
				}
				require.Equal(t, want, count(v1, "1", other), "%q", other)
				require.Equal(t, want, count(v2, "2", other), "%q: a segment is invalidated in all versions", other)
			}
			require.NoError(t, v1.Segment(s).Invalidate(ctx))
			require.Equal(t, 0, count(v1.Segment("elsewhere"), "1", s), "segments do not nest")
		}
	})
}

func TestCache_AnyIDIsLegal(t *testing.T) {
	t.Parallel()
	redistest.EachTarget(t, func(t *testing.T, client rueidis.Client) {
		ctx := t.Context()
		c := newCache(t, client, redistest.Prefix(t), cache.Options[string, string]{})
		ids := []string{
			"", " ", "%", "}", "{", "{}", "}{", "a}b", "{a}", "a{b}c", "%}", "%%", "%25", "a:l", "a}:l", ":s", "\x00", "a\x00b",
			"\r\n", "\xff\xfe", "ключ", strings.Repeat("x", 64<<10), strings.Repeat("}", 64<<10),
		}
		values := map[string]string{}
		for _, id := range ids {
			values[id] = "value of " + id[:min(len(id), 10)] + strconv.Itoa(len(id))
			v, err := c.Fetch(ctx, id, func(context.Context, string) (string, error) { return values[id], nil })
			require.NoError(t, err)
			require.Equal(t, values[id], v)
		}
		for id, want := range values {
			v, err := c.Fetch(ctx, id, noLoad)
			require.NoError(t, err)
			require.Equal(t, want, v)
		}
		many, err := c.FetchMany(ctx, ids, noLoadMany)
		require.NoError(t, err)
		require.Equal(t, values, many)
		require.NoError(t, c.Delete(ctx, ids...))
		many, err = c.GetMany(ctx, ids)
		require.NoError(t, err)
		require.Empty(t, many)
	})
}

func TestCache_AnyPayloadRoundTrips(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	ctx := t.Context()
	prefix := redistest.Prefix(t)
	plain := newCache(t, client, prefix, cache.Options[string, string]{})
	packed := newCache(t, client, prefix, cache.Options[string, string]{Version: "z", Codec: cache.Compress(cache.String(), 64)})
	require.NoError(t, plain.Set(ctx, "first", "x"))
	ours, err := do(t, client, entryKey(prefix, "first"), "GET").ToString()
	require.NoError(t, err)

	payloads := []string{"", "*", "null", "\x00", ours, ours[:32], ours[:31], "\xca\x01\x01\x00", "rueidisid:1", "LOCK", strings.Repeat("ab", 100_000)}
	for range 200 {
		b := make([]byte, rand.IntN(300))
		for i := range b {
			b[i] = byte(rand.IntN(256))
		}
		payloads = append(payloads, string(b))
	}
	for _, c := range []*cache.Cache[string, string]{plain, packed} {
		for _, p := range payloads {
			require.NoError(t, c.Set(ctx, "k", p))
			v, ok, err := c.Get(ctx, "k")
			require.NoError(t, err)
			require.True(t, ok)
			require.Equal(t, p, v)
		}
	}
	size, err := do(t, client, prefix+":z::{k}", "STRLEN").AsInt64()
	require.NoError(t, err)
	require.Less(t, size, int64(400), "the last one was random")
	require.NoError(t, packed.Set(ctx, "k", strings.Repeat("ab", 100_000)))
	size, err = do(t, client, prefix+":z::{k}", "STRLEN").AsInt64()
	require.NoError(t, err)
	require.Less(t, size, int64(2000), "200 kB that repeat themselves compress well")
}

func TestCache_ForeignAndDamagedEntriesAreRepaired(t *testing.T) {
	t.Parallel()
	redistest.EachTarget(t, func(t *testing.T, client rueidis.Client) {
		ctx := t.Context()
		prefix := redistest.Prefix(t)
		c := newCache(t, client, prefix, cache.Options[string, string]{StaleTTL: time.Minute})
		numbers, err := cache.New(client, prefix, cache.Options[string, int]{TTL: time.Minute, OpTimeout: 5 * time.Second})
		require.NoError(t, err)
		require.NoError(t, c.Set(ctx, "k", "a good value"))
		key := entryKey(prefix, "k")
		good, err := do(t, client, key, "GET").ToString()
		require.NoError(t, err)
		flip := func(i int) string {
			b := []byte(good)
			b[i] ^= 0x10
			return string(b)
		}
		damage := map[string]func(){
			"empty":     func() { do(t, client, key, "SET", "") },
			"foreign":   func() { do(t, client, key, "SET", `{"json": "of someone else"}`) },
			"truncated": func() { do(t, client, key, "SET", good[:len(good)-1]) },
			"header":    func() { do(t, client, key, "SET", good[:32]) },
			"longer":    func() { do(t, client, key, "APPEND", "x") },
			"hash":      func() { do(t, client, key, "DEL"); do(t, client, key, "HSET", "f", "v") },
			"list":      func() { do(t, client, key, "DEL"); do(t, client, key, "RPUSH", "f", "v") },
			"other key": func() {
				require.NoError(t, c.Segment("s").Set(ctx, "k", "x"))
				foreign, err := do(t, client, prefix+"::s:{k}", "GET").ToString()
				require.NoError(t, err)
				do(t, client, key, "SET", foreign)
			},
		}
		for i := range []byte(good) {
			damage[fmt.Sprintf("bit in byte %d", i)] = func() { do(t, client, key, "SET", flip(i)) }
		}
		for name, f := range damage {
			f()
			_, ok, err := c.Get(ctx, "k")
			require.NoError(t, err, name)
			require.False(t, ok, name)
			src := newSource("repaired")
			v, err := c.Fetch(ctx, "k", src.load)
			require.NoError(t, err, name)
			require.Equal(t, "repaired", v, name)
			v, err = c.Fetch(ctx, "k", noLoad)
			require.NoError(t, err, name)
			require.Equal(t, "repaired", v, name)
		}
		// A whole entry that the codec does not understand.
		n, err := numbers.Fetch(ctx, "k", func(context.Context, string) (int, error) { return 42, nil })
		require.NoError(t, err)
		require.Equal(t, 42, n)
		n, ok, err := numbers.Get(ctx, "k")
		require.NoError(t, err)
		require.True(t, ok)
		require.Equal(t, 42, n)
		got, err := numbers.FetchMany(ctx, []string{"k"}, func(context.Context, []string) (map[string]int, error) { return nil, nil })
		require.NoError(t, err)
		require.Equal(t, map[string]int{"k": 42}, got)
	})
}

func TestCache_LostBookkeepingNeverBringsAnOldValueBack(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	ctx := t.Context()
	prefix := redistest.Prefix(t)
	c := newCache(t, client, prefix, cache.Options[string, string]{})
	stamp := prefix + "::{0}:s"
	require.NoError(t, c.Set(ctx, "k", "old"))
	require.True(t, exists(t, client, stamp), "this test knows the stamp's key")

	gone := func(id string) { // as soon as the process forgets the stamp, and for ever
		t.Helper()
		require.Eventually(t, func() bool {
			_, ok, err := c.Get(ctx, id)
			require.NoError(t, err)
			return !ok
		}, 10*time.Second, time.Millisecond)
		for range 20 {
			_, ok, err := c.Get(ctx, id)
			require.NoError(t, err)
			require.False(t, ok)
		}
	}

	// Evict the stamp: the old value must be gone even once there is a stamp again.
	do(t, client, stamp, "DEL")
	gone("k")
	require.NoError(t, c.Set(ctx, "other", "x"))
	require.True(t, exists(t, client, stamp))
	gone("k")

	// Evict lease or stamp while a load is under way.
	for _, lost := range []string{entryKey(prefix, "l") + ":l", stamp} {
		v, err := c.Fetch(ctx, "l", func(context.Context, string) (string, error) {
			require.True(t, exists(t, client, lost))
			do(t, client, lost, "DEL")
			return "loaded before", nil
		})
		require.NoError(t, err)
		require.Equal(t, "loaded before", v)
		gone("l")
	}
}

func TestCache_EveryKeyHasATTLOfWholeMilliseconds(t *testing.T) {
	t.Parallel()
	redistest.EachTarget(t, func(t *testing.T, client rueidis.Client) {
		ctx := t.Context()
		prefix := redistest.Prefix(t)
		opts := cache.Options[string, string]{TTL: 12345 * time.Millisecond, StaleTTL: 10 * time.Second, NegativeTTL: 3210 * time.Millisecond, Jitter: -1}
		c := newCache(t, client, prefix, opts)
		// expiry is when a key ends, exactly, less the server's time before and after it was written.
		lifetime := func(write func(), key string) (least, most int64) {
			now := func() int64 {
				// TIME of the key's own server, in a script.
				ms, err := client.Do(ctx, client.B().Eval().Script("local t = redis.call('TIME') return t[1] * 1000 + math.floor(t[2] / 1000)").
					Numkeys(1).Key(key).Build()).AsInt64()
				require.NoError(t, err)
				return ms
			}
			before := now()
			write()
			end, err := do(t, client, key, "PEXPIRETIME").AsInt64()
			require.NoError(t, err)
			require.Positive(t, end)
			return end - now(), end - before
		}
		within := func(want time.Duration, least, most int64) {
			t.Helper()
			require.LessOrEqual(t, least, want.Milliseconds())
			require.GreaterOrEqual(t, most, want.Milliseconds())
			require.Less(t, most-least, int64(2000))
		}
		least, most := lifetime(func() { require.NoError(t, c.Set(ctx, "set", "v")) }, entryKey(prefix, "set"))
		within(opts.TTL+opts.StaleTTL, least, most)
		least, most = lifetime(func() {
			_, err := c.Fetch(ctx, "f", newSource("v").load)
			require.NoError(t, err)
		}, entryKey(prefix, "f"))
		within(opts.TTL+opts.StaleTTL, least, most)
		least, most = lifetime(func() {
			_, err := c.FetchMany(ctx, []string{"n"}, func(context.Context, []string) (map[string]string, error) { return nil, nil })
			require.NoError(t, err)
		}, entryKey(prefix, "n"))
		within(opts.NegativeTTL, least, most)
		least, most = lifetime(func() {
			_, err := c.Fetch(ctx, "l", func(context.Context, string) (string, error) {
				ttl, err := do(t, client, entryKey(prefix, "l")+":l", "PTTL").AsInt64()
				require.NoError(t, err)
				require.Positive(t, ttl)
				require.LessOrEqual(t, ttl, int64(10_000))
				return "", nil
			})
			require.NoError(t, err)
		}, entryKey(prefix, "l"))
		within(opts.TTL+opts.StaleTTL, least, most)

		// Nothing of this prefix lives for ever.
		for _, node := range client.Nodes() {
			scan, err := node.Do(ctx, node.B().Scan().Cursor(0).Match(prefix+":*").Count(1_000_000).Build()).AsScanEntry()
			require.NoError(t, err)
			for _, key := range scan.Elements {
				require.Positive(t, must(node.Do(ctx, node.B().Pttl().Key(key).Build()).AsInt64())(t), key)
			}
		}
	})
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		require.NoError(t, err)
		return v
	}
}

// TestCache_VersionsWithOtherTTLsShareASegment: they share its stamp, which must last for the longest.
func TestCache_VersionsWithOtherTTLsShareASegment(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	prefix := redistest.Prefix(t)
	long := newCache(t, client, prefix, cache.Options[string, string]{TTL: time.Hour, Version: "long"})
	short := newCache(t, client, prefix, cache.Options[string, string]{TTL: time.Second, LoadTimeout: time.Second, Version: "short"})
	require.NoError(t, long.Set(t.Context(), "k", "v"))
	require.NoError(t, short.Set(t.Context(), "k", "v"))
	ttl, err := do(t, client, prefix+"::{0}:s", "PTTL").AsInt64()
	require.NoError(t, err)
	require.Greater(t, ttl, time.Hour.Milliseconds())
}

func TestCache_JitterOnlyShortens(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	prefix := redistest.Prefix(t)
	c := newCache(t, client, prefix, cache.Options[string, string]{TTL: time.Hour, Jitter: 0.5})
	values := map[string]string{}
	for i := range 300 {
		values[strconv.Itoa(i)] = "v"
	}
	require.NoError(t, c.SetMany(t.Context(), values))
	var ttls []int64
	for id := range values {
		ttl, err := do(t, client, entryKey(prefix, id), "PTTL").AsInt64()
		require.NoError(t, err)
		ttls = append(ttls, ttl)
	}
	require.LessOrEqual(t, slices.Max(ttls), time.Hour.Milliseconds())
	require.Greater(t, slices.Max(ttls), (55 * time.Minute).Milliseconds())
	require.GreaterOrEqual(t, slices.Min(ttls), (29 * time.Minute).Milliseconds())
	require.Less(t, slices.Min(ttls), (35 * time.Minute).Milliseconds())
}

func TestCache_StaleValuesAreServedWhileOneLoadRefreshes(t *testing.T) {
	t.Parallel()
	redistest.EachTarget(t, func(t *testing.T, client rueidis.Client) {
		ctx := t.Context()
		prefix := redistest.Prefix(t)
		opts := cache.Options[string, string]{TTL: time.Hour, StaleTTL: time.Hour, NegativeTTL: time.Minute, Jitter: -1}
		c := newCache(t, client, prefix, opts)
		other := newCache(t, client, prefix, opts) // as another process would have
		src := newSource("old")
		_, err := c.Fetch(ctx, "k", src.load)
		require.NoError(t, err)
		age := func(id string) { // the TTL is over, the StaleTTL is not
			do(t, client, entryKey(prefix, id), "PEXPIRE", strconv.FormatInt((59*time.Minute).Milliseconds(), 10))
		}
		age("k")
		src.set("new")
		release := make(chan struct{})
		slow := func(ctx context.Context, k string) (string, error) {
			v, err := src.load(ctx, k)
			<-release
			return v, err
		}
		for range 20 {
			for _, c := range []*cache.Cache[string, string]{c, other} {
				v, err := c.Fetch(ctx, "k", slow)
				require.NoError(t, err)
				require.Equal(t, "old", v, "served at once")
				many, err := c.FetchMany(ctx, []string{"k"}, noLoadMany)
				require.NoError(t, err)
				require.Equal(t, map[string]string{"k": "old"}, many)
			}
		}
		close(release)
		require.Eventually(t, func() bool {
			v, ok, err := c.Get(ctx, "k")
			return err == nil && ok && v == "new"
		}, 10*time.Second, time.Millisecond)
		require.EqualValues(t, 2, src.loads.Load(), "one load, one refresh")
		require.Positive(t, c.Stats().Stale)

		// A failing refresh leaves the stale value and is tried once a second, not once a read.
		age("k")
		src.fail(errors.New("down"))
		began := time.Now()
		for range 50 {
			v, err := c.Fetch(ctx, "k", src.load)
			require.NoError(t, err)
			require.Equal(t, "new", v)
		}
		require.Eventually(t, func() bool { return src.loads.Load() >= 3 }, 10*time.Second, time.Millisecond)
		for range 50 {
			v, err := c.Fetch(ctx, "k", src.load)
			require.NoError(t, err)
			require.Equal(t, "new", v)
		}
		require.LessOrEqual(t, src.loads.Load(), int64(4+time.Since(began)/time.Second))
		ttl, err := do(t, client, entryKey(prefix, "k")+":l", "PTTL").AsInt64()
		require.NoError(t, err)
		require.LessOrEqual(t, ttl, int64(1000))

		// A refresh that finds that the value is gone takes it away.
		require.NoError(t, c.Set(ctx, "gone", "v"))
		age("gone")
		_, err = c.Fetch(ctx, "gone", func(context.Context, string) (string, error) { return "", cache.ErrNotFound })
		require.NoError(t, err)
		require.Eventually(t, func() bool {
			_, _, err := c.Get(ctx, "gone")
			return errors.Is(err, cache.ErrNotFound)
		}, 10*time.Second, time.Millisecond)
	})
}

// TestCache_AFailedRefreshHoldsUpNobodyWhoFindsNothing: it keeps its lease for a pause, but not after the stale value's end.
func TestCache_AFailedRefreshHoldsUpNobodyWhoFindsNothing(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	prefix := redistest.Prefix(t)
	c := newCache(t, client, prefix, cache.Options[string, string]{TTL: time.Hour, StaleTTL: time.Hour, LeaseTTL: time.Hour})
	src := newSource("old")
	_, err := c.Fetch(t.Context(), "k", src.load)
	require.NoError(t, err)
	do(t, client, entryKey(prefix, "k"), "PEXPIRE", "800")
	src.fail(errors.New("down"))
	v, err := c.Fetch(t.Context(), "k", src.load)
	require.NoError(t, err)
	require.Equal(t, "old", v)
	require.Eventually(t, func() bool { return src.loads.Load() == 2 }, 10*time.Second, time.Millisecond)
	var left int64
	require.Eventually(t, func() bool { // at first it is the load's
		left, err = do(t, client, entryKey(prefix, "k")+":l", "PTTL").AsInt64()
		require.NoError(t, err)
		return left <= 1000
	}, 10*time.Second, time.Millisecond)
	require.LessOrEqual(t, left, int64(800))
}

func TestCache_EarlyRefreshGrowsLikelierTowardsTheEnd(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	ctx := t.Context()
	prefix := redistest.Prefix(t)
	c := newCache(t, client, prefix, cache.Options[string, string]{TTL: time.Hour, EarlyBeta: 1, Jitter: -1})
	load := func(ctx context.Context, _ string) (string, error) { return "v", after(ctx, 50*time.Millisecond) }
	_, err := c.Fetch(ctx, "k", load)
	require.NoError(t, err)
	for range 500 { // e^-72000
		_, err := c.Fetch(ctx, "k", load)
		require.NoError(t, err)
	}
	require.Zero(t, c.Stats().Refreshes, "an hour before the end")
	require.Eventually(t, func() bool { // with 50 ms of load and below 500 ms to go: e^-10 or more at each read
		do(t, client, entryKey(prefix, "k"), "PEXPIRE", "100", "GT")
		do(t, client, entryKey(prefix, "k"), "PEXPIRE", "100", "LT")
		v, err := c.Fetch(ctx, "k", load)
		return err == nil && v == "v" && c.Stats().Refreshes > 0
	}, 10*time.Second, time.Millisecond)
}

func TestCache_ReturnedSlicesMayBeChanged(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	ctx := t.Context()
	for name, opts := range map[string]cache.Options[string, []byte]{
		"remote": {TTL: time.Minute, Codec: cache.Bytes()},
		"local":  {TTL: time.Minute, Codec: cache.Bytes(), ClientTTL: time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, err := cache.New(client, redistest.Prefix(t), opts)
			require.NoError(t, err)
			// All who wait for one load get a slice of their own.
			started, release := make(chan struct{}), make(chan struct{})
			var wg sync.WaitGroup
			fetch := func() {
				v, err := c.Fetch(ctx, "k", func(context.Context, string) ([]byte, error) {
					close(started)
					<-release
					return []byte("value"), nil
				})
				require.NoError(t, err)
				require.Equal(t, "value", string(v))
				for i := range v {
					v[i] = '!'
				}
			}
			wg.Go(fetch)
			<-started
			for range 10 {
				wg.Go(fetch)
			}
			if opts.ClientTTL == 0 { // else some may miss the stamp for some milliseconds, and have flights of their own
				require.Eventually(t, func() bool { return c.Stats().Shared == 10 }, 10*time.Second, time.Millisecond)
			}
			close(release)
			wg.Wait()
			for range 3 {
				fetch()
				many, err := c.FetchMany(ctx, []string{"k"}, nil)
				require.NoError(t, err)
				require.Equal(t, "value", string(many["k"]))
				many["k"][0] = '!'
			}
		})
	}
}

func TestCache_LargeValuesAreReturnedButNotStored(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	ctx := t.Context()
	prefix := redistest.Prefix(t)
	var hooked atomic.Int64
	c := newCache(t, client, prefix, cache.Options[string, string]{MaxBytes: 10, Hooks: cache.Hooks{
		Error: func(_ context.Context, op string, err error) {
			if op == cache.OpEncode && errors.Is(err, cache.ErrTooLarge) {
				hooked.Add(1)
			}
		},
	}})
	v, err := c.Fetch(ctx, "k", newSource("0123456789").load)
	require.NoError(t, err)
	require.Equal(t, "0123456789", v)
	require.True(t, exists(t, client, entryKey(prefix, "k")), "as large as allowed")
	v, err = c.Fetch(ctx, "l", newSource("0123456789x").load)
	require.NoError(t, err)
	require.Equal(t, "0123456789x", v)
	require.False(t, exists(t, client, entryKey(prefix, "l")))
	require.False(t, exists(t, client, entryKey(prefix, "l")+":l"), "no lease is left behind")
	require.EqualValues(t, 1, hooked.Load())

	err = c.SetMany(ctx, map[string]string{"a": "small", "k": "0123456789x"})
	require.ErrorIs(t, err, cache.ErrTooLarge)
	require.False(t, exists(t, client, entryKey(prefix, "a")), "all or nothing")
	v, ok, err := c.Get(ctx, "k")
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, "0123456789", v, "as it was")
}

func TestCache_UnencodableValuesAreReturnedToAll(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	ctx := t.Context()
	prefix := redistest.Prefix(t)
	c, err := cache.New(client, prefix, cache.Options[string, func() int]{TTL: time.Minute}) // JSON cannot
	require.NoError(t, err)
	f, err := c.Fetch(ctx, "k", func(context.Context, string) (func() int, error) { return func() int { return 7 }, nil })
	require.NoError(t, err)
	require.Equal(t, 7, f())
	require.False(t, exists(t, client, entryKey(prefix, "k")+":l"))
	require.EqualValues(t, 1, c.Stats().Errors)
	require.Error(t, c.Set(ctx, "k", func() int { return 1 }))
}

func TestCache_FetchManyIsOneTripEachWay(t *testing.T) {
	t.Parallel()
	ids := make([]string, 100)
	for i := range ids {
		ids[i] = "id" + strconv.Itoa(i)
	}
	load := func(_ context.Context, keys []string) (map[string]string, error) {
		values := map[string]string{}
		for _, k := range keys {
			values[k] = "v" + k
		}
		return values, nil
	}
	t.Run("commands", func(t *testing.T) {
		t.Parallel()
		server := redistest.Start(t)
		for name, client := range map[string]rueidis.Client{
			"bare": server.Client(t), "wrapped": rueidishook.WithHook(server.Client(t), &countHook{}),
		} {
			c := newCache(t, client, redistest.Prefix(t), cache.Options[string, string]{})
			_, err := c.FetchMany(t.Context(), []string{"the scripts are known after this"}, load)
			require.NoError(t, err)
			misses := redistest.Commands(t, server, func() {
				many, err := c.FetchMany(t.Context(), ids, load)
				require.NoError(t, err)
				require.Len(t, many, 100)
			})
			require.EqualValues(t, 1, misses["mget"], name)
			require.EqualValues(t, 201, misses["evalsha"], "%s: the stamp, 100 leases, 100 writes", name)
			require.Zero(t, misses["eval"], name)
			hits := redistest.Commands(t, server, func() {
				many, err := c.FetchMany(t.Context(), ids, noLoadMany)
				require.NoError(t, err)
				require.Len(t, many, 100)
			})
			require.Equal(t, map[string]int64{"mget": 1}, hits, name)
			one := redistest.Commands(t, server, func() {
				_, err := c.Fetch(t.Context(), ids[0], noLoad)
				require.NoError(t, err)
			})
			require.Len(t, one, 1, name)
			require.EqualValues(t, 1, one["get"]+one["mget"], "%s: with the stamp, if it is not remembered", name)
		}
	})
	t.Run("trips", func(t *testing.T) {
		t.Parallel()
		redistest.EachTarget(t, func(t *testing.T, client rueidis.Client) {
			hook := &countHook{}
			c := newCache(t, rueidishook.WithHook(client, hook), redistest.Prefix(t), cache.Options[string, string]{StaleTTL: time.Minute})
			trips := func(f func()) int64 {
				before := hook.trips.Load()
				f()
				return hook.trips.Load() - before
			}
			fetch := func(load func(context.Context, []string) (map[string]string, error)) func() {
				return func() {
					many, err := c.FetchMany(t.Context(), ids, load)
					require.NoError(t, err)
					require.Len(t, many, 100)
				}
			}
			calls := 0
			require.LessOrEqual(t, trips(fetch(func(ctx context.Context, keys []string) (map[string]string, error) {
				calls++
				return load(ctx, keys)
			})), int64(5), "look, lease, store, and twice more for servers that did not know the scripts")
			require.Equal(t, 1, calls)
			require.NoError(t, c.Invalidate(t.Context()))
			require.EqualValues(t, 3, trips(fetch(load)), "look, lease, store")
			require.EqualValues(t, 1, trips(fetch(noLoadMany)))
		})
	})
}

// countHook counts the round trips of a client: in a cluster, DoMulti is one pipeline per node, all at once.
type countHook struct {
	rueidishook.Hook
	trips atomic.Int64
}

func (h *countHook) Do(c rueidis.Client, ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	h.trips.Add(1)
	return c.Do(ctx, cmd)
}

func (h *countHook) DoMulti(c rueidis.Client, ctx context.Context, multi ...rueidis.Completed) []rueidis.RedisResult {
	h.trips.Add(1)
	return c.DoMulti(ctx, multi...)
}

func TestCache_ManyKeysGoInBatches(t *testing.T) {
	t.Parallel()
	redistest.EachTarget(t, func(t *testing.T, client rueidis.Client) {
		ctx := t.Context()
		c := newCache(t, client, redistest.Prefix(t), cache.Options[string, string]{StaleTTL: time.Minute})
		want := map[string]string{}
		for i := range 1203 {
			want["id"+strconv.Itoa(i)] = "v" + strconv.Itoa(i)
		}
		ids := slices.Collect(maps.Keys(want))
		loads := 0
		many, err := c.FetchMany(ctx, ids, func(_ context.Context, keys []string) (map[string]string, error) {
			loads++
			require.Equal(t, len(want), len(keys)) //nolint:testifylint // Len prints them all
			return want, nil
		})
		require.NoError(t, err)
		require.Equal(t, want, many)
		require.Equal(t, 1, loads)
		many, err = c.FetchMany(ctx, ids, noLoadMany)
		require.NoError(t, err)
		require.Equal(t, want, many)
		require.NoError(t, c.Delete(ctx, ids...))
		many, err = c.GetMany(ctx, ids)
		require.NoError(t, err)
		require.Empty(t, many)
		require.NoError(t, c.SetMany(ctx, want))
		many, err = c.GetMany(ctx, ids)
		require.NoError(t, err)
		require.Equal(t, want, many)
	})
}

func TestCache_ClientTTLReadsLocallyAndHearsOfChanges(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string]cache.Options[string, string]{
		"plain": {ClientTTL: time.Minute},
		"stale": {ClientTTL: time.Minute, StaleTTL: time.Hour, EarlyBeta: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t)
			ctx := t.Context()
			prefix := redistest.Prefix(t)
			reader := newCache(t, server.Client(t), prefix, opts)
			writer := newCache(t, server.Client(t), prefix, cache.Options[string, string]{StaleTTL: opts.StaleTTL})
			sees := func(want string) {
				t.Helper()
				require.Eventually(t, func() bool {
					v, err := reader.Fetch(ctx, "k", newSource("loaded").load)
					require.NoError(t, err)
					return v == want
				}, 10*time.Second, time.Millisecond)
			}
			require.NoError(t, writer.Set(ctx, "k", "one"))
			sees("one")
			local := func() int64 { // commands for 200 reads
				sent := redistest.Commands(t, server, func() {
					for range 200 {
						_, err := reader.Fetch(ctx, "k", noLoad)
						require.NoError(t, err)
						_, err = reader.FetchMany(ctx, []string{"k"}, noLoadMany)
						require.NoError(t, err)
					}
				})
				return sent["get"] + sent["mget"] + sent["pttl"]
			}
			require.Eventually(t, func() bool { return local() == 0 }, 10*time.Second, time.Millisecond)
			require.NoError(t, writer.Set(ctx, "k", "two"))
			sees("two")
			require.NoError(t, writer.Delete(ctx, "k"))
			sees("loaded")
			require.NoError(t, writer.Set(ctx, "k", "three"))
			sees("three")
			require.NoError(t, writer.Invalidate(ctx))
			sees("loaded")
			require.NoError(t, reader.Set(ctx, "k", "four"))
			sees("four")
			require.NoError(t, reader.Invalidate(ctx))
			sees("loaded")
		})
	}
}

func TestCache_ClientTTLRefreshesStaleValues(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	prefix := redistest.Prefix(t)
	c := newCache(t, client, prefix, cache.Options[string, string]{ClientTTL: time.Minute, TTL: time.Hour, StaleTTL: time.Hour})
	require.NoError(t, c.Set(t.Context(), "k", "old"))
	do(t, client, entryKey(prefix, "k"), "PEXPIRE", "60000")
	src := newSource("new")
	require.Eventually(t, func() bool {
		v, err := c.Fetch(t.Context(), "k", src.load)
		return err == nil && v == "new"
	}, 10*time.Second, time.Millisecond)
	require.EqualValues(t, 1, src.loads.Load())
}

func TestCache_HooksAndStatsTellWhatHappened(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	ctx := t.Context()
	prefix := redistest.Prefix(t)
	var mu sync.Mutex
	var total cache.LookupInfo
	var loads []cache.LoadInfo
	c := newCache(t, client, prefix, cache.Options[string, string]{NegativeTTL: time.Minute, StaleTTL: time.Hour, Hooks: cache.Hooks{
		Lookup: func(_ context.Context, i cache.LookupInfo) {
			mu.Lock()
			defer mu.Unlock()
			require.Equal(t, "seg:1", i.Segment, "as the user wrote it")
			total.Hits += i.Hits
			total.Stale += i.Stale
			total.NotFound += i.NotFound
			total.Misses += i.Misses
			total.Took += i.Took
		},
		Load: func(_ context.Context, i cache.LoadInfo) {
			mu.Lock()
			defer mu.Unlock()
			loads = append(loads, i)
		},
	}}).Segment("seg:1")
	failure := errors.New("down")
	_, err := c.FetchMany(ctx, []string{"a", "b", "c"}, func(ctx context.Context, _ []string) (map[string]string, error) {
		return map[string]string{"a": "A", "b": "B"}, after(ctx, 10*time.Millisecond)
	})
	require.NoError(t, err)
	_, err = c.FetchMany(ctx, []string{"a", "b", "c"}, noLoadMany)
	require.NoError(t, err)
	_, err = c.Fetch(ctx, "d", func(context.Context, string) (string, error) { return "", failure })
	require.ErrorIs(t, err, failure)
	_, err = c.Fetch(ctx, "e", func(ctx context.Context, _ string) (string, error) { return "E", c.Delete(ctx, "e") })
	require.NoError(t, err)
	do(t, client, prefix+"::seg%3A1:{a}", "PEXPIRE", "1000")
	_, ok, err := c.Get(ctx, "a")
	require.NoError(t, err)
	require.True(t, ok)

	mu.Lock()
	defer mu.Unlock()
	require.Positive(t, total.Took)
	total.Took, total.Segment = 0, ""
	require.Equal(t, cache.LookupInfo{Hits: 2, NotFound: 1, Misses: 5, Stale: 1}, total)
	require.Len(t, loads, 3)
	require.GreaterOrEqual(t, loads[0].Took, 10*time.Millisecond)
	for i := range loads {
		loads[i].Took = 0
	}
	require.Equal(t, []cache.LoadInfo{
		{Segment: "seg:1", Keys: 3, Stored: 3}, {Segment: "seg:1", Keys: 1, Err: failure}, {Segment: "seg:1", Keys: 1, Refused: 1},
	}, loads)
	require.Equal(t, cache.Stats{Hits: 2, Stale: 1, NotFound: 1, Misses: 5, Loads: 3, LoadErrs: 1, Stored: 3, Refused: 1}, c.Stats())
}

func TestCache_CloseWaitsAndThenRefuses(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	ctx := t.Context()
	prefix := redistest.Prefix(t)
	c := newCache(t, client, prefix, cache.Options[string, string]{TTL: time.Hour, StaleTTL: time.Hour})
	require.NoError(t, c.Set(ctx, "k", "old"))
	do(t, client, entryKey(prefix, "k"), "PEXPIRE", "60000")
	release := make(chan struct{})
	v, err := c.Fetch(ctx, "k", func(context.Context, string) (string, error) { <-release; return "new", nil })
	require.NoError(t, err)
	require.Equal(t, "old", v)

	closed := make(chan error, 1)
	go func() { closed <- c.Segment("any").Close(ctx) }()
	require.Eventually(t, func() bool {
		_, err := c.Fetch(ctx, "k", noLoad)
		return errors.Is(err, cache.ErrClosed)
	}, 10*time.Second, time.Millisecond)
	select {
	case err := <-closed:
		require.FailNow(t, "Close did not wait for the refresh", "it returned %v", err)
	default:
	}
	close(release)
	require.NoError(t, <-closed)
	stored, err := do(t, client, entryKey(prefix, "k"), "GET").ToString()
	require.NoError(t, err)
	require.True(t, strings.HasSuffix(stored, "new"), "the refresh was finished")
	require.NoError(t, c.Close(ctx), "again")
	_, err = c.FetchMany(ctx, []string{"k"}, noLoadMany)
	require.ErrorIs(t, err, cache.ErrClosed)
	_, _, err = c.Get(ctx, "k")
	require.ErrorIs(t, err, cache.ErrClosed)
	_, err = c.GetMany(ctx, []string{"k"})
	require.ErrorIs(t, err, cache.ErrClosed)
	require.ErrorIs(t, c.Set(ctx, "k", ""), cache.ErrClosed)
	require.ErrorIs(t, c.Delete(ctx, "k"), cache.ErrClosed)
	require.ErrorIs(t, c.Invalidate(ctx), cache.ErrClosed)
}

func TestCache_CloseEndsLoadsWhenItsContextEnds(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	c := newCache(t, client, redistest.Prefix(t), cache.Options[string, string]{})
	started, result := make(chan struct{}), make(chan error, 1)
	go func() {
		_, err := c.Fetch(t.Context(), "k", func(ctx context.Context, _ string) (string, error) {
			close(started)
			<-ctx.Done()
			return "", ctx.Err()
		})
		result <- err
	}()
	<-started
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, c.Close(ctx), context.Canceled)
	require.ErrorIs(t, <-result, cache.ErrClosed)
	require.NoError(t, c.Close(t.Context()))
}

func TestCache_ForeignBookkeepingIsRepaired(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	ctx := t.Context()
	prefix := redistest.Prefix(t)
	c := newCache(t, client, prefix, cache.Options[string, string]{})
	stamp, lease := prefix+"::{0}:s", entryKey(prefix, "k")+":l"
	for name, damage := range map[string]func(){
		"stamp too long":  func() { do(t, client, stamp, "SET", "not a stamp") },
		"stamp too short": func() { do(t, client, stamp, "SET", "x") },
		"stamp empty":     func() { do(t, client, stamp, "SET", "") },
		"stamp a hash":    func() { do(t, client, stamp, "DEL"); do(t, client, stamp, "HSET", "f", "v") },
		"lease":           func() { do(t, client, lease, "SET", "not a token") },
		"lease a hash":    func() { do(t, client, lease, "HSET", "f", "v") },
		"both":            func() { do(t, client, stamp, "SET", "x"); do(t, client, lease, "SET", "x") },
	} {
		require.NoError(t, c.Delete(ctx, "k"))
		damage()
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		v, err := c.Fetch(ctx, "k", newSource("v").load)
		cancel()
		require.NoError(t, err, name)
		require.Equal(t, "v", v)
		require.Eventually(t, func() bool { // a remembered stamp may have made the first entry void
			_, err := c.Fetch(t.Context(), "k", newSource("v").load)
			require.NoError(t, err)
			_, ok, err := c.Get(t.Context(), "k")
			return err == nil && ok
		}, 10*time.Second, time.Millisecond, name)
	}
	require.Zero(t, c.Stats().Errors)
}
