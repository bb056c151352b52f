package buffer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"math/bits"
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

const (
	maxTripFields = 1000    // merged by one script, of what was added, and as many of what was posted
	maxTripBytes  = 1 << 20 // of their names and texts, likewise
	postDelay     = 10 * time.Millisecond
	minRetry      = 5 * time.Millisecond
	maxRetry      = time.Second
	knownFor      = writerTTL / 2 // after a round trip Redis must know it for so long
	registerEvery = time.Minute
)

// shard is this process' side of one: what waits to be sent. One round trip is under way at a time; what comes meanwhile is
// merged and goes with the next. Each has a number by which Redis knows those that it has seen.
type shard struct {
	b    *Buffer
	keys shardKeys

	mu          sync.Mutex
	adds, posts *group
	postsDue    time.Duration // since epoch
	rows        int           // in both groups and under way
	lost        int           // rows that Close gave up
	sending     bool
	closed      bool
	wake        chan struct{} // ends a wait for postsDue

	// The sender's own: the last round trip, the last that was confirmed, when, by the wall clock, which goes on while the
	// machine sleeps, and what loss.lua's lossAt was then.
	seq, confirmed uint64
	confirmedAt    time.Time
	lossAt         string
}

// group is what one round trip, or several if it is large, will bring to Redis.
type group struct {
	rows    map[string]*row
	list    []*row
	last    *row // that was asked for
	waves   []*wave
	settled atomic.Bool // too late to leave: all rows have their outcome
}

// wave is Adds that wait for a group since about the same time. One channel tells them of the outcome or, before it, that they
// have waited for long enough: a select of two is much of what an Add costs.
type wave struct {
	done    chan struct{}
	once    sync.Once
	timer   *time.Timer
	renewAt time.Duration // since epoch
}

func (w *wave) end() { w.once.Do(func() { close(w.done) }) }

// wave is the one to join at a time. The shard's mutex is held.
func (g *group) wave(now, timeout time.Duration) *wave {
	if n := len(g.waves); n > 0 && now < g.waves[n-1].renewAt {
		return g.waves[n-1]
	}
	// Their timers end them, and a group may wait for long.
	g.waves = slices.DeleteFunc(g.waves, func(w *wave) bool { return now >= w.renewAt+timeout })
	w := &wave{done: make(chan struct{}), renewAt: now + timeout/8}
	w.timer = time.AfterFunc(timeout, w.end)
	g.waves = append(g.waves, w)
	return w
}

type row struct {
	entity   string
	values   []Value // one per column
	err      error
	overflow uint32 // columns that Redis refused, one bit each
	left     bool   // an Add has returned ErrUnconfirmed
}

// Add merges values into an entity's row and returns when Redis has them. Concurrent calls share round trips.
//
// If it returns nil, they are counted. [ErrUnconfirmed] means that they will be, unless this process ends first or a sum turns
// out to overflow, which Stats.Dropped and Hooks.Error then tell. With an [*OverflowError] all but the columns named in it are
// counted. With any other error nothing is: not with ErrFull or ErrClosed, not if an argument is wrong (a column that does not
// exist, comes twice, or is for another kind of values; NaN or an infinity; an entity or a text of more than 64 KiB), not if
// ctx had ended, and not if Redis refused, as one that is out of memory does.
func (b *Buffer) Add(ctx context.Context, entity string, deltas ...Delta) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("buffer: add: %w", err)
	}
	if err := b.check(entity, deltas); err != nil {
		return fmt.Errorf("buffer: add: %w", err)
	}
	s := b.shards[shardOf(entity, len(b.shards))]
	s.mu.Lock()
	g, r, err := s.rowOf(&s.adds, entity)
	if err != nil {
		s.mu.Unlock()
		return err
	}
	asked, overflow := r.merge(b.columns, deltas)
	w := g.wave(sinceEpoch(), b.opts.AddTimeout)
	s.send()
	s.mu.Unlock()

	if ctx.Done() == nil {
		<-w.done
	} else {
		select {
		case <-w.done:
		case <-ctx.Done():
		}
	}
	if !g.settled.Load() {
		s.mu.Lock()
		r.left = true
		settled := g.settled.Load()
		s.mu.Unlock()
		if !settled {
			b.drop(ctx, overflow)
			return fmt.Errorf("%w: %w", ErrUnconfirmed, cmp.Or(ctx.Err(), context.DeadlineExceeded))
		}
	}
	if r.err != nil {
		if errors.Is(r.err, ErrUnconfirmed) {
			b.drop(ctx, overflow)
		}
		return r.err
	}
	if overflow |= r.overflow & asked; overflow != 0 {
		return b.overflowError(overflow)
	}
	return nil
}

// Post is Add without waiting, and without knowing: it merges the values in memory and has them sent within some 10ms. What
// was not sent is lost when the process is killed, and a value whose sum overflows is dropped: see Stats.Dropped and
// Hooks.Error. If Redis does not take it, it is kept and sent again, and when Options.MaxLocal is reached, Post returns
// ErrFull. Call Close at the end of the process.
func (b *Buffer) Post(entity string, deltas ...Delta) error {
	if err := b.check(entity, deltas); err != nil {
		return fmt.Errorf("buffer: post: %w", err)
	}
	s := b.shards[shardOf(entity, len(b.shards))]
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.posts == nil {
		s.postsDue = sinceEpoch() + postDelay
	}
	_, r, err := s.rowOf(&s.posts, entity)
	if err != nil {
		return err
	}
	_, overflow := r.merge(b.columns, deltas)
	s.send()
	if overflow != 0 {
		return b.overflowError(overflow)
	}
	return nil
}

// drop tells of columns whose values nobody waits for, and which are not counted.
func (b *Buffer) drop(ctx context.Context, columns uint32) {
	if columns != 0 {
		b.stats.dropped.Add(uint64(bits.OnesCount32(columns)))
		b.reportError(ctx, OpPost, b.overflowError(columns))
	}
}

func (b *Buffer) overflowError(columns uint32) error {
	e := &OverflowError{}
	for i, c := range b.columns {
		if columns&(1<<i) != 0 {
			e.Columns = append(e.Columns, c.Name)
		}
	}
	return e
}

func (b *Buffer) check(entity string, deltas []Delta) error {
	if len(entity) > maxEntity {
		return fmt.Errorf("entity has %d bytes, more than %d", len(entity), maxEntity)
	}
	if len(deltas) == 0 {
		return errors.New("no values")
	}
	var seen uint32
	for i := range deltas {
		d := &deltas[i]
		c := columnIndex(b.columns, d.column)
		if c < 0 {
			return fmt.Errorf("there is no column %q", d.column)
		}
		switch {
		case seen&(1<<c) != 0: // one might overflow and the other not
			return fmt.Errorf("column %q comes twice", d.column)
		case kindOf(b.columns[c].Op) != d.kind:
			return fmt.Errorf("column %q is for values of another kind", d.column)
		case d.kind == 'f' && (math.IsNaN(d.float) || math.IsInf(d.float, 0)):
			return fmt.Errorf("column %q: the value is not finite", d.column)
		case d.kind == 'a' && len(d.text) > maxEntity:
			return fmt.Errorf("column %q: the text has %d bytes, more than %d", d.column, len(d.text), maxEntity)
		}
		seen |= 1 << c
	}
	return nil
}

func columnIndex(columns []Column, name string) int {
	for i := range columns {
		if columns[i].Name == name {
			return i
		}
	}
	return -1
}

// rowOf returns the row of an entity in a group that is yet to be sent.
func (s *shard) rowOf(of **group, entity string) (*group, *row, error) {
	if s.closed {
		return nil, nil, ErrClosed
	}
	g := *of
	if g != nil {
		if r := g.last; r != nil && r.entity == entity { // as it is while one is hot
			return g, r, nil
		}
		if r := g.rows[entity]; r != nil {
			g.last = r
			return g, r, nil
		}
	}
	if s.rows >= s.b.opts.MaxLocal/len(s.b.shards) {
		return nil, nil, ErrFull
	}
	if g == nil {
		g = &group{rows: make(map[string]*row)}
		*of = g
	}
	r := &row{entity: entity, values: make([]Value, len(s.b.columns))}
	g.rows[entity] = r
	g.list = append(g.list, r)
	g.last = r
	s.rows++
	return g, r, nil
}

// merge returns which columns it was asked to change, and in which of these the sum would overflow.
func (r *row) merge(columns []Column, deltas []Delta) (asked, overflow uint32) {
	for i := range deltas {
		d := &deltas[i]
		c := columnIndex(columns, d.column)
		v := Value{Set: true, Int: d.int, Float: d.float}
		if d.kind == 'a' {
			v = Value{Set: true, Text: d.text, At: time.UnixMicro(d.int).UTC()}
		}
		asked |= 1 << c
		if !r.values[c].merge(columns[c].Op, v) {
			overflow |= 1 << c
		}
	}
	return asked, overflow
}

// send sees to it that somebody sends. s.mu is held.
func (s *shard) send() {
	if s.sending {
		if s.adds != nil {
			s.wakeUp()
		}
		return
	}
	s.sending = true
	s.b.senders.Go(s.sendAll)
}

func (s *shard) wakeUp() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// sendAll sends until there is nothing left. Values that were only posted wait a moment for more.
func (s *shard) sendAll() {
	for {
		runtime.Gosched() // whoever is about to add something, such as those whose Adds have just returned, comes along
		s.mu.Lock()
		if s.adds == nil && s.posts == nil {
			s.sending = false
			s.mu.Unlock()
			return
		}
		if wait := s.postsDue - sinceEpoch(); s.adds == nil && wait > 0 {
			s.mu.Unlock()
			s.linger(wait)
			continue
		}
		adds := s.adds
		s.adds = nil
		posts := s.takePosts()
		s.mu.Unlock()
		var rest []*row
		if adds != nil {
			rest = adds.list
		}
		for last := false; !last; {
			n := tripSize(rest)
			rows := rest[:n]
			rest = rest[n:]
			last = len(rest) == 0
			if last {
				rows = append(rows, posts...)
			}
			if err := s.trip(rows); err != nil {
				for _, r := range rows {
					r.err = err
				}
			}
		}
		s.settle(adds, posts)
	}
}

// takePosts takes of what was posted as much as one round trip may bring. It goes along with Adds, which would wait for a second
// one, and the rest with the next. s.mu is held.
func (s *shard) takePosts() []*row {
	g := s.posts
	if g == nil {
		return nil
	}
	n := tripSize(g.list)
	taken := g.list[:n:n]
	if n == len(g.list) {
		s.posts = nil
		return taken
	}
	g.list, g.last = g.list[n:], nil
	for _, r := range taken {
		delete(g.rows, r.entity)
	}
	return taken
}

// linger waits for more to be posted, or for something more urgent. If Close has given up, it drops what was posted.
func (s *shard) linger(wait time.Duration) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.wake:
	case <-s.b.life.Done():
		s.mu.Lock()
		s.lost += len(s.posts.list)
		s.posts = nil
		s.mu.Unlock()
	}
}

// settle keeps the rows that Redis did not take and nobody waits for: those that were posted or that an Add has left. Then it
// tells those who do wait.
func (s *shard) settle(adds *group, posts []*row) {
	var dropped []uint32
	s.mu.Lock()
	if adds != nil {
		s.rows -= len(adds.list)
		for _, r := range adds.list {
			switch {
			case errors.Is(r.err, errGivenUp):
				s.lost++
			case !r.left:
			case r.err != nil:
				dropped = append(dropped, s.keep(&row{entity: r.entity, values: r.values}))
				r.err = ErrUnconfirmed // for those who still wait: theirs are in the same row
			default:
				dropped = append(dropped, r.overflow)
			}
		}
		adds.settled.Store(true)
	}
	s.rows -= len(posts)
	for _, r := range posts {
		switch {
		case errors.Is(r.err, errGivenUp):
			s.lost++
		case r.err != nil:
			dropped = append(dropped, s.keep(r))
		default:
			dropped = append(dropped, r.overflow)
		}
	}
	s.mu.Unlock()
	if adds != nil {
		for _, w := range adds.waves {
			w.timer.Stop()
			w.end()
		}
	}
	for _, columns := range dropped { // now that nobody waits: a hook may be slow
		s.b.drop(context.Background(), columns)
	}
}

// keep puts a row back, to be sent later. s.mu is held.
func (s *shard) keep(r *row) (overflow uint32) {
	if s.posts == nil {
		s.posts = &group{rows: make(map[string]*row)}
	}
	s.postsDue = sinceEpoch() + 10*postDelay
	r.err = nil
	newer := s.posts.rows[r.entity]
	if newer == nil {
		s.posts.rows[r.entity] = r
		s.posts.list = append(s.posts.list, r)
		s.rows++
		return 0
	}
	for c := range r.values {
		if !newer.values[c].merge(s.b.columns[c].Op, r.values[c]) {
			overflow |= 1 << c
		}
	}
	return overflow
}

// tripSize is how many rows may go in one round trip, of those that were added or those that were posted.
func tripSize(rows []*row) int {
	fields, bytes := 0, 0
	for i, r := range rows {
		for c := range r.values {
			if r.values[c].Set {
				fields++
				bytes += len(r.entity) + len(r.values[c].Text)
			}
		}
		if i > 0 && (fields > maxTripFields || bytes > maxTripBytes) {
			return i
		}
	}
	return len(rows)
}

var errGivenUp = errors.New("closed before Redis confirmed")

// trip brings rows to Redis, and sends them until it is known what became of them. It returns an error if nothing was
// counted; else rows know what was not.
func (s *shard) trip(rows []*row) error {
	b := s.b
	s.seq++
	args := make([]string, 6, 6+4*len(rows))
	excess := 0
	args[0] = strconv.FormatUint(s.seq, 10)
	args[1] = strconv.Itoa(max(1, b.opts.MaxPending/len(b.shards)/2))
	args[2] = strconv.FormatInt(writerTTL.Milliseconds(), 10)
	for _, r := range rows {
		n := 0
		count := len(args)
		args = append(args, "")
		for c := range r.values {
			if r.values[c].Set {
				field, value := b.columns[c].field(r.entity), r.values[c].encode(b.columns[c].Op)
				args = append(args, field, value)
				excess += max(0, len(field)+len(value)-usualBytes)
				n++
			}
		}
		args[count] = strconv.Itoa(n)
	}
	args[4] = s.lossAt
	args[5] = strconv.Itoa(excess)
	call := addScript.Call([]string{s.keys.cur, s.keys.writer, s.keys.meta}, args...)
	began := sinceEpoch()
	unknown := false // whether a copy may have been executed whose reply was lost
	for retry := minRetry; b.life.Err() == nil; retry = min(2*retry, maxRetry) {
		call.Args[3] = s.known()
		reply, err := s.send1(call, &unknown)
		if err == nil {
			lossAt, refused, _ := strings.Cut(reply, " ")
			s.confirmed, s.confirmedAt, s.lossAt = s.seq, time.Now().Round(0), lossAt
			s.note(rows, refused)
			return nil
		}
		e, answered := rueidis.IsRedisErr(err)
		moving := answered && e.IsTryAgain() && sinceEpoch()-began < b.opts.AddTimeout // the slot, to another node: nothing ran
		if answered && !unknown && !moving {
			return fmt.Errorf("buffer: redis refused: %w", err)
		}
		b.reportError(context.Background(), OpSend, err)
		timer := time.NewTimer(retry)
		select {
		case <-timer.C:
		case <-b.life.Done():
			timer.Stop()
		}
	}
	return fmt.Errorf("%w: %w", ErrUnconfirmed, errGivenUp)
}

// known is the last round trip that Redis must know of, or else it has lost writes.
func (s *shard) known() string {
	if time.Since(s.confirmedAt) > knownFor {
		return "0"
	}
	return strconv.FormatUint(s.confirmed, 10)
}

func (s *shard) send1(call script.Call, unknown *bool) (string, error) {
	b := s.b
	ctx, cancel := context.WithTimeout(b.life, b.opts.OpTimeout)
	defer cancel()
	if b.registerAt.Load() == 0 { // no flusher might look at this shard
		if _, err := b.register(ctx); err != nil {
			return "", err
		}
	}
	b.registerAgain()
	reply, err := script.Do(ctx, b.client, call).ToString()
	if _, answered := rueidis.IsRedisErr(err); err != nil && !answered {
		*unknown = true
	}
	return reply, err
}

// note reads what add.lua says was refused.
func (s *shard) note(rows []*row, refused string) {
	for item := range strings.FieldsSeq(refused) {
		index, field, isField := strings.Cut(item, ".")
		i, err := strconv.Atoi(index)
		if err != nil || i >= len(rows) {
			continue
		}
		if !isField {
			rows[i].err = ErrFull
			continue
		}
		n, err := strconv.Atoi(field)
		for c := range rows[i].values {
			if !rows[i].values[c].Set {
				continue
			}
			if n == 0 && err == nil {
				rows[i].overflow |= 1 << c
			}
			n--
		}
	}
}
