package cache

import (
	"cmp"
	"context"
	"math"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"strings"
	"time"
	"unsafe"

	"github.com/redis/rueidis"
)

// maxBatch is how many keys one command or pipeline is for at most. It bounds how long Redis is busy with
// one, and keeps pipelines below the 2000 commands for which rueidis takes a connection of its own.
const maxBatch = 500

const unknownTTL = time.Duration(math.MaxInt64)

type state uint8

const (
	miss state = iota
	hit
	stale
	notFound
)

// want is a key that is wanted and what is known about its entry.
type want[K comparable, V any] struct {
	key K
	read
	state   state
	refresh bool   // found should be loaded anew in the background
	found   V      // the value of a hit or a stale one
	seen    state  // what the caller was served
	void    string // token of a lease whose stamp is no longer the segment's
}

func (w *want[K, V]) hasValue() bool { return w.state == hit || w.state == stale }

// read is an entry that Redis is asked for, and its answer.
type read struct {
	entry string        // entry key
	part  int           // its range of slots
	value reply         // what is there, usable or not; or why Redis could not be asked
	stamp string        // the segment's at the time, "" if it was missing
	left  time.Duration // how long the entry will live
}

func (c *Cache[K, V]) want(key K) want[K, V] {
	w := want[K, V]{key: key}
	w.entry = c.keys.entry(c.id(key))
	w.part = c.part(w.entry)
	return w
}

func (c *Cache[K, V]) wants(keys []K) []want[K, V] {
	ws := make([]want[K, V], len(keys))
	// All entry keys share one piece of memory: an allocation each would be half of what a batch of hits costs here. Not
	// with ClientTTL: what rueidis remembers one key by would keep all.
	var all []byte
	for i, k := range keys {
		if c.opts.ClientTTL > 0 {
			ws[i] = c.want(k)
			continue
		}
		ws[i].key = k
		id := c.id(k)
		if all == nil {
			all = make([]byte, 0, (len(c.keys.entries)+len(id)+8)*len(keys))
		}
		start := len(all)
		all = c.keys.appendEntry(all, id)
		ws[i].entry = unsafe.String(&all[start], len(all)-start) // if append moves, it is not written to again
		ws[i].part = c.part(ws[i].entry)
	}
	return ws
}

// part returns the range of slots that an entry is in.
func (s *shared[K, V]) part(entry string) int {
	if !s.cluster {
		return 0
	}
	get := s.client.B().Get().Key(entry).Build() // the builder knows how to compute slots
	return rangeOfSlot(get.Slot())
}

// look reads the entry of w.
func (c *Cache[K, V]) look(ctx context.Context, w *want[K, V]) {
	began := c.beginLookup()
	c.readSoon(ctx, &w.read)
	c.interpret(ctx, w)
	if c.opts.Hooks.Lookup != nil {
		c.endLookup(ctx, began, []want[K, V]{*w})
	}
}

// lookMany reads the entries of ws.
func (c *Cache[K, V]) lookMany(ctx context.Context, ws []want[K, V]) {
	began := c.beginLookup()
	rs := make([]*read, len(ws))
	for i := range ws {
		rs[i] = &ws[i].read
	}
	for chunk := range slices.Chunk(rs, maxBatch) {
		bound, cancel := c.deadlines.Bound(ctx, sinceEpoch())
		c.readAll(ctx, bound, chunk)
		cancel()
	}
	for i := range ws {
		c.interpret(ctx, &ws[i])
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
		switch ws[i].state {
		case hit:
			info.Hits++
		case stale:
			info.Stale++
		case notFound:
			info.NotFound++
		case miss:
			info.Misses++
			if ws[i].value.err != nil {
				info.Unavailable++
			}
		}
	}
	c.opts.Hooks.Lookup(ctx, info)
}

// readOne reads an entry by itself where the stamp is remembered, at the least cost there is.
func (c *Cache[K, V]) readOne(ctx context.Context, r *read) {
	now := sinceEpoch()
	bound, cancel := c.deadlines.Bound(ctx, now)
	defer cancel()
	r.stamp = ""
	if !c.asksTTL && c.remembers(r.part, now) && c.mayUse(&c.reads, r.part) {
		r.stamp = c.rememberedStamp(r.part, now)
	}
	if r.stamp == "" {
		alone := *r // what is pointed to by a slice is on the heap
		c.readAll(ctx, bound, []*read{&alone})
		*r = alone
		return
	}
	if get := c.client.B().Get().Key(r.entry); c.opts.ClientTTL > 0 {
		r.value = replyOf(c.client.DoCache(bound, get.Cache(), c.opts.ClientTTL))
	} else {
		r.value = replyOf(c.client.Do(bound, get.Build()))
	}
	c.settle(ctx, &c.reads, r.part, OpRead, now, r.value.err)
}

// readAll reads entries, at most maxBatch, and the stamps that are not remembered, in one round trip.
func (c *Cache[K, V]) readAll(ctx, bound context.Context, rs []*read) {
	now := sinceEpoch()
	type part struct {
		seen, asked bool
		stamp       string
		stampErr    error // why it is not known
		err         error // any
	}
	parts := make([]part, len(c.stampTags))
	keys := make([]string, 0, len(rs)+1) // the stamps that are asked for, then the entries
	var asked []int                      // whose stamps those are
	for _, r := range rs {
		p := &parts[r.part]
		if p.seen {
			continue
		}
		p.seen, p.asked = true, c.mayUse(&c.reads, r.part)
		p.stamp = c.rememberedStamp(r.part, now)
		switch {
		case !p.asked:
			p.stampErr = ErrUnavailable
		case p.stamp == "":
			asked, keys = append(asked, r.part), append(keys, c.keys.stamp(c.stampTags[r.part]))
		}
	}
	for _, r := range rs {
		if parts[r.part].asked {
			keys = append(keys, r.entry)
		}
	}
	var values, ttls []reply
	if len(keys) > 0 {
		var ttlKeys []string
		if c.asksTTL {
			ttlKeys = keys[len(asked):]
		}
		values, ttls = c.ask(bound, keys, ttlKeys)
	}
	for i, part := range asked {
		p := &parts[part]
		p.stamp, p.stampErr, p.err = values[i].text, values[i].err, values[i].err
		c.rememberStamp(part, p.stamp, now)
	}
	values = values[len(asked):]
	for _, r := range rs {
		p := &parts[r.part]
		r.value, r.stamp, r.left = reply{err: p.stampErr}, p.stamp, unknownTTL
		if !p.asked {
			continue
		}
		r.value, values = values[0], values[1:]
		r.value.err = cmp.Or(p.stampErr, r.value.err)
		if c.asksTTL {
			if !r.value.local {
				r.left = time.Duration(max(ttls[0].number, 0)) * time.Millisecond
				r.value.err = cmp.Or(r.value.err, ttls[0].err)
			}
			ttls = ttls[1:]
		}
		p.err = cmp.Or(p.err, r.value.err)
	}
	for i := range parts {
		if parts[i].asked {
			c.settle(ctx, &c.reads, i, OpRead, now, parts[i].err)
		}
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
	var results []rueidis.RedisResult
	if len(cmds) == 1 {
		results = []rueidis.RedisResult{c.client.Do(ctx, cmds[0])} // less than DoMulti costs
	} else {
		results = c.client.DoMulti(ctx, cmds...)
	}
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

// interpret says what was found for w, whose entry has been read, and decodes it. What cannot be decoded is a miss.
func (c *Cache[K, V]) interpret(ctx context.Context, w *want[K, V]) {
	w.state, w.refresh = miss, false
	e, ok := parse(w.value.bytes())
	if w.value.err != nil || !ok || !e.under(w.stamp) {
		return
	}
	if e.notFound() {
		w.state = notFound
		return
	}
	var err error
	if w.found, err = c.decodeSafely(e.payload()); err != nil {
		c.reportError(ctx, OpDecode, err)
		return
	}
	w.state = hit
	if c.asksTTL {
		fresh := w.left - e.stale()
		if fresh <= 0 {
			w.state = stale
		}
		// -ln of a uniform random number is exponentially distributed.
		w.refresh = fresh <= 0 || c.opts.EarlyBeta > 0 && e.cost().Seconds()*c.opts.EarlyBeta*rand.ExpFloat64() >= fresh.Seconds()
	}
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

// count adds what was found to the statistics.
func (c *Cache[K, V]) count(w *want[K, V]) {
	switch w.state {
	case hit:
		c.stats.hits.Add(1)
	case stale:
		c.stats.stale.Add(1)
	case notFound:
		c.stats.notFound.Add(1)
	case miss:
		c.stats.misses.Add(1)
		if w.value.err != nil {
			c.stats.unavailable.Add(1)
		}
	}
}

// reply is what Redis said to one command. A key of another type counts as missing, in a cluster as
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
