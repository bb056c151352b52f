package lock

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/internal/script"
)

// Locks that are free are taken and released together where there are many at a time: maxTrips round trips are under way,
// and what comes meanwhile gathers for the next one, or fills one, which costs Redis, and rueidis, less than each by itself.
// Nobody waits for a timer, and while there are few, each goes by itself, as does one that none of those under way has made
// room for in an eighth of the time for a command. Not so in a cluster, where a script has keys of one slot.
const (
	maxTrips    = 4
	maxGathered = 64 // in one round trip
)

// gather is the requests of one Locker.
type gather struct {
	mu      sync.Mutex
	trips   int // under way
	waiting []*request
}

// request is to take a lock, or to release it.
type request struct {
	keys        *lockKeys
	token, used string        // used is the highest fence, or empty to take the lock
	state       requestState  // the gather's mu
	sent        time.Duration // since epoch
	result      int64         // the fence of a lock that was taken, or released, or nothingDone
	err         error
	done        chan struct{} // gets one value
}

type requestState int8

const (
	gathering requestState = iota
	taken                  // by a round trip, which answers it
	gone                   // whoever made it does not wait for the answer
	answered               // or about to be
)

var requests = sync.Pool{New: func() any { return &request{done: make(chan struct{}, 1)} }}

const nothingDone = 0

// acquireFirst is acquire for a token that Redis does not know yet.
func (l *Locker) acquireFirst(ctx context.Context, keys *lockKeys, token, mode string) (answer, error) {
	if l.beginTrip() {
		defer l.endTrip() //nolint:contextcheck // who goes next has not come with this ctx
		return l.acquire(ctx, keys, token, mode)
	}
	fence, sent, err := l.together(ctx, keys, token, "")
	if fence == nothingDone && err == nil {
		return l.acquire(ctx, keys, token, mode)
	}
	return answer{token: token, asked: mode != "", sent: sent, granted: err == nil, fence: fence}, slow(ctx, err)
}

// releaseHeld is release for a token that has the lock, as far as is known.
func (l *Locker) releaseHeld(ctx context.Context, keys *lockKeys, token string, used int64) (int64, error) {
	if l.beginTrip() {
		defer l.endTrip() //nolint:contextcheck // who goes next has not come with this ctx
		return l.release(ctx, keys, token, used)
	}
	found, _, err := l.together(ctx, keys, token, strconv.FormatInt(used, 10))
	if found == nothingDone && err == nil {
		return l.release(ctx, keys, token, used)
	}
	return found, err
}

// beginTrip reports whether a request is to be made alone: then endTrip follows it.
func (l *Locker) beginTrip() bool {
	g := &l.gather
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.trips >= maxTrips && !l.cluster && l.opts.Replicas == 0 { // WAIT is for one acquisition
		return false
	}
	g.trips++
	return true
}

// together makes a request with others. It returns nothingDone if nothing was done and the request is to be made alone,
// else the fence of a lock that was taken, or released; and when that was sent.
func (l *Locker) together(ctx context.Context, keys *lockKeys, token, used string) (result int64, sent time.Duration, err error) {
	g := &l.gather
	r := requests.Get().(*request)
	r.keys, r.token, r.used = keys, token, used
	g.mu.Lock()
	g.waiting = append(g.waiting, r)
	goes := g.trips < maxTrips || len(g.waiting) >= maxGathered // what is full has nothing to wait for
	if goes {
		g.trips++
	}
	g.mu.Unlock()
	if goes {
		l.endTrip() //nolint:contextcheck // who goes next has not come with this ctx
	}
	bound, cancel := l.patience.Bound(ctx, sinceEpoch())
	defer cancel()
	select {
	case <-r.done:
		return r.answer()
	case <-bound.Done():
	}
	g.mu.Lock()
	if r.state == gathering { // those who are under way hang: it has a better chance alone
		r.state = gone
		g.mu.Unlock()
		return nothingDone, 0, ctx.Err()
	}
	g.mu.Unlock()
	select {
	case <-r.done: // within the time for one command
		return r.answer()
	case <-ctx.Done():
	}
	g.mu.Lock()
	if r.state == answered {
		g.mu.Unlock()
		<-r.done
		return r.answer()
	}
	r.state = gone
	g.mu.Unlock()
	return nothingDone, 0, ctx.Err()
}

// answer returns what became of a request, which is then used again.
func (r *request) answer() (result int64, sent time.Duration, err error) {
	result, sent, err = r.result, r.sent, r.err
	*r = request{done: r.done}
	requests.Put(r)
	return result, sent, err
}

// endTrip ends a round trip: those who wait get the next one.
func (l *Locker) endTrip() {
	if rs := l.gather.next(); len(rs) > 0 {
		l.beginNext(rs)
	}
}

// beginNext makes requests, and those who come meanwhile, on a goroutine of its own.
func (l *Locker) beginNext(rs []*request) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.spawn(func() {
		defer func() {
			if len(rs) > 0 { // a wrapped client panicked, or called runtime.Goexit
				l.answer(rs, nil, 0, fmt.Errorf("client: %v", recover()))
				l.endTrip()
			}
		}()
		for ; len(rs) > 0; rs = l.gather.next() {
			l.sendTogether(rs)
		}
	})
}

// next returns the requests that wait, maxGathered at most. If there are none, a round trip less is under way.
func (g *gather) next() []*request {
	g.mu.Lock()
	defer g.mu.Unlock()
	var rs []*request
	for len(rs) < maxGathered && len(g.waiting) > 0 {
		if r := g.waiting[0]; r.state == gathering {
			r.state = taken
			rs = append(rs, r)
		}
		g.waiting = g.waiting[1:]
	}
	if len(rs) == 0 {
		g.trips--
	}
	return rs
}

// sendTogether makes requests, in one script. Locks are taken first: once a script has written, a Redis that is full lets it
// write more.
func (l *Locker) sendTogether(rs []*request) {
	slices.SortStableFunc(rs, func(a, b *request) int { return cmp.Compare(len(a.used), len(b.used)) })
	keys, args := make([]string, 0, 2*len(rs)), make([]string, 2, 2+2*len(rs))
	args[0], args[1] = l.args.ttl, l.opts.Meta
	for _, r := range rs {
		keys = append(keys, r.keys[0], r.keys[1])
		args = append(args, r.token, r.used)
	}
	sent := sinceEpoch()
	ctx, cancel := l.deadlines.Bound(l.stop, sent)
	defer cancel()
	results, err := script.Do(ctx, l.client, script.Call{Script: gatheredScript, Keys: keys, Args: args}).AsIntSlice()
	if _, refused := rueidis.IsRedisErr(err); refused {
		results, err = make([]int64, len(rs)), nil // by one, perhaps: each finds out by itself
	}
	l.answer(rs, results, sent, err)
}

func (l *Locker) answer(rs []*request, results []int64, sent time.Duration, err error) {
	for i, r := range rs {
		r.sent, r.err = sent, err
		if err == nil {
			r.result = results[i]
		}
		l.gather.mu.Lock()
		left := r.state == gone
		r.state = answered
		l.gather.mu.Unlock()
		r.done <- struct{}{}
		if left && r.used == "" && (err != nil || r.result != nothingDone) {
			l.mu.Lock()
			l.giveUp(*r.keys, r.token, 0, err != nil, 0)
			l.mu.Unlock()
		}
	}
}
