// Package gather makes requests together where there are many at a time: four round trips are under way, and what comes
// meanwhile gathers for the next one, or fills one, which costs Redis, and rueidis, much less than each by itself. Nobody
// waits for a timer: while there are few, each goes by itself, as does one that none of those under way has made room for
// when its patience ends.
package gather

import (
	"context"
	"sync"
	"time"

	"github.com/redispatterns/redispatterns/internal/deadline"
)

// maxTrips are under way, and one more for each that is full. With fewer, a trip that is slow holds up too many; with more,
// fewer go together.
const maxTrips = 4

// Trips makes requests of one kind. Its exported fields are set before it is used. With a nil *Trips each request goes alone.
type Trips[R any] struct {
	Most     int                    // requests in one round trip
	Patience *deadline.Shared       // how long a request waits for a round trip before it goes alone
	Make     func(rs []*Request[R]) // makes requests in one round trip and sets what became of each
	Fail     func(r *R, value any)  // sets what became of a request when Make panicked with a value, or called runtime.Goexit
	Left     func(r *R)             // if not nil, is told what became of a request whose caller did not wait for it
	Go       func(func())           // runs a function on a goroutine of its own

	mu       sync.Mutex
	underWay int
	waiting  []*Request[R]
	pool     sync.Pool // of *Request[R]
}

// Request is one request and its result.
type Request[R any] struct {
	Value R

	state state // Trips' mu
	done  chan struct{}
}

type state uint8

const (
	gathering state = iota
	taken           // by a round trip
	gone            // whoever made it does not wait
	answered        // done has a value, or is about to
)

var epoch = time.Now()

// Begin reports whether there are so few requests that the caller is to make its own by itself. Then End must follow.
func (t *Trips[R]) Begin() bool {
	if t == nil {
		return true
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.underWay >= maxTrips {
		return false
	}
	t.underWay++
	return true
}

// End ends a round trip: those who wait get the next one.
func (t *Trips[R]) End() {
	if t == nil {
		return
	}
	t.mu.Lock()
	rs := t.next(nil)
	t.mu.Unlock()
	t.start(rs)
}

// start makes requests, if there are any.
func (t *Trips[R]) start(rs []*Request[R]) {
	if len(rs) > 0 {
		t.Go(func() { t.run(rs) })
	}
}

// Do makes a request with others, and sets its result, if it returns true. If not, it is to be made alone, unless there is
// an error, which is ctx's: then it may have been made, or will be.
func (t *Trips[R]) Do(ctx context.Context, r *R) (bool, error) {
	q, _ := t.pool.Get().(*Request[R])
	if q == nil {
		q = &Request[R]{done: make(chan struct{}, 1)}
	}
	q.Value = *r
	t.mu.Lock()
	t.waiting = append(t.waiting, q)
	var together []*Request[R]
	if t.underWay < maxTrips || len(t.waiting) >= t.Most { // what is full has nothing to wait for
		t.underWay++
		together = t.next(nil)
	}
	t.mu.Unlock()
	t.start(together)
	if !t.wait(ctx, q) {
		return false, ctx.Err()
	}
	*r = q.Value
	*q = Request[R]{done: q.done}
	t.pool.Put(q)
	return true, nil
}

// wait returns whether q has its result; if not, nobody waits for that.
func (t *Trips[R]) wait(ctx context.Context, q *Request[R]) bool {
	patience, cancel := t.Patience.Bound(context.Background(), time.Since(epoch))
	defer cancel()
	select {
	case <-q.done:
		return true
	case <-ctx.Done():
	case <-patience.Done():
	}
	if t.leave(q, false) { // those who are under way hang: it has a better chance alone
		return false
	}
	select {
	case <-q.done: // within the time for one round trip
		return true
	case <-ctx.Done():
	}
	if t.leave(q, true) {
		return false
	}
	<-q.done
	return true
}

// leave lets q's caller go, unless q has its result, or is under way and that is worth waiting for.
func (t *Trips[R]) leave(q *Request[R], evenUnderWay bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if q.state == gathering || q.state == taken && evenUnderWay {
		q.state = gone
		return true
	}
	return false
}

// run makes requests, and those that come meanwhile.
func (t *Trips[R]) run(rs []*Request[R]) {
	defer func() {
		if len(rs) == 0 {
			return
		}
		value := recover()
		for _, r := range rs {
			t.Fail(&r.Value, value)
		}
		t.answer(rs)
		t.End()
	}()
	for len(rs) > 0 {
		t.Make(rs)
		t.answer(rs)
		t.mu.Lock()
		rs = t.next(rs)
		t.mu.Unlock()
	}
}

func (t *Trips[R]) answer(rs []*Request[R]) {
	for _, r := range rs {
		t.mu.Lock()
		left := r.state == gone
		r.state = answered
		t.mu.Unlock()
		switch {
		case !left:
			r.done <- struct{}{}
		case t.Left != nil:
			t.Left(&r.Value)
		}
	}
}

// next returns requests that wait, as many as one round trip makes. If there are none, a round trip less is under way. It
// may use the memory of done. t.mu is held.
func (t *Trips[R]) next(done []*Request[R]) []*Request[R] {
	clear(done)
	rs := done[:0]
	n := 0
	for n < len(t.waiting) && len(rs) < t.Most {
		if r := t.waiting[n]; r.state == gathering {
			r.state = taken
			rs = append(rs, r)
		}
		n++
	}
	rest := copy(t.waiting, t.waiting[n:])
	clear(t.waiting[rest:])
	t.waiting = t.waiting[:rest]
	if len(rs) == 0 {
		t.underWay--
	}
	return rs
}
