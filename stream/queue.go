package stream

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"
)

// task is a message that a consumer has.
type task[T any] struct {
	id      ID
	fields  []rueidis.RedisMessage
	attempt int  // the next, or that at work, from 1
	begun   bool // whether Redis knows of this attempt
	parked  *time.Timer
	due     time.Duration // when parked ends, on the package's clock
	reason  string        // why it is to become a dead letter, if it is
	renewed atomic.Int64  // since when the lease runs, at the latest, on the package's clock
	alone   bool          // to be handled while no other such one is

	lost atomic.Bool

	msg       *Message[T] // if it was decoded early, for its key, and not handled yet
	keyErr    error       // if that panicked
	key       string
	keyed     bool
	holdsKey  bool
	holdsSolo bool
}

// queue has the tasks that workers are to take, in batches as they came: of the current one each worker takes the next by counting.
type queue[T any] struct {
	current atomic.Pointer[pack[T]]

	mu      sync.Mutex
	more    []*pack[T]
	workers int
	idle    int // workers that wait
	wake    sync.Cond
	closed  bool
	drained func(all bool) // is called when a worker runs out of tasks, or all have
}

type pack[T any] struct {
	tasks []*task[T]
	taken atomic.Int64
}

func (p *pack[T]) left() int {
	if p == nil {
		return 0
	}
	return int(max(0, int64(len(p.tasks))-p.taken.Load()))
}

func newQueue[T any](workers int, drained func(all bool)) *queue[T] {
	q := &queue[T]{workers: workers, drained: drained}
	q.wake.L = &q.mu
	return q
}

func (q *queue[T]) push(tasks ...*task[T]) {
	if len(tasks) == 0 {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.more = append(q.more, &pack[T]{tasks: tasks})
	q.wake.Signal() // who wakes up wakes the next, as long as there is something left
}

// take returns up to n tasks, at least one unless the queue is closed, and whether it may have waited.
func (q *queue[T]) take(n int) (tasks []*task[T], waited bool) {
	for {
		p := q.current.Load()
		if p != nil {
			all, end := int64(len(p.tasks)), p.taken.Add(int64(n)) // which is beyond an int of 32 bits once closed
			if begin := end - int64(n); begin < all {
				return p.tasks[begin:min(end, all)], waited
			}
		}
		if waited = true; !q.next(p) {
			return nil, waited
		}
	}
}

// next waits until there is another pack than p, or returns false.
func (q *queue[T]) next(p *pack[T]) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.current.Load() == p && !q.closed {
		if len(q.more) > 0 {
			q.current.Store(q.more[0])
			q.more = q.more[1:]
			break
		}
		q.idle++
		q.drained(q.idle == q.workers)
		q.wake.Wait()
		q.idle--
	}
	if q.closed {
		return false
	}
	if q.idle > 0 && (q.current.Load().left() > 1 || len(q.more) > 0) {
		q.wake.Signal()
	}
	return true
}

// state returns how many tasks wait and how many workers do.
func (q *queue[T]) state() (tasks, workers int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	tasks = q.current.Load().left()
	for _, p := range q.more {
		tasks += len(p.tasks)
	}
	return tasks, q.idle
}

// close ends all takes and returns the tasks that nobody took.
func (q *queue[T]) close() (left []*task[T]) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	if p := q.current.Load(); p != nil {
		taken := p.taken.Swap(1 << 40)
		left = append(left, p.tasks[min(taken, int64(len(p.tasks))):]...)
	}
	for _, p := range q.more {
		left = append(left, p.tasks...)
	}
	q.more = nil
	q.wake.Broadcast()
	return left
}

// lanes keep tasks back that must not be handled yet: those whose key is at work, and those that are to be handled alone. A
// task that goes on holds its lane until it is released.
type lanes[T any] struct {
	keys     map[string][]*task[T] // what waits for each key that is held
	soloHeld bool
	solo     []*task[T]
}

// enter returns whether t may go on.
func (l *lanes[T]) enter(t *task[T]) bool {
	if t.keyed && !t.holdsKey {
		waiting, held := l.keys[t.key]
		if held {
			// What was claimed late may be older than what waits.
			i := len(waiting)
			for i > 0 && idLess(t.id, waiting[i-1].id) {
				i--
			}
			l.keys[t.key] = slices.Insert(waiting, i, t)
			return false
		}
		l.keys[t.key] = nil
		t.holdsKey = true
	}
	if t.alone && !t.holdsSolo {
		if l.soloHeld {
			l.solo = append(l.solo, t)
			return false
		}
		l.soloHeld, t.holdsSolo = true, true
	}
	return true
}

// leave gives up what t holds, all of it if it is done, and returns the tasks that may go on instead.
func (l *lanes[T]) leave(t *task[T], done bool) (next []*task[T]) {
	if t.holdsSolo {
		t.holdsSolo, l.soloHeld = false, false
		if len(l.solo) > 0 {
			first := l.solo[0]
			l.solo = l.solo[1:]
			if l.enter(first) {
				next = append(next, first)
			}
		}
	}
	if t.holdsKey && done {
		t.holdsKey = false
		waiting := l.keys[t.key]
		delete(l.keys, t.key)
		if len(waiting) > 0 {
			first := waiting[0]
			if l.enter(first) {
				next = append(next, first)
			}
			l.keys[t.key] = waiting[1:]
		}
	}
	return next
}

// close returns all tasks that wait.
func (l *lanes[T]) close() (left []*task[T]) {
	left = l.solo
	for _, waiting := range l.keys {
		left = append(left, waiting...)
	}
	l.solo, l.keys = nil, map[string][]*task[T]{}
	return left
}

// idLess compares ids as Redis makes them: numbers without leading zeros.
func idLess(a, b ID) bool {
	am, bm := a.millis(), b.millis()
	if am == bm {
		am, bm = string(a), string(b)
	}
	if len(am) != len(bm) {
		return len(am) < len(bm)
	}
	return am < bm
}
