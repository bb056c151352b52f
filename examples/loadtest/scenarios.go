package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/buffer"
	"github.com/redispatterns/redispatterns/cache"
	"github.com/redispatterns/redispatterns/lock"
	"github.com/redispatterns/redispatterns/ratelimit"
)

// scenario is a mix of operations under a name. Each is one function: a new one is that and a line of the table.
type scenario struct {
	name, about string
	build       func(e *environment) (*workload, error)
}

var scenarios = []scenario{
	{"django-cache", "get, get_many and set with 2, 5 and 10s, of small claims and larger tokens", djangoCache},
	{"cache", "package cache: hits, batches, writes", cacheScenario},
	{"lock", "package lock: many free names, and a few that all want", lockScenario},
	{"ratelimit", "package ratelimit: fixed and sliding windows, token buckets; hit% is what passes", ratelimitScenario},
	{"buffer", "package buffer: counters, flushed to a sink that takes everything", bufferScenario},
}

func scenarioNamed(name string) (scenario, bool) {
	i := slices.IndexFunc(scenarios, func(s scenario) bool { return s.name == name })
	if i < 0 {
		return scenario{}, false
	}
	return scenarios[i], true
}

// plainScenario is made of --op.
func plainScenario(specs []operationSpec) scenario {
	return scenario{"operations", "as given", func(e *environment) (*workload, error) {
		w := &workload{copies: 1}
		for _, spec := range specs {
			operations, err := e.operations(spec)
			if err != nil {
				return nil, err
			}
			w.operations = append(w.operations, operations...)
			if spec.kind != "ping" && spec.kind != "incr" {
				w.fill = e.fillKeys
			}
		}
		return w, nil
	}}
}

// djangoCache is what Django's cache does under the recipe that this program replaces, with batches of a sane size and names
// of its own for what is set, so that what was loaded before is still there at the end.
func djangoCache(e *environment) (*workload, error) {
	specs := []operationSpec{{kind: "get", weight: 60}, {kind: "mget", width: 10, weight: 15}}
	for _, ttl := range []time.Duration{2 * time.Second, 5 * time.Second, 10 * time.Second} {
		specs = append(specs, operationSpec{kind: "set", ttl: ttl, weight: 25.0 / 3})
	}
	return plainScenario(specs).build(e)
}

const batchWidth = 10

func cacheScenario(e *environment) (*workload, error) {
	largest := slices.MaxFunc(e.data.classes, func(a, b class) int { return a.Size - b.Size }).Size
	c, err := cache.New(e.client, e.prefix()+"cache", cache.Options[int, string]{
		TTL: e.ttl, Jitter: e.jitter, Codec: cache.String(), Key: digits, MaxBytes: max(largest, 1<<20), OpTimeout: e.callLimit, FailClosed: true,
	})
	if err != nil {
		return nil, err
	}
	d := e.data
	pick := func() int { return d.pick(e.anyClass()) }
	w := &workload{copies: 1, close: c.Close}
	w.operations = []operation{
		{name: "Fetch", weight: 60, do: func(ctx context.Context) outcome {
			i := pick()
			var loaded atomic.Bool
			s, err := c.Fetch(ctx, i, func(context.Context, int) (string, error) {
				loaded.Store(true)
				return d.value(d.classOf(i)), nil
			})
			switch {
			case err != nil:
				return outcome{err: err}
			case loaded.Load():
				return outcome{misses: 1, out: len(s)}
			}
			return outcome{hits: 1, in: len(s)}
		}},
		{name: "GetMany[10]", weight: 15, do: func(ctx context.Context) (o outcome) {
			keys := make([]int, batchWidth)
			for i := range keys {
				keys[i] = pick()
			}
			values, err := c.GetMany(ctx, keys)
			o.err = err
			for _, k := range keys {
				if s, ok := values[k]; ok {
					o.hits++
					o.in += len(s)
				} else if err == nil {
					o.misses++
				}
			}
			return o
		}},
		{name: "Set", weight: 25, do: func(ctx context.Context) outcome {
			i := pick()
			s := d.value(d.classOf(i))
			return outcome{out: len(s), err: c.Set(ctx, i, s)}
		}},
	}
	w.fill = func(ctx context.Context, a, b int) error {
		values := make(map[int]string, b-a)
		for i := a; i < b; i++ {
			values[i] = d.value(d.classOf(i))
		}
		return c.SetMany(ctx, values)
	}
	if e.raw {
		w.copies = 2
		fill := w.fill
		w.fill = func(ctx context.Context, a, b int) error { return errors.Join(fill(ctx, a, b), e.fillKeys(ctx, a, b)) }
		w.operations = append(w.operations,
			operation{name: "raw GET", twin: "Fetch", weight: 60, do: func(ctx context.Context) outcome { return e.get(ctx, d.key(pick())) }},
			operation{name: "raw MGET[10]", twin: "GetMany[10]", weight: 15, do: func(ctx context.Context) outcome {
				keys := make([]string, batchWidth)
				for i := range keys {
					keys[i] = d.key(pick())
				}
				return e.getMany(ctx, keys)
			}},
			operation{name: "raw SET", twin: "Set", weight: 25, do: func(ctx context.Context) outcome {
				i := pick()
				return e.set(ctx, d.key(i), d.value(d.classOf(i)), e.ttlNow())
			}})
	}
	return w, nil
}

// deleteIfEqual is how a lock made by SET NX is released by hand.
var deleteIfEqual = rueidis.NewLuaScript(`if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0`)

func lockScenario(e *environment) (*workload, error) {
	l, err := lock.New(e.client, lock.Options{Prefix: e.prefix() + "lock"})
	if err != nil {
		return nil, err
	}
	// Names take turns, so that no two of the many are wanted at the same time.
	var turn, rawTurn atomic.Uint64
	const free, wanted, hold = 100_000, 4, 30 * time.Second
	cycle := func(ctx context.Context, name string) outcome {
		lk, err := l.Lock(ctx, name)
		if err == nil {
			err = lk.Unlock(ctx)
		}
		return outcome{err: err}
	}
	w := &workload{close: l.Close}
	w.operations = []operation{
		{name: "Lock+Unlock", weight: 90, do: func(ctx context.Context) outcome {
			return cycle(ctx, "free-"+strconv.FormatUint(turn.Add(1)%free, 10))
		}},
		{name: "Lock+Unlock contended", weight: 10, do: func(ctx context.Context) outcome {
			return cycle(ctx, "wanted-"+strconv.Itoa(rand.IntN(wanted)))
		}},
	}
	if e.raw {
		w.operations = append(w.operations, operation{name: "raw SET NX+EVALSHA", twin: "Lock+Unlock", weight: 90, do: func(ctx context.Context) outcome {
			n := rawTurn.Add(1)
			key, token := e.prefix()+"raw:"+strconv.FormatUint(n%free, 10), strconv.FormatUint(n, 10)
			err := e.client.Do(ctx, e.client.B().Set().Key(key).Value(token).Nx().Px(hold).Build()).Error()
			if rueidis.IsRedisNil(err) {
				return outcome{misses: 1}
			}
			if err == nil {
				err = deleteIfEqual.Exec(ctx, e.client, []string{key}, []string{token}).Error()
			}
			return outcome{err: err}
		}})
	}
	return w, nil
}

// countWindow is a fixed window by hand.
var countWindow = rueidis.NewLuaScript(`local n = redis.call('INCR', KEYS[1]) if n == 1 then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end return n`)

func ratelimitScenario(e *environment) (*workload, error) {
	limit := ratelimit.PerMinute(60)
	options := ratelimit.Options{Prefix: e.prefix() + "limit", Timeout: e.callLimit, DenyCacheSize: -1} // all calls ask Redis
	fixed, err := ratelimit.NewFixedWindow(e.client, limit, options)
	if err != nil {
		return nil, err
	}
	sliding, err := ratelimit.NewSlidingWindow(e.client, limit, options)
	if err != nil {
		return nil, err
	}
	bucket, err := ratelimit.NewTokenBucket(e.client, limit, options)
	if err != nil {
		return nil, err
	}
	d := e.data
	user := func() string { return "user-" + strconv.Itoa(d.pick(e.anyClass())) }
	decided := func(allowed bool, err error) outcome {
		switch {
		case err != nil:
			return outcome{err: err}
		case allowed:
			return outcome{hits: 1}
		}
		return outcome{misses: 1}
	}
	allow := func(l *ratelimit.Limiter) func(context.Context) outcome {
		return func(ctx context.Context) outcome {
			r, err := l.Allow(ctx, user())
			return decided(r.Allowed, err)
		}
	}
	w := &workload{operations: []operation{
		{name: "Allow fixed window", weight: 1, do: allow(fixed)},
		{name: "Allow sliding window", weight: 1, do: allow(sliding)},
		{name: "Allow token bucket", weight: 1, do: allow(bucket)},
	}}
	if e.raw {
		window := strconv.FormatInt(limit.Window.Milliseconds(), 10)
		w.operations = append(w.operations, operation{name: "raw EVALSHA incr", twin: "Allow fixed window", weight: 1, do: func(ctx context.Context) outcome {
			n, err := countWindow.Exec(ctx, e.client, []string{e.prefix() + "raw:" + user()}, []string{window}).AsInt64()
			return decided(n <= limit.Rate, err)
		}})
	}
	return w, nil
}

// takeAll is a sink that forgets what it was given.
type takeAll struct{}

func (takeAll) Apply(context.Context, *buffer.Batch) error { return nil }

func bufferScenario(e *environment) (*workload, error) {
	b, err := buffer.New(e.client, "views", []buffer.Column{{Name: "views", Op: buffer.Sum}}, buffer.Options{Prefix: e.prefix() + "buffer"})
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	flushed := make(chan error, 1)
	go func() { flushed <- b.Run(ctx, takeAll{}) }()
	d := e.data
	page := func() string { return "page-" + strconv.Itoa(d.pick(e.anyClass())%1000) }
	w := &workload{
		operations: []operation{{name: "Add", weight: 1, do: func(ctx context.Context) outcome {
			p := page()
			return outcome{out: len(p), err: b.Add(ctx, p, buffer.Int("views", 1))}
		}}},
		close: func(ctx context.Context) error {
			err := b.Close(ctx)
			stop()
			return errors.Join(err, <-flushed)
		},
	}
	if e.raw {
		w.operations = append(w.operations, operation{name: "raw HINCRBY", twin: "Add", weight: 1, command: "hincrby", do: func(ctx context.Context) outcome {
			p := page()
			return outcome{out: len(p), err: e.client.Do(ctx, e.client.B().Hincrby().Key(e.prefix()+"raw").Field(p).Increment(1).Build()).Error()}
		}})
	}
	return w, nil
}
