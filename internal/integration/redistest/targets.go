package redistest

import (
	"context"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/redis/rueidis/rueidishook"
)

// EachTarget runs fn, in parallel subtests, on everything that a package must work with in the same way.
func EachTarget(t *testing.T, fn func(t *testing.T, client rueidis.Client)) {
	t.Helper()
	for _, target := range targets {
		t.Run(target.name, func(t *testing.T) {
			t.Parallel()
			fn(t, target.client(t))
		})
	}
}

var targets = []struct {
	name   string
	client func(tb testing.TB) rueidis.Client
}{
	{"single", func(tb testing.TB) rueidis.Client { return Shared(tb).Client(tb) }},
	{"cluster", func(tb testing.TB) rueidis.Client { return SharedCluster(tb).Client(tb) }},
	{"valkey-8", func(tb testing.TB) rueidis.Client { return SharedKind(tb, Valkey8).Client(tb) }},
	{"redis-7.0", func(tb testing.TB) rueidis.Client { return SharedKind(tb, Redis70).Client(tb) }},
	{"wrapped", func(tb testing.TB) rueidis.Client {
		return rueidishook.WithHook(Shared(tb).Client(tb), PassThrough{})
	}},
	{"disable-cache", func(tb testing.TB) rueidis.Client {
		return Shared(tb).Client(tb, func(o *rueidis.ClientOption) { o.DisableCache = true })
	}},
	{"resp2", func(tb testing.TB) rueidis.Client {
		return Shared(tb).Client(tb, func(o *rueidis.ClientOption) { o.AlwaysRESP2, o.DisableCache = true, true })
	}},
}

var (
	prefixRun = rand.Uint32() // keeps runs apart which share the server of REDIS_URL
	prefixSeq atomic.Uint32
)

// Prefix returns a key prefix which no other call and no other run returns: short, printable, without braces or colons. Its
// first letters depend on the test's name alone, to find a test's keys in MONITOR.
func Prefix(tb testing.TB) string {
	h := fnv.New32a()
	_, _ = h.Write([]byte(tb.Name()))
	return fmt.Sprintf("%04x-%08x-%x", uint16(h.Sum32()), prefixRun, prefixSeq.Add(1))
}

// PassThrough is a hook that changes nothing, for hooks that change one thing. A client with it is no longer of a type that rueidis
// knows.
type PassThrough struct{}

// Do is for rueidishook.
func (PassThrough) Do(c rueidis.Client, ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	return c.Do(ctx, cmd)
}

// DoMulti is for rueidishook.
func (PassThrough) DoMulti(c rueidis.Client, ctx context.Context, multi ...rueidis.Completed) []rueidis.RedisResult {
	return c.DoMulti(ctx, multi...)
}

// DoCache is for rueidishook.
func (PassThrough) DoCache(c rueidis.Client, ctx context.Context, cmd rueidis.Cacheable, ttl time.Duration) rueidis.RedisResult {
	return c.DoCache(ctx, cmd, ttl)
}

// DoMultiCache is for rueidishook.
func (PassThrough) DoMultiCache(c rueidis.Client, ctx context.Context, multi ...rueidis.CacheableTTL) []rueidis.RedisResult {
	return c.DoMultiCache(ctx, multi...)
}

// Receive is for rueidishook.
func (PassThrough) Receive(c rueidis.Client, ctx context.Context, sub rueidis.Completed, fn func(rueidis.PubSubMessage)) error {
	return c.Receive(ctx, sub, fn)
}

// DoStream is for rueidishook.
func (PassThrough) DoStream(c rueidis.Client, ctx context.Context, cmd rueidis.Completed) rueidis.RedisResultStream {
	return c.DoStream(ctx, cmd)
}

// DoMultiStream is for rueidishook.
func (PassThrough) DoMultiStream(c rueidis.Client, ctx context.Context, multi ...rueidis.Completed) rueidis.MultiRedisResultStream {
	return c.DoMultiStream(ctx, multi...)
}
