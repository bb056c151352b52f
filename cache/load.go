package cache

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"time"

	"github.com/redis/rueidis"

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

func loadOne[K comparable, V any](load func(context.Context, K) (V, error)) loadFunc[K, V] {
	return func(ctx context.Context, keys []K) ([]loaded[V], error) {
		v, err := load(ctx, keys[0])
		if err != nil && !errors.Is(err, ErrNotFound) {
			return nil, err
		}
		return []loaded[V]{{v, err}}, nil
	}
}

func loadMany[K comparable, V any](load func(context.Context, []K) (map[K]V, error)) loadFunc[K, V] {
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
type flight[K comparable, V any] struct {
	want[K, V]
	batch *batch[K, V]
	done  chan struct{}
	token string        // of the lease that it has; "" if Redis failed: then what is loaded is not stored
	kept  bool          // the lease held until the value was stored: no delete or set has come between
	gone  time.Duration // since epoch, when there is no more of what the caller was served, if that was a stale value

	// Guarded by shared.mu until done is closed.
	begun uint64 // shared.clock when it last looked at Redis, before the load; 0 = not yet
	under string // the segment's stamp then
	ended bool   // the load has: what comes between now and the storing of its value goes unnoticed

	// Set before done is closed.
	outcome outcome[V]
}

type outcome[V any] struct {
	value   V
	payload []byte // encoding of value, nil if there is none
	err     error
	missing bool // err says that there is no value
	void    bool // the flight has given up without a result
}

// batch is the flights that were begun together and are loaded together.
type batch[K comparable, V any] struct {
	*Cache[K, V]
	ctx        context.Context //nolint:containedctx // it is the life of the batch
	cancel     context.CancelCauseFunc
	load       loadFunc[K, V]
	background bool
	flights    []*flight[K, V]
	waiters    int // guarded by shared.mu; at 0 the batch is abandoned
}

// wait is one caller's interest in a flight.
type wait[K comparable, V any] struct {
	flight *flight[K, V]
	own    bool   // the caller began it
	blind  bool   // Redis told the caller nothing: it takes what its process has
	stamp  string // that the caller found
}

// join finds or begins a flight for each of ws, whose entries were found to be missing after the clock
// showed start. The caller must leave what it returns.
func (c *Cache[K, V]) join(ctx context.Context, start uint64, ws []want[K, V], load loadFunc[K, V]) ([]wait[K, V], error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.isClosed.Load() {
		return nil, ErrClosed
	}
	waits := make([]wait[K, V], len(ws))
	b := &batch[K, V]{Cache: c, load: load}
	for i := range ws {
		w := &ws[i]
		if f := c.flying[w.entry]; f != nil && f.mayServe(start, w) {
			f.batch.waiters++
			waits[i] = wait[K, V]{flight: f, blind: w.value.err != nil, stamp: w.stamp}
			if f.batch != b { // else it is a key that occurs twice
				c.stats.shared.Add(1)
			}
			continue
		}
		b.waiters++
		waits[i] = wait[K, V]{flight: b.add(w), own: true}
	}
	b.start(ctx)
	return waits, nil
}

// mayServe reports whether a caller that found w, after the clock showed start, had better wait for f. If f
// will still look at Redis, or did so after the caller came, its value is new enough. If f looked earlier, a
// delete or set before the caller came will show when f stores, and an invalidation shows in the stamp; then
// the caller looks again. Once f stores, the caller's own flight will find the value.
func (f *flight[K, V]) mayServe(start uint64, w *want[K, V]) bool {
	if f.batch.waiters == 0 {
		return false
	}
	return f.begun == 0 || f.begun > start || w.value.err != nil || !f.ended && (f.under == "" || f.under == w.stamp)
}

// await waits for a flight. again means that its value may be older than the caller's wish, or that it has
// none: the caller must look again, and the next flight will be new enough.
func (c *Cache[K, V]) await(ctx context.Context, start uint64, w wait[K, V]) (v V, again bool, err error) {
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
	o := &f.outcome
	newEnough := w.own || w.blind || f.begun > start || f.kept && w.stamp != "" && f.under == w.stamp
	switch {
	case o.void, !newEnough && (o.err == nil || o.missing):
		return v, true, nil
	case o.err != nil:
		return v, false, o.err
	case w.own || o.payload == nil:
		return o.value, false, nil
	}
	// A copy of its own, which the caller may change.
	v, err = c.decodeSafely(o.payload)
	if err != nil {
		return o.value, false, nil
	}
	return v, false, nil
}

// leave ends a caller's interest. A batch that nobody waits for is cancelled.
func (s *shared[K, V]) leave(waits []wait[K, V]) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range waits {
		b := w.flight.batch
		if b.waiters--; b.waiters == 0 {
			b.cancel(context.Canceled)
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
	b := &batch[K, V]{Cache: c, load: load, background: true, waiters: 1} // it waits for itself
	for i := range ws {
		if c.flying[ws[i].entry] == nil {
			b.add(&ws[i])
		}
	}
	b.start(ctx)
}

func (b *batch[K, V]) add(w *want[K, V]) *flight[K, V] {
	f := &flight[K, V]{want: *w, batch: b, done: make(chan struct{})}
	if w.seen == stale {
		f.gone = sinceEpoch() + w.left
	}
	b.flying[w.entry] = f
	b.flights = append(b.flights, f)
	return f
}

// start runs b on a goroutine of its own, if it has flights. The caller holds mu.
func (b *batch[K, V]) start(ctx context.Context) {
	if len(b.flights) == 0 {
		return
	}
	b.ctx, b.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	unlink := context.AfterFunc(b.stop, func() { b.cancel(ErrClosed) })
	b.goCounted(func() {
		defer b.cancel(nil)
		defer unlink()
		b.run()
	})
}

// goCounted runs f on a goroutine that Close waits for. The caller holds mu.
func (s *shared[K, V]) goCounted(f func()) {
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
func (b *batch[K, V]) run() {
	pending := b.flights
	for pause := minPoll; len(pending) > 0; pause = min(2*pause, maxPoll) {
		claimed, held, changed := b.acquire(pending)
		pending = append(held, changed...)
		switch {
		case b.ctx.Err() != nil: // nobody waits any more: what nobody loads under shall hold nobody up
			b.setLeases(claimed, func(*flight[K, V]) time.Duration { return 0 })
			pending = append(pending, claimed...)
		case len(claimed) > 0:
			b.loadAndStore(claimed)
		case len(held) > 0 && b.background:
			for _, f := range pending {
				b.finish(f, outcome[V]{void: true}) // another process refreshes it
			}
			return
		case len(held) > 0:
			timer := time.NewTimer(pause/2 + rand.N(pause/2))
			select {
			case <-timer.C:
			case <-b.ctx.Done():
				timer.Stop()
			}
		}
		if b.ctx.Err() != nil {
			for _, f := range pending {
				b.finish(f, outcome[V]{err: wrap("wait for a load", context.Cause(b.ctx))})
			}
			return
		}
	}
}

// finish publishes the outcome of a flight.
func (b *batch[K, V]) finish(f *flight[K, V], o outcome[V]) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.flying[f.entry] == f {
		delete(b.flying, f.entry)
	}
	f.outcome = o
	close(f.done)
}

// acquire looks at the entries of pending flights once more and leases those that are still missing. Flights whose
// value is there by now are finished. The others are claimed, to be loaded; held by another process; or changed: to be
// looked at again at once. A round trip that may take leases does not end with the batch: it is under way, and what it
// has taken must be known.
func (b *batch[K, V]) acquire(pending []*flight[K, V]) (claimed, held, changed []*flight[K, V]) {
	// Stamps that were missing and are there since an earlier chunk: without them later chunks would guess
	// wrong, and the batch would be loaded in parts.
	made := map[int]string{}
	ctx := context.WithoutCancel(b.ctx)
	for chunk := range slices.Chunk(pending, maxBatch) {
		if b.ctx.Err() != nil {
			changed = append(changed, chunk...) // run sees to them
			continue
		}
		b.mu.Lock()
		begun := b.clock.Add(1)
		for _, f := range chunk {
			f.begun, f.under = begun, ""
		}
		b.mu.Unlock()
		var asked []*flight[K, V]
		var parts []int
		for _, f := range chunk {
			f.token, f.stamp = "", cmp.Or(f.stamp, made[f.part])
			if f.value.err == nil && !b.mayUse(&b.writes, f.part) {
				f.value.err = ErrUnavailable
			}
			if f.value.err != nil {
				claimed = b.withoutLease(claimed, f)
				continue
			}
			asked, parts = append(asked, f), addPart(parts, f.part)
		}
		if len(asked) == 0 {
			continue
		}
		calls := b.stampCalls(parts)
		for _, f := range asked {
			// Without a stamp, guess that it is missing and will be the new one.
			f.token = cmp.Or(f.stamp, calls[slices.Index(parts, f.part)].Args[0]) + randomString()
			calls = append(calls, acquireScript.Call([]string{f.entry, leaseKey(f.entry)},
				headerOf(f.value.bytes()), f.token, millis(b.opts.LeaseTTL), f.void))
		}
		results, sent := b.pipeline(ctx, calls)
		var lost []script.Call                           // that give back leases which Redis may have given without our hearing of it
		stamps, errs := map[int]reply{}, map[int]error{} // by range of slots
		for i, part := range parts {
			stamps[part], errs[part], made[part] = results[i], results[i].err, results[i].text
		}
		for i, f := range asked {
			r, stamp, token, rejected, under := results[len(parts)+i], stamps[f.part], f.token, f.value.text, f.stamp
			f.value, f.stamp, f.left, f.token = r, stamp.text, unknownTTL, ""
			f.value.err = cmp.Or(r.err, stamp.err)
			b.interpret(ctx, &f.want)
			// An entry and a lease may both have been rejected: remember the one when the other is told of. Under another
			// stamp an entry may be right: it is looked at again.
			if len(f.value.text) < headerSize && under == stamp.text {
				f.value.text = rejected
			}
			switch {
			case f.value.err != nil:
				errs[f.part] = cmp.Or(errs[f.part], f.value.err)
				if _, answered := rueidis.IsRedisErr(f.value.err); !answered {
					lost = append(lost, leaseScript.Call([]string{leaseKey(f.entry)}, token, millis(0)))
				}
				claimed = b.withoutLease(claimed, f)
			case len(r.text) == 2*stampSize && r.text[:stampSize] == stamp.text:
				held = append(held, f)
			case len(r.text) == 2*stampSize:
				f.void = r.text
				changed = append(changed, f)
			case r.text != "" && f.state == hit:
				b.finish(f, outcome[V]{value: f.found, payload: entry(f.value.bytes()).payload()})
			case r.text != "" && f.state == notFound:
				b.finish(f, outcome[V]{err: ErrNotFound, missing: true})
			case r.text != "", token[:stampSize] != stamp.text:
				changed = append(changed, f) // of no use; or leased under a stamp that is not the segment's: others may take it
			default:
				f.token = token
				claimed = append(claimed, f)
				b.mu.Lock()
				f.under = stamp.text
				b.mu.Unlock()
			}
		}
		b.settleAll(ctx, &b.writes, OpLease, sent, errs)
		if len(lost) > 0 {
			b.mu.Lock()
			b.goCounted(func() { b.pipeline(ctx, lost) }) // nobody waits for it, and if it fails they end by themselves
			b.mu.Unlock()
		}
	}
	return claimed, held, changed
}

// withoutLease adds to claimed a flight that Redis said nothing about, or finishes it, with FailClosed.
func (b *batch[K, V]) withoutLease(claimed []*flight[K, V], f *flight[K, V]) []*flight[K, V] {
	if b.opts.FailClosed {
		b.finish(f, outcome[V]{err: wrap("lease", f.value.err)})
		return claimed
	}
	return append(claimed, f)
}

func addPart(parts []int, part int) []int {
	if slices.Contains(parts, part) {
		return parts
	}
	return append(parts, part)
}

// result is what one call of a load came to.
type result[V any] struct {
	loaded  []loaded[V]
	entries [][]byte // header, still empty, and encoding of each value; nil if it is not to be stored
	took    time.Duration
	err     error
}

// loadAndStore calls the load for fs, stores what it returns and finishes them.
func (b *batch[K, V]) loadAndStore(fs []*flight[K, V]) {
	r := b.call(fs)
	b.mu.Lock()
	for _, f := range fs {
		f.ended = true
	}
	b.mu.Unlock()
	info := LoadInfo{Segment: b.segment, Keys: len(fs), Refresh: b.background, Took: r.took, Err: r.err}
	b.stats.loads.Add(1)
	if b.background {
		b.stats.refreshes.Add(1)
	}
	if r.err != nil {
		b.stats.loadErrs.Add(1)
		b.giveBack(fs, r.err)
	} else {
		b.store(fs, r, &info)
		b.stats.stored.Add(uint64(info.Stored))
		b.stats.refused.Add(uint64(info.Refused))
	}
	if b.opts.Hooks.Load != nil {
		b.opts.Hooks.Load(b.ctx, info)
	}
	for i, f := range fs {
		o := outcome[V]{err: r.err}
		if r.err == nil {
			err := r.loaded[i].err
			o = outcome[V]{value: r.loaded[i].value, err: err, missing: err != nil}
			if e := r.entries[i]; e != nil {
				o.payload = entry(e).payload()
			}
		}
		b.finish(f, o)
	}
}

// call runs the load, and extends the leases of fs until it ends, its time is up, or nobody waits.
func (b *batch[K, V]) call(fs []*flight[K, V]) result[V] {
	ctx, cancel := context.WithTimeout(b.ctx, b.opts.LoadTimeout)
	defer cancel()
	keys := make([]K, len(fs))
	for i, f := range fs {
		keys[i] = f.key
	}
	ended := make(chan result[V], 1)
	began := sinceEpoch()
	b.mu.Lock()
	b.goCounted(func() {
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
		r.loaded, r.err = b.load(ctx, keys)
		if errors.Is(r.err, context.Canceled) && errors.Is(context.Cause(ctx), ErrClosed) {
			r.err = ErrClosed // which is why
		}
		r.took = sinceEpoch() - began
		if r.err == nil {
			r.entries = b.encode(ctx, r.loaded)
		}
		returned = true
	})
	b.mu.Unlock()

	extend := time.NewTicker(b.opts.LeaseTTL / 3)
	defer extend.Stop()
	for {
		select {
		case r := <-ended:
			return r
		case <-extend.C:
			b.setLeases(fs, func(*flight[K, V]) time.Duration { return b.opts.LeaseTTL })
		case <-ctx.Done():
			select {
			case r := <-ended:
				return r
			default:
			}
			return result[V]{took: sinceEpoch() - began, err: wrap("load", context.Cause(ctx))}
		}
	}
}

// encode runs on the load's goroutine, where a codec that panics is a load that panics.
func (b *batch[K, V]) encode(ctx context.Context, values []loaded[V]) [][]byte {
	entries := make([][]byte, len(values))
	for i, l := range values {
		if l.err != nil {
			continue
		}
		e, err := b.opts.Codec.Append(make([]byte, headerSize, 2*headerSize), l.value)
		if err != nil {
			b.reportError(ctx, OpEncode, err)
			continue
		}
		entries[i] = e
	}
	return entries
}

// store writes what was loaded under the leases of fs.
func (b *batch[K, V]) store(fs []*flight[K, V], r result[V], info *LoadInfo) {
	var leased []*flight[K, V]
	var calls []script.Call
	for i, f := range fs {
		if f.token == "" {
			continue
		}
		h := header{stamp: f.under, nonce: rand.Uint32(), cost: r.took}
		e, ttl := r.entries[i], b.lifetime()
		switch {
		case r.loaded[i].err != nil && b.opts.NegativeTTL > 0:
			h.notFound = true
			e, ttl = make([]byte, headerSize), b.opts.NegativeTTL
		case e == nil: // nothing that could be stored: what was there goes
		case len(e)-headerSize > b.opts.MaxBytes:
			b.reportError(b.ctx, OpEncode, tooLarge(len(e)-headerSize, b.opts.MaxBytes))
			e = nil
		default:
			h.stale = b.opts.StaleTTL
		}
		if e != nil {
			seal(e, h)
		}
		leased, calls = append(leased, f), append(calls, b.storeCall(&f.want, f.token, e, ttl))
	}
	b.send(OpStore, leased, calls, func(i int, r reply) {
		leased[i].kept = r.number == 1
		switch {
		case r.err == nil && r.number == 0:
			info.Refused++
		case r.number == 1 && calls[i].Args[1] != "":
			info.Stored++
		}
	})
}

// giveBack ends the leases of a load that failed with err. After a failed refresh of stale values, which go on
// being served, they are kept a little, so that the source is not asked again for each read; but no longer than there
// is something to serve.
func (b *batch[K, V]) giveBack(fs []*flight[K, V], err error) {
	pause := func(*flight[K, V]) time.Duration { return 0 }
	var panicked *PanicError
	notServed := func(f *flight[K, V]) bool { return f.seen != stale }
	if b.background && !slices.ContainsFunc(fs, notServed) && !errors.As(err, &panicked) {
		now := sinceEpoch()
		pause = func(f *flight[K, V]) time.Duration { return max(0, min(refreshPause, f.gone-now)) }
	}
	b.setLeases(fs, pause)
}

// setLeases makes leases end after a time each. Those that Redis does not answer for are given up: a Redis that hangs
// shall not be waited for twice.
func (b *batch[K, V]) setLeases(fs []*flight[K, V], after func(*flight[K, V]) time.Duration) {
	var leased []*flight[K, V]
	var calls []script.Call
	for _, f := range fs {
		if f.token != "" {
			d := after(f)
			leased, calls = append(leased, f), append(calls, leaseScript.Call([]string{leaseKey(f.entry)}, f.token, millis(d)))
		}
	}
	b.send(OpLease, leased, calls, func(i int, r reply) {
		if r.err != nil {
			leased[i].token = ""
		}
	})
}

// send makes the calls for fs, one each, and tells each of the replies, until a pipeline of them fails: the next would
// take another OpTimeout, and leases end by themselves.
func (b *batch[K, V]) send(op string, fs []*flight[K, V], calls []script.Call, each func(i int, r reply)) {
	ctx := context.WithoutCancel(b.ctx)
	for n := 0; n < len(calls); n += maxBatch {
		results, sent := b.pipeline(ctx, calls[n:min(n+maxBatch, len(calls))])
		errs := map[int]error{} // by range of slots
		for i, r := range results {
			part := fs[n+i].part
			errs[part] = cmp.Or(errs[part], r.err)
			each(n+i, r)
		}
		if b.settleAll(ctx, &b.writes, op, sent, errs) {
			return
		}
	}
}

// pipeline makes calls in one round trip, which began after sent.
func (s *shared[K, V]) pipeline(ctx context.Context, calls []script.Call) (results []reply, sent time.Duration) {
	sent = sinceEpoch()
	bound, cancel := s.deadlines.Bound(ctx, sent)
	defer cancel()
	return replies(script.DoMulti(bound, s.client, calls)), sent
}
