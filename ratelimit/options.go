package ratelimit

import (
	"context"
	"fmt"
	"time"

	"github.com/redispatterns/redispatterns/internal/key"
)

// Exact is an Options.Resolution.
const Exact = -1

// FailurePolicy is what becomes of a call that Redis did not decide.
type FailurePolicy int

// What becomes of calls that Redis did not decide, because it is down, hung, full or out of reach, or its answer was
// lost. What it then may have taken is not given back.
const (
	// ReturnError returns the error; Result.Allowed is false.
	ReturnError FailurePolicy = iota
	// Allow admits the call.
	Allow
	// Deny refuses it, with the time of the next attempt to reach Redis as RetryAfter.
	Deny
	// Local lets a limiter in this process decide, that admits Options.LocalShare of the limit and knows nothing of
	// what Redis had admitted before.
	Local
)

const (
	defaultPrefix     = "ratelimit"
	defaultResolution = 64
	maxResolution     = 1024
	defaultTimeout    = 100 * time.Millisecond
	defaultDenySize   = 8192
	defaultDenyMaxAge = 100 * time.Millisecond
	maxDuration       = 24 * time.Hour
)

// Options configures a [Limiter]. Every field's zero value works.
type Options struct {
	// Prefix begins all keys. Limiters with one prefix, algorithm and Window count the same keys together, in all
	// processes: give each purpose a prefix of its own. Not empty and without braces. Defaults to "ratelimit".
	Prefix string

	// Resolution is in how many steps a sliding window slides. What was taken counts until the end of a step, so
	// that never more than Rate is in any window, while a unit may be available again late, by less than
	// Window/Resolution. A key takes 13 bytes per step in which something was taken. At least 1 and at most 1024, or
	// Exact: microseconds, 13 bytes per call that was admitted in the window, for small rates. Defaults to 64 and
	// for rates up to 64, which then take no more memory, to Exact.
	Resolution int

	// Approximate makes a sliding window of two counters, 19 bytes per key. It assumes that what was taken in the
	// window before was taken evenly. So up to 2·Rate - 1 units can pass in a period as long as Window, after a burst
	// at the end of one window; and a small Rate can be refused for longer than need be. Sliding windows only.
	Approximate bool

	// Timeout bounds each call from its beginning, also while it waits for others, to an eighth of it; the caller's own
	// deadline does too. A cancelled call returns at once unless it makes the round trip for itself and others, which goes on
	// till Redis answers or Timeout ends. Set the client's Dialer.Timeout, 5s by default, no longer than this: while
	// another user of the client opens a connection, all wait for it. At least 1ms, at most 24h. Defaults to 100ms.
	Timeout time.Duration

	// OnFailure is what becomes of calls that Redis did not decide: Allow, AllowN, Wait, WaitN, AllowMany and
	// AllowAll. Defaults to ReturnError.
	OnFailure FailurePolicy

	// LocalShare is the part of each limit that this process admits by itself while Redis fails, with the policy
	// Local: 1 divided by the number of processes. At least one unit is admitted. Above 0 and at most 1. Defaults to 1.
	LocalShare float64

	// DenyCacheSize is how many keys this process remembers that Redis has refused, so that their next calls of at
	// least as many units are refused without a round trip, until RetryAfter or DenyCacheMaxAge has passed. It never
	// admits anything, and does not change which calls Redis would admit, except after a Refund or Reset by another
	// process, or a loss of data, which are noticed when DenyCacheMaxAge has passed. Keys longer than 1024 bytes
	// are not remembered. Negative for none. At most 10^7. Defaults to 8192.
	DenyCacheSize int

	// DenyCacheMaxAge is for how long a refusal is remembered at most. At least 1ms, at most 24h. Defaults to 100ms:
	// then each process asks for a refused key ten times a second at most.
	DenyCacheMaxAge time.Duration

	// Hooks are told what the limiter does.
	Hooks Hooks
}

// Hooks are optional functions that a limiter calls, for metrics. They run on the caller's goroutine, with its context:
// keep them fast, and do not let them panic. Nil ones cost nothing.
type Hooks struct {
	// Decision is called with each decision of Allow, AllowN, AllowMany and AllowAll, and of each attempt of Wait and
	// WaitN.
	Decision func(ctx context.Context, info DecisionInfo)
	// Error is called with each failure that OnFailure hides, ErrUnavailable included.
	Error func(ctx context.Context, err error)
}

// DecisionInfo describes one decision.
type DecisionInfo struct {
	N      int64 // units asked for
	Result Result
	Took   time.Duration
}

func (o *Options) setDefaults() error {
	if o.Prefix == "" {
		o.Prefix = defaultPrefix
	}
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	if o.LocalShare == 0 {
		o.LocalShare = 1
	}
	if o.DenyCacheSize == 0 {
		o.DenyCacheSize = defaultDenySize
	}
	if o.DenyCacheMaxAge == 0 {
		o.DenyCacheMaxAge = defaultDenyMaxAge
	}
	if err := key.CheckPrefix(o.Prefix); err != nil {
		return fmt.Errorf("ratelimit: Prefix: %w", err)
	}
	switch {
	case o.Resolution < Exact || o.Resolution > maxResolution:
		return fmt.Errorf("ratelimit: Resolution must be between 1 and %d, or Exact, got %d", maxResolution, o.Resolution)
	case o.OnFailure < ReturnError || o.OnFailure > Local:
		return fmt.Errorf("ratelimit: OnFailure must be ReturnError, Allow, Deny or Local, got %d", o.OnFailure)
	case !(o.LocalShare > 0 && o.LocalShare <= 1): // also if it is not a number
		return fmt.Errorf("ratelimit: LocalShare must be above 0 and at most 1, got %v", o.LocalShare)
	case o.DenyCacheSize > 1e7:
		return fmt.Errorf("ratelimit: DenyCacheSize must be at most %d, got %d", int(1e7), o.DenyCacheSize)
	}
	for _, f := range []struct {
		name  string
		value time.Duration
	}{{"Timeout", o.Timeout}, {"DenyCacheMaxAge", o.DenyCacheMaxAge}} {
		if f.value < time.Millisecond || f.value > maxDuration {
			return fmt.Errorf("ratelimit: %s must be between %v and %v, got %v", f.name, time.Millisecond, maxDuration, f.value)
		}
	}
	return nil
}
