package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"strconv"
	"time"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/internal/key"
)

// ErrUnavailable means that Redis was not asked because it failed a moment ago, or because the call waited for a whole
// Timeout behind others. Calls return it with the policy ReturnError; Peek, Refund and Reset always do.
var ErrUnavailable = errors.New("ratelimit: redis is unavailable")

// ErrExceedsLimit means that a call asks for more units than the limit ever has, so that waiting for them is in vain.
var ErrExceedsLimit = errors.New("ratelimit: n exceeds the limit")

// ErrDeadline means that the context's deadline is, or was, too early for what Wait waits for. Errors that match it
// match context.DeadlineExceeded too.
var ErrDeadline = errors.New("ratelimit: wait would exceed the context's deadline")

// ErrCrossSlot means that the keys of an AllowAll are in different slots of a cluster.
var ErrCrossSlot = errors.New("ratelimit: keys are in different slots")

// Never is the RetryAfter of a call that can not pass at any time, since it asks for more than the limit.
const Never time.Duration = math.MaxInt64

const (
	maxUnits   = 1_000_000_000_000 // of Rate, Burst and thus n
	maxWindow  = 366 * 24 * time.Hour
	maxRefill  = 10 * maxWindow // of a bucket, from empty to full
	minWindow  = time.Millisecond
	maxDerived = 1024 // limiters that With remembers
)

// Limit is how many units of something, such as requests or bytes, are allowed in how much time.
type Limit struct {
	// Rate is how many units there are in a Window: at least 1, at most 10^12.
	Rate int64
	// Window is what Rate is for: whole milliseconds, at least 1ms, at most 366 days.
	Window time.Duration
	// Burst is how many tokens a bucket holds, and thus the most that pass at once: at least 1, at most 10^12, and
	// what Rate refills in ten years. Token buckets only. Defaults to Rate.
	Burst int64
}

// PerSecond returns a limit of n units per second.
func PerSecond(n int64) Limit { return Per(n, time.Second) }

// PerMinute returns a limit of n units per minute.
func PerMinute(n int64) Limit { return Per(n, time.Minute) }

// PerHour returns a limit of n units per hour.
func PerHour(n int64) Limit { return Per(n, time.Hour) }

// Per returns a limit of n units per window.
func Per(n int64, window time.Duration) Limit { return Limit{Rate: n, Window: window} }

// Source tells who decided a call.
type Source int

// Who decides calls.
const (
	SourceRedis     Source = iota // Redis, in one round trip
	SourceDenyCache               // this process, which remembers that Redis refused such a call a moment ago
	SourceFallback                // Options.OnFailure: Redis did not answer
	SourceLimit                   // the limit itself: n is more than it ever admits
)

func (s Source) String() string {
	switch s {
	case SourceRedis:
		return "redis"
	case SourceDenyCache:
		return "deny-cache"
	case SourceFallback:
		return "fallback"
	case SourceLimit:
		return "limit"
	}
	return "Source(" + strconv.Itoa(int(s)) + ")"
}

// Result is the decision about one call. Durations count from when Redis decided.
type Result struct {
	// Allowed says whether the call passes.
	Allowed bool
	// Limit is the most that is ever admitted at once: Rate, or Burst of a token bucket.
	Limit int64
	// Remaining is how many units are left after this call, as known to who decided: from the deny cache, it is what was
	// left when Redis refused.
	Remaining int64
	// RetryAfter is 0 if the call was allowed; else when the same call passes at the earliest, to the microsecond, of
	// fixed windows to the millisecond, if no other takes what there is until then; Never if it cannot.
	RetryAfter time.Duration
	// ResetAfter is when the whole limit is available again, if nothing else is taken.
	ResetAfter time.Duration
	// Source is who decided.
	Source Source
}

// Limiter limits how much is done with each key. It is safe for concurrent use.
type Limiter struct {
	*shared
	limit   Limit
	most    int64     // that is admitted at once
	numbers [3]string // of the limit, for the scripts
	prefix  string    // of keys, up to the tag
	refill  refill    // of a token bucket
	err     error     // why the limit is none
}

// refill is rate / period tokens per microsecond, in lowest terms.
type refill struct{ rate, period uint64 }

// NewFixedWindow returns a limiter that admits Rate units in each window. A key's window begins with its first call and
// lasts for Window, or up to 1ms longer, since keys of Redis expire in whole milliseconds; then the next call begins
// another. So up to twice Rate may pass in a short time, at the end of one window and the beginning of the next. It is
// the cheapest: a counter with a TTL.
func NewFixedWindow(client rueidis.Client, limit Limit, opts Options) (*Limiter, error) {
	return newLimiter(client, &fixedWindow, limit, opts)
}

// NewSlidingWindow returns a limiter that admits Rate units in any period as long as Window, whenever it begins. It is
// what people think of when they hear of a rate limit. It stores 878 bytes per key at most, whatever the Rate, unless
// Options.Resolution says otherwise.
func NewSlidingWindow(client rueidis.Client, limit Limit, opts Options) (*Limiter, error) {
	if opts.Approximate {
		return newLimiter(client, &approximateWindow, limit, opts)
	}
	return newLimiter(client, &slidingWindow, limit, opts)
}

// NewTokenBucket returns a limiter with a bucket of Burst tokens per key, full at first, that Rate tokens per Window
// drip into, evenly. Each unit takes a token. So at most Burst + Rate·d/Window units pass in any period of length d.
// Rates are exact whatever they are: the fraction of a token that has dripped in is kept as a fraction. It stores 25
// bytes per key. What it admits is what the generic cell rate algorithm of ITU-T I.371 admits.
func NewTokenBucket(client rueidis.Client, limit Limit, opts Options) (*Limiter, error) {
	return newLimiter(client, &tokenBucket, limit, opts)
}

func newLimiter(client rueidis.Client, alg *algorithm, limit Limit, opts Options) (*Limiter, error) {
	if client == nil {
		return nil, errors.New("ratelimit: client is nil")
	}
	if err := opts.setDefaults(); err != nil {
		return nil, err
	}
	l := (&Limiter{shared: newShared(client, alg, limit, opts)}).derive(limit)
	if l.err != nil {
		return nil, l.err
	}
	return l, nil
}

// With returns a limiter for another limit on the same keys: for tiers, or a limit per call. What a key has used counts
// against any Rate and Burst; windows of different length are counted apart. Into a bucket, tokens drip at the Rate of
// whoever asks next, and it is forgotten when it is full at the Rate of whoever asked last; what is given back for a caller
// that left supposes that it was one Rate. The first 1024 limits are remembered, and then cost no allocation. That limit is
// out of range is an error of all calls.
func (l *Limiter) With(limit Limit) *Limiter {
	if limit == l.limit {
		return l
	}
	if d, ok := l.derived.Load(limit); ok {
		return d.(*Limiter)
	}
	d := l.derive(limit)
	if l.derivedCount.Add(1) > maxDerived {
		return d
	}
	known, _ := l.derived.LoadOrStore(limit, d)
	return known.(*Limiter)
}

// Limit returns the limit, with the Burst that applies.
func (l *Limiter) Limit() Limit {
	limit := l.limit
	if l.alg == &tokenBucket {
		limit.Burst = l.most
	}
	return limit
}

// derive returns a limiter that shares all but the limit with l.
func (l *Limiter) derive(limit Limit) *Limiter {
	d := &Limiter{shared: l.shared, limit: limit, most: limit.Rate}
	if d.err = limit.check(l.alg == &tokenBucket); d.err != nil {
		return d
	}
	window := limit.Window.Microseconds()
	second, third := window, int64(0)
	switch l.alg {
	case &slidingWindow:
		third = stepOf(limit.Rate, window, l.opts.Resolution)
	case &tokenBucket:
		if limit.Burst != 0 {
			d.most = limit.Burst
		}
		divisor := gcd(limit.Rate, window)
		second, third = limit.Rate/divisor, window/divisor
		d.refill = refill{uint64(second), uint64(third)}
	}
	for i, n := range []int64{d.most, second, third} {
		d.numbers[i] = strconv.FormatInt(n, 10)
	}
	d.prefix = l.opts.Prefix + ":" + l.alg.name[:1] + strconv.FormatInt(limit.Window.Milliseconds(), 10) + ":"
	return d
}

func (l Limit) check(isBucket bool) error {
	switch {
	case l.Rate < 1 || l.Rate > maxUnits:
		return fmt.Errorf("ratelimit: Rate must be between 1 and %d, got %d", int64(maxUnits), l.Rate)
	case l.Window < minWindow || l.Window > maxWindow || l.Window%time.Millisecond != 0:
		return fmt.Errorf("ratelimit: Window must be whole milliseconds between %v and %v, got %v", minWindow, maxWindow, l.Window)
	case !isBucket && l.Burst != 0:
		return fmt.Errorf("ratelimit: Burst is for token buckets only, got %d", l.Burst)
	case l.Burst < 0 || l.Burst > maxUnits:
		return fmt.Errorf("ratelimit: Burst must be between 1 and %d, or 0 for Rate, got %d", int64(maxUnits), l.Burst)
	case float64(l.Burst)/float64(l.Rate)*float64(l.Window) > float64(maxRefill):
		return fmt.Errorf("ratelimit: Burst must be at most what Rate refills in %v, got %d", maxRefill, l.Burst)
	}
	return nil
}

// stepOf returns the step of a sliding window, in microseconds.
func stepOf(rate, window int64, resolution int) int64 {
	switch {
	case resolution == Exact || resolution == 0 && rate <= defaultResolution:
		return 1
	case resolution == 0:
		resolution = defaultResolution
	}
	return (window + int64(resolution) - 1) / int64(resolution)
}

func gcd(a, b int64) int64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// took is how long it takes until n tokens have dripped in, rounded down to microseconds.
func (r refill) took(n int64) int64 {
	if r.rate == 0 {
		return 0
	}
	hi, lo := bits.Mul64(uint64(n), r.period)
	q, _ := bits.Div64(hi, lo, r.rate)
	return int64(q)
}

// check returns why n units cannot be asked for.
func (l *Limiter) check(n int64) error {
	if l.err != nil {
		return l.err
	}
	if n < 1 {
		return fmt.Errorf("ratelimit: n must be at least 1, got %d", n)
	}
	return nil
}

func (l *Limiter) key(id string) string { return key.Tagged(l.prefix, id, "") }

func micros(n int64) time.Duration { return time.Duration(n) * time.Microsecond }

// Allow is AllowN of one unit.
func (l *Limiter) Allow(ctx context.Context, key string) (Result, error) {
	return l.AllowN(ctx, key, 1)
}

// AllowN asks whether n units may be used with key now, and takes them if so: all or none. A call that is refused takes
// nothing and writes nothing. It makes one round trip to Redis; none if n is more than the limit, or if DenyCache
// knows. Calls of a limiter that come while others are under way may share the next round trip.
//
// The error is nil if there is a decision, whatever it is. Without one, for Redis failed, it depends on OnFailure. If
// ctx ends first the error matches ctx's and nothing is taken, unless Redis' answer is lost too. n less than 1 is an
// error.
func (l *Limiter) AllowN(ctx context.Context, key string, n int64) (Result, error) {
	if l.opts.Hooks.Decision == nil {
		return l.allow(ctx, key, n)
	}
	began := sinceEpoch()
	r, err := l.allow(ctx, key, n)
	if err == nil {
		l.tellDecision(ctx, n, r, sinceEpoch()-began)
	}
	return r, err
}

func (l *Limiter) tellDecision(ctx context.Context, n int64, r Result, took time.Duration) {
	if l.opts.Hooks.Decision != nil {
		l.opts.Hooks.Decision(ctx, DecisionInfo{N: n, Result: r, Took: took})
	}
}

func (l *Limiter) allow(ctx context.Context, key string, n int64) (Result, error) {
	if err := l.check(n); err != nil {
		return Result{}, err
	}
	if r, ok := l.decideLocally(key, n); ok {
		return r, nil
	}
	r, err := l.commit(ctx, key, n)
	if err == nil {
		return r, nil
	}
	if ctxErr := ctx.Err(); ctxErr != nil {
		return Result{}, fmt.Errorf("ratelimit: allow: %w", ctxErr)
	}
	if r, err = l.fallBack(ctx, key, n, err); err != nil {
		err = fmt.Errorf("ratelimit: allow: %w", err)
	}
	return r, err
}

// decideLocally decides what needs no round trip.
func (l *Limiter) decideLocally(key string, n int64) (Result, bool) {
	if n > l.most {
		return Result{Limit: l.most, RetryAfter: Never, Source: SourceLimit}, true
	}
	return l.denied.look(l, key, n)
}

// Peek tells whether Allow would pass, and takes nothing: Remaining is what is left now. It always asks Redis, once, and
// writes nothing there. OnFailure does not apply: a failure is an error.
func (l *Limiter) Peek(ctx context.Context, key string) (Result, error) {
	if l.err != nil {
		return Result{}, l.err
	}
	r, err := l.ask(ctx, key, 1)
	if err != nil {
		return Result{}, fmt.Errorf("ratelimit: peek: %w", err)
	}
	return r, nil
}

func (l *Limiter) ask(ctx context.Context, key string, n int64) (Result, error) {
	reply, err := l.trip(ctx, []run{{key, n, 0}}, 0)
	if err != nil {
		return Result{}, err
	}
	_, left, wait, reset, _ := reply.of(0)
	return Result{
		Allowed: wait == 0, Limit: l.most, Remaining: left, RetryAfter: micros(wait), ResetAfter: micros(reset),
	}, nil
}

// Refund gives n units back that were taken but not used, at most so many that the limit is whole. Of a sliding window it
// is the units taken last that are given back, which is exact for the latest call; of a fixed window those of the present
// one. So to give back units of an earlier window or entry, or of a bucket that was full since, can let more than the limit
// pass: give back soon, and nothing that was taken about a Window ago. It makes one round trip, and is not repeated if its
// answer is lost. OnFailure does not apply: a failure is an error. n less than 1 is an error.
func (l *Limiter) Refund(ctx context.Context, key string, n int64) error {
	if err := l.check(n); err != nil {
		return err
	}
	_, err := l.trip(ctx, []run{{key, min(n, maxUnits), giveBack}}, 0)
	l.denied.drop(l.shared, key)
	if err != nil {
		return fmt.Errorf("ratelimit: refund: %w", err)
	}
	return nil
}

// Reset makes the limit of key whole, in one round trip. OnFailure does not apply: a failure is an error.
func (l *Limiter) Reset(ctx context.Context, key string) error {
	if l.err != nil {
		return l.err
	}
	name := l.key(key)
	part := l.rangeOf(name)
	err := l.mayAsk(ctx, part, name)
	if err == nil {
		bounded, cancel := l.deadlines.Bound(ctx, sinceEpoch())
		defer cancel()
		err = l.client.Do(bounded, l.client.B().Del().Key(name).Build()).Error()
		l.note(ctx, part, err)
	}
	l.denied.drop(l.shared, key)
	l.local.drop(l, key)
	if err != nil {
		return fmt.Errorf("ratelimit: reset: %w", err)
	}
	return nil
}
