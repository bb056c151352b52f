package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// line is the callers of Wait for one subject, but the first, in order of arrival. Only the first asks Redis, so that
// those who wait are no load.
type line struct {
	queue []chan struct{} // each closed when its caller is the first
}

// Wait is WaitN of one unit.
func (l *Limiter) Wait(ctx context.Context, key string) error { return l.WaitN(ctx, key, 1) }

// WaitN returns when n units may be used with key, and has then taken them. It fails at once with ErrExceedsLimit if n
// is more than the limit, and with ErrDeadline if it is clear by now that ctx's deadline is too early. If ctx ends while
// it waits, the error matches ctx's, and nothing is taken.
//
// Callers in a process that wait for the same key and limit pass in the order in which Redis refused them first; it is
// asked for the first of them only, and not before it is likely to pass. One that comes while another's first question is
// under way asks too, and may pass before it, as for fewer units. Callers in different processes compete. A caller does
// not notice that a Refund or Reset makes it pass earlier. While Redis fails it is as OnFailure says.
func (l *Limiter) WaitN(ctx context.Context, key string, n int64) error {
	if err := l.check(n); err != nil {
		return err
	}
	if n > l.most {
		return ErrExceedsLimit
	}
	err := l.wait(ctx, key, n)
	if err != nil && ctx.Err() != nil {
		err = ctx.Err()
		if errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("%w: %w", ErrDeadline, err)
		}
		return fmt.Errorf("ratelimit: wait: %w", err)
	}
	return err
}

func (l *Limiter) wait(ctx context.Context, key string, n int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s := subject{l.limit, key}
	part := l.lines.part(key)
	part.RLock()
	_, busy := part.entries[s]
	part.RUnlock()
	var retry time.Duration
	if !busy {
		r, err := l.AllowN(ctx, key, n)
		if err != nil || r.Allowed {
			return err
		}
		retry = r.RetryAfter
	} else if _, ok := ctx.Deadline(); ok {
		if r, err := l.ask(ctx, key, n); err == nil {
			retry = r.RetryAfter
		}
	}
	if err := tooEarly(ctx, retry); err != nil {
		return err
	}

	part.Lock()
	ln := part.entries[s]
	if ln == nil {
		part.set(s, &line{})
		part.Unlock()
	} else {
		turn := make(chan struct{})
		ln.queue = append(ln.queue, turn)
		part.Unlock()
		select {
		case <-turn:
			retry = 0
		case <-ctx.Done():
			part.Lock()
			i := slices.Index(ln.queue, turn)
			if i >= 0 {
				ln.queue = slices.Delete(ln.queue, i, i+1)
			}
			part.Unlock()
			if i < 0 { // it is the first by now
				endTurn(part, s)
			}
			return ctx.Err()
		}
	}
	defer endTurn(part, s)
	for {
		if err := sleep(ctx, retry); err != nil {
			return err
		}
		r, err := l.AllowN(ctx, key, n)
		if err != nil || r.Allowed {
			return err
		}
		retry = r.RetryAfter
		if err := tooEarly(ctx, retry); err != nil {
			return err
		}
	}
}

// endTurn makes the next in line the first.
func endTurn(part *tablePart[*line], s subject) {
	part.Lock()
	defer part.Unlock()
	ln := part.entries[s]
	if len(ln.queue) == 0 {
		delete(part.entries, s)
		return
	}
	close(ln.queue[0])
	ln.queue = ln.queue[1:]
}

// tooEarly returns an error if ctx's deadline comes before retry has passed.
func tooEarly(ctx context.Context, retry time.Duration) error {
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < retry {
		return fmt.Errorf("%w: %w", ErrDeadline, context.DeadlineExceeded)
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
