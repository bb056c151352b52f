// Package httplimit limits HTTP requests with a [ratelimit.Limiter] and tells clients where they stand, in the header
// fields of the IETF draft "RateLimit header fields for HTTP" (draft-ietf-httpapi-ratelimit-headers-10):
//
//	RateLimit-Policy: "default";q=100;w=60
//	RateLimit: "default";r=50;t=30
//
// A request that is refused gets the status 429, Retry-After in seconds, rounded up, and a body of the type
// application/problem+json. One that cannot be decided, as Redis fails and Options.OnFailure of the limiter is
// ReturnError, gets 503.
package httplimit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/redispatterns/redispatterns/ratelimit"
)

// Policy is a limit of requests.
type Policy struct {
	// Name tells clients which limit it is: printable ASCII. Required.
	Name string
	// Limiter counts the requests. Required.
	Limiter *ratelimit.Limiter
	// Key returns whose requests are counted together. Its error is for Options.Error. Required.
	Key func(*http.Request) (string, error)
	// Limit returns the limit that applies to a request, as of the tier of who makes it. Defaults to the limiter's.
	Limit func(*http.Request) ratelimit.Limit
	// Cost returns how many units a request takes, at least 1. Defaults to 1.
	Cost func(*http.Request) int64
}

// Options configures a [Middleware]. Every field's zero value works.
type Options struct {
	// Name is the policy's. Defaults to "default".
	Name string
	// Limit is as in [Policy].
	Limit func(*http.Request) ratelimit.Limit
	// Cost is as in [Policy].
	Cost func(*http.Request) int64
	// More are limits that a request must pass too. A request that one of them refuses takes nothing from the others;
	// see [ratelimit.AllowAll]. In a cluster, where their keys are in different slots, what the others gave is
	// refunded after it was taken, which needs another round trip and is not atomic.
	More []Policy
	// LegacyHeaders adds X-RateLimit-Limit, X-RateLimit-Remaining and X-RateLimit-Reset (in seconds from now), of the
	// limit that has least left.
	LegacyHeaders bool
	// Refused answers a request that was refused, after the header fields were set. Defaults to the status 429 and a
	// problem document that names the limits.
	Refused http.Handler
	// Error answers a request that was not decided: no key, or no answer from Redis. Defaults to 400 for a *KeyError
	// and 503 for others.
	Error func(w http.ResponseWriter, r *http.Request, err error)
}

// KeyError is the error of a Policy's Key.
type KeyError struct{ Err error }

func (e *KeyError) Error() string { return "httplimit: key: " + e.Err.Error() }

// Unwrap returns what Key returned.
func (e *KeyError) Unwrap() error { return e.Err }

// Middleware returns what limits the requests to a handler: all that have the same key together. It makes one round trip
// to Redis per request, for all limits.
func Middleware(limiter *ratelimit.Limiter, key func(*http.Request) (string, error), opts Options) (func(http.Handler) http.Handler, error) {
	name := opts.Name
	if name == "" {
		name = "default"
	}
	first := Policy{Name: name, Limiter: limiter, Key: key, Limit: opts.Limit, Cost: opts.Cost}
	m := &middleware{opts: opts, policies: append([]Policy{first}, opts.More...)}
	seen := map[string]bool{}
	for _, p := range m.policies {
		quoted, err := quote(p.Name)
		switch {
		case err != nil:
			return nil, fmt.Errorf("httplimit: Name: %w", err)
		case seen[p.Name]:
			return nil, fmt.Errorf("httplimit: Name: there are two %q", p.Name)
		case p.Limiter == nil:
			return nil, fmt.Errorf("httplimit: Limiter of %q is nil", p.Name)
		case p.Key == nil:
			return nil, fmt.Errorf("httplimit: Key of %q is nil", p.Name)
		}
		seen[p.Name] = true
		m.quoted = append(m.quoted, quoted)
	}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { m.serve(w, r, next) })
	}, nil
}

type middleware struct {
	opts     Options
	policies []Policy
	quoted   []string // their names
}

func (m *middleware) serve(w http.ResponseWriter, r *http.Request, next http.Handler) {
	requests, err := m.requests(r)
	var results []ratelimit.Result
	if err == nil {
		results, err = decide(r, requests)
	}
	if err != nil {
		m.fail(w, r, err)
		return
	}
	m.setHeaders(w.Header(), requests, results)
	var violated []string
	for i, result := range results {
		if !result.Allowed && result.Limit > 0 { // else this one was not asked, since another had refused
			violated = append(violated, m.policies[i].Name)
		}
	}
	switch {
	case len(violated) == 0:
		next.ServeHTTP(w, r)
	case m.opts.Refused != nil:
		m.opts.Refused.ServeHTTP(w, r)
	default:
		writeProblem(w, problem{
			Type:     "https://iana.org/assignments/http-problem-types#quota-exceeded",
			Title:    "Request cannot be satisfied as assigned quota has been exceeded",
			Status:   http.StatusTooManyRequests,
			Violated: violated,
		})
	}
}

func (m *middleware) requests(r *http.Request) ([]ratelimit.Request, error) {
	requests := make([]ratelimit.Request, len(m.policies))
	for i, p := range m.policies {
		key, err := p.Key(r)
		if err != nil {
			return nil, &KeyError{err}
		}
		requests[i] = ratelimit.Request{Limiter: p.Limiter, Key: key, N: 1}
		if p.Limit != nil {
			requests[i].Limiter = p.Limiter.With(p.Limit(r))
		}
		if p.Cost != nil {
			requests[i].N = p.Cost(r)
		}
	}
	return requests, nil
}

// decide returns a result for each request. Unless all are allowed, nothing is taken; an error likewise.
func decide(r *http.Request, requests []ratelimit.Request) ([]ratelimit.Result, error) {
	ctx := r.Context()
	if len(requests) == 1 {
		result, err := requests[0].Limiter.AllowN(ctx, requests[0].Key, requests[0].N)
		return []ratelimit.Result{result}, err
	}
	all, err := ratelimit.AllowAll(ctx, requests...)
	if !errors.Is(err, ratelimit.ErrCrossSlot) {
		return all.Results, err
	}
	results, err := ratelimit.AllowMany(ctx, requests...)
	passed := err == nil
	for _, result := range results {
		passed = passed && result.Allowed
	}
	if passed {
		return results, nil
	}
	for i, result := range results {
		if result.Allowed && result.Source == ratelimit.SourceRedis {
			// Also if the client has left by now. If it fails, less passes than might.
			if requests[i].Limiter.Refund(context.WithoutCancel(ctx), requests[i].Key, requests[i].N) == nil {
				results[i].Remaining += requests[i].N
			}
		}
	}
	return results, err
}

func (m *middleware) fail(w http.ResponseWriter, r *http.Request, err error) {
	if m.opts.Error != nil {
		m.opts.Error(w, r, err)
		return
	}
	status := http.StatusServiceUnavailable
	if keyErr := (*KeyError)(nil); errors.As(err, &keyErr) {
		status = http.StatusBadRequest
	}
	writeProblem(w, problem{Type: "about:blank", Title: http.StatusText(status), Status: status})
}

// setHeaders tells of each limit what is known, and when to come again.
func (m *middleware) setHeaders(h http.Header, requests []ratelimit.Request, results []ratelimit.Result) {
	var policies, states []string
	var retry time.Duration
	tightest := -1
	for i, result := range results {
		limit := requests[i].Limiter.Limit()
		quota, window := limit.Rate, limit.Window
		if limit.Burst > 0 {
			quota, window = limit.Burst, time.Duration(float64(limit.Window)/float64(limit.Rate)*float64(limit.Burst))
		}
		policy := m.quoted[i] + ";q=" + strconv.FormatInt(quota, 10)
		if window >= time.Second {
			policy += ";w=" + seconds(window)
		}
		policies = append(policies, policy)
		if !result.Allowed {
			retry = max(retry, result.RetryAfter)
		}
		if !isKnown(result) {
			continue
		}
		resets := result.ResetAfter
		if !result.Allowed {
			resets = result.RetryAfter
		}
		states = append(states, m.quoted[i]+";r="+strconv.FormatInt(result.Remaining, 10)+";t="+seconds(resets))
		if tightest < 0 || result.Remaining < results[tightest].Remaining {
			tightest = i
		}
	}
	h.Set("RateLimit-Policy", strings.Join(policies, ", "))
	if len(states) > 0 {
		h.Set("RateLimit", strings.Join(states, ", "))
	}
	if retry > 0 && retry != ratelimit.Never {
		h.Set("Retry-After", seconds(retry))
	}
	if m.opts.LegacyHeaders && tightest >= 0 {
		h.Set("X-RateLimit-Limit", strconv.FormatInt(results[tightest].Limit, 10))
		h.Set("X-RateLimit-Remaining", strconv.FormatInt(results[tightest].Remaining, 10))
		h.Set("X-RateLimit-Reset", seconds(results[tightest].ResetAfter))
	}
}

// isKnown reports whether a result says what is left. It does not if Redis was not asked, and it is not this process
// that counts.
func isKnown(r ratelimit.Result) bool {
	return r.Limit > 0 && r.Source != ratelimit.SourceLimit && (r.Source != ratelimit.SourceFallback || r.ResetAfter > 0)
}

// seconds returns a duration in whole seconds, rounded up.
func seconds(d time.Duration) string {
	s := int64(d / time.Second)
	if d%time.Second > 0 {
		s++
	}
	return strconv.FormatInt(s, 10)
}

// quote returns a String of RFC 9651.
func quote(s string) (string, error) {
	if s == "" {
		return "", errors.New("must not be empty")
	}
	var b strings.Builder
	b.WriteByte('"')
	for _, c := range []byte(s) {
		if c < ' ' || c > '~' {
			return "", fmt.Errorf("must be printable ASCII, got %q", s)
		}
		if c == '"' || c == '\\' {
			b.WriteByte('\\')
		}
		b.WriteByte(c)
	}
	b.WriteByte('"')
	return b.String(), nil
}

// problem is a document of RFC 9457.
type problem struct {
	Type     string   `json:"type"`
	Title    string   `json:"title"`
	Status   int      `json:"status"`
	Violated []string `json:"violated-policies,omitempty"`
}

func writeProblem(w http.ResponseWriter, p problem) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p) // the client may have gone
}
