package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	redisrate "github.com/go-redis/redis_rate/v10"
	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
	"github.com/redis/rueidis/rueidislimiter"

	"github.com/redispatterns/redispatterns/ratelimit"
)

const limitedKeys = 10_000

var (
	errRefused  = errors.New("a call was refused that should pass")
	errAdmitted = errors.New("a call passed that should be refused")
)

// plenty is a limit that no contestant reaches.
const plenty = 1_000_000_000

// zsetLog is the usual sliding window: a sorted set with a member for each call, in one script.
var zsetLog = rueidis.NewLuaScript(`
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2] * 1000)
local n = redis.call('ZCARD', KEYS[1])
if n >= tonumber(ARGV[1]) then
	return {0, n}
end
redis.call('ZADD', KEYS[1], now, ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return {1, n + 1}
`)

// ratelimitCases limits one of 10,000 keys at a time, or all calls by one key.
func ratelimitCases(b *bench) []benchCase {
	ctx := context.Background()
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{b.addr}})
	if err != nil {
		b.fail(err)
		return nil
	}
	b.closes = append(b.closes, client.Close)
	goClient := redis.NewClient(&redis.Options{Addr: b.addr, PoolSize: 64})
	b.closes = append(b.closes, func() { _ = goClient.Close() })

	ids := make([]string, limitedKeys)
	rawKeys := make([]string, limitedKeys)
	for i := range ids {
		ids[i] = fmt.Sprintf("user-%05d", i)
		rawKeys[i] = b.prefix + ":raw:{" + ids[i] + "}"
	}
	at := func(worker, n int) int { return (worker*7919 + n) % limitedKeys }

	limiter := func(name string, newLimiter func(rueidis.Client, ratelimit.Limit, ratelimit.Options) (*ratelimit.Limiter, error), rate int64) *ratelimit.Limiter {
		l, err := newLimiter(client, ratelimit.PerMinute(rate), ratelimit.Options{Prefix: b.prefix + name, Timeout: 10 * time.Second})
		b.fail(err)
		return l
	}
	fixed := limiter("f", ratelimit.NewFixedWindow, plenty)
	sliding := limiter("s", ratelimit.NewSlidingWindow, plenty)
	bucket := limiter("b", ratelimit.NewTokenBucket, plenty)
	approximate, err := ratelimit.NewSlidingWindow(client, ratelimit.PerMinute(plenty), ratelimit.Options{
		Prefix: b.prefix + "a", Timeout: 10 * time.Second, Approximate: true,
	})
	b.fail(err)
	exhausted := limiter("e", ratelimit.NewFixedWindow, 1)

	newPeer := func(name string, limit int) rueidislimiter.RateLimiterClient {
		l, err := rueidislimiter.NewRateLimiter(rueidislimiter.RateLimiterOption{
			ClientBuilder: func(rueidis.ClientOption) (rueidis.Client, error) { return client, nil },
			KeyPrefix:     b.prefix + name, Limit: limit, Window: time.Minute,
		})
		b.fail(err)
		return l
	}
	peer, exhaustedPeer := newPeer("p", plenty), newPeer("q", 1)
	goPeer := redisrate.NewLimiter(goClient)
	goLimit := redisrate.PerMinute(plenty)
	goNone := redisrate.Limit{Rate: 1, Burst: 1, Period: time.Hour}
	if b.failed != nil {
		return nil
	}

	allow := func(l *ratelimit.Limiter, key func(w, n int) string) func(context.Context, int, int) error {
		return func(ctx context.Context, w, n int) error {
			r, err := l.Allow(ctx, key(w, n))
			if err == nil && !r.Allowed {
				return errRefused
			}
			return err
		}
	}
	peerAllow := func(key func(w, n int) string) func(context.Context, int, int) error {
		return func(ctx context.Context, w, n int) error {
			r, err := peer.Allow(ctx, key(w, n))
			if err == nil && !r.Allowed {
				return errRefused
			}
			return err
		}
	}
	goAllow := func(key func(w, n int) string) func(context.Context, int, int) error {
		return func(ctx context.Context, w, n int) error {
			r, err := goPeer.Allow(ctx, key(w, n), goLimit)
			if err == nil && r.Allowed == 0 {
				return errRefused
			}
			return err
		}
	}
	spread := func(w, n int) string { return ids[at(w, n)] }
	rawSpread := func(w, n int) string { return rawKeys[at(w, n)] }
	hot := func(int, int) string { return "everybody" }

	incr := func(key func(w, n int) string) func(context.Context, int, int) error {
		return func(ctx context.Context, w, n int) error {
			return client.Do(ctx, client.B().Incr().Key(key(w, n)+"i").Build()).Error()
		}
	}
	// What the fixed window costs at least, with a script: the same calls, nothing decided.
	least := rueidis.NewLuaScript(`local t = redis.call('TIME') redis.call('GET', KEYS[1])
redis.call('SET', KEYS[1], ARGV[5], 'PX', ARGV[2]) return {1, 2, 3, 4}`)
	evalsha := func(key func(w, n int) string) func(context.Context, int, int) error {
		return func(ctx context.Context, w, n int) error {
			return least.Exec(ctx, client, []string{key(w, n) + "e"}, []string{"1000000000", "60000", "0", "1", "1234567890123"}).Error()
		}
	}
	var members atomic.Int64
	zset := func(key func(w, n int) string) func(context.Context, int, int) error {
		return func(ctx context.Context, w, n int) error {
			vs, err := zsetLog.Exec(ctx, client, []string{key(w, n) + "z"}, []string{
				strconv.Itoa(plenty), "60000", strconv.FormatInt(members.Add(1), 10),
			}).AsIntSlice()
			if err == nil && vs[0] != 1 {
				return errRefused
			}
			return err
		}
	}

	var cases []benchCase
	for _, g := range []int{1, 64, 512} {
		cases = append(cases,
			benchCase{name: "ratelimit/fixed_spread", goroutines: g, contestants: []contestant{
				{"fixed", allow(fixed, spread)},
				{"rueidislimiter", peerAllow(spread)},
				{"redis_rate", goAllow(spread)},
				{"rueidis-incr", incr(rawSpread)},
				{"rueidis-evalsha", evalsha(rawSpread)},
			}},
			benchCase{name: "ratelimit/sliding_spread", goroutines: g, contestants: []contestant{
				{"sliding", allow(sliding, spread)},
				{"zset-log", zset(rawSpread)},
				{"sliding-approximate", allow(approximate, spread)},
				{"rueidis-evalsha", evalsha(rawSpread)},
			}},
			benchCase{name: "ratelimit/bucket_spread", goroutines: g, contestants: []contestant{
				{"bucket", allow(bucket, spread)},
				{"redis_rate", goAllow(spread)},
				{"rueidis-evalsha", evalsha(rawSpread)},
			}},
			benchCase{name: "ratelimit/hot_key", goroutines: g, contestants: []contestant{
				{"fixed", allow(fixed, hot)},
				{"rueidislimiter", peerAllow(hot)},
				{"sliding", allow(sliding, hot)},
				{"bucket", allow(bucket, hot)},
				{"redis_rate", goAllow(hot)},
				{"rueidis-incr", incr(hot)},
			}},
		)
	}
	cases = append(cases,
		benchCase{name: "ratelimit/hot_key_denied", goroutines: 64, contestants: []contestant{
			{"fixed", refused(func(ctx context.Context) (bool, error) {
				r, err := exhausted.AllowN(ctx, "everybody", 1)
				return r.Allowed, err
			})},
			{"rueidislimiter", refused(func(ctx context.Context) (bool, error) {
				r, err := exhaustedPeer.Allow(ctx, "everybody")
				return r.Allowed, err
			})},
			{"redis_rate", refused(func(ctx context.Context) (bool, error) {
				r, err := goPeer.Allow(ctx, b.prefix+"none", goNone)
				return err == nil && r.Allowed > 0, err
			})},
		}},
		benchCase{name: "ratelimit/batch_100", goroutines: 1, contestants: []contestant{
			{"allow-many", func(ctx context.Context, w, n int) error {
				requests := make([]ratelimit.Request, batchKeys)
				for j := range requests {
					requests[j] = ratelimit.Request{Limiter: fixed, Key: ids[at(w, n*batchKeys+j)], N: 1}
				}
				rs, err := ratelimit.AllowMany(ctx, requests...)
				if err == nil && len(rs) != batchKeys {
					return errRefused
				}
				return err
			}},
			{"allow-loop", loop(allow(fixed, spread))},
			{"rueidislimiter-loop", loop(peerAllow(spread))},
		}},
	)
	b.noteBytes(ctx, client)
	return cases
}

// refused does a contestant's work on a limit that was used up before: one call a minute may pass.
func refused(do func(context.Context) (bool, error)) func(context.Context, int, int) error {
	var passed atomic.Int64
	return func(ctx context.Context, _, _ int) error {
		allowed, err := do(ctx)
		if err == nil && allowed && passed.Add(1) > 10 {
			return errAdmitted
		}
		return err
	}
}

// noteBytes compares the memory of a sliding window that 1,000 calls are spread over with the sorted set's.
func (b *bench) noteBytes(ctx context.Context, client rueidis.Client) {
	const calls = 1000
	window := 2 * time.Second
	l, err := ratelimit.NewSlidingWindow(client, ratelimit.Per(calls, window), ratelimit.Options{Prefix: b.prefix, Timeout: 10 * time.Second})
	b.fail(err)
	if err != nil {
		return
	}
	key := b.prefix + ":log:{bytes}"
	args := []string{strconv.Itoa(plenty), strconv.FormatInt(window.Milliseconds(), 10), ""}
	pace := time.NewTicker(window * 9 / 10 / calls)
	defer pace.Stop()
	for i := range calls {
		<-pace.C
		_, err := l.Allow(ctx, "bytes")
		b.fail(err)
		args[2] = strconv.Itoa(i)
		b.fail(zsetLog.Exec(ctx, client, []string{key}, args).Error())
	}
	usage := func(key string) float64 {
		n, err := client.Do(ctx, client.B().MemoryUsage().Key(key).Samples(0).Build()).ToInt64()
		b.fail(err)
		return float64(n)
	}
	log, ours := usage(key), usage(b.prefix+":s2000:{bytes}")
	b.notes = append(b.notes, fmt.Sprintf("ratio ratelimit/bytes_per_key_%d sliding/zset-log: %.2f", calls, log/ours))
}
