package ratelimit

import (
	"math"
	"strings"
	"time"
)

const (
	localSteps = 8       // of a window
	localKeys  = 1 << 16 // whose counts are kept; one more displaces another
)

// localLimiters decide for the policy Local. Windows slide in steps, as in sliding.lua; fixed ones do too, which is
// stricter than they need be.
type localLimiters struct {
	table table[*localState]
}

// localState is what a key has used in this process while Redis was failing. Times are since epoch.
type localState struct {
	newest int64                 // the step that is counted last
	counts [localSteps + 1]int64 // by step modulo their number
	tokens float64               // of a bucket
	filled time.Duration         // when it was last
}

// share is how much of n units this process may admit.
func (l *Limiter) share(n int64) int64 {
	return max(1, int64(float64(n)*l.opts.LocalShare))
}

func (t *localLimiters) take(l *Limiter, key string, n int64) Result {
	most := l.share(l.most)
	result := Result{Limit: most, Source: SourceFallback}
	if n > most { // only Redis can tell
		result.RetryAfter = probeInterval
		return result
	}
	part := t.table.part(key)
	part.Lock()
	defer part.Unlock()
	now := sinceEpoch() // not before the lock: time must not go back from one call to the next
	s := t.state(part, subject{l.limit, key}, most)
	if l.alg == &tokenBucket {
		s.drip(l, float64(most), now)
		perToken := float64(l.limit.Window) / (float64(l.limit.Rate) * l.opts.LocalShare)
		if s.tokens < float64(n)-1e-6 { // which absorbs rounding
			result.RetryAfter = time.Duration(math.Ceil((float64(n) - s.tokens) * perToken))
		} else {
			result.Allowed = true
			s.tokens -= float64(n)
		}
		result.Remaining = max(0, int64(s.tokens))
		result.ResetAfter = time.Duration((float64(most) - s.tokens) * perToken)
		return result
	}
	step := (l.limit.Window + localSteps - 1) / localSteps
	used := s.slide(int64(now / step))
	ends := func(i int64) time.Duration { return time.Duration(i+1)*step + l.limit.Window - now }
	if used+n <= most {
		s.counts[s.newest%int64(len(s.counts))] += n
		used += n
		result.Allowed = true
	} else {
		need := used + n - most
		for i := max(0, s.newest-localSteps); result.RetryAfter == 0; i++ {
			if need -= s.counts[i%int64(len(s.counts))]; need <= 0 {
				result.RetryAfter = ends(i)
			}
		}
	}
	result.Remaining = most - used
	for i := s.newest; used > 0 && result.ResetAfter == 0; i-- {
		if s.counts[i%int64(len(s.counts))] > 0 {
			result.ResetAfter = ends(i)
		}
	}
	return result
}

// state returns the state of a subject. The part must be locked.
func (t *localLimiters) state(part *tablePart[*localState], s subject, most int64) *localState {
	if known := part.entries[s]; known != nil {
		return known
	}
	if len(part.entries) >= localKeys/tableParts {
		for other := range part.entries {
			delete(part.entries, other)
			break
		}
	}
	s.key = strings.Clone(s.key) // it may be a part of a large request
	fresh := &localState{tokens: float64(most), filled: sinceEpoch()}
	part.set(s, fresh)
	return fresh
}

// slide forgets the steps that no longer count and returns the units in the others.
func (s *localState) slide(step int64) (used int64) {
	if step-s.newest > localSteps {
		clear(s.counts[:])
	} else {
		for i := s.newest + 1; i <= step; i++ {
			s.counts[i%int64(len(s.counts))] = 0
		}
	}
	s.newest = step
	for _, n := range s.counts {
		used += n
	}
	return used
}

func (s *localState) drip(l *Limiter, most float64, now time.Duration) {
	rate := float64(l.limit.Rate) * l.opts.LocalShare / float64(l.limit.Window)
	s.tokens = min(most, s.tokens+rate*float64(now-s.filled))
	s.filled = now
}

// give returns units that were just taken.
func (t *localLimiters) give(l *Limiter, key string, n int64) {
	part := t.table.part(key)
	part.Lock()
	defer part.Unlock()
	if s := part.entries[subject{l.limit, key}]; s != nil {
		s.tokens += float64(n)
		at := s.newest % int64(len(s.counts))
		s.counts[at] = max(0, s.counts[at]-n)
	}
}

func (t *localLimiters) drop(l *Limiter, key string) {
	part := t.table.part(key)
	part.Lock()
	defer part.Unlock()
	delete(part.entries, subject{l.limit, key})
}
