package ratelimit

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/internal/deadline"
	"github.com/redispatterns/redispatterns/internal/script"
)

// run is count calls for a key of n units each; or, without any, the question whether one would pass; or, with giveBack,
// n units that are given back; or, with the negative of a mark, n units that are given back to what calls took them from.
type run struct {
	key      string // the caller's
	n, count int64
}

const giveBack = -1

// reply is what call.lua says of each run.
type reply struct {
	values []rueidis.RedisMessage // five per run
	sent   time.Duration          // since epoch
}

const valuesPerRun = 5

var errReply = errors.New("unexpected reply from redis")

// of returns how many calls of a run were admitted, what is left then, and how many microseconds it takes until another
// such call passes and until the limit is whole; and the mark of what was taken from.
func (r reply) of(i int) (admitted, left, wait, reset, mark int64) {
	v := r.values[i*valuesPerRun:]
	admitted, _ = v[0].AsInt64() // newReply has looked
	left, _ = v[1].AsInt64()
	wait, _ = v[2].AsInt64()
	reset, _ = v[3].AsInt64()
	mark, _ = v[4].AsInt64()
	return admitted, left, wait, reset, mark
}

func newReply(result rueidis.RedisResult, runs int, sent time.Duration) (reply, error) {
	values, err := result.ToArray()
	if err != nil {
		return reply{}, err
	}
	if len(values) != runs*valuesPerRun {
		return reply{}, errReply
	}
	for i := range values {
		if !values[i].IsInt64() {
			return reply{}, errReply
		}
	}
	return reply{values, sent}, nil
}

// resultOf returns the result of the index-th call of a run.
func (l *Limiter) resultOf(r reply, i int, n, index int64) Result {
	admitted, left, wait, reset, _ := r.of(i)
	result := Result{Limit: l.most, Remaining: left, ResetAfter: micros(reset)}
	if index < admitted {
		later := (admitted - 1 - index) * n // what was taken after this call, and before left was counted
		result.Allowed = true
		result.Remaining += later
		result.ResetAfter -= micros(l.refill.took(later))
		return result
	}
	result.RetryAfter = micros(wait)
	return result
}

// trip makes one round trip. In a cluster the runs must have the same key. began is when the first of those who wait for
// it called, or 0.
func (l *Limiter) trip(ctx context.Context, runs []run, began time.Duration) (reply, error) {
	var fewKeys [1]string // variables, so that the usual call needs no allocation
	var fewArgs [5]string
	keys, args := fewKeys[:0], fewArgs[:0]
	if len(runs) > len(fewKeys) {
		keys = make([]string, 0, len(runs))
	}
	for _, r := range runs {
		keys = append(keys, l.key(r.key))
	}
	part := l.rangeOf(keys[0])
	if err := l.mayAsk(ctx, part, keys[0]); err != nil {
		return reply{}, err
	}
	now := sinceEpoch()
	bounded, cancel, err := l.bound(ctx, now, began)
	if err != nil {
		return reply{}, err
	}
	defer cancel()
	result := script.Do(bounded, l.client, l.alg.call.Call(keys, l.appendArgs(args, runs)...))
	l.note(ctx, part, result.Error())
	return newReply(result, len(runs), now)
}

// appendArgs appends the arguments of call.lua.
func (l *Limiter) appendArgs(args []string, runs []run) []string {
	args = append(args, l.numbers[:l.alg.numbers]...)
	if slices.ContainsFunc(runs, func(r run) bool { return r.n != 1 || r.count != 1 }) {
		for _, r := range runs {
			args = append(args, strconv.FormatInt(r.n, 10), strconv.FormatInt(r.count, 10))
		}
	}
	return args
}

// bound returns a context for what begins now and ends with ctx, or a Timeout after began.
func (s *shared) bound(ctx context.Context, now, began time.Duration) (context.Context, context.CancelFunc, error) {
	waited := now - began
	if began == 0 || waited < s.opts.Timeout/8 {
		bounded, cancel := s.deadlines.Bound(ctx, now)
		return bounded, cancel, nil
	}
	left := s.opts.Timeout - waited
	if left < s.opts.Timeout/16 {
		return nil, nil, ErrUnavailable
	}
	bounded, cancel := context.WithTimeout(ctx, left)
	return bounded, cancel, nil
}

// mayAsk returns an error if Redis failed a moment ago. Now and then it starts a probe, in a goroutine that ends after
// a Timeout at the latest.
func (l *Limiter) mayAsk(ctx context.Context, part int, key string) error {
	ok, probe := l.breakers.ranges[part].allow()
	if ok {
		return nil
	}
	if probe {
		go func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.opts.Timeout)
			defer cancel()
			question := l.appendArgs(nil, []run{{n: 1}})
			if script.Do(ctx, l.client, l.alg.call.Call([]string{key}, question...)).Error() == nil {
				l.breakers.succeeded(part)
			} // else it is no news, of this range or of others
		}()
	}
	return ErrUnavailable
}

// note tells the breaker how a round trip ended. ctx is the caller's: that it ended says nothing about Redis.
func (s *shared) note(ctx context.Context, part int, err error) {
	switch {
	case err == nil:
		s.breakers.succeeded(part)
	case deadline.Over(ctx) && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)):
	case isUnavailable(err):
		s.breakers.failed(part)
	}
}

// isUnavailable reports whether an error means that no call can be decided, unlike one about a single key.
func isUnavailable(err error) bool {
	redisErr, ok := rueidis.IsRedisErr(err)
	if !ok {
		return true
	}
	code, _, _ := strings.Cut(redisErr.Error(), " ")
	switch code {
	case "OOM", "READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "MISCONF", "NOREPLICAS", "BUSY":
		return true
	}
	return false
}

// rangeOf returns the number of the breaker for a key.
func (s *shared) rangeOf(key string) int {
	if !s.cluster {
		return 0
	}
	return int(s.slotOf(key)) / (16384 / slotRanges)
}

func (s *shared) slotOf(key string) uint16 {
	get := s.client.B().Get().Key(key).Build()
	return get.Slot()
}

// fallBack applies OnFailure to a call that err kept Redis from deciding.
func (l *Limiter) fallBack(ctx context.Context, key string, n int64, err error) (Result, error) {
	result := Result{Limit: l.most, Source: SourceFallback}
	switch l.opts.OnFailure {
	case ReturnError:
		return result, err
	case Allow:
		result.Allowed = true
	case Deny:
		result.RetryAfter = probeInterval
	case Local:
		result = l.local.take(l, key, n)
	}
	if l.opts.Hooks.Error != nil {
		l.opts.Hooks.Error(ctx, err)
	}
	return result, nil
}
