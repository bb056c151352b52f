package cache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/internal/deadline"
	"github.com/redispatterns/redispatterns/internal/gather"
	"github.com/redispatterns/redispatterns/internal/key"
)

// ErrNotFound is what a load returns, alone or wrapped, to say that there is no value for the key. It is
// remembered for Options.NegativeTTL. Fetch and Get return it for such keys.
var ErrNotFound = errors.New("cache: not found")

// ErrUnavailable means that Redis was not asked because it failed a moment ago. Fetch and FetchMany return
// it only with Options.FailClosed; Get and GetMany, which have nothing to fall back on, always do.
var ErrUnavailable = errors.New("cache: redis is unavailable")

// ErrTooLarge means that an encoded value is larger than Options.MaxBytes. Set and SetMany return it and
// have then stored nothing; Fetch returns such a value without storing it.
var ErrTooLarge = errors.New("cache: value is larger than MaxBytes")

// ErrClosed means that Close has been called.
var ErrClosed = errors.New("cache: closed")

// PanicError is what all callers that wait for a load receive when it panics or calls [runtime.Goexit].
type PanicError struct {
	Value any    // what the load panicked with; a string saying so after Goexit
	Stack []byte // the loading goroutine's stack
}

func (e *PanicError) Error() string { return fmt.Sprintf("cache: load panicked: %v", e.Value) }

// Unwrap returns the value that the load panicked with, if it is an error.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

const (
	defaultJitter      = 0.1
	defaultLeaseTTL    = 10 * time.Second
	defaultLoadTimeout = 30 * time.Second
	defaultOpTimeout   = 200 * time.Millisecond
	defaultMaxBytes    = 1 << 20
	minLeaseTTL        = 10 * time.Millisecond
	maxMillis          = math.MaxInt64 / uint64(time.Millisecond)
)

// Options configures a [Cache]. TTL is required; every other field's zero value works. All durations are
// whole milliseconds, and 50 years at most.
type Options[K comparable, V any] struct {
	// TTL is how long a value is fresh, by the Redis server's clock, counted from when it was stored. At
	// least 1ms. Required.
	TTL time.Duration

	// StaleTTL is for how much longer a value is kept and served after its TTL. A Fetch that finds such a
	// stale value returns it at once and has it loaded anew in the background, by one process at a time;
	// while that load fails, the stale value goes on being served, and one load a second is tried (one that
	// panics leaves nothing behind, and so is tried at each read). A read
	// then sends PTTL along with each value it reads. At least 0. Defaults to 0: none.
	StaleTTL time.Duration

	// NegativeTTL is how long it is remembered that a load returned ErrNotFound, or that FetchMany's left a
	// key out. At least 0. Defaults to 0: not at all.
	NegativeTTL time.Duration

	// Jitter shortens each value's TTL by a random part of it, up to this fraction, so that values stored together
	// do not expire together. At least 0 and below 1; negative for none. Defaults to 0.1.
	Jitter float64

	// EarlyBeta turns on probabilistic early refresh: a value is loaded anew in the background before its
	// TTL ends with a likelihood that grows towards the end, the earlier the longer its load took. 1 is the
	// usual value, larger is earlier. A read then sends PTTL along with each value. At least 0. Defaults to
	// 0: off.
	// This is XFetch of Vattani, Chierichetti and Lowenstein, "Optimal Probabilistic Cache Stampede
	// Prevention", PVLDB 8(8), 2015.
	EarlyBeta float64

	// LeaseTTL is how long a process that dies while it loads keeps the others from loading the same key.
	// Living processes extend their leases until the load ends. At least 10ms. Defaults to 10s.
	LeaseTTL time.Duration

	// LoadTimeout ends the context of a load. Its callers do not wait longer even if the load does not
	// heed its context. At least 1ms. Defaults to 30s.
	LoadTimeout time.Duration

	// OpTimeout bounds each Redis round trip, what a read waits for others included; the caller's own deadline does
	// too. A Fetch makes one on a hit and three on a miss, and none after one that failed, so that a Redis that hangs
	// or is down delays it by 9/8 of OpTimeout; a few such calls later Redis is not asked any more until it answers again.
	// A round trip gets 7/8 of OpTimeout to all of it. Fetch and Get, of a single server and without ClientTTL, notice
	// a cancellation at once; else one that is not a deadline may be noticed only when the round trip ends. Set the
	// client's Dialer.Timeout, 5s by default, no longer than this: while another user of the client opens a connection,
	// all wait for it. At least 1ms. Defaults to 200ms.
	OpTimeout time.Duration

	// ClientTTL turns on client-side caching: values are read from the process' own memory for up to
	// ClientTTL, and Redis tells the process which have changed. Such reads are eventually consistent: a
	// process may see the old value for some milliseconds after a Delete, Set or Invalidate, even its own,
	// and for ClientTTL at most if Redis' message is lost. That a value has turned stale, or is due for an early
	// refresh, is noticed when it is next read from Redis. It needs a client without DisableCache, else it
	// has no effect. At least 0. Defaults to 0: off.
	ClientTTL time.Duration

	// Version is what a deployment changes: V's encoding, or the model that makes V. Caches with different
	// versions live side by side and see none of each other's values; old ones end with their TTL. Invalidate
	// is for all versions, Delete for one. (What is invalidated by itself at run time is a Segment; models that
	// are, and have tenants besides, take a prefix each.)
	Version string

	// Key turns keys into ids, which become part of Redis key names: hash what is long or private. It must
	// give different keys different ids; any bytes are legal. Defaults to the key itself for strings and to
	// decimal digits for integers; required for other types.
	Key func(K) string

	// Codec turns values into bytes. A value that it cannot encode is returned but not stored, and
	// Hooks.Error is told. Defaults to JSON.
	Codec Codec[V]

	// MaxBytes is the largest encoding that is stored, in bytes. At least 0. Defaults to 1 MiB.
	MaxBytes int

	// FailClosed makes Fetch and FetchMany return an error instead of loading what they could not look up
	// or lease because Redis failed.
	FailClosed bool

	// Hooks are told what the cache does.
	Hooks Hooks
}

// Cache is a typed view of one segment of a cache. It is safe for concurrent use. It never closes the
// client. Background refreshes and loads are goroutines of their own: Close waits for them.
type Cache[K comparable, V any] struct {
	*shared[K, V]
	segment string
	keys    keyspace
	// remembered has the stamps that reads go by, one per range of slots.
	remembered []atomic.Pointer[rememberedStamp]
	trips      *gather.Trips[gatheredRead] // nil if each reads by itself
}

// shared is what all segments of a cache have in common.
type shared[K comparable, V any] struct {
	client    rueidis.Client
	prefix    string
	opts      Options[K, V]
	id        func(K) string
	decode    func([]byte) (V, error)
	asksTTL   bool     // reads need to know how long an entry has left
	cluster   bool     // one command may name keys of one slot only
	stampTags []string // one per range of slots
	stampTTL  time.Duration
	deadlines *deadline.Shared
	reads     breakers
	writes    breakers
	stats     counters

	stop     context.Context // ends when Close gives up waiting
	stopNow  context.CancelFunc
	isClosed atomic.Bool

	// clock counts lookups of the store by loads. A load that began after a call did (its count is higher
	// than the clock was) returns a value that is new enough for it.
	clock   atomic.Uint64
	mu      sync.Mutex
	flying  map[string]*flight[K, V] // by entry key
	running int                      // goroutines of ours
	idle    chan struct{}            // closed when Close has been called and nothing runs

	viewsMu sync.RWMutex
	views   map[string]*Cache[K, V] // by segment
}

// New returns a cache whose keys begin with prefix, which must not be empty or contain braces. A prefix is for one
// type of value. New reports options that are out of range. It does no I/O and starts no goroutine.
func New[K comparable, V any](client rueidis.Client, prefix string, opts Options[K, V]) (*Cache[K, V], error) {
	if client == nil {
		return nil, errors.New("cache: client is nil")
	}
	if err := key.CheckPrefix(prefix); err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	if err := opts.setDefaults(); err != nil {
		return nil, err
	}
	s := &shared[K, V]{
		client:    client,
		prefix:    prefix,
		opts:      opts,
		id:        opts.Key,
		decode:    opts.Codec.Decode,
		asksTTL:   opts.StaleTTL > 0 || opts.EarlyBeta > 0,
		cluster:   client.Mode() == rueidis.ClientModeCluster,
		stampTags: newStampTags(client),
		deadlines: deadline.New(opts.OpTimeout),
		flying:    make(map[string]*flight[K, V]),
		idle:      make(chan struct{}),
		views:     make(map[string]*Cache[K, V]),
	}
	if _, ok := any(opts.Codec).(stringCodec); ok {
		s.decode = any(aliasString).(func([]byte) (V, error)) // a stringCodec is a Codec[V] only if V is string
	}
	// It outlives all entries: those that were there when it was last used, and the one that is being loaded.
	s.stampTTL = 2*max(opts.TTL+opts.StaleTTL, opts.NegativeTTL) + opts.LoadTimeout
	s.reads = newBreakers(len(s.stampTags), opts.OpTimeout)
	s.writes = newBreakers(len(s.stampTags), opts.OpTimeout)
	s.stop, s.stopNow = context.WithCancel(context.Background())
	return s.view(""), nil
}

func (o *Options[K, V]) setDefaults() error {
	if o.Jitter == 0 {
		o.Jitter = defaultJitter
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = defaultMaxBytes
	}
	for d, def := range map[*time.Duration]time.Duration{
		&o.LeaseTTL: defaultLeaseTTL, &o.LoadTimeout: defaultLoadTimeout, &o.OpTimeout: defaultOpTimeout,
	} {
		if *d == 0 {
			*d = def
		}
	}
	for _, f := range []struct {
		name  string
		value time.Duration
		least time.Duration
	}{
		{"TTL", o.TTL, time.Millisecond},
		{"StaleTTL", o.StaleTTL, 0},
		{"NegativeTTL", o.NegativeTTL, 0},
		{"LeaseTTL", o.LeaseTTL, minLeaseTTL},
		{"LoadTimeout", o.LoadTimeout, time.Millisecond},
		{"OpTimeout", o.OpTimeout, time.Millisecond},
		{"ClientTTL", o.ClientTTL, 0},
	} {
		if f.value > maxTTL {
			return fmt.Errorf("cache: %s must be at most %v, got %v", f.name, maxTTL, f.value)
		}
		if f.value < f.least || f.value%time.Millisecond != 0 {
			return fmt.Errorf("cache: %s must be at least %v and whole milliseconds, got %v", f.name, f.least, f.value)
		}
	}
	switch {
	case !(o.Jitter < 1): // also if it is not a number
		return fmt.Errorf("cache: Jitter must be below 1, got %v", o.Jitter)
	case !(o.EarlyBeta >= 0) || math.IsInf(o.EarlyBeta, 1):
		return fmt.Errorf("cache: EarlyBeta must be at least 0 and finite, got %v", o.EarlyBeta)
	case o.MaxBytes < 0:
		return fmt.Errorf("cache: MaxBytes must be at least 0, got %d", o.MaxBytes)
	}
	if o.Codec == nil {
		o.Codec = JSON[V]()
	}
	if o.Key == nil {
		key, err := defaultKey[K]()
		if err != nil {
			return err
		}
		o.Key = key
	}
	return nil
}

// maxTTL keeps sums and doubles of durations within an int64.
const maxTTL = 50 * 365 * 24 * time.Hour

// Segment returns the view of one named part of the cache, such as a tenant or a model, whose values can be
// invalidated together. It costs no round trip and may be called on each request. Any name is legal; "" is the
// part that New returned. Segments do not nest: a segment of a segment is a segment of the cache.
func (c *Cache[K, V]) Segment(name string) *Cache[K, V] {
	return c.view(name)
}

// maxViews bounds what views of segments take up. Views that are forgotten go on working.
const maxViews = 4096

func (s *shared[K, V]) view(segment string) *Cache[K, V] {
	s.viewsMu.RLock()
	c := s.views[segment]
	s.viewsMu.RUnlock()
	if c != nil {
		return c
	}
	s.viewsMu.Lock()
	defer s.viewsMu.Unlock()
	if c = s.views[segment]; c != nil {
		return c
	}
	if len(s.views) >= maxViews {
		clear(s.views)
	}
	c = &Cache[K, V]{
		shared: s, segment: segment, keys: newKeyspace(s.prefix, s.opts.Version, segment),
		remembered: make([]atomic.Pointer[rememberedStamp], len(s.stampTags)),
	}
	c.trips = c.newTrips()
	s.views[segment] = c
	return c
}

// Fetch returns the value for key from the cache or, if there is none, from load, and stores it.
//
// Callers that miss the same key at the same time share one load: those of one process wait for it
// together, and other processes wait for the one that holds the key's lease in Redis, as long as Redis is
// reachable. Each returns when its own ctx ends; load's context ends when the last of them has left, after
// LoadTimeout, or when Close gives up. load receives the values of the first caller's ctx.
//
// A load that began before a Delete, Set or Invalidate of its key, here or in another process, does not
// store its value, and only callers that were there before receive it.
//
// An error of load is returned to all callers that wait for it, as it is, and is not cached, except
// ErrNotFound. When Redis fails, Fetch loads (see Options.FailClosed), within this process still once.
//
// Each caller gets a value of its own, decoded for it, that it may change; only a value that the codec cannot
// encode is the same for all.
//
// A hit costs one round trip, a load three, waiting for another process one per look, which are 5 to 50ms
// apart. A caller that was overtaken by a delete, or is first in a segment, may look once more.
func (c *Cache[K, V]) Fetch(ctx context.Context, key K, load func(ctx context.Context, key K) (V, error)) (V, error) {
	var zero V
	start := c.clock.Load()
	w := c.want(key)
	for {
		if err := c.begin(ctx); err != nil {
			return zero, wrap("fetch", err)
		}
		c.look(ctx, &w)
		c.count(&w)
		if w.hasValue() {
			if w.refresh {
				w.seen = w.state
				c.refresh(ctx, []want[K, V]{w}, loadOne(load))
			}
			return w.found, nil
		}
		switch err := w.value.err; {
		case w.state == notFound:
			return zero, ErrNotFound
		case err != nil && deadline.Over(ctx):
			return zero, wrap("fetch", cmp.Or(ctx.Err(), context.DeadlineExceeded))
		case err != nil && c.opts.FailClosed:
			return zero, wrap("fetch", err)
		}
		waits, err := c.join(ctx, start, []want[K, V]{w}, loadOne(load))
		if err != nil {
			return zero, wrap("fetch", err)
		}
		v, again, err := c.await(ctx, start, waits[0])
		c.leave(waits)
		if !again {
			return v, err
		}
	}
}

// FetchMany is Fetch for many keys. It calls load once, with all keys that are neither in the cache nor
// being loaded already, and again only for keys that another process began to load and did not finish. Keys
// that load's result lacks are not found: leave out only those that have no value. If load returns an error, its
// result is ignored. A key that occurs twice is loaded once.
//
// The map it returns has the values that there are, also when err is not nil because a load or, with
// FailClosed, a part of Redis failed.
//
// All hits take one round trip: one MGET per 500 keys, in a cluster one pipeline per node. Storing what was loaded
// is one pipeline too.
func (c *Cache[K, V]) FetchMany(ctx context.Context, keys []K, load func(ctx context.Context, keys []K) (map[K]V, error)) (map[K]V, error) {
	found := make(map[K]V, len(keys))
	start := c.clock.Load()
	todo := c.wants(keys)
	var errs []error
	for len(todo) > 0 {
		if err := c.begin(ctx); err != nil {
			errs = append(errs, err)
			break
		}
		c.lookMany(ctx, todo)
		var missed, outdated []want[K, V]
		for i := range todo {
			w := &todo[i]
			c.count(w)
			switch {
			case w.hasValue():
				found[w.key] = w.found
				if w.refresh {
					w.seen = w.state
					outdated = append(outdated, *w)
				}
			case w.state == notFound:
			case w.value.err != nil && (c.opts.FailClosed || deadline.Over(ctx)):
				errs = addError(errs, w.value.err)
			default:
				missed = append(missed, *w)
			}
		}
		if len(outdated) > 0 {
			c.refresh(ctx, outdated, loadMany(load))
		}
		if len(missed) == 0 {
			break
		}
		waits, err := c.join(ctx, start, missed, loadMany(load))
		if err != nil {
			errs = append(errs, err)
			break
		}
		todo = todo[:0]
		for i, wait := range waits {
			v, again, err := c.await(ctx, start, wait)
			switch {
			case again:
				todo = append(todo, missed[i])
			case err == nil:
				found[missed[i].key] = v
			case ctx.Err() != nil && errors.Is(err, ctx.Err()):
				errs = addError(errs, ctx.Err())
			case !wait.flight.outcome.missing:
				errs = addError(errs, err)
			}
		}
		c.leave(waits)
	}
	if len(errs) > 0 {
		return found, wrap("fetch many", errors.Join(errs...))
	}
	return found, nil
}

// Get returns the value for key if the cache has one, fresh or stale. It returns ErrNotFound if a load has
// found that there is none and that is still remembered. One round trip.
func (c *Cache[K, V]) Get(ctx context.Context, key K) (value V, ok bool, err error) {
	if err := c.begin(ctx); err != nil {
		return value, false, wrap("get", err)
	}
	w := c.want(key)
	c.look(ctx, &w)
	c.count(&w)
	switch {
	case w.hasValue():
		return w.found, true, nil
	case w.state == notFound:
		return value, false, ErrNotFound
	case w.value.err != nil:
		return value, false, wrap("get", w.value.err)
	}
	return value, false, nil
}

// GetMany returns the values, fresh or stale, that the cache has for keys. If a part of Redis fails, it
// returns the values of the others with the error. Keys that are remembered to have no value are missing like those
// that nothing is known of. One round trip, like FetchMany.
func (c *Cache[K, V]) GetMany(ctx context.Context, keys []K) (map[K]V, error) {
	found := make(map[K]V, len(keys))
	if err := c.begin(ctx); err != nil {
		return found, wrap("get many", err)
	}
	todo := c.wants(keys)
	var errs []error
	c.lookMany(ctx, todo)
	for i := range todo {
		w := &todo[i]
		c.count(w)
		if w.hasValue() {
			found[w.key] = w.found
		} else if w.value.err != nil {
			errs = addError(errs, w.value.err)
		}
	}
	if len(errs) > 0 {
		return found, wrap("get many", errors.Join(errs...))
	}
	return found, nil
}

// Set stores value for key, for a TTL, whatever was there. Loads of key that are under way, in any process, will not
// store theirs. Two round trips. If it fails, the entry may have been written or not, or may yet be, by what is still
// on its way to Redis: Delete it once Redis answers.
func (c *Cache[K, V]) Set(ctx context.Context, key K, value V) error {
	if err := c.set(ctx, map[K]V{key: value}); err != nil {
		return wrap("set", err)
	}
	return nil
}

// SetMany is Set for many keys, in two round trips per 500 values. If a value cannot be encoded or is too
// large, nothing is stored. If Redis fails, any of the values may have been stored.
func (c *Cache[K, V]) SetMany(ctx context.Context, values map[K]V) error {
	if err := c.set(ctx, values); err != nil {
		return wrap("set many", err)
	}
	return nil
}

// Delete removes the values for keys, in this segment and version. Loads of them that are under way, in any
// process, will not be stored, and a Fetch that begins after Delete has returned does not receive them. One
// round trip per 500 keys. If it returns an error, any of the values may still be there: repeat it.
func (c *Cache[K, V]) Delete(ctx context.Context, keys ...K) error {
	if err := c.delete(ctx, c.wants(keys)); err != nil {
		return wrap("delete", err)
	}
	return nil
}

// Invalidate removes all values of this segment, in all versions, at a cost that does not depend on how
// many there are: the segment's stamp, without which its entries count for nothing, is deleted. Loads
// that are under way, in any process, will not be seen by those that begin a Fetch later. The entries
// themselves end with their TTL. One round trip, for a cluster's up to 64 stamps of a segment too, and 20ms,
// after which no process remembers the stamp: ctx must leave that much. If it returns an error, the values may still
// be there: repeat it.
func (c *Cache[K, V]) Invalidate(ctx context.Context) error {
	if err := c.invalidate(ctx); err != nil {
		return wrap("invalidate", err)
	}
	return nil
}

// Close makes all further calls, of all segments, return ErrClosed and waits until loads and background refreshes, with
// their hooks, have ended, and reads whose callers have left, which take an OpTimeout at most. If ctx ends first, it
// ends the contexts of the loads and returns ctx's error. Close the cache before its client.
func (c *Cache[K, V]) Close(ctx context.Context) error {
	c.isClosed.Store(true)
	c.mu.Lock()
	c.endIfIdle()
	c.mu.Unlock()
	select {
	case <-c.idle:
		return nil
	default:
	}
	select {
	case <-c.idle:
		return nil
	case <-ctx.Done():
		c.stopNow()
		return wrap("close", ctx.Err())
	}
}

// wrap says what failed, unless err, being one of ours, says enough.
func wrap(op string, err error) error {
	if errors.Is(err, ErrClosed) || errors.Is(err, ErrUnavailable) || errors.Is(err, ErrTooLarge) {
		return err
	}
	return fmt.Errorf("cache: %s: %w", op, err)
}

func (c *Cache[K, V]) begin(ctx context.Context) error {
	if c.isClosed.Load() {
		return ErrClosed
	}
	return ctx.Err()
}

// addError adds err to errs unless it is there: a load that fails, fails for many keys.
func addError(errs []error, err error) []error {
	for _, e := range errs {
		if errors.Is(err, e) {
			return errs
		}
	}
	return append(errs, err)
}
