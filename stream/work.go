package stream

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"time"
)

const (
	maxReason = 1024 // bytes of a dead letter's reason
	// tryAgain is how long a message waits when Redis did not take what must be written about it.
	tryAgain = time.Second
)

var (
	errExited  = errors.New("stream: handler ended its goroutine")
	errKilled  = errors.New("stream: the process ended during the last attempt, or lost its lease")
	errNoValue = errors.New("stream: no reason given")
)

// worker handles one message, or batch, after the other. Its context is made anew only if it has ended.
type worker[T any] struct {
	c    *consumer[T]
	life context.Context //nolint:containedctx // it is what handlers' contexts are made from

	mu      sync.Mutex
	ctx     context.Context //nolint:containedctx // of handlers, one after the other
	end     context.CancelCauseFunc
	current []*task[T]
	stopped bool

	scratch []string
	one     [1]*task[T]
	rest    []*task[T] // of those that it took, what it comes to next; c.mu is for this too
	handled int
	took    time.Duration
}

// makeWorkers makes them before anybody can look for them.
func (c *consumer[T]) makeWorkers(ctx context.Context) {
	for range c.opts.Workers {
		w := &worker[T]{c: c, life: ctx}
		w.renew()
		c.workers = append(c.workers, w)
	}
}

func (c *consumer[T]) startWorkers(wg *sync.WaitGroup) {
	for _, w := range c.workers {
		wg.Add(1)
		go w.loop(wg)
	}
}

func (c *consumer[T]) runningNow() (n int64) {
	for _, w := range c.workers {
		w.mu.Lock()
		if w.current != nil {
			n++
		}
		w.mu.Unlock()
	}
	return n
}

// begins notes what the worker works on, and returns the context for it.
func (w *worker[T]) begins(tasks []*task[T]) context.Context {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.current = tasks
	return w.ctx
}

func (w *worker[T]) ends() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.current = nil
	if w.ctx.Err() != nil && !w.stopped {
		w.renew()
	}
}

// renew makes a new context.
func (w *worker[T]) renew() { w.ctx, w.end = context.WithCancelCause(w.life) }

// lose ends the context if t is at work.
func (w *worker[T]) lose(t *task[T]) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if slices.Contains(w.current, t) {
		w.end(ErrLeaseLost)
	}
}

// stop ends the context for good.
func (w *worker[T]) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stopped = true
	w.end(ErrStopping)
}

func (w *worker[T]) isStopped() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stopped
}

func (w *worker[T]) loop(wg *sync.WaitGroup) {
	returned := false
	defer func() {
		if !returned { // a handler has called runtime.Goexit
			w.settle(slices.Clone(w.current), errExited, 0)
			w.ends()
			w.c.mu.Lock()
			w.c.enqueue(w.rest)
			w.rest = nil
			w.c.mu.Unlock()
			go w.loop(wg)
			return
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.end(nil)
		wg.Done()
	}()
	n := 1
	if w.c.handleBatch != nil {
		n = w.c.opts.Batch
	}
	now := sinceEpoch()
	for {
		tasks, waited := w.c.queue.take(n)
		if tasks == nil {
			break
		}
		if waited {
			now = sinceEpoch()
		}
		if w.c.handle != nil {
			now = w.runOne(tasks[0], now)
		} else {
			now = w.runBatch(tasks, now)
		}
	}
	returned = true
}

// runOne handles a task and returns the time at its end.
func (w *worker[T]) runOne(t *task[T], now time.Duration) time.Duration {
	m, err := w.prepare(t, now)
	if m == nil {
		return sinceEpoch()
	}
	w.one[0] = t
	ctx := w.begins(w.one[:])
	if t.lost.Load() { // before lose could know of it
		w.ends()
		w.c.forget(t)
		return now
	}
	began := now
	if err == nil {
		err = call(func() error { return w.c.handle(ctx, m) })
	}
	now = sinceEpoch()
	w.settle(w.one[:], err, now-began)
	w.ends()
	w.measure(now - began)
	return now
}

// runBatch handles the tasks that are at their first attempt together, and then others each alone.
func (w *worker[T]) runBatch(tasks []*task[T], now time.Duration) time.Duration {
	together, alone := make([]*task[T], 0, len(tasks)), []*task[T](nil)
	for _, t := range tasks {
		if t.attempt > 1 || t.alone {
			alone = append(alone, t)
		} else {
			together = append(together, t)
		}
	}
	w.keep(alone)
	batch, ms := together[:0], make([]*Message[T], 0, len(together))
	for _, t := range together {
		if m := w.prepareOrSettle(t, now); m != nil {
			batch, ms = append(batch, t), append(ms, m)
		}
	}
	now = w.handleSome(batch, ms)
	for t := w.next(); t != nil; t = w.next() {
		if m := w.prepareOrSettle(t, now); m != nil {
			now = w.handleSome([]*task[T]{t}, []*Message[T]{m})
		}
	}
	return now
}

// keep is for tasks that the worker comes to later. When the consumer stops, they are handed over.
func (w *worker[T]) keep(tasks []*task[T]) {
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	if w.c.stopping {
		w.c.left = append(w.c.left, tasks...)
		return
	}
	w.rest = tasks
}

// next returns one of those that keep was for, nil if there is none any more.
func (w *worker[T]) next() *task[T] {
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	if len(w.rest) == 0 {
		return nil
	}
	t := w.rest[0]
	w.rest = w.rest[1:]
	return t
}

// prepareOrSettle is prepare, and returns nil if that has an error.
func (w *worker[T]) prepareOrSettle(t *task[T], now time.Duration) *Message[T] {
	m, err := w.prepare(t, now)
	if m != nil && err != nil {
		w.settle([]*task[T]{t}, err, 0)
		return nil
	}
	return m
}

// handleSome handles those that were not lost since they were prepared.
func (w *worker[T]) handleSome(tasks []*task[T], ms []*Message[T]) time.Duration {
	ctx := w.begins(tasks)
	for i := len(tasks) - 1; i >= 0; i-- {
		if t := tasks[i]; t.lost.Load() {
			w.ends()
			w.c.forget(t)
			tasks, ms = slices.Delete(slices.Clone(tasks), i, i+1), slices.Delete(ms, i, i+1)
			ctx = w.begins(tasks) //nolint:fatcontext // it is the same one, or a new one instead
		}
	}
	began := sinceEpoch()
	if len(tasks) == 0 {
		w.ends()
		return began
	}
	err := call(func() error { return w.c.handleBatch(ctx, ms) })
	now := sinceEpoch()
	w.settle(tasks, err, now-began)
	w.ends()
	w.measure((now - began) / time.Duration(len(tasks)))
	return now
}

// measure learns how long a handler takes.
func (w *worker[T]) measure(took time.Duration) {
	w.handled++
	w.took += took
	mean := w.c.mean.Load()
	if w.handled < 32 && w.took < 10*time.Millisecond && mean > 0 {
		return
	}
	latest := max(1, int64(w.took)/int64(w.handled))
	if mean > 0 {
		latest = (3*mean + latest) / 4
	}
	w.c.mean.Store(latest)
	w.handled, w.took = 0, 0
}

// prepare sees to it that an attempt may begin, and returns its message, with an error if it cannot be decoded, or nil if
// it may not.
func (w *worker[T]) prepare(t *task[T], now time.Duration) (*Message[T], error) {
	c := w.c
	if t.lost.Load() {
		c.forget(t)
		return nil, nil
	}
	if t.reason != "" {
		c.bury(w.life, t)
		return nil, nil
	}
	// Renewing has not come to it in time if this process was stopped: then others may have it.
	if stale := now-time.Duration(t.renewed.Load()) > c.opts.Lease/2; (!t.begun || stale) && !c.begin(w.life, t) {
		return nil, nil
	}
	m, group, err := t.msg, "", error(nil)
	if m == nil {
		m, group, w.scratch, err = decode(c.s.opts.Codec, entry{t.id, t.fields}, w.scratch)
	} else if m.Redriven {
		group, _ = t.fields[1].ToString() // it was a string when it was decoded
	}
	if m.Redriven && group != c.g.name {
		c.g.counters.skipped.Add(1)
		c.passOn(t)
		c.acks.add(t)
		return nil, nil
	}
	m.Attempt = t.attempt
	t.msg = nil // what the handler does to it is not for the next attempt
	if err == nil {
		err = t.keyErr
	}
	if err != nil {
		err = &DecodeError{err}
	}
	return m, err
}

// begin writes down that an attempt begins, and returns whether it may.
func (c *consumer[T]) begin(ctx context.Context, t *task[T]) bool {
	sent := sinceEpoch()
	n, err := c.do(ctx, beginScript, []string{c.s.key}, c.g.name, c.name, string(t.id), strconv.Itoa(t.attempt)).AsInt64()
	switch {
	case isGone(err) || err == nil && n < 0:
		c.g.counters.deleted.Add(1)
		c.forget(t)
	case err != nil:
		c.report(ctx, OpBegin, err)
		c.park(t, tryAgain)
	case n == 0:
		c.lose(t)
		c.forget(t)
	default:
		t.begun = true
		t.renewed.Store(int64(sent))
		return true
	}
	return false
}

// call calls a handler, and returns an error if it panics.
func call(handler func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v\n%s", ErrPanic, p, debug.Stack())
		}
	}()
	return handler()
}

// usable returns err, or another one if its methods panic, as those of a nil pointer in an error do.
func usable(err error) error {
	panicked := call(func() error {
		var v *verdict
		_ = errors.As(err, &v)
		_ = err.Error()
		return nil
	})
	if panicked != nil {
		return panicked
	}
	return err
}

// backoff is GroupOptions.Backoff, or the default if that panics.
func (c *consumer[T]) backoff(attempt int) (d time.Duration) {
	if err := call(func() error {
		d = c.opts.Backoff(attempt)
		return nil
	}); err != nil {
		c.report(context.Background(), OpBegin, err)
		return defaultBackoff(attempt)
	}
	return max(0, d)
}

// settle does what the handler's error says.
func (w *worker[T]) settle(tasks []*task[T], err error, took time.Duration) {
	c := w.c
	if err == nil {
		for _, t := range tasks {
			w.tell(t, Acked, took, nil)
			c.passOn(t)
		}
		c.acks.add(tasks...)
		return
	}
	err = usable(err)
	v := &verdict{outcome: Retried, err: err}
	said := errors.As(err, &v)
	for _, t := range tasks {
		switch {
		case t.lost.Load():
			w.tell(t, Lost, took, err)
			c.forget(t)
		case !said && w.isStopped(): // it may have failed for that
			w.tell(t, Retried, took, err)
			c.park(t, 0)
		case v.outcome == Dropped:
			w.tell(t, Dropped, took, err)
			c.g.counters.dropped.Add(1)
			c.passOn(t)
			c.acks.add(t)
		case v.outcome == Dead || !said && c.opts.MaxAttempts > 0 && t.attempt >= c.opts.MaxAttempts:
			w.tell(t, Dead, took, err)
			if v.err == nil {
				err = errNoValue
			}
			t.reason = reasonOf(err)
			c.bury(w.life, t)
		default:
			w.tell(t, Retried, took, err)
			c.g.counters.retries.Add(1)
			after := v.after
			if !said {
				after = c.backoff(t.attempt)
				t.attempt++
				t.begun = false
			}
			c.park(t, after)
		}
	}
}

func reasonOf(err error) string {
	s := err.Error()
	if s == "" {
		s = errNoValue.Error()
	}
	return s[:min(len(s), maxReason)]
}

func (w *worker[T]) tell(t *task[T], o Outcome, took time.Duration, err error) {
	if w.c.opts.Hooks.Done != nil {
		w.c.opts.Hooks.Done(w.ctx, Done{ID: t.id, Attempt: t.attempt, Outcome: o, Took: took, Err: err})
	}
}

// passOn lets those with the same key as t go on, before t is acknowledged. One that is alone keeps them waiting until then: if the
// next killed the process, t would look as if it had.
func (c *consumer[T]) passOn(t *task[T]) {
	if !t.holdsKey || t.holdsSolo {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.enqueue(c.lanes.leave(t, true))
}

// bury makes t a dead letter, for t.reason.
func (c *consumer[T]) bury(ctx context.Context, t *task[T]) {
	// When Redis has no room, one at a time finds out whether it has again.
	now := sinceEpoch()
	if until := c.full.Load(); until != 0 {
		if wait := time.Duration(until) - now; wait > 0 {
			c.park(t, wait)
			return
		}
		if !c.full.CompareAndSwap(until, int64(now+tryAgain)) {
			c.park(t, tryAgain)
			return
		}
	}
	deleteOnAck := "0"
	if c.opts.DeleteOnAck {
		deleteOnAck = "1"
	}
	n, err := c.do(ctx, deadScript, []string{c.s.key, c.s.deadKey(c.g.name)},
		c.g.name, c.name, string(t.id), t.reason, strconv.Itoa(t.attempt), deleteOnAck).AsInt64()
	if err != nil && !isGone(err) {
		c.full.Store(int64(sinceEpoch() + tryAgain))
	} else {
		c.full.Store(0)
	}
	switch {
	case err != nil && !isGone(err):
		c.report(ctx, OpDead, err)
		c.park(t, tryAgain)
		return
	case n == 1:
		c.g.counters.dead.Add(1)
	case n < 0:
		c.g.counters.deleted.Add(1)
	default:
		c.g.counters.lost.Add(1)
	}
	c.forget(t)
}
