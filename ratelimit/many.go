package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"time"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/internal/script"
)

// Request is one call of several that are made together. N is at least 1.
type Request struct {
	Limiter *Limiter
	Key     string
	N       int64
}

// AllowMany decides several calls, each by itself, in one round trip to each node. The results are in the order of the
// requests; those of one limiter and key are decided in that order on a single server, and those of another limiter for
// the same key, as With makes, before or after. Each limiter's DenyCache and OnFailure are heeded. With ReturnError, the
// error is that of the first request which Redis did not decide; the results of the others hold all the same. Any request
// that is invalid is an error, and nothing is taken. If ctx ends first, what was taken is unknown.
func AllowMany(ctx context.Context, requests ...Request) ([]Result, error) {
	for _, r := range requests {
		if err := r.check(); err != nil {
			return nil, err
		}
	}
	began := sinceEpoch()
	results := make([]Result, len(requests))
	errs := make([]error, len(requests))
	var todo []int
	for i, r := range requests {
		var ok bool
		if results[i], ok = r.Limiter.decideLocally(r.Key, r.N); !ok {
			todo = append(todo, i)
		}
	}
	for len(todo) > 0 { // once, unless the limiters have different clients
		first := requests[todo[0]].Limiter
		var rest, ours []int
		for _, i := range todo {
			if l := requests[i].Limiter; l.shared == first.shared || isSame(l.client, first.client) {
				ours = append(ours, i)
			} else {
				rest = append(rest, i)
			}
		}
		askMany(ctx, first.shared, requests, ours, results, errs)
		todo = rest
	}
	var failed error
	for i, r := range requests {
		err := errs[i]
		if err != nil && ctx.Err() == nil {
			results[i], err = r.Limiter.fallBack(ctx, r.Key, r.N, err)
		}
		if err != nil {
			if failed == nil {
				failed = fmt.Errorf("ratelimit: allow many: %w", err)
			}
			continue
		}
		r.Limiter.tellDecision(ctx, r.N, results[i], sinceEpoch()-began)
	}
	return results, failed
}

func (r Request) check() error {
	if r.Limiter == nil {
		return errors.New("ratelimit: a request has no Limiter")
	}
	return r.Limiter.check(r.N)
}

// askMany has Redis decide the requests with the given indexes, which are all for the client of s. Where keys of
// different slots may be in one script, those of one limiter share some.
func askMany(ctx context.Context, s *shared, requests []Request, indexes []int, results []Result, errs []error) {
	type chunk struct {
		limiter *Limiter
		runs    []run
		indexes []int // of the runs' requests
		part    int
	}
	now := sinceEpoch()
	bounded, cancel := s.deadlines.Bound(ctx, now)
	defer cancel()
	var chunks []chunk
	var calls []script.Call
	open := make(map[*Limiter]int) // chunks that are not full
	for _, i := range indexes {
		r := requests[i]
		key := r.Limiter.key(r.Key)
		part := r.Limiter.rangeOf(key)
		if errs[i] = r.Limiter.mayAsk(ctx, part, key); errs[i] != nil {
			continue
		}
		at, ok := open[r.Limiter]
		if !ok || s.cluster || len(chunks[at].runs) == maxRuns {
			at = len(chunks)
			open[r.Limiter] = at
			chunks = append(chunks, chunk{limiter: r.Limiter, part: part})
			calls = append(calls, r.Limiter.alg.call.Call(nil))
		}
		chunks[at].runs = append(chunks[at].runs, run{r.Key, r.N, 1})
		chunks[at].indexes = append(chunks[at].indexes, i)
		calls[at].Keys = append(calls[at].Keys, key)
	}
	if len(calls) == 0 {
		return
	}
	for at, c := range chunks {
		calls[at].Args = c.limiter.appendArgs(nil, c.runs)
	}
	for at, result := range script.DoMulti(bounded, s.client, calls) {
		c := chunks[at]
		c.limiter.note(ctx, c.part, result.Error())
		reply, err := newReply(result, len(c.runs), now)
		for j, i := range c.indexes {
			if errs[i] = err; err == nil {
				c.limiter.denied.remember(c.limiter, reply, j, c.runs[j])
				results[i] = c.limiter.resultOf(reply, j, c.runs[j].n, 0)
			}
		}
	}
}

// AllResult is the decision about several calls of which all pass or none.
type AllResult struct {
	// Allowed says whether all passed.
	Allowed bool
	// RetryAfter is 0 if they did, else when all would at the earliest; Never if one of them cannot.
	RetryAfter time.Duration
	// Results has one for each request, in order. Where Allowed above is false nothing was taken, and Allowed here says
	// whether this call would have passed alone. If it was decided without a round trip, only those that are the
	// cause are filled in; the others' Limit is 0.
	Results []Result
}

// AllowAll admits all of several calls or none, atomically, in one round trip: a call that is refused leaves the limits
// of the others untouched. The limiters may be of any kind, must have the same client, and no two requests the same key
// of Redis. The Timeout of the first one applies, and the OnFailure of each: with ReturnError for one, a failure is an
// error. If ctx ends first, what was taken is given back, in one more round trip for each request.
//
// In a cluster the keys must be in one slot, or the error is ErrCrossSlot. They are if they begin with the same hash tag,
// as in "{acme}alice" and "{acme}", or are equal.
func AllowAll(ctx context.Context, requests ...Request) (AllResult, error) {
	if len(requests) == 0 {
		return AllResult{Allowed: true}, nil
	}
	first := requests[0].Limiter
	keys := make([]string, len(requests))
	seen := make(map[string]bool, len(requests))
	for i, r := range requests {
		if err := r.check(); err != nil {
			return AllResult{}, err
		}
		keys[i] = r.Limiter.key(r.Key)
		switch {
		case r.Limiter.shared != first.shared && !isSame(r.Limiter.client, first.client):
			return AllResult{}, errors.New("ratelimit: limiters have different clients")
		case seen[keys[i]]:
			return AllResult{}, errors.New("ratelimit: two requests are for one key")
		case first.cluster && first.slotOf(keys[i]) != first.slotOf(keys[0]):
			return AllResult{}, ErrCrossSlot
		}
		seen[keys[i]] = true
	}
	began := sinceEpoch()
	all, decided := AllResult{Results: make([]Result, len(requests))}, false
	for i, r := range requests {
		if refused, ok := r.Limiter.decideLocally(r.Key, r.N); ok {
			all.Results[i], decided = refused, true
			all.RetryAfter = max(all.RetryAfter, refused.RetryAfter)
		}
	}
	if !decided {
		var err error
		if all, err = first.commitAll(ctx, requests, keys, began); err != nil {
			if ctx.Err() != nil {
				return AllResult{}, fmt.Errorf("ratelimit: allow all: %w", err)
			}
			if all, err = fallBackAll(ctx, requests, err); err != nil {
				return AllResult{}, fmt.Errorf("ratelimit: allow all: %w", err)
			}
		}
	}
	for i, r := range requests {
		if all.Results[i].Limit > 0 {
			r.Limiter.tellDecision(ctx, r.N, all.Results[i], sinceEpoch()-began)
		}
	}
	return all, nil
}

// commitAll has Redis decide the requests. For a caller that may leave while it does, a goroutine asks, and gives back what
// was taken if that caller has left.
func (l *Limiter) commitAll(ctx context.Context, requests []Request, keys []string, began time.Duration) (AllResult, error) {
	if err := ctx.Err(); err != nil {
		return AllResult{}, err
	}
	detached := detach(ctx)
	if l.canLead(ctx) {
		all, _, err := l.askAll(detached, requests, keys, began)
		return all, err
	}
	type answer struct {
		all AllResult
		err error
	}
	answers := make(chan answer)
	requests = slices.Clone(requests) // the caller's may change when it has left
	go func() {
		all, reply, err := l.askAll(detached, requests, keys, began)
		select {
		case answers <- answer{all, err}:
		case <-ctx.Done():
			if err == nil && all.Allowed {
				giveBackAll(detached, l.opts.Timeout, requests, reply)
			}
		}
	}()
	select {
	case a := <-answers:
		return a.all, a.err
	case <-ctx.Done():
		return AllResult{}, ctx.Err()
	}
}

// giveBackAll returns what was taken by requests, to just what it was taken from, within a timeout.
func giveBackAll(ctx context.Context, timeout time.Duration, requests []Request, reply reply) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for i, r := range requests {
		_, _, _, _, mark := reply.of(i)
		r.Limiter.giveBack(ctx, []run{{r.Key, r.N, -mark}})
	}
}

func (l *Limiter) askAll(ctx context.Context, requests []Request, keys []string, now time.Duration) (AllResult, reply, error) {
	part := l.rangeOf(keys[0])
	if err := l.mayAsk(ctx, part, keys[0]); err != nil {
		return AllResult{}, reply{}, err
	}
	bounded, cancel := l.deadlines.Bound(ctx, now)
	defer cancel()
	var args []string
	for _, r := range requests {
		args = append(append(append(args, r.Limiter.alg.name), r.Limiter.numbers[:]...), strconv.FormatInt(r.N, 10))
	}
	result := script.Do(bounded, l.client, allScript.Call(keys, args...))
	l.note(ctx, part, result.Error())
	answer, err := newReply(result, len(requests), now)
	if err != nil {
		return AllResult{}, reply{}, err
	}
	all := AllResult{Allowed: true, Results: make([]Result, len(requests))}
	for i, r := range requests {
		all.Results[i] = r.Limiter.resultOf(answer, i, r.N, 0)
		all.Allowed = all.Allowed && all.Results[i].Allowed
		all.RetryAfter = max(all.RetryAfter, all.Results[i].RetryAfter)
		r.Limiter.denied.remember(r.Limiter, answer, i, run{r.Key, r.N, 1})
	}
	return all, answer, nil
}

// fallBackAll applies each limiter's OnFailure to calls that err kept Redis from deciding.
func fallBackAll(ctx context.Context, requests []Request, err error) (AllResult, error) {
	all := AllResult{Allowed: true, Results: make([]Result, len(requests))}
	var failed error
	for i, r := range requests {
		if all.Results[i], failed = r.Limiter.fallBack(ctx, r.Key, r.N, err); failed != nil {
			all.Allowed = false
			break
		}
		all.Allowed = all.Allowed && all.Results[i].Allowed
		all.RetryAfter = max(all.RetryAfter, all.Results[i].RetryAfter)
	}
	if !all.Allowed {
		for i, r := range requests {
			if all.Results[i].Allowed && r.Limiter.opts.OnFailure == Local {
				r.Limiter.local.give(r.Limiter, r.Key, r.N)
				all.Results[i].Remaining += r.N
			}
		}
	}
	if failed != nil {
		return AllResult{}, failed
	}
	return all, nil
}

// isSame reports whether two clients are one; if they cannot be compared they are not.
func isSame(a, b rueidis.Client) bool {
	return reflect.TypeOf(a).Comparable() && reflect.TypeOf(b).Comparable() && a == b
}
