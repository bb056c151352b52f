package timeseries

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"math"
	"net"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/internal/script"
)

//go:embed write.lua
var writeSource string

// It is never sent again when a reply was lost: it may have run.
var writeScript = script.New(writeSource)

const (
	lanes        = 2   // the parts of all series, each with a round trip under way at a time
	clusterLanes = 256 // there only writes of one series share a script

	maxCallOps     = 500 // per script
	maxCallMembers = 1000
	maxTripSize    = 4 * maxCallOps // operations and members under one Timeout; a script more at most
	tryAgainAfter  = 5 * time.Millisecond
	gatherRounds   = 8
)

var (
	errReply  = errors.New("unexpected reply from redis")
	errBehind = notSentError{errors.New("not sent, for redis has not answered what was sent before")}
	seed      = maphash.MakeSeed()
)

// lane is where events of some of the series wait for a round trip. While one is under way the next gather.
type lane struct {
	s    *Store
	wake chan struct{} // ends a wait for FlushEvery

	mu      sync.RWMutex // for reading: others may add to counters of next meanwhile
	next    *batch
	current *batch // under way
	sending bool
	hurry   bool // somebody waits for Flush or Close
	_       [64]byte
}

// batch is what one round trip writes.
type batch struct {
	ops  map[opKey]*op
	list []*op
	size int // ops and members
	done chan struct{}
}

type opKey struct {
	series string
	bucket int64 // of the finest level, in seconds
	kind   byte
}

// op is what all events of one kind, series and bucket add up to.
type op struct {
	opKey
	n       atomic.Int64     // of a counter
	stats   cell             // of stats
	members map[string]int64 // of a distinct count or a top list
	events  atomic.Int64
	err     error
	again   bool // Redis has surely not taken it, but may later
}

// cell is the state of a bucket of stats.
type cell struct {
	count            int64
	sum, least, most float64
}

func (c *cell) merge(d cell) bool {
	if c.count == 0 {
		*c = d
		return true
	}
	sum := c.sum + d.sum
	if math.IsInf(sum, 0) {
		return false
	}
	*c = cell{c.count + d.count, sum, min(c.least, d.least), max(c.most, d.most)}
	return true
}

// Incr adds n to the bucket of now. n may be negative.
//
// If it returns nil, n is counted in all resolutions, unless Options.FlushEvery is set: then it will be, see there. With
// [ErrUnknown] it may have been; with any other error it is not. ErrUnknown also comes with a ctx that ends meanwhile.
// Concurrent calls share round trips, and those for the same bucket an outcome: one that overflows fails with the others of
// its round trip.
func (c Counter) Incr(ctx context.Context, n int64) error { return c.IncrAt(ctx, time.Time{}, n) }

// IncrAt is Incr for an event that happened at t; the zero time is now. Late events count in all resolutions that still
// keep their bucket. It returns [ErrTooLate] or [ErrFuture] if t is out of bounds.
func (c Counter) IncrAt(ctx context.Context, t time.Time, n int64) error {
	if n == math.MinInt64 {
		return fmt.Errorf("timeseries: incr: n is %d: %w", n, ErrOverflow)
	}
	return c.s.write(ctx, "incr", kindCounter, c.series, t, 0, func(o *op) bool { return o.count(n) })
}

// count adds n to a counter, unless that overflows. Several may do so at the same time.
func (o *op) count(n int64) bool {
	for {
		before := o.n.Load()
		sum, ok := add(before, n)
		if !ok {
			return false
		}
		if o.n.CompareAndSwap(before, sum) {
			return true
		}
	}
}

// add returns a+b, or a if that overflows. The least int64 counts as overflow: its negative, which undoes it, is none.
func add(a, b int64) (int64, bool) {
	sum := a + b
	if (sum > a) != (b > 0) || sum == math.MinInt64 {
		return a, false
	}
	return sum, true
}

// Observe adds a value to the bucket of now: neither NaN nor infinite. See [Counter.Incr].
func (x Stats) Observe(ctx context.Context, v float64) error { return x.ObserveAt(ctx, time.Time{}, v) }

// ObserveAt is Observe for a value as of t; see [Counter.IncrAt].
func (x Stats) ObserveAt(ctx context.Context, t time.Time, v float64) error {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return errors.New("timeseries: observe: the value is not finite")
	}
	return x.s.write(ctx, "observe", kindStats, x.series, t, 0, func(o *op) bool { return o.stats.merge(cell{1, v, v, v}) })
}

// Add adds members to the bucket of now, of at most 1024 bytes each and at most 1000 in a call. Members that were there
// before change nothing, so it may be repeated. See [Counter.Incr].
func (d Distinct) Add(ctx context.Context, members ...string) error {
	return d.AddAt(ctx, time.Time{}, members...)
}

// AddAt is Add for an event at t; see [Counter.IncrAt].
func (d Distinct) AddAt(ctx context.Context, t time.Time, members ...string) error {
	if len(members) == 0 {
		return nil
	}
	if len(members) > maxCallMembers {
		return fmt.Errorf("timeseries: add: more than %d members", maxCallMembers)
	}
	for _, m := range members {
		if len(m) > maxMember {
			return fmt.Errorf("timeseries: add: a member has more than %d bytes", maxMember)
		}
	}
	return d.s.write(ctx, "add", kindDistinct, d.series, t, len(members), func(o *op) bool {
		for _, m := range members {
			o.members[m] = 1
		}
		return true
	})
}

// Add counts a member n times in the bucket of now. n is 1 to 2^53, which is also where counts stop. A member has at
// most 1024 bytes. See [Counter.Incr].
func (t Top) Add(ctx context.Context, member string, n int64) error {
	return t.AddAt(ctx, time.Time{}, member, n)
}

// AddAt is Add for an event at the time when; see [Counter.IncrAt].
func (t Top) AddAt(ctx context.Context, when time.Time, member string, n int64) error {
	if n < 1 || n > maxExact {
		return fmt.Errorf("timeseries: add: n must be 1 to 2^53, got %d", n)
	}
	if len(member) > maxMember {
		return fmt.Errorf("timeseries: add: the member has more than %d bytes", maxMember)
	}
	return t.s.write(ctx, "add", kindTop, t.series, when, 1, func(o *op) bool {
		o.members[member] = min(o.members[member]+n, maxExact)
		return true
	})
}

func checkSeries(series string) error {
	if len(series) > maxSeriesName {
		return fmt.Errorf("the series' name has more than %d bytes", maxSeriesName)
	}
	return nil
}

// write merges an event into the op of its bucket and waits for its round trip, unless there is FlushEvery. merge returns
// false if it cannot.
func (s *Store) write(ctx context.Context, what string, kind byte, series string, t time.Time, members int, merge func(*op) bool) error {
	if err := checkSeries(series); err != nil {
		return fmt.Errorf("timeseries: %s: %w", what, err)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("timeseries: %s: %w", what, err)
	}
	now, _, err := s.ready(ctx)
	if err != nil {
		return fmt.Errorf("timeseries: %s: %w", what, err)
	}
	if t.IsZero() {
		t = now
	} else if err := s.checkTime(t, now); err != nil {
		s.drop(ctx, 1, err)
		return fmt.Errorf("timeseries: %s: %w", what, err)
	}
	l := &s.lanes[maphash.String(seed, series)%uint64(len(s.lanes))]
	k := opKey{series, floor(t.Unix(), s.levels[0].step), kind}

	b, o := l.join(k, merge)
	if o == nil {
		l.mu.Lock()
		b, o, err = l.add(k, members, merge)
		l.mu.Unlock()
	}
	switch {
	case errors.Is(err, ErrFull):
		s.drop(ctx, 1, err)
		return err
	case err != nil || s.opts.FlushEvery > 0:
		return err
	}
	if ctx.Done() == nil {
		<-b.done
	} else {
		select {
		case <-b.done:
		case <-ctx.Done():
			return fmt.Errorf("timeseries: %s: %w: %w", what, ErrUnknown, ctx.Err())
		}
	}
	if o.err != nil {
		return fmt.Errorf("timeseries: %s: %w", what, o.err)
	}
	return nil
}

func (s *Store) checkTime(t, now time.Time) error {
	if t.Sub(now) > s.opts.MaxFuture {
		return ErrFuture
	}
	if late := now.Sub(t); s.opts.MaxLate > 0 && late > s.opts.MaxLate || late > s.opts.Resolutions[len(s.levels)-1].Keep {
		return ErrTooLate
	}
	return nil
}

// join merges into a counter's op that the next batch has already, or returns nil. Many may do so at once: those who count in a busy
// series would spend their time waiting for a lock.
func (l *lane) join(k opKey, merge func(*op) bool) (*batch, *op) {
	if k.kind != kindCounter {
		return nil, nil
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	b := l.next
	if b == nil || l.s.closed.Load() {
		return nil, nil
	}
	o := b.ops[k]
	if o == nil || !merge(o) {
		return nil, nil
	}
	o.events.Add(1)
	return b, o
}

// add merges into an op of the next batch, or of a new one. l.mu is held.
func (l *lane) add(k opKey, members int, merge func(*op) bool) (*batch, *op, error) {
	if l.s.closed.Load() {
		return nil, nil, ErrClosed
	}
	b := l.next
	if b == nil {
		b = newBatch()
		l.next = b
	}
	o := b.ops[k]
	full := l.s.pending.Load() >= int64(l.s.opts.MaxPending)
	if full && members > 0 {
		return nil, nil, ErrFull
	}
	if o != nil && l.s.opts.FlushEvery == 0 && len(o.members)+members > maxCallMembers {
		o = nil // callers wait for an outcome, of which a script has one
	}
	before := 0
	if o != nil {
		before = len(o.members)
	}
	if o == nil || !merge(o) {
		if full {
			return nil, nil, ErrFull
		}
		o = &op{opKey: k}
		if k.kind == kindDistinct || k.kind == kindTop {
			o.members = make(map[string]int64, members)
		}
		merge(o)
		l.put(o)
	} else {
		l.grow(len(o.members) - before)
	}
	o.events.Add(1)
	if !l.sending {
		l.sending = true
		l.s.senders.Go(l.send)
	}
	return b, o, nil
}

func newBatch() *batch { return &batch{ops: make(map[opKey]*op, 8), done: make(chan struct{})} }

// put adds an op to the next batch. l.mu is held.
func (l *lane) put(o *op) {
	b := l.next
	b.ops[o.opKey] = o
	b.list = append(b.list, o)
	l.grow(1 + len(o.members))
}

// grow accounts for ops and members of the next batch. l.mu is held.
func (l *lane) grow(n int) {
	l.next.size += n
	l.s.pending.Add(int64(n))
}

// send writes until there is nothing left.
func (l *lane) send() {
	for {
		if l.s.opts.FlushEvery > 0 {
			l.linger()
		} else {
			l.gather()
		}
		l.mu.Lock()
		b := l.next
		if b == nil {
			l.sending = false
			l.mu.Unlock()
			return
		}
		l.next, l.current = nil, b
		l.mu.Unlock()
		l.s.trip(b)
		l.mu.Lock()
		l.current = nil
		l.keep(b)
		l.mu.Unlock()
		close(b.done)
	}
}

// gather lets callers run who have just been woken, or are about to call, as long as more of them come. Else the first would
// have a round trip for itself, and the others wait for it.
func (l *lane) gather() {
	calls := int64(0)
	for range gatherRounds {
		runtime.Gosched()
		l.mu.Lock()
		more := int64(0)
		if l.next != nil {
			for _, o := range l.next.list {
				more += o.events.Load()
			}
		}
		l.mu.Unlock()
		if more <= calls {
			return
		}
		calls = more
	}
}

// linger waits for FlushEvery, or until somebody asks for a Flush.
func (l *lane) linger() {
	l.mu.Lock()
	wait := !l.hurry && l.next != nil && !l.s.closed.Load()
	l.mu.Unlock()
	if wait {
		timer := time.NewTimer(l.s.opts.FlushEvery)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-l.wake:
		}
	}
	l.mu.Lock()
	l.hurry = false
	select {
	case <-l.wake: // it was for what is written now
	default:
	}
	l.mu.Unlock()
}

// keep puts what is to be written again into the next batch. l.mu is held.
func (l *lane) keep(b *batch) {
	l.s.pending.Add(-int64(b.size))
	for _, o := range b.list {
		if !o.again {
			continue
		}
		if l.next == nil {
			l.next = newBatch()
		}
		n, before := l.next.ops[o.opKey], 0
		if n != nil {
			before = len(n.members)
		}
		if n == nil || !n.mergeOp(o) {
			c := &op{opKey: o.opKey, stats: o.stats, members: o.members} // who waits for o still looks at its error
			c.n.Store(o.n.Load())
			c.events.Store(o.events.Load())
			l.put(c)
		} else {
			l.grow(len(n.members) - before)
		}
	}
}

func (o *op) mergeOp(d *op) bool {
	switch o.kind {
	case kindCounter:
		if !o.count(d.n.Load()) {
			return false
		}
	case kindStats:
		if !o.stats.merge(d.stats) {
			return false
		}
	default:
		for m, n := range d.members {
			o.members[m] = min(o.members[m]+n, maxExact)
		}
	}
	o.events.Add(d.events.Load())
	return true
}

// refusedError is what Redis said when it did not take an op.
type refusedError string

func (e refusedError) Error() string { return "refused by redis: " + string(e) }

// notSentError is why an op was not even sent.
type notSentError struct{ error }

func (e notSentError) Unwrap() error { return e.error }

// mayPass reports whether an error is about the server, which then has surely not taken anything, and may later.
func mayPass(err error) bool {
	var dial *net.OpError
	if errors.As(err, &dial) && dial.Op == "dial" {
		return true
	}
	var notSent notSentError
	if errors.As(err, &notSent) {
		return true
	}
	var refused refusedError
	if !errors.As(err, &refused) {
		return false
	}
	code, _, _ := strings.Cut(string(refused), " ")
	switch code {
	case "OOM", "READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "MISCONF", "NOREPLICAS", "BUSY", "TRYAGAIN":
		return true
	}
	return false
}

// trip writes a batch. Each op then has its error.
func (s *Store) trip(b *batch) {
	ctx := context.Background() // it is for many callers
	began := sinceEpoch()
	err := s.tripOf(ctx, b)
	var events int64
	for _, o := range b.list {
		n := o.events.Load()
		events += n
		switch {
		case o.err == nil:
			s.totals.written.Add(n)
		case s.opts.FlushEvery > 0 && mayPass(o.err) && !s.closed.Load():
			o.again = true
		default:
			s.drop(ctx, n, o.err)
		}
	}
	if s.opts.Hooks.Write != nil {
		s.opts.Hooks.Write(ctx, WriteInfo{len(b.list), events, sinceEpoch() - began, err})
	}
}

func (s *Store) tripOf(ctx context.Context, b *batch) (first error) {
	_, buckets, err := s.ready(ctx)
	if err != nil {
		for _, o := range b.list {
			o.err = notSentError{err}
		}
		return err
	}
	slices.SortStableFunc(b.list, func(x, y *op) int { // the same series in a cluster, and else the same block, together
		c := cmp.Or(cmp.Compare(x.bucket, y.bucket), cmp.Compare(x.kind, y.kind))
		if s.cluster {
			c = cmp.Or(strings.Compare(x.series, y.series), c)
		}
		return c
	})
	b.list = split(b.list)
	var stopped error
	for rest := b.list; len(rest) > 0; {
		var t tripPart
		t, rest = s.part(rest, buckets)
		if stopped != nil {
			t.fail(stopped)
			continue
		}
		err := s.send(ctx, t)
		if first == nil {
			first = err
		}
		if !s.cluster && (errors.Is(err, ErrUnknown) || mayPass(err)) { // there the others may be of other nodes
			stopped = errBehind
		}
	}
	return first
}

// split makes each op as small as a script can take, so that each has one outcome. Only those that nobody waits for are larger.
func split(list []*op) []*op {
	var parts []*op
	for i, o := range list {
		if len(o.members) <= maxCallMembers {
			if parts != nil {
				parts = append(parts, o)
			}
			continue
		}
		if parts == nil {
			parts = slices.Clone(list[:i])
		}
		left, events := len(o.members), o.events.Load()
		for names := range slices.Chunk(slices.Collect(maps.Keys(o.members)), maxCallMembers) {
			share := events * int64(len(names)) / int64(left)
			p := &op{opKey: o.opKey, members: make(map[string]int64, len(names))}
			p.events.Store(share)
			for _, m := range names {
				p.members[m] = o.members[m]
			}
			left -= len(names)
			events -= share
			parts = append(parts, p)
		}
	}
	if parts == nil {
		return list
	}
	return parts
}

// tripPart is what goes to Redis under one Timeout: a few scripts, so that a backlog is no harder on it than many calls are.
type tripPart struct {
	calls  []script.Call
	owners [][]*op // of each call's operations
}

func (t tripPart) fail(err error) {
	for _, owners := range t.owners {
		for _, o := range owners {
			o.err = err
		}
	}
}

// part returns the scripts for the first ops of a list, and the others.
func (s *Store) part(list []*op, buckets int64) (t tripPart, rest []*op) {
	size := 0
	w := newWriter(s, buckets, min(len(list), maxCallOps))
	for i, o := range list {
		if len(w.owners) > 0 && (s.cluster && o.series != w.owners[0].series || len(w.owners) >= maxCallOps || w.members+len(o.members) > maxCallMembers) {
			t.calls, t.owners = append(t.calls, w.call()), append(t.owners, w.owners)
			if size >= maxTripSize {
				return t, list[i:]
			}
			w = newWriter(s, buckets, 0)
		}
		size += 1 + len(o.members)
		w.add(o)
	}
	t.calls, t.owners = append(t.calls, w.call()), append(t.owners, w.owners)
	return t, nil
}

// send sends a part, and sends again what Redis could not do while a slot moved: it has surely not begun that.
func (s *Store) send(ctx context.Context, t tripPart) (first error) {
	var moving error
	bound, cancel := s.bounds.Bound(ctx, sinceEpoch())
	defer cancel()
	for {
		sent := sinceEpoch()
		var few [1]rueidis.RedisResult
		results := few[:]
		if len(t.calls) == 1 {
			few[0] = script.Do(bound, s.client, t.calls[0])
		} else {
			results = script.DoMulti(bound, s.client, t.calls)
		}
		received := sinceEpoch()
		var again tripPart
		for i, r := range results {
			err := s.settle(r, t.owners[i], sent, received)
			if err != nil {
				tripPart{owners: t.owners[i : i+1]}.fail(err)
			}
			if e, ok := rueidis.IsRedisErr(r.Error()); ok && e.IsTryAgain() {
				again.calls, again.owners = append(again.calls, t.calls[i]), append(again.owners, t.owners[i])
				moving = err
			} else if first == nil {
				first = err
			}
		}
		if len(again.calls) == 0 {
			return first
		}
		timer := time.NewTimer(tryAgainAfter)
		select {
		case <-timer.C:
		case <-bound.Done():
			timer.Stop()
			return cmp.Or(first, moving)
		}
		t = again
		t.fail(nil)
	}
}

// settle gives each operation of a call its error, or returns one for all.
func (s *Store) settle(r rueidis.RedisResult, owners []*op, sent, received time.Duration) error {
	values, err := r.ToArray()
	switch {
	case err == nil:
	case rueidis.IsRedisNil(err):
		return fmt.Errorf("%w: %w", ErrUnknown, errReply)
	default:
		if e, ok := rueidis.IsRedisErr(err); ok {
			return refusedError(e.Error())
		}
		if mayPass(err) {
			return err
		}
		return fmt.Errorf("%w: %w", ErrUnknown, err)
	}
	if len(values) < 2 || len(values)%2 != 0 {
		return fmt.Errorf("%w: %w", ErrUnknown, errReply)
	}
	seconds, _ := values[0].AsInt64()
	micros, _ := values[1].AsInt64()
	s.clock.observe(time.Duration(seconds)*time.Second+time.Duration(micros)*time.Microsecond, sent, received)
	for i := 2; i < len(values); i += 2 {
		n, err := values[i].AsInt64()
		text, _ := values[i+1].ToString()
		if err != nil || n < 0 || n >= int64(len(owners)) {
			return fmt.Errorf("%w: %w", ErrUnknown, errReply)
		}
		switch {
		case text == "LATE":
			owners[n].err = ErrTooLate
		case strings.Contains(text, "overflow"):
			owners[n].err = ErrOverflow
		default:
			owners[n].err = refusedError(strings.TrimPrefix(text, "-"))
		}
	}
	return nil
}

// writer builds a call of write.lua.
type writer struct {
	s          *Store
	buckets    int64
	keys, args []string
	owners     []*op
	members    int

	block   opKey // of the block that is being built: its kind and bucket
	count   int   // index of its number of operations in args, 0 before the first
	inBlock int
	chunks  [maxLevels]int64 // its part of the keys
	key     []byte
}

func newWriter(s *Store, buckets int64, ops int) writer {
	n := len(s.levels)
	return writer{s: s, buckets: buckets, keys: make([]string, 0, ops*n), args: make([]string, 0, 3+2*n+ops), owners: make([]*op, 0, ops)}
}

func (w *writer) call() script.Call {
	w.end()
	return writeScript.Call(w.keys, w.args...)
}

// end ends a block.
func (w *writer) end() {
	if w.count > 0 {
		w.args[w.count] = strconv.Itoa(w.inBlock)
	}
}

// begin begins the block of an op's kind and bucket.
func (w *writer) begin(o *op) {
	if w.count > 0 && w.block.kind == o.kind && w.block.bucket == o.bucket {
		return
	}
	if w.count == 0 {
		w.args = append(w.args, strconv.Itoa(len(w.s.levels)))
	}
	w.end()
	w.args = append(w.args, string(o.kind), "")
	w.block, w.count, w.inBlock = o.opKey, len(w.args)-1, 0
	for r, l := range w.s.levels {
		bucket := floor(o.bucket, l.step) / l.step
		field, end := "", bucket+1
		w.chunks[r] = bucket
		if hasChunks(o.kind) {
			chunk := floor(bucket, w.buckets) / w.buckets
			field, end = strconv.FormatInt(bucket-chunk*w.buckets, 10), (chunk+1)*w.buckets
			w.chunks[r] = chunk
		}
		w.args = append(w.args, field, strconv.FormatInt(l.expires(end*l.step)*1000, 10))
	}
}

// add appends the operation of an op.
func (w *writer) add(o *op) {
	w.begin(o)
	switch o.kind {
	case kindCounter:
		w.operation(o, strconv.FormatInt(o.n.Load(), 10))
	case kindStats:
		w.operation(o, strconv.FormatInt(o.stats.count, 10), formatFloat(o.stats.sum), formatFloat(o.stats.least), formatFloat(o.stats.most))
	case kindDistinct:
		w.operation(o, strconv.Itoa(len(o.members)))
		w.args = slices.AppendSeq(w.args, maps.Keys(o.members))
	case kindTop:
		w.operation(o, strconv.Itoa(w.s.opts.TopSize), strconv.Itoa(len(o.members)))
		for m, n := range o.members {
			w.args = append(w.args, m, strconv.FormatInt(n, 10))
		}
	}
	w.members += len(o.members)
}

func (w *writer) operation(o *op, args ...string) {
	w.owners = append(w.owners, o)
	w.inBlock++
	for r, l := range w.s.levels {
		w.key = strconv.AppendInt(w.s.keys.append(w.key[:0], o.kind, o.series, l.step, w.buckets), w.chunks[r], 10)
		w.keys = append(w.keys, string(w.key))
	}
	w.args = append(w.args, args...)
}

func formatFloat(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }

// Flush writes what this process has gathered, and returns when Redis has answered: an error if anything was not written.
// It is for stores with FlushEvery. What Redis refused for the time being stays gathered.
func (s *Store) Flush(ctx context.Context) error {
	if err := s.flush(ctx); err != nil {
		return fmt.Errorf("timeseries: flush: %w", err)
	}
	return nil
}

func (s *Store) flush(ctx context.Context) error {
	var waits []*batch
	for i := range s.lanes {
		l := &s.lanes[i]
		l.mu.Lock()
		if l.current != nil {
			waits = append(waits, l.current)
		}
		if l.next != nil {
			waits = append(waits, l.next)
			l.hurry = true
			select {
			case l.wake <- struct{}{}:
			default:
			}
		}
		l.mu.Unlock()
	}
	var failed error
	for _, b := range waits {
		select {
		case <-b.done:
			for _, o := range b.list {
				if failed == nil {
					failed = o.err
				}
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return failed
}

// Close writes what this process has gathered, and waits for all that is under way. Later writes return ErrClosed; reading
// goes on. It returns an error if anything was not written, or if ctx ends before: what is under way then goes on, for
// a Timeout per part, see Options.Timeout. It does not close the client.
func (s *Store) Close(ctx context.Context) error {
	s.closed.Store(true)
	err := s.flush(ctx)
	done := make(chan struct{})
	go func() {
		s.senders.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
		err = errors.Join(err, ctx.Err())
	}
	if err != nil {
		return fmt.Errorf("timeseries: close: %w", err)
	}
	return nil
}
