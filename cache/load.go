package cache

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"time"

	"github.com/redispatterns/redispatterns/internal/script"
)

// refreshPause is how long after a failed refresh of a stale value the next is tried.
const refreshPause = time.Second

// The pauses of a process that waits for another's load.
const (
	minPoll = 5 * time.Millisecond
	maxPoll = 50 * time.Millisecond
)

// loaded is what a load returned for one key.
type loaded[V any] struct {
	value V
	err   error // ErrNotFound or an error that wraps it
}

// loadFunc is what Fetch and FetchMany make of the user's load: it returns one result per key.
type loadFunc[K comparable, V any] func(ctx context.Context, keys []K) ([]loaded[V], error)

func one[K comparable, V any](load func(context.Context, K) (V, error)) loadFunc[K, V] {
	return func(ctx context.Context, keys []K) ([]loaded[V], error) {
		v, err := load(ctx, keys[0])
		if err != nil && !errors.Is(err, ErrNotFound) {
			return nil, err
		}
		return []loaded[V]{{v, err}}, nil
	}
}

func many[K comparable, V any](load func(context.Context, []K) (map[K]V, error)) loadFunc[K, V] {
	return func(ctx context.Context, keys []K) ([]loaded[V], error) {
		values, err := load(ctx, keys)
		if err != nil {
			return nil, err
		}
		out := make([]loaded[V], len(keys))
		for i, k := range keys {
			v, ok := values[k]
			out[i].value = v
			if !ok {
				out[i].err = ErrNotFound
			}
		}
		return out, nil
	}
}

// flight is the one attempt of this process to get the value for a key.
type flight[V any] struct {
	entry string
	batch *batch
	done  chan struct{}

	// Guarded by shared.mu until done is closed.
	begun uint64 // shared.clock when it last looked at Redis, before the load; 0 = not yet
	stamp string // the segment's stamp then
	ended bool   // the load has: what comes between now and the storing of its value goes unnoticed

	// Set before done is closed.
	outcome[V]
}

type outcome[V any] struct {
	value   V
	payload []byte // encoding of value, nil if there is none
	err     error
	missing bool // err says that there is no value
	current bool // the lease held until value was stored: no delete or set has come between
	void    bool // the flight has given up without a result
}

// batch is the flights that were begun together and will be loaded together.
type batch struct {
	ctx     context.Context //nolint:containedctx // it is the life of the batch
	cancel  context.CancelFunc
	waiters int // guarded by shared.mu; at 0 the batch is abandoned
}

// wait is one caller's interest in a flight.
type wait[V any] struct {
	flight *flight[V]
	own    bool   // the caller began it
	blind  bool   // Redis told the caller nothing: it takes what its process has
	stamp  string // that the caller found
}

// join finds or begins a flight for each of ws, whose entries were found to be missing after the clock
// showed start. The caller must leave what it returns.
func (c *Cache[K, V]) join(ctx context.Context, start uint64, ws []want[K, V], load loadFunc[K, V]) ([]wait[V], error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.isClosed.Load() {
		return nil, ErrClosed
	}
	waits := make([]wait[V], len(ws))
	t := c.newTask(load, false)
	for i, w := range ws {
		if f := c.flying[w.entry]; f != nil && f.mayServe(start, &w.found) {
			f.batch.waiters++
			waits[i] = wait[V]{flight: f, blind: w.found.err != nil, stamp: w.found.stamp}
			c.stats.shared.Add(1)
			continue
		}
		waits[i] = wait[V]{flight: t.add(w), own: true}
		t.batch.waiters++
	}
	if len(t.wants) > 0 {
		c.start(ctx, t)
	}
	return waits, nil
}

// mayServe reports whether a caller that found this, after the clock showed start, had better wait for f. If f
// will still look at Redis, or did so after the caller came, its value is new enough. If f looked earlier, a
// delete or set before the caller came will show when f stores, and an invalidation shows in the stamp; then
// the caller looks again. Once f stores, the caller's own flight will find the value.
func (f *flight[V]) mayServe(start uint64, found *lookup[V]) bool {
	if f.batch.waiters == 0 {
		return false
	}
	return f.begun == 0 || f.begun > start || found.err != nil || !f.ended && (f.stamp == "" || f.stamp == found.stamp)
}

// await waits for a flight. again means that its value may be older than the caller's wish, or that it has
// none: the caller must look again, and the next flight will be new enough.
func (c *Cache[K, V]) await(ctx context.Context, start uint64, w wait[V]) (v V, again bool, err error) {
	f := w.flight
	select {
	case <-f.done:
	default:
		select {
		case <-f.done:
		case <-ctx.Done():
			return v, false, wrap("wait for a load", ctx.Err())
		}
	}
	newEnough := w.own || w.blind || f.begun > start || f.current && w.stamp != "" && f.stamp == w.stamp
	switch {
	case f.void, !newEnough && (f.err == nil || f.missing):
		return v, true, nil
	case f.err != nil:
		return v, false, f.err
	case w.own || f.payload == nil:
		return f.value, false, nil
	}
	// A copy of its own, which the caller may change.
	v, err = c.decodeSafely(f.payload)
	if err != nil {
		return f.value, false, nil
	}
	return v, false, nil
}

// leave ends a caller's interest. A batch that nobody waits for is cancelled.
func (s *shared[K, V]) leave(waits []wait[V]) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range waits {
		b := w.flight.batch
		if b.waiters--; b.waiters == 0 {
			b.cancel()
		}
	}
}

// refresh loads ws anew in the background, except those that are being loaded already.
func (c *Cache[K, V]) refresh(ctx context.Context, ws []want[K, V], load loadFunc[K, V]) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.isClosed.Load() {
		return
	}
	t := c.newTask(load, true)
	for _, w := range ws {
		if c.flying[w.entry] == nil {
			t.add(w)
		}
	}
	if len(t.wants) > 0 {
		t.batch.waiters = 1 // it waits for itself
		c.start(ctx, t)
	}
}

// task is the work on one batch.
type task[K comparable, V any] struct {
	*Cache[K, V]
	batch      *batch
	load       loadFunc[K, V]
	background bool
	wants      []want[K, V]
	flights    []*flight[V] // of the wants
}

func (c *Cache[K, V]) newTask(load loadFunc[K, V], background bool) *task[K, V] {
	return &task[K, V]{Cache: c, batch: &batch{}, load: load, background: background}
}

func (t *task[K, V]) add(w want[K, V]) *flight[V] {
	f := &flight[V]{entry: w.entry, batch: t.batch, done: make(chan struct{})}
	t.flying[w.entry] = f
	t.wants, t.flights = append(t.wants, w), append(t.flights, f)
	return f
}

// start runs t on a goroutine of its own. The caller holds mu.
func (c *Cache[K, V]) start(ctx context.Context, t *task[K, V]) {
	t.batch.ctx, t.batch.cancel = context.WithCancel(context.WithoutCancel(ctx))
	unlink := context.AfterFunc(c.stop, t.batch.cancel)
	c.goWhileOpen(func() {
		defer unlink()
		defer t.batch.cancel()
		t.run()
	})
}

// goWhileOpen runs f on a goroutine that Close waits for. The caller holds mu.
func (s *shared[K, V]) goWhileOpen(f func()) {
	s.running++
	go func() {
		defer func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.running--
			s.endIfIdle()
		}()
		f()
	}()
}

// endIfIdle lets Close return. The caller holds mu.
func (s *shared[K, V]) endIfIdle() {
	if !s.isClosed.Load() || s.running > 0 {
		return
	}
	select {
	case <-s.idle:
	default:
		close(s.idle)
	}
}

// run gives each flight its outcome: what another process has stored by now, or what the load returns.
func (t *task[K, V]) run() {
	pending := make([]int, len(t.wants))
	for i := range pending {
		pending[i] = i
	}
	for pause := minPoll; len(pending) > 0; pause = min(2*pause, maxPoll) {
		claims, held, changed := t.acquire(pending)
		pending = append(held, changed...)
		switch {
		case len(claims) > 0:
			t.loadClaims(claims)
		case len(held) > 0 && t.background:
			for _, i := range pending {
				t.finish(i, outcome[V]{void: true}) // another process refreshes it
			}
			return
		case len(held) > 0:
			timer := time.NewTimer(pause/2 + rand.N(pause/2))
			select {
			case <-timer.C:
			case <-t.batch.ctx.Done():
				timer.Stop()
			}
		}
		if err := t.batch.ctx.Err(); err != nil {
			for _, i := range pending {
				t.finish(i, outcome[V]{err: err})
			}
			return
		}
	}
}

// finish publishes the outcome of a flight.
func (t *task[K, V]) finish(i int, o outcome[V]) {
	f := t.flights[i]
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.flying[f.entry] == f {
		delete(t.flying, f.entry)
	}
	f.outcome = o
	close(f.done)
}

// claim is an entry that is to be loaded.
type claim struct {
	i     int    // index of its want
	token string // of its lease; "" if Redis failed: then what is loaded is not stored
	stamp string // the segment's, before the load
}

// acquire looks at pending entries once more and leases those that are still missing. Flights whose value
// is there by now are finished. The others are claims to load, held by another process, or changed: to be
// looked at again at once.
func (t *task[K, V]) acquire(pending []int) (claims []claim, held, changed []int) {
	ctx := t.batch.ctx
	// Stamps that were missing and are there since an earlier chunk: without them later chunks would guess
	// wrong, and the batch would be loaded in parts.
	made := map[int]string{}
	for chunk := range slices.Chunk(pending, maxBatch) {
		var asked []int
		t.mu.Lock()
		begun := t.clock.Add(1)
		for _, i := range chunk {
			t.flights[i].begun, t.flights[i].stamp = begun, ""
		}
		t.mu.Unlock()
		for _, i := range chunk {
			t.wants[i].found.stamp = cmp.Or(t.wants[i].found.stamp, made[t.wants[i].part])
			if w := &t.wants[i]; w.found.err == nil && t.mayUse(&t.writes, w.part) {
				asked = append(asked, i)
			} else if err := cmp.Or(w.found.err, ErrUnavailable); t.opts.FailClosed {
				t.finish(i, outcome[V]{err: wrap("lease", err)})
			} else {
				claims = append(claims, claim{i: i})
			}
		}
		if len(asked) == 0 {
			continue
		}
		parts := t.partsOf(asked)
		calls := t.stampCalls(parts)
		tokens := make([]string, len(asked))
		for j, i := range asked {
			w := &t.wants[i]
			// Without a stamp, guess that it is missing and will be the new one.
			tokens[j] = cmp.Or(w.found.stamp, calls[slices.Index(parts, w.part)].Args[0]) + randomString()
			calls = append(calls, acquireScript.Call([]string{w.entry, leaseKey(w.entry)},
				headerOf(w.found.stored), tokens[j], millis(t.opts.LeaseTTL), w.found.void))
		}

		sent := sinceEpoch()
		bound, cancel := t.deadlines.Bound(ctx, sent)
		results := replies(script.DoMulti(bound, t.client, calls))
		cancel()
		stamps, errs := map[int]reply{}, map[int]error{} // by range of slots
		for j, part := range parts {
			stamps[part], errs[part], made[part] = results[j], results[j].err, results[j].text
		}
		for j, i := range asked {
			w, r := &t.wants[i], results[len(parts)+j]
			stamp := stamps[w.part]
			rejected := w.found
			w.found = t.interpret(ctx, r, stamp, unknownTTL)
			// An entry and a lease may both have been rejected: remember the one when the other is told of.
			w.found.void = rejected.void
			if len(w.found.stored) < headerSize {
				w.found.stored = rejected.stored
			}
			switch {
			case w.found.err != nil:
				errs[w.part] = cmp.Or(errs[w.part], w.found.err)
				if t.opts.FailClosed {
					t.finish(i, outcome[V]{err: wrap("lease", w.found.err)})
				} else {
					claims = append(claims, claim{i: i})
				}
			case len(r.text) == 2*stampSize && r.text[:stampSize] == stamp.text:
				held = append(held, i)
			case len(r.text) == 2*stampSize:
				w.found.void = r.text
				changed = append(changed, i)
			case r.text != "":
				if !t.take(i) {
					changed = append(changed, i)
				}
			case r.number == 1 && tokens[j][:stampSize] != stamp.text:
				changed = append(changed, i) // leased under a stamp that is not the segment's: others may take it
			default:
				claims = append(claims, claim{i, tokens[j], stamp.text})
				t.mu.Lock()
				t.flights[i].stamp = stamp.text
				t.mu.Unlock()
			}
		}
		for part, err := range errs {
			t.settle(ctx, &t.writes, part, OpLease, sent, err)
		}
	}
	return claims, held, changed
}

// take finishes a flight with what acquire found, if that is of use.
func (t *task[K, V]) take(i int) bool {
	found := &t.wants[i].found
	switch found.state {
	case hit:
		t.finish(i, outcome[V]{value: found.value, payload: entry(found.stored).payload()})
	case notFound:
		t.finish(i, outcome[V]{err: ErrNotFound, missing: true})
	default:
		return false
	}
	return true
}

func (t *task[K, V]) partsOf(wants []int) []int {
	var parts []int
	for _, i := range wants {
		if part := t.wants[i].part; !slices.Contains(parts, part) {
			parts = append(parts, part)
		}
	}
	return parts
}

// result is what one call of a load came to.
type result[V any] struct {
	loaded  []loaded[V]
	entries [][]byte // header, still empty, and encoding of each value; nil if it is not to be stored
	took    time.Duration
	err     error
}

// loadClaims calls the load for claims, stores what it returns and finishes their flights.
func (t *task[K, V]) loadClaims(claims []claim) {
	keys := make([]K, len(claims))
	for j, c := range claims {
		keys[j] = t.wants[c.i].key
	}
	r := t.call(keys, claims)
	t.mu.Lock()
	for _, c := range claims {
		t.flights[c.i].ended = true
	}
	t.mu.Unlock()
	info := LoadInfo{Segment: t.segment, Keys: len(keys), Refresh: t.background, Took: r.took, Err: r.err}
	t.stats.loads.Add(1)
	if t.background {
		t.stats.refreshes.Add(1)
	}
	var current []bool
	if r.err != nil {
		t.stats.loadErrs.Add(1)
		t.giveBack(claims, r.err)
	} else {
		current = t.store(claims, r, &info)
		t.stats.stored.Add(uint64(info.Stored))
		t.stats.refused.Add(uint64(info.Refused))
	}
	if t.opts.Hooks.Load != nil {
		t.opts.Hooks.Load(t.batch.ctx, info)
	}
	for j, c := range claims {
		o := outcome[V]{err: r.err}
		if r.err == nil {
			err := r.loaded[j].err
			o = outcome[V]{value: r.loaded[j].value, err: err, missing: err != nil, current: current[j]}
			if e := r.entries[j]; e != nil {
				o.payload = entry(e).payload()
			}
		}
		t.finish(c.i, o)
	}
}

// call runs the load, and extends the leases of claims until it ends, its time is up, or nobody waits.
func (t *task[K, V]) call(keys []K, claims []claim) result[V] {
	ctx, cancel := context.WithTimeout(t.batch.ctx, t.opts.LoadTimeout)
	defer cancel()
	ended := make(chan result[V], 1)
	began := sinceEpoch()
	t.mu.Lock()
	t.goWhileOpen(func() {
		var r result[V]
		returned := false
		defer func() {
			if !returned {
				value := recover()
				if value == nil {
					value = "it called runtime.Goexit"
				}
				r.err = &PanicError{Value: value, Stack: debug.Stack()}
			}
			ended <- r
		}()
		r.loaded, r.err = t.load(ctx, keys)
		r.took = sinceEpoch() - began
		if r.err == nil {
			r.entries = t.encode(ctx, r.loaded)
		}
		returned = true
	})
	t.mu.Unlock()

	extend := time.NewTicker(t.opts.LeaseTTL / 3)
	defer extend.Stop()
	for {
		select {
		case r := <-ended:
			return r
		case <-extend.C:
			t.setLeases(claims, t.opts.LeaseTTL)
		case <-ctx.Done():
			select {
			case r := <-ended:
				return r
			default:
			}
			return result[V]{took: sinceEpoch() - began, err: wrap("load", ctx.Err())}
		}
	}
}

// encode runs on the load's goroutine, where a codec that panics is a load that panics.
func (t *task[K, V]) encode(ctx context.Context, values []loaded[V]) [][]byte {
	entries := make([][]byte, len(values))
	for j, l := range values {
		if l.err != nil {
			continue
		}
		b, err := t.opts.Codec.Append(make([]byte, headerSize, 2*headerSize), l.value)
		if err != nil {
			t.survived(ctx, OpEncode, err)
			continue
		}
		entries[j] = b
	}
	return entries
}

// store writes what was loaded under the leases of claims, and returns for each whether its lease still held.
func (t *task[K, V]) store(claims []claim, r result[V], info *LoadInfo) []bool {
	current := make([]bool, len(claims))
	var calls []script.Call
	var of []int // index into claims
	for j, c := range claims {
		if c.token == "" {
			continue
		}
		h := header{stamp: c.stamp, nonce: rand.Uint32(), cost: r.took}
		e, ttl := r.entries[j], t.lifetime()
		switch {
		case r.loaded[j].err != nil && t.opts.NegativeTTL > 0:
			h.notFound = true
			e, ttl = make([]byte, headerSize), t.opts.NegativeTTL
		case e == nil: // nothing that could be stored: what was there goes
		case len(e)-headerSize > t.opts.MaxBytes:
			t.survived(t.batch.ctx, OpEncode, tooLarge(len(e)-headerSize, t.opts.MaxBytes))
			e = nil
		default:
			h.stale = t.opts.StaleTTL
		}
		if e != nil {
			seal(e, h)
		}
		calls = append(calls, t.storeCall(&t.wants[c.i], c.token, e, ttl))
		of = append(of, j)
	}
	ctx := context.WithoutCancel(t.batch.ctx)
	for n := 0; n < len(calls); n += maxBatch {
		chunk, chunkOf := calls[n:min(n+maxBatch, len(calls))], of[n:min(n+maxBatch, len(of))]
		sent := sinceEpoch()
		bound, cancel := t.deadlines.Bound(ctx, sent)
		results := script.DoMulti(bound, t.client, chunk)
		cancel()
		errs := map[int]error{}
		for m, j := range chunkOf {
			stored, err := results[m].AsInt64()
			part := t.wants[claims[j].i].part
			errs[part] = cmp.Or(errs[part], err)
			current[j] = stored == 1
			switch {
			case stored == 1 && chunk[m].Args[1] != "":
				info.Stored++
			case stored == 0 && err == nil:
				info.Refused++
			}
		}
		for part, err := range errs {
			t.settle(ctx, &t.writes, part, OpStore, sent, err)
		}
		if anyError(errs) {
			break // not another OpTimeout for each batch: these leases end by themselves
		}
	}
	return current
}

// giveBack ends the leases of a load that failed with err. After a failed refresh of stale values, which go on
// being served, they are kept a little, so that the source is not asked again for each read.
func (t *task[K, V]) giveBack(claims []claim, err error) {
	var pause time.Duration
	var panicked *PanicError
	notServed := func(c claim) bool { return t.wants[c.i].seen != stale }
	if t.background && !slices.ContainsFunc(claims, notServed) && !errors.As(err, &panicked) {
		pause = refreshPause
	}
	t.setLeases(claims, pause)
}

// setLeases makes leases end after d. Those that Redis does not answer for are given up: a Redis that hangs
// shall not be waited for twice.
func (t *task[K, V]) setLeases(claims []claim, d time.Duration) {
	ctx := context.WithoutCancel(t.batch.ctx)
	var calls []script.Call
	var of []*claim
	for j := range claims {
		if c := &claims[j]; c.token != "" {
			calls = append(calls, leaseScript.Call([]string{leaseKey(t.wants[c.i].entry)}, c.token, millis(d)))
			of = append(of, c)
		}
	}
	for n := 0; n < len(calls); n += maxBatch {
		sent := sinceEpoch()
		bound, cancel := t.deadlines.Bound(ctx, sent)
		results := script.DoMulti(bound, t.client, calls[n:min(n+maxBatch, len(calls))])
		cancel()
		errs := map[int]error{}
		for m, r := range results {
			c := of[n+m]
			part := t.wants[c.i].part
			errs[part] = cmp.Or(errs[part], r.Error())
			if r.Error() != nil {
				c.token = ""
			}
		}
		for part, err := range errs {
			t.settle(ctx, &t.writes, part, OpLease, sent, err)
		}
		if anyError(errs) {
			return
		}
	}
}

func anyError(errs map[int]error) bool {
	for _, err := range errs {
		if err != nil {
			return true
		}
	}
	return false
}
