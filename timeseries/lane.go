package timeseries

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"runtime"
	"sync"
	"time"
)

const (
	lanes        = 2   // the parts of all series, each with a round trip under way at a time
	clusterLanes = 256 // there only writes of one series share a script
	gatherRounds = 8
)

var seed = maphash.MakeSeed() // of which lane a series has

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

func newBatch() *batch { return &batch{ops: make(map[opKey]*op, 8), done: make(chan struct{})} }

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
		if n == nil || !n.merge(o) {
			l.put(o.copy()) // who waits for o still looks at its error
		} else {
			l.grow(len(n.members) - before)
		}
	}
}

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
