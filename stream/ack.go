package stream

import (
	"context"
	"sync"
	"time"

	"github.com/redispatterns/redispatterns/internal/script"
)

const (
	ackBatch = 128              // sent at once
	ackDelay = time.Millisecond // fewer wait for others so long, unless all workers are idle
	ackMost  = 1000             // in one command
)

// acker acknowledges what was handled: what is done while one command is under way is in the next.
type acker[T any] struct {
	c     *consumer[T]
	wake  chan struct{} // there is something
	flush chan struct{} // there is much, or no more for now

	mu      sync.Mutex
	done    []*task[T]
	spare   []*task[T]
	sending int
	closed  chan struct{}
}

func newAcker[T any](c *consumer[T]) *acker[T] {
	return &acker[T]{c: c, wake: make(chan struct{}, 1), flush: make(chan struct{}, 1), closed: make(chan struct{})}
}

func (a *acker[T]) add(tasks ...*task[T]) {
	a.mu.Lock()
	before := len(a.done)
	a.done = append(a.done, tasks...)
	after := len(a.done)
	a.mu.Unlock()
	if before == 0 {
		notify(a.wake)
	}
	if before < ackBatch && after >= ackBatch {
		notify(a.flush)
	}
}

// idle reports whether nothing is to be acknowledged.
func (a *acker[T]) idle() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.done)+a.sending == 0
}

// close has what is left sent.
func (a *acker[T]) close() { close(a.closed) }

// loop ends after close, or with ctx.
func (a *acker[T]) loop(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var wait backoff
	for {
		select {
		case <-a.wake:
			a.gather(timer)
		case <-a.closed:
		}
		batch := a.takeAll()
		for len(batch) > 0 {
			n := min(ackMost, len(batch))
			if err := a.send(ctx, batch[:n]); err != nil {
				a.c.report(ctx, OpAck, err)
				if ctx.Err() != nil {
					return
				}
				sleep(ctx, wait.next())
				continue
			}
			wait = backoff{}
			batch = batch[n:]
		}
		if a.isClosed() && a.isEmpty() {
			return
		}
	}
}

// gather waits for more, if more is to come soon.
func (a *acker[T]) gather(timer *time.Timer) {
	a.mu.Lock()
	n := len(a.done)
	a.mu.Unlock()
	if waiting, idle := a.c.queue.state(); n >= ackBatch || waiting == 0 && idle == a.c.opts.Workers {
		return
	}
	select {
	case <-a.flush: // may be an old one
	default:
	}
	if waiting, idle := a.c.queue.state(); waiting == 0 && idle == a.c.opts.Workers {
		return
	}
	timer.Reset(ackDelay)
	select {
	case <-a.flush:
	case <-timer.C:
	case <-a.closed:
	}
}

func (a *acker[T]) takeAll() []*task[T] {
	a.mu.Lock()
	defer a.mu.Unlock()
	batch := a.done
	a.done, a.spare = a.spare[:0], batch
	a.sending = len(batch)
	return batch
}

func (a *acker[T]) isEmpty() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sending = 0
	return len(a.done) == 0
}

func (a *acker[T]) isClosed() bool {
	select {
	case <-a.closed:
		return true
	default:
		return false
	}
}

// send acknowledges tasks, and forgets them.
func (a *acker[T]) send(ctx context.Context, tasks []*task[T]) error {
	c := a.c
	ctx, cancel := context.WithTimeout(ctx, c.opTimeout)
	defer cancel()
	var err error
	if c.opts.DeleteOnAck {
		err = a.ackAndDelete(ctx, tasks)
	} else {
		ack := c.s.client.B().Arbitrary("XACK").Keys(c.s.key).Args(c.g.name)
		for _, t := range tasks {
			ack = ack.Args(string(t.id))
		}
		err = c.s.client.Do(ctx, built(ack, c.aside())).Error()
	}
	c.heed(err)
	if err != nil {
		return err
	}
	c.g.counters.acked.Add(uint64(len(tasks)))
	a.mu.Lock()
	a.sending -= len(tasks)
	a.mu.Unlock()
	c.mu.Lock()
	for _, t := range tasks {
		c.remove(t)
		if t.holdsSolo {
			c.enqueue(c.lanes.leave(t, true))
		}
	}
	c.mu.Unlock()
	notify(c.space)
	return nil
}

func (a *acker[T]) ackAndDelete(ctx context.Context, tasks []*task[T]) error {
	args := make([]string, 0, 1+len(tasks))
	args = append(args, a.c.g.name)
	for _, t := range tasks {
		args = append(args, string(t.id))
	}
	call := ackScript.Call([]string{a.c.s.key}, args...)
	call.Aside = a.c.aside()
	r, err := script.Do(ctx, a.c.s.client, call).AsIntSlice()
	if err == nil && len(r) == 2 && r[1] == 0 {
		a.c.report(ctx, OpAck, ErrSecondGroup)
	}
	return err
}
