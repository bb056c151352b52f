package cache

import (
	"cmp"
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/redis/rueidis"
)

// maxBatch is how many keys one command or pipeline is for at most. It bounds how long Redis is busy with
// one, and keeps pipelines below the 2000 commands for which rueidis takes a connection of its own.
const maxBatch = 500

// stampMemory is how long reads go on with a stamp, counted from before it was asked for. Invalidate waits as
// long before it returns, so that whoever begins to read after it has returned cannot use the old one. It is
// part of the protocol: all processes must agree on it. After stampRenewal one read asks for it again, while
// the others go on, so that a busy process hardly ever has forgotten it.
const (
	stampMemory  = 20 * time.Millisecond
	stampRenewal = 5 * time.Millisecond
)

const unknownTTL = time.Duration(math.MaxInt64)

type state int

const (
	miss state = iota
	hit
	stale
	notFound
)

// want is a key that is wanted and what is known about its entry.
type want[K comparable, V any] struct {
	key   K
	entry string    // entry key
	part  int       // its range of slots
	found lookup[V] // what the last look at it found
	seen  state     // what the caller was served
}

// lookup is what was found for one key.
type lookup[V any] struct {
	state   state
	value   V      // of a hit or a stale one
	refresh bool   // the value should be loaded anew in the background
	stored  []byte // what is under the entry key, usable or not; an alias of the reply
	stamp   string // the segment's stamp at the time, "" if it was missing
	void    string // token of a lease whose stamp is no longer the segment's
	err     error  // Redis could not be asked
}

func (c *Cache[K, V]) want(key K) want[K, V] {
	w := want[K, V]{key: key, entry: c.keys.entry(c.id(key))}
	if c.cluster {
		get := c.client.B().Get().Key(w.entry).Build() // the builder knows how to compute slots
		w.part = rangeOfSlot(get.Slot())
	}
	return w
}

// wants returns a want for each different key.
func (c *Cache[K, V]) wants(keys []K) []want[K, V] {
	ws := make([]want[K, V], 0, len(keys))
	seen := make(map[K]struct{}, len(keys))
	for _, k := range keys {
		if _, ok := seen[k]; !ok {
			seen[k] = struct{}{}
			ws = append(ws, c.want(k))
		}
	}
	return ws
}

// look reads the entry of w.
func (c *Cache[K, V]) look(ctx context.Context, w *want[K, V]) {
	began := c.beginLookup()
	if !c.lookFast(ctx, w) {
		one := []want[K, V]{*w}
		c.lookChunk(ctx, one)
		*w = one[0]
	}
	if c.opts.Hooks.Lookup != nil {
		c.endLookup(ctx, began, []want[K, V]{*w})
	}
}

// lookFast reads the entry of w in the cases that must cost little, and reports whether it has: alone, where
// its stamp is remembered, and else together with the stamp of a single server.
func (c *Cache[K, V]) lookFast(ctx context.Context, w *want[K, V]) bool {
	now := sinceEpoch()
	local := c.opts.ClientTTL > 0
	alone := c.cluster || local // or else together with the stamp
	if c.asksTTL || alone && !c.remembers(w.part, now) || !c.mayUse(&c.reads, w.part) {
		return false
	}
	value, stamp := reply{}, reply{text: c.rememberedStamp(w.part, now)}
	remembered := stamp.text != ""
	if alone && !remembered {
		return false // it was forgotten just now
	}
	bound, cancel := c.deadlines.Bound(ctx, now)
	switch b := c.client.B(); {
	case local:
		value = replyOf(c.client.DoCache(bound, b.Get().Key(w.entry).Cache(), c.opts.ClientTTL))
	case remembered:
		value = replyOf(c.client.Do(bound, b.Get().Key(w.entry).Build()))
	default:
		both, err := c.client.Do(bound, b.Mget().Key(c.keys.stamp(c.stampTags[0]), w.entry).Build()).ToArray()
		if value.err = err; err == nil {
			stamp, value = messageReply(&both[0]), messageReply(&both[1])
			c.rememberStamp(0, stamp.text, now)
		}
	}
	cancel()
	c.settle(ctx, &c.reads, w.part, OpRead, now, value.err)
	w.found = c.interpret(ctx, value, stamp, unknownTTL)
	return true
}

// lookMany reads the entries of ws.
func (c *Cache[K, V]) lookMany(ctx context.Context, ws []want[K, V]) {
	began := c.beginLookup()
	for chunk := range slices.Chunk(ws, maxBatch) {
		c.lookChunk(ctx, chunk)
	}
	c.endLookup(ctx, began, ws)
}

func (c *Cache[K, V]) beginLookup() (began time.Duration) {
	if c.opts.Hooks.Lookup != nil {
		began = sinceEpoch()
	}
	return began
}

func (c *Cache[K, V]) endLookup(ctx context.Context, began time.Duration, ws []want[K, V]) {
	if c.opts.Hooks.Lookup == nil {
		return
	}
	info := LookupInfo{Segment: c.segment, Took: sinceEpoch() - began}
	for i := range ws {
		switch ws[i].found.state {
		case hit:
			info.Hits++
		case stale:
			info.Stale++
		case notFound:
			info.NotFound++
		case miss:
			info.Misses++
			if ws[i].found.err != nil {
				info.Unavailable++
			}
		}
	}
	c.opts.Hooks.Lookup(ctx, info)
}

func (c *Cache[K, V]) lookChunk(ctx context.Context, ws []want[K, V]) {
	now := sinceEpoch()
	stamps, errs := map[int]reply{}, map[int]error{} // by range of slots
	var parts []int                                  // whose stamps are asked for
	var keys []string                                // those stamps, then the entries
	for i := range ws {
		part := ws[i].part
		if _, ok := stamps[part]; ok {
			continue
		}
		stamp := reply{text: c.rememberedStamp(part, now)}
		switch {
		case !c.mayUse(&c.reads, part):
			stamp.err = ErrUnavailable
		case stamp.text == "":
			parts, keys = append(parts, part), append(keys, c.keys.stamp(c.stampTags[part]))
		}
		stamps[part] = stamp
	}
	var asked []*want[K, V]
	for i := range ws {
		if err := stamps[ws[i].part].err; err != nil {
			ws[i].found = lookup[V]{err: err}
			continue
		}
		asked, keys = append(asked, &ws[i]), append(keys, ws[i].entry)
	}
	if len(asked) == 0 {
		return
	}
	var ttlKeys []string
	if c.asksTTL {
		ttlKeys = keys[len(parts):]
	}
	bound, cancel := c.deadlines.Bound(ctx, now)
	values, ttls := c.ask(bound, keys, ttlKeys)
	cancel()

	for i, part := range parts {
		stamps[part], errs[part] = values[i], values[i].err
		c.rememberStamp(part, values[i].text, now)
	}
	for i, w := range asked {
		value, left := values[len(parts)+i], unknownTTL
		if c.asksTTL && !value.local {
			left = time.Duration(max(ttls[i].number, 0)) * time.Millisecond
			value.err = cmp.Or(value.err, ttls[i].err)
		}
		w.found = c.interpret(ctx, value, stamps[w.part], left)
		errs[w.part] = cmp.Or(errs[w.part], w.found.err)
	}
	for part, err := range errs {
		c.settle(ctx, &c.reads, part, OpRead, now, err)
	}
}

// ask reads keys and the remaining times of ttlKeys, the last of them, in one round trip: with one MGET, or
// in a cluster, where a command is for one slot, with GETs. With ClientTTL, keys that are not in this
// process' memory cost a trip, and their times another.
func (c *Cache[K, V]) ask(ctx context.Context, keys, ttlKeys []string) (values, ttls []reply) {
	b := c.client.B()
	pttl := func(key string) rueidis.Completed { return b.Pttl().Key(key).Build() }

	if c.opts.ClientTTL > 0 {
		gets := make([]rueidis.CacheableTTL, len(keys))
		for i, k := range keys {
			gets[i] = rueidis.CT(b.Get().Key(k).Cache(), c.opts.ClientTTL)
		}
		values = replies(c.client.DoMultiCache(ctx, gets...))
		ttls = make([]reply, len(ttlKeys))
		var cmds []rueidis.Completed
		var at []int
		for i, k := range ttlKeys {
			if !values[len(keys)-len(ttlKeys)+i].local {
				cmds, at = append(cmds, pttl(k)), append(at, i)
			}
		}
		for j, r := range replies(c.client.DoMulti(ctx, cmds...)) {
			ttls[at[j]] = r
		}
		return values, ttls
	}

	cmds := make([]rueidis.Completed, 0, len(keys)+len(ttlKeys))
	single := c.cluster || len(keys) == 1
	if single {
		for _, k := range keys {
			cmds = append(cmds, b.Get().Key(k).Build())
		}
	} else {
		cmds = append(cmds, b.Mget().Key(keys...).Build())
	}
	gets := len(cmds)
	for _, k := range ttlKeys {
		cmds = append(cmds, pttl(k))
	}
	results := c.client.DoMulti(ctx, cmds...)
	if single {
		return replies(results[:gets]), replies(results[gets:])
	}
	values = make([]reply, len(keys))
	array, err := results[0].ToArray()
	for i := range values {
		if err != nil {
			values[i].err = err
		} else {
			values[i] = messageReply(&array[i])
		}
	}
	return values, replies(results[1:])
}

// interpret says what a reply means for a reader who found stamp, and decodes it. left is how long the entry
// will live. What cannot be decoded is a miss.
func (c *Cache[K, V]) interpret(ctx context.Context, value, stamp reply, left time.Duration) lookup[V] {
	l := lookup[V]{stored: value.bytes(), stamp: stamp.text, err: cmp.Or(value.err, stamp.err)}
	e, ok := parse(l.stored)
	if l.err != nil || !ok || !e.under(l.stamp) {
		return l
	}
	if e.notFound() {
		l.state = notFound
		return l
	}
	var err error
	if l.value, err = c.decodeSafely(e.payload()); err != nil {
		c.survived(ctx, OpDecode, err)
		return l
	}
	l.state = hit
	if c.asksTTL {
		fresh := left - e.stale()
		if fresh <= 0 {
			l.state = stale
		}
		// -ln of a uniform random number is exponentially distributed.
		l.refresh = fresh <= 0 || e.cost().Seconds()*c.opts.EarlyBeta*rand.ExpFloat64() >= fresh.Seconds()
	}
	return l
}

// decodeSafely makes a panic of the codec an error: it may run on a goroutine of ours, and an entry that makes it
// panic shall be replaced like any other that it does not understand.
func (s *shared[K, V]) decodeSafely(b []byte) (v V, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &PanicError{Value: p, Stack: debug.Stack()}
		}
	}()
	return s.decode(b)
}

// count adds what was found to the statistics and reports whether it is a value.
func (c *Cache[K, V]) count(l *lookup[V]) bool {
	switch l.state {
	case hit:
		c.stats.hits.Add(1)
		return true
	case stale:
		c.stats.stale.Add(1)
		return true
	case notFound:
		c.stats.notFound.Add(1)
	case miss:
		c.stats.misses.Add(1)
		if l.err != nil {
			c.stats.unavailable.Add(1)
		}
	}
	return false
}

// mayUse reports whether Redis may be asked about a range of slots, and starts a probe that is due.
func (s *shared[K, V]) mayUse(b *breakers, part int) bool {
	ok, probe := b.ranges[part].allow()
	if probe {
		s.probe(b, part)
	}
	return ok
}

// settle tells the breaker of a range of slots how a round trip ended. That the caller left says nothing; that
// its deadline came first does, if Redis had some time.
func (s *shared[K, V]) settle(ctx context.Context, b *breakers, part int, op string, began time.Duration, err error) {
	switch {
	case err == nil:
		b.succeeded(part)
	case !over(ctx), !errors.Is(ctx.Err(), context.Canceled) && sinceEpoch()-began >= s.opts.OpTimeout/8:
		b.failed(part)
		s.survived(ctx, op, err)
	}
}

// over reports whether ctx has ended. A connection's deadline may fire before the context's own timer does.
func over(ctx context.Context) bool {
	if ctx.Err() != nil {
		return true
	}
	deadline, ok := ctx.Deadline()
	return ok && time.Until(deadline) <= 0
}

// reply is what Redis said to one read command. A key of another type counts as missing, in a cluster as
// with MGET, and is overwritten.
type reply struct {
	text   string // "" if the key is missing; shares the reply's memory
	number int64
	local  bool // it came from this process' memory
	err    error
}

func (r reply) bytes() []byte { return unsafe.Slice(unsafe.StringData(r.text), len(r.text)) }

func messageReply(m *rueidis.RedisMessage) reply {
	r := reply{local: m.IsCacheHit()}
	switch {
	case m.IsInt64():
		r.number, r.err = m.AsInt64()
	case !m.IsNil():
		r.text, r.err = m.ToString()
		if e, ok := rueidis.IsRedisErr(r.err); ok && strings.HasPrefix(e.Error(), "WRONGTYPE") {
			r.err = nil
		}
	}
	return r
}

func replyOf(result rueidis.RedisResult) reply {
	if err := result.NonRedisError(); err != nil {
		return reply{err: err}
	}
	m, _ := result.ToMessage() // messageReply sees to errors of Redis
	return messageReply(&m)
}

func replies(results []rueidis.RedisResult) []reply {
	rs := make([]reply, len(results))
	for i, r := range results {
		rs[i] = replyOf(r)
	}
	return rs
}

// rememberedStamp is a stamp that reads may use until a time since epoch.
type rememberedStamp struct {
	stamp string
	until time.Duration
	renew atomic.Int64 // when the next read shall ask for it again, since epoch
}

// rememberedStamp returns the stamp that a read may use now, or "" if it has to ask for it.
func (c *Cache[K, V]) rememberedStamp(part int, now time.Duration) string {
	r := c.remembered[part].Load()
	if r == nil || now >= r.until {
		return ""
	}
	if due := r.renew.Load(); int64(now) >= due && r.renew.CompareAndSwap(due, int64(now+stampRenewal)) {
		return ""
	}
	return r.stamp
}

// remembers reports whether rememberedStamp would return a stamp, without taking on its renewal.
func (c *Cache[K, V]) remembers(part int, now time.Duration) bool {
	r := c.remembered[part].Load()
	return r != nil && r.stamp != "" && now < r.until && int64(now) < r.renew.Load()
}

func (c *Cache[K, V]) rememberStamp(part int, stamp string, asked time.Duration) {
	r := &rememberedStamp{stamp: stamp, until: asked + stampMemory}
	r.renew.Store(int64(asked + stampRenewal))
	c.remembered[part].Store(r)
}
