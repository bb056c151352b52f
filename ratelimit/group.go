package ratelimit

import (
	"context"
	"runtime"
	"slices"
	"time"
)

// Calls that come while a round trip is under way gather in a batch, which makes the next one: group commit. Where one
// script may deal with any keys, all calls of a limiter in the same lane, of a few, share trips, so that a server
// that is busy gets few scripts, and a call does not often wait for one of another key. In a cluster it is the calls for
// one key.
//
// The first caller of a batch leads it: it waits for the trip before to end, takes the batch out of the table, so that
// no more calls join it, sends it, wakes those who wait, and lets the next batch's leader begin. Nobody waits for a
// timer, and a caller that finds no trip under way sends at once.

const (
	lanes   = 8  // per limiter: the trips that may be under way at a time, each of one call or a batch
	maxRuns = 64 // in a script, so that it ends in a fraction of a millisecond
)

// batch is the calls that share a round trip. Its fields are guarded by its part of the table until it is sealed, and
// reply and err by done.
type batch struct {
	runs  []run
	began time.Duration // when the first call joined
	calls int           // that wait
	left  []place       // of callers that did not wait, before it was sealed
	turn  chan struct{} // closed when the trip before has ended
	done  chan struct{} // closed when reply or err is there

	isSealed, isDone bool
	abandoned        []place // of callers that did not wait, after it was sealed

	reply reply
	err   error
}

// place is where a call is in a batch: the index-th of a run.
type place struct {
	run   int
	index int64
}

func newBatch(runs int) *batch {
	return &batch{runs: make([]run, 0, runs), began: sinceEpoch(), turn: make(chan struct{}), done: make(chan struct{})}
}

// join adds a call of n units. It reports false if the batch is full. All calls of a batch come at the same time, so
// any order is theirs: those of the same key and n are put together. The batch must not be sealed.
func (b *batch) join(key string, n int64) (place, bool) {
	at := slices.IndexFunc(b.runs, func(r run) bool { return r.n == n && r.key == key })
	if at < 0 {
		if len(b.runs) == maxRuns {
			return place{}, false
		}
		at = len(b.runs)
		b.runs = append(b.runs, run{key, n, 0})
	}
	b.calls++
	p := place{at, b.runs[at].count}
	for _, gone := range b.left {
		if gone.run == at {
			p.index++
		}
	}
	b.runs[at].count++
	return p, true
}

// leave takes a call out, or makes its units be given back if it is too late for that. It reports false if the call is
// decided. The batch's part of the table must be locked.
func (b *batch) leave(p place) bool {
	switch {
	case b.isDone:
		return false
	case b.isSealed:
		b.abandoned = append(b.abandoned, p)
	default:
		b.calls--
		b.runs[p.run].count--
		b.left = append(b.left, p)
	}
	return true
}

// now returns the place of a call among those that were sent.
func (b *batch) now(p place) place {
	sent := p
	for _, gone := range b.left {
		if gone.run == p.run && gone.index < p.index {
			sent.index--
		}
	}
	return sent
}

func (b *batch) result(l *Limiter, p place) (Result, error) {
	if b.err != nil {
		return Result{}, b.err
	}
	p = b.now(p)
	return l.resultOf(b.reply, p.run, b.runs[p.run].n, p.index), nil
}

// owed returns what was taken for callers that had gone by then, as runs that give it back to just that.
func (b *batch) owed(l *Limiter) []run {
	units := make(map[int]int64)
	for _, p := range b.abandoned {
		if r, err := b.result(l, p); err == nil && r.Allowed {
			units[p.run] += b.runs[p.run].n
		}
	}
	back := make([]run, 0, len(units))
	for i, n := range units {
		_, _, _, _, mark := b.reply.of(i)
		back = append(back, run{b.runs[i].key, n, -mark})
	}
	return back
}

// lane is where calls wait for a round trip.
type lane struct {
	part *tablePart[*batch]
	s    subject
}

// laneOf returns the lane of a key.
func (l *Limiter) laneOf(key string) lane {
	if l.cluster {
		return lane{l.waiting.part(key), subject{l.limit, key}}
	}
	return lane{l.waiting.partOf(key, lanes), subject{limit: l.limit}}
}

// enter takes a lane if no trip is under way in it.
func (q lane) enter() bool {
	q.part.Lock()
	defer q.part.Unlock()
	if _, busy := q.part.entries[q.s]; busy {
		return false
	}
	q.part.set(q.s, nil)
	return true
}

// commit has Redis decide a call, together with others if there are.
func (l *Limiter) commit(ctx context.Context, key string, n int64) (Result, error) {
	if err := ctx.Err(); err != nil {
		return Result{}, err
	}
	q := l.laneOf(key)
	canLead := l.canLead(ctx)
	if canLead {
		if q.enter() {
			defer q.handOver()
			return l.commitAlone(ctx, key, n)
		}
	}
	q.part.Lock()
	b, busy := q.part.entries[q.s]
	isFirst := b == nil
	if isFirst {
		b = newBatch(8)
		q.part.set(q.s, b)
		if !busy {
			close(b.turn)
		}
	}
	p, ok := b.join(key, n)
	q.part.Unlock()
	if !ok { // it is full
		if canLead {
			return l.commitAlone(ctx, key, n)
		}
		b = newBatch(1)
		b.isSealed = true
		p, _ = b.join(key, n)
		go l.send(detach(ctx), q, b)
	}

	switch {
	case isFirst && !canLead:
		go l.lead(ctx, q, b)
	case isFirst:
		select {
		case <-b.turn:
			l.lead(ctx, q, b)
			return b.result(l, p)
		case <-ctx.Done():
			go l.lead(ctx, q, b) // for the others
		}
	}
	select {
	case <-b.done:
	case <-ctx.Done():
		q.part.Lock()
		left := b.leave(p)
		q.part.Unlock()
		if left {
			return Result{}, ctx.Err()
		}
	}
	return b.result(l, p)
}

// canLead reports whether a caller can wait for a round trip: one whose deadline comes before has a goroutine make it,
// for others may depend on it, and what it takes must be given back.
func (l *Limiter) canLead(ctx context.Context) bool {
	deadline, ok := ctx.Deadline()
	return !ok || time.Until(deadline) >= l.opts.Timeout
}

// commitAlone makes a round trip for one call.
func (l *Limiter) commitAlone(ctx context.Context, key string, n int64) (Result, error) {
	runs := [1]run{{key, n, 1}}
	reply, err := l.trip(detach(ctx), runs[:], 0)
	if err != nil {
		return Result{}, err
	}
	l.denied.remember(l, reply, 0, runs[0])
	return l.resultOf(reply, 0, n, 0), nil
}

// lead makes the round trip of a batch.
func (l *Limiter) lead(ctx context.Context, q lane, b *batch) {
	ctx = detach(ctx)
	<-b.turn
	q.part.Lock()
	b.isSealed = true
	q.part.set(q.s, nil)
	q.part.Unlock()
	defer func() {
		if b.calls > 1 {
			q.gather()
		}
		q.handOver()
	}()
	l.send(ctx, q, b)
}

// send makes the round trip of a batch that is sealed, and wakes those who wait for it.
func (l *Limiter) send(ctx context.Context, q lane, b *batch) {
	b.err = ErrUnavailable // should the client panic
	defer func() {
		q.part.Lock()
		b.isDone = true
		q.part.Unlock()
		close(b.done)
		if len(b.abandoned) > 0 {
			if back := b.owed(l); len(back) > 0 {
				go l.giveBack(ctx, back)
			}
		}
	}()
	if b.calls > 0 {
		b.reply, b.err = l.trip(ctx, b.runs, b.began)
	}
	if b.err == nil {
		for i, r := range b.runs {
			l.denied.remember(l, b.reply, i, r)
		}
	}
}

// gatherRounds bounds how often a goroutine steps back for those it has woken.
const gatherRounds = 8

// gather lets those who have just been woken run, as long as they make calls in the same lane. Else the first of them
// would make a trip for itself, and the others wait for it.
func (q lane) gather() {
	calls := 0
	for range gatherRounds {
		runtime.Gosched()
		q.part.RLock()
		more := 0
		if next := q.part.entries[q.s]; next != nil {
			more = next.calls
		}
		q.part.RUnlock()
		if more <= calls {
			return
		}
		calls = more
	}
}

// handOver ends a round trip and begins the next, if calls wait for it.
func (q lane) handOver() {
	q.part.Lock()
	defer q.part.Unlock()
	if next := q.part.entries[q.s]; next != nil {
		close(next.turn)
	} else {
		delete(q.part.entries, q.s)
	}
}

// giveBack returns units that nobody has used, within a Timeout.
func (l *Limiter) giveBack(ctx context.Context, back []run) {
	bounded, cancel := context.WithTimeout(ctx, l.opts.Timeout)
	defer cancel()
	for part := range slices.Chunk(back, maxRuns) {
		_, _ = l.trip(bounded, part, 0) // if it fails it is as if the answer had been lost
		for _, r := range part {
			l.denied.drop(l.shared, r.key)
		}
	}
}
