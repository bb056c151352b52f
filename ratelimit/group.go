package ratelimit

import (
	"context"
	"runtime"
	"time"
)

// Calls for one subject that come while a round trip for it is under way gather in a batch, which makes the next one:
// group commit. The first caller of a batch leads it: it waits for the trip before to end, takes the batch out of the
// table, so that no more calls join it, sends it, wakes those who wait, and lets the next batch's leader begin. Nobody
// waits for a timer, and a caller that finds no trip under way sends at once.

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

// join adds a call of n units. The batch must not be sealed.
func (b *batch) join(n int64) place {
	b.calls++
	last := len(b.runs) - 1
	if last < 0 || b.runs[last].n != n {
		b.runs = append(b.runs, run{n, 0})
		last++
	}
	p := place{last, b.runs[last].count}
	for _, gone := range b.left {
		if gone.run == last {
			p.index++
		}
	}
	b.runs[last].count++
	return p
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

// commit has Redis decide a call, together with others if there are.
func (l *Limiter) commit(ctx context.Context, key string, n int64) (Result, error) {
	if err := ctx.Err(); err != nil {
		return Result{}, err
	}
	s := subject{l, key}
	part := l.waiting.part(key)
	canLead := l.canLead(ctx)
	part.Lock()
	b, busy := part.entries[s]
	if !busy && canLead {
		part.set(s, nil)
		part.Unlock()
		return l.commitAlone(ctx, part, s, n)
	}
	isFirst := b == nil
	if isFirst {
		b = &batch{began: sinceEpoch(), turn: make(chan struct{}), done: make(chan struct{})}
		part.set(s, b)
		if !busy {
			close(b.turn)
		}
	}
	p := b.join(n)
	part.Unlock()

	switch {
	case isFirst && !canLead:
		go l.lead(ctx, part, s, b)
	case isFirst:
		select {
		case <-b.turn:
			l.lead(ctx, part, s, b)
			return b.result(l, p)
		case <-ctx.Done():
			go l.lead(ctx, part, s, b) // for the others
		}
	}
	select {
	case <-b.done:
	case <-ctx.Done():
		part.Lock()
		left := b.leave(p)
		part.Unlock()
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
func (l *Limiter) commitAlone(ctx context.Context, part *tablePart[*batch], s subject, n int64) (Result, error) {
	defer handOver(part, s)
	runs := [1]run{{n, 1}}
	reply, err := l.trip(detach(ctx), l.key(s.key), runs[:], 0)
	if err != nil {
		return Result{}, err
	}
	l.denied.remember(s, reply, 0, runs[0])
	return l.resultOf(reply, 0, n, 0), nil
}

// lead makes the round trip of a batch.
func (l *Limiter) lead(ctx context.Context, part *tablePart[*batch], s subject, b *batch) {
	ctx = detach(ctx)
	<-b.turn
	part.Lock()
	b.isSealed = true
	part.set(s, nil)
	part.Unlock()
	key := l.key(s.key)
	b.err = ErrUnavailable // should the client panic
	defer func() {
		part.Lock()
		b.isDone = true
		part.Unlock()
		close(b.done)
		if b.calls > 1 {
			gather(part, s)
		}
		handOver(part, s)
		l.giveBack(ctx, s.key, key, b)
	}()
	if b.calls > 0 {
		b.reply, b.err = l.trip(ctx, key, b.runs, b.began)
	}
	if b.err == nil {
		for i, r := range b.runs {
			l.denied.remember(s, b.reply, i, r)
		}
	}
}

// gatherRounds bounds how often a goroutine steps back for those it has woken.
const gatherRounds = 8

// gather lets those who have just been woken run, as long as they make calls for the same subject. Else the first of
// them would make a trip for itself, and the others wait for it.
func gather(part *tablePart[*batch], s subject) {
	calls := 0
	for range gatherRounds {
		runtime.Gosched()
		part.RLock()
		more := 0
		if next := part.entries[s]; next != nil {
			more = next.calls
		}
		part.RUnlock()
		if more <= calls {
			return
		}
		calls = more
	}
}

// handOver begins the next round trip, if calls wait for it.
func handOver(part *tablePart[*batch], s subject) {
	part.Lock()
	defer part.Unlock()
	if next := part.entries[s]; next != nil {
		close(next.turn)
	} else {
		delete(part.entries, s)
	}
}

// giveBack returns what was taken for callers that had gone by then.
func (l *Limiter) giveBack(ctx context.Context, id, key string, b *batch) {
	var n int64
	for _, p := range b.abandoned {
		if r, err := b.result(l, p); err == nil && r.Allowed {
			n += b.runs[p.run].n
		}
	}
	if n > 0 {
		_, _ = l.trip(ctx, key, []run{{n, giveBack}}, 0) // if it fails it is as if the answer had been lost
		l.denied.drop(id)
	}
}
