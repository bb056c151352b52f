package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/buffer"
	"github.com/redispatterns/redispatterns/cache"
	"github.com/redispatterns/redispatterns/examples/doctor/doctor"
	"github.com/redispatterns/redispatterns/featurestore"
	"github.com/redispatterns/redispatterns/lock"
	"github.com/redispatterns/redispatterns/ratelimit"
	"github.com/redispatterns/redispatterns/stream"
	"github.com/redispatterns/redispatterns/timeseries"
)

// scenario is a mix of operations under a name. Each is one function: a new one is that and a line of the table.
type scenario struct {
	name    string
	pattern doctor.Pattern // what the doctor is to judge the server for
	build   func(e *environment) (*workload, error)
}

var scenarios = []scenario{
	{"django-cache", doctor.Cache, djangoCache},
	{"cache", doctor.Cache, cacheScenario},
	{"lock", doctor.Lock, lockScenario},
	{"ratelimit", doctor.RateLimit, ratelimitScenario},
	{"buffer", doctor.Buffer, bufferScenario},
	{"timeseries", doctor.TimeSeries, timeseriesScenario},
	{"stream", doctor.Stream, streamScenario},
	{"featurestore", doctor.FeatureStore, featurestoreScenario},
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
	return scenario{"operations", doctor.Cache, func(e *environment) (*workload, error) {
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
	d := e.data
	page := func() string { return "page-" + strconv.Itoa(d.pick(e.anyClass())%1000) }
	w := &workload{
		operations: []operation{{name: "Add", weight: 1, do: func(ctx context.Context) outcome {
			p := page()
			return outcome{out: len(p), err: b.Add(ctx, p, buffer.Int("views", 1))}
		}}},
		start: func() { go func() { flushed <- b.Run(ctx, takeAll{}) }() },
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

// widths are the resolutions of the package's default, and how long each is kept.
var widths = []struct{ width, keep time.Duration }{{10 * time.Second, 6 * time.Hour}, {time.Minute, 7 * 24 * time.Hour}, {time.Hour, 400 * 24 * time.Hour}}

func timeseriesScenario(e *environment) (*workload, error) {
	store, err := timeseries.New(e.client, "load", timeseries.Options{Prefix: e.prefix() + "ts", Timeout: e.callLimit})
	if err != nil {
		return nil, err
	}
	d := e.data
	series := func() string { return "series-" + strconv.Itoa(d.pick(e.anyClass())%1000) }
	w := &workload{
		close: store.Close,
		operations: []operation{
			{name: "Incr", weight: 90, do: func(ctx context.Context) outcome {
				s := series()
				return outcome{out: len(s), err: store.Counter(s).Incr(ctx, 1)}
			}},
			{name: "Sum 10m", weight: 10, do: func(ctx context.Context) outcome {
				now, err := store.Now(ctx)
				if err == nil {
					_, err = store.Counter(series()).Sum(ctx, now.Add(-10*time.Minute), now)
				}
				return outcome{err: err}
			}},
		},
	}
	if e.raw {
		w.operations = append(w.operations, operation{name: "raw 3 × HINCRBY+EXPIRE", twin: "Incr", weight: 90, do: func(ctx context.Context) outcome {
			s, now := series(), time.Now()
			var commands rueidis.Commands
			for _, r := range widths {
				key := e.prefix() + "raw:{" + s + "}:" + r.width.String()
				commands = append(commands, e.client.B().Hincrby().Key(key).Field(strconv.FormatInt(now.Truncate(r.width).Unix(), 10)).Increment(1).Build(),
					e.client.B().Expire().Key(key).Seconds(int64(r.keep.Seconds())).Build())
			}
			for _, r := range e.client.DoMulti(ctx, commands...) {
				if err := r.Error(); err != nil {
					return outcome{err: err}
				}
			}
			return outcome{out: len(s)}
		}})
	}
	return w, nil
}

// message is what the stream has.
type message struct {
	Number uint64 `json:"number"`
	Text   string `json:"text"`
}

func streamScenario(e *environment) (*workload, error) {
	// The braces keep all keys of the stream below the prefix.
	s, err := stream.New(e.client, e.prefix()+"{stream}", stream.Options[message]{})
	if err != nil {
		return nil, err
	}
	var number atomic.Uint64
	var waiting sync.Map // of numbers to the channels of those that wait for them
	ctx, stop := context.WithCancel(context.Background())
	consumed := make(chan error, 1)
	text := func() string { return e.data.value(e.anyClass()) }
	w := &workload{
		operations: []operation{
			{name: "Publish", weight: 80, command: "xadd", do: func(ctx context.Context) outcome {
				m := message{number.Add(1), text()}
				_, err := s.Publish(ctx, m)
				return outcome{out: len(m.Text), err: err}
			}},
			{name: "Publish until handled", weight: 20, do: func(ctx context.Context) outcome {
				m, handled := message{number.Add(1), text()}, make(chan struct{})
				waiting.Store(m.Number, handled)
				defer waiting.Delete(m.Number)
				if _, err := s.Publish(ctx, m); err != nil {
					return outcome{err: err}
				}
				select {
				case <-handled:
					return outcome{in: len(m.Text), out: len(m.Text)}
				case <-ctx.Done():
					return outcome{err: ctx.Err()}
				}
			}},
		},
		start: func() {
			go func() {
				consumed <- s.Group("load", stream.GroupOptions[message]{DeleteOnAck: true}).Run(ctx, func(_ context.Context, m *stream.Message[message]) error {
					if handled, ok := waiting.LoadAndDelete(m.Value.Number); ok {
						close(handled.(chan struct{}))
					}
					return nil
				})
			}()
		},
		close: func(context.Context) error {
			stop()
			return <-consumed
		},
	}
	if e.raw {
		key := e.prefix() + "raw"
		w.operations = append(w.operations, operation{name: "raw XADD", twin: "Publish", weight: 80, do: func(ctx context.Context) outcome {
			v := text()
			return outcome{out: len(v), err: e.client.Do(ctx, e.client.B().Xadd().Key(key).Maxlen().Almost().Threshold("1000").Id("*").FieldValue().FieldValue("data", v).Build()).Error()}
		}})
	}
	return w, nil
}

// user is a row of ten features.
type user struct {
	Orders   int64   `feature:"orders_7d"`
	Visits   int64   `feature:"visits_7d"`
	Returns  int64   `feature:"returns_30d"`
	Days     int64   `feature:"days_since_signup"`
	Basket   float64 `feature:"avg_basket"`
	Last     float64 `feature:"last_basket"`
	Discount float64 `feature:"discount_share"`
	News     bool    `feature:"newsletter"`
	Tier     string  `feature:"tier"`
	Country  string  `feature:"country"`
}

var userFields = []string{"orders_7d", "visits_7d", "returns_30d", "days_since_signup", "avg_basket", "last_basket", "discount_share", "newsletter", "tier", "country"}

func userOf(i int) user {
	n := int64(i % 1000)
	return user{n, n * 3, n % 7, n, float64(n) / 4, float64(n) / 3, 0.25, n%2 == 0, "gold", "DE"}
}

func featurestoreScenario(e *environment) (*workload, error) {
	users, err := featurestore.NewView[int, user](e.client, "users", featurestore.Options{
		Prefix: e.prefix() + "features", TTL: e.ttl, TTLJitter: time.Duration(e.jitter * float64(e.ttl)).Truncate(time.Millisecond), OpTimeout: e.callLimit,
	})
	if err != nil {
		return nil, err
	}
	d := e.data
	pick := func() int { return d.pick(e.anyClass()) }
	const many = 50
	found := func(o *outcome, s featurestore.Status) {
		if s == featurestore.Missing {
			o.misses++
		} else {
			o.hits++
		}
	}
	w := &workload{copies: 1, operations: []operation{
		{name: "Get", weight: 60, do: func(ctx context.Context) (o outcome) {
			row, err := users.Get(ctx, pick())
			if o.err = err; err == nil {
				found(&o, row.Status)
			}
			return o
		}},
		{name: "GetMany[50]", weight: 20, do: func(ctx context.Context) (o outcome) {
			ids := make([]int, many)
			for i := range ids {
				ids[i] = pick()
			}
			rows, err := users.GetMany(ctx, ids, nil)
			if o.err = err; err == nil {
				for _, row := range rows {
					found(&o, row.Status)
				}
			}
			return o
		}},
		{name: "Put", weight: 20, do: func(ctx context.Context) outcome {
			i := pick()
			_, err := users.Put(ctx, i, userOf(i+1), time.Now())
			return outcome{err: err}
		}},
	}}
	w.fill = func(ctx context.Context, a, b int) error {
		_, err := users.Load(ctx, func(yield func(int, featurestore.Event[user]) bool) {
			for i := a; i < b; i++ {
				if !yield(i, featurestore.Event[user]{Value: userOf(i), At: time.Now()}) {
					return
				}
			}
		}, featurestore.LoadOptions{Batch: min(b-a, 10_000)})
		return err
	}
	if e.raw {
		rawKey := func(i int) string { return e.prefix() + "raw:{" + digits(i) + "}" }
		hmget := func(i int) rueidis.Completed { return e.client.B().Hmget().Key(rawKey(i)).Field(userFields...).Build() }
		read := func(o *outcome, r rueidis.RedisResult) {
			values, err := r.AsStrSlice()
			switch {
			case err != nil:
				o.err = err
			case values[0] == "":
				o.misses++
			default:
				o.hits++
			}
		}
		w.copies = 2
		fill := w.fill
		w.fill = func(ctx context.Context, a, b int) error {
			err := fill(ctx, a, b)
			var sets rueidis.Commands
			for i := a; i < b; i++ {
				h := e.client.B().Hset().Key(rawKey(i)).FieldValue()
				for _, f := range userFields {
					h = h.FieldValue(f, "123.25")
				}
				sets = append(sets, h.Build(), e.client.B().Pexpire().Key(rawKey(i)).Milliseconds(e.ttlNow().Milliseconds()).Build())
			}
			for _, r := range e.client.DoMulti(ctx, sets...) {
				err = errors.Join(err, r.Error())
			}
			return err
		}
		w.operations = append(w.operations,
			operation{name: "raw HMGET", twin: "Get", weight: 60, command: "hmget", do: func(ctx context.Context) (o outcome) {
				read(&o, e.client.Do(ctx, hmget(pick())))
				return o
			}},
			operation{name: "raw 50 × HMGET", twin: "GetMany[50]", weight: 20, do: func(ctx context.Context) (o outcome) {
				commands := make(rueidis.Commands, many)
				for i := range commands {
					commands[i] = hmget(pick())
				}
				for _, r := range e.client.DoMulti(ctx, commands...) {
					read(&o, r)
				}
				return o
			}})
	}
	return w, nil
}
