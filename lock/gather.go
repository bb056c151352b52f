package lock

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/internal/deadline"
	"github.com/redispatterns/redispatterns/internal/gather"
	"github.com/redispatterns/redispatterns/internal/script"
)

// Locks that are free are taken and released together where there are many at a time. Not so in a cluster, where a script has
// keys of one slot, nor with Replicas: WAIT is for one acquisition.
const maxGathered = 64 // in one round trip

// request is to take a lock, or to release it.
type request struct {
	keys        *lockKeys
	token, used string        // used is the highest fence, or empty to take the lock
	sent        time.Duration // since epoch
	result      int64         // the fence of a lock that was taken, or released, or nothingDone
	err         error
}

const nothingDone = 0

func (l *Locker) newTrips() *gather.Trips[request] {
	if l.cluster || l.opts.Replicas > 0 {
		return nil
	}
	return &gather.Trips[request]{
		Most:     maxGathered,
		Patience: deadline.New(opTimeout(l.opts.TTL) / 8),
		Make:     l.makeTogether,
		Fail: func(r *request, value any) {
			r.err = fmt.Errorf("client: %v", value)
		},
		Left: func(r *request) {
			if r.used == "" && (r.err != nil || r.result != nothingDone) {
				l.mu.Lock()
				defer l.mu.Unlock()
				l.giveUp(*r.keys, r.token, 0, r.err != nil, 0)
			}
		},
		Go: func(f func()) {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.spawn(f)
		},
	}
}

// acquireFirst is acquire for a token that Redis does not know yet.
func (l *Locker) acquireFirst(ctx context.Context, keys *lockKeys, token, mode string) (answer, error) {
	if l.trips.Begin() {
		defer l.trips.End()
		return l.acquire(ctx, keys, token, mode)
	}
	r := request{keys: keys, token: token}
	if !l.together(ctx, &r) {
		return l.acquire(ctx, keys, token, mode)
	}
	return answer{token: token, asked: mode != "", sent: r.sent, granted: r.err == nil, fence: r.result}, slow(ctx, r.err)
}

// releaseHeld is release for a token that has the lock, as far as is known.
func (l *Locker) releaseHeld(ctx context.Context, keys *lockKeys, token string, used int64) (int64, error) {
	if l.trips.Begin() {
		defer l.trips.End()
		return l.release(ctx, keys, token, used)
	}
	r := request{keys: keys, token: token, used: strconv.FormatInt(used, 10)}
	if !l.together(ctx, &r) {
		return l.release(ctx, keys, token, used)
	}
	return r.result, r.err
}

// together makes a request with others. It returns false if it is to be made alone.
func (l *Locker) together(ctx context.Context, r *request) bool {
	made, err := l.trips.Do(ctx, r)
	if err != nil {
		r.err = err
		return true
	}
	return made && (r.result != nothingDone || r.err != nil)
}

// makeTogether makes requests, in one script. Locks are taken first: once a script has written, a Redis that is full lets it
// write more.
func (l *Locker) makeTogether(rs []*gather.Request[request]) {
	slices.SortStableFunc(rs, func(a, b *gather.Request[request]) int { return cmp.Compare(len(a.Value.used), len(b.Value.used)) })
	keys, args := make([]string, 0, 2*len(rs)), make([]string, 2, 2+2*len(rs))
	args[0], args[1] = l.args.ttl, l.opts.Meta
	for _, r := range rs {
		keys = append(keys, r.Value.keys[0], r.Value.keys[1])
		args = append(args, r.Value.token, r.Value.used)
	}
	sent := sinceEpoch()
	ctx, cancel := l.deadlines.Bound(l.stop, sent)
	defer cancel()
	results, err := l.do(ctx, l.stop, script.Call{Script: gatheredScript, Keys: keys, Args: args}).AsIntSlice()
	if _, refused := rueidis.IsRedisErr(err); refused {
		results, err = make([]int64, len(rs)), nil // by one, perhaps: each finds out by itself
	}
	for i, r := range rs {
		r.Value.sent, r.Value.err = sent, err
		if err == nil {
			r.Value.result = results[i]
		}
	}
}
