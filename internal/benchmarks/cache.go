package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	rediscache "github.com/go-redis/cache/v9"
	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
	"github.com/redis/rueidis/rueidisaside"

	"github.com/redispatterns/redispatterns/cache"
)

const (
	cacheKeys  = 10_000
	cacheBytes = 300
	batchKeys  = 100
)

var errMissed = errors.New("a value was not in the cache")

func failLoad(context.Context, string) (string, error) { return "", errMissed }

func failLoadMany(context.Context, []string) (map[string]string, error) { return nil, errMissed }

// cacheCases reads values of 300 bytes, one of 10,000 at a time or 100 at once, that are all in the cache.
func cacheCases(b *bench) []benchCase {
	ctx := context.Background()
	value := strings.Repeat("x", cacheBytes)
	ids := make([]string, cacheKeys)
	keys := make([]string, cacheKeys)    // of the peers; about as long as ours
	rawKeys := make([]string, cacheKeys) // of rueidis by hand
	values := make(map[string]string, cacheKeys)
	for i := range ids {
		ids[i] = fmt.Sprintf("prediction-%05d", i)
		keys[i] = b.prefix + ":go:{" + ids[i] + "}"
		rawKeys[i] = b.prefix + ":::{" + ids[i] + "}r"
		values[ids[i]] = value
	}
	at := func(worker, n int) int { return (worker*7919 + n) % cacheKeys }
	batchAt := func(worker, n int) int { return (worker*7919 + n*batchKeys) % (cacheKeys - batchKeys) }

	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{b.addr}})
	if err != nil {
		b.fail(err)
		return nil
	}
	b.closes = append(b.closes, client.Close)
	newCache := func(name string, opts cache.Options[string, string]) *cache.Cache[string, string] {
		opts.TTL = time.Hour
		c, err := cache.New(client, b.prefix+name, opts)
		if err != nil {
			b.fail(err)
			return nil
		}
		b.fail(c.SetMany(ctx, values))
		return c
	}
	plain := newCache("", cache.Options[string, string]{Codec: cache.String()})
	asJSON := newCache("j", cache.Options[string, string]{})
	stale := newCache("s", cache.Options[string, string]{Codec: cache.String(), StaleTTL: time.Hour})
	local := newCache("l", cache.Options[string, string]{Codec: cache.String(), ClientTTL: time.Minute})

	goClient := redis.NewClient(&redis.Options{Addr: b.addr, PoolSize: 64})
	auto, err := goClient.AutoPipeline()
	b.fail(err)
	goCache := rediscache.New(&rediscache.Options{Redis: goClient})
	autoCache := rediscache.New(&rediscache.Options{Redis: auto})
	b.closes = append(b.closes, func() { _ = auto.Close(); _ = goClient.Close() })
	for i := range keys {
		raw := client.B().Set().Key(rawKeys[i]).Value(value).Px(time.Hour).Build()
		b.fail(client.Do(ctx, raw).Error())
		b.fail(goCache.Set(&rediscache.Item{Ctx: ctx, Key: keys[i], Value: value, TTL: time.Hour}))
	}
	aside, err := rueidisaside.NewClient(rueidisaside.ClientOption{ClientOption: rueidis.ClientOption{InitAddress: []string{b.addr}}})
	if err != nil {
		b.fail(err)
		return nil
	}
	b.closes = append(b.closes, aside.Close)

	checked := func(v string, err error) error {
		if err == nil && len(v) != cacheBytes {
			return errMissed
		}
		return err
	}
	fetch := func(c *cache.Cache[string, string]) func(context.Context, int, int) error {
		return func(ctx context.Context, w, n int) error {
			return checked(c.Fetch(ctx, ids[at(w, n)], failLoad))
		}
	}
	once := func(c *rediscache.Cache) func(context.Context, int, int) error {
		return func(ctx context.Context, w, n int) error {
			var v string
			err := c.Once(&rediscache.Item{Ctx: ctx, Key: keys[at(w, n)], Value: &v, TTL: time.Hour, Do: func(*rediscache.Item) (any, error) {
				return nil, errMissed
			}})
			return checked(v, err)
		}
	}
	rawGet := func(ctx context.Context, w, n int) error {
		return checked(client.Do(ctx, client.B().Get().Key(rawKeys[at(w, n)]).Build()).ToString())
	}
	// The same bytes as ours with nothing around them: two keys, since ours can be invalidated together.
	rawMGet := func(ctx context.Context, w, n int) error {
		vs, err := client.Do(ctx, client.B().Mget().Key(rawKeys[0], rawKeys[at(w, n)]).Build()).ToArray()
		if err != nil {
			return err
		}
		return checked(vs[1].ToString())
	}

	var cases []benchCase
	for _, g := range []int{1, 64, 512} {
		cases = append(cases, benchCase{name: "cache/hit", goroutines: g, contestants: []contestant{
			{"cache", fetch(plain)},
			{"rueidis-get", rawGet},
			{"rueidis-mget", rawMGet},
			{"go-redis-cache", once(goCache)},
			{"go-redis-cache-autopipeline", once(autoCache)},
			{"cache-json", fetch(asJSON)},
			{"cache-stale", fetch(stale)},
		}})
	}
	cases = append(cases, benchCase{name: "cache/hit_cancellable", goroutines: 64, contestants: []contestant{
		{"cache", cancellable(fetch(plain))},
		{"rueidis-get", cancellable(rawGet)},
	}})
	cases = append(cases, benchCase{name: "cache/client_hit", goroutines: 64, contestants: []contestant{
		{"cache", fetch(local)},
		{"rueidisaside", func(ctx context.Context, w, n int) error {
			return checked(aside.Get(ctx, time.Minute, keys[at(w, n)], func(context.Context, string) (string, error) {
				return value, nil // rueidisaside has no Set
			}))
		}},
		{"rueidis-docache", func(ctx context.Context, w, n int) error {
			return checked(client.DoCache(ctx, client.B().Get().Key(rawKeys[at(w, n)]).Cache(), time.Minute).ToString())
		}},
	}})
	cases = append(cases, benchCase{name: "cache/fetch_many_100", goroutines: 8, contestants: []contestant{
		{"cache", func(ctx context.Context, w, n int) error {
			i := batchAt(w, n)
			vs, err := plain.FetchMany(ctx, ids[i:i+batchKeys], failLoadMany)
			if err == nil && len(vs) != batchKeys {
				return errMissed
			}
			return err
		}},
		{"rueidis-mget", func(ctx context.Context, w, n int) error {
			i := batchAt(w, n)
			vs, err := client.Do(ctx, client.B().Mget().Key(rawKeys[i:i+batchKeys]...).Build()).AsStrSlice()
			for _, v := range vs {
				if len(v) != cacheBytes {
					return errMissed
				}
			}
			return err
		}},
		{"go-redis-cache-loop", loop(once(goCache))},
		{"go-redis-cache-autopipeline-loop", loop(once(autoCache))},
	}})
	return cases
}

// loop does a contestant's work for a batch of keys, one after the other.
func loop(do func(context.Context, int, int) error) func(context.Context, int, int) error {
	return func(ctx context.Context, w, n int) error {
		for j := range batchKeys {
			if err := do(ctx, w, n*batchKeys+j); err != nil {
				return err
			}
		}
		return nil
	}
}

// cancellable does a contestant's work under a context like a server's for a request: it can be cancelled.
func cancellable(do func(context.Context, int, int) error) func(context.Context, int, int) error {
	return func(ctx context.Context, w, n int) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		return do(ctx, w, n)
	}
}
