package timeseries

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/internal/script"
)

//go:embed write.lua
var writeSource string

// It is never sent again when a reply was lost: it may have run.
var writeScript = script.New(writeSource)

const (
	maxCallOps     = 500 // per script
	maxCallMembers = 1000
	maxTripSize    = 4 * maxCallOps // operations and members under one Timeout; a script more at most
	tryAgainAfter  = 5 * time.Millisecond
)

var (
	errReply  = errors.New("unexpected reply from redis")
	errBehind = notSentError{errors.New("not sent, for redis has not answered what was sent before")}
)

// refusedError is what Redis said when it did not take an op.
type refusedError string

func (e refusedError) Error() string { return "refused by redis: " + string(e) }

// notSentError is why an op was not even sent.
type notSentError struct{ error }

func (e notSentError) Unwrap() error { return e.error }

// mayPass reports whether an error is about the server, which then has surely not taken anything, and may later.
func mayPass(err error) bool {
	var dial *net.OpError
	if errors.As(err, &dial) && dial.Op == "dial" {
		return true
	}
	var notSent notSentError
	if errors.As(err, &notSent) {
		return true
	}
	var refused refusedError
	if !errors.As(err, &refused) {
		return false
	}
	code, _, _ := strings.Cut(string(refused), " ")
	switch code {
	case "OOM", "READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "MISCONF", "NOREPLICAS", "BUSY", "TRYAGAIN":
		return true
	}
	return false
}

// trip writes a batch. Each op then has its error.
func (s *Store) trip(b *batch) {
	ctx := context.Background() // it is for many callers
	began := sinceEpoch()
	err := s.writeParts(ctx, b)
	var events int64
	for _, o := range b.list {
		n := o.events.Load()
		events += n
		switch {
		case o.err == nil:
			s.totals.written.Add(n)
		case s.opts.FlushEvery > 0 && mayPass(o.err) && !s.closed.Load():
			o.again = true
		default:
			s.drop(ctx, n, o.err)
		}
	}
	if s.opts.Hooks.Write != nil {
		s.opts.Hooks.Write(ctx, WriteInfo{len(b.list), events, sinceEpoch() - began, err})
	}
}

// writeParts writes a batch part by part, and returns the first error of one as a whole.
func (s *Store) writeParts(ctx context.Context, b *batch) (first error) {
	_, buckets, err := s.ready(ctx)
	if err != nil {
		for _, o := range b.list {
			o.err = notSentError{err}
		}
		return err
	}
	slices.SortStableFunc(b.list, func(x, y *op) int { // the same series in a cluster, and else the same block, together
		c := cmp.Or(cmp.Compare(x.bucket, y.bucket), cmp.Compare(x.kind, y.kind))
		if s.cluster {
			c = cmp.Or(strings.Compare(x.series, y.series), c)
		}
		return c
	})
	b.list = split(b.list)
	var stopped error
	for rest := b.list; len(rest) > 0; {
		var p part
		p, rest = s.nextPart(rest, buckets)
		if stopped != nil {
			p.fail(stopped)
			continue
		}
		err := s.send(ctx, p)
		if first == nil {
			first = err
		}
		if !s.cluster && (errors.Is(err, ErrUnknown) || mayPass(err)) { // there the others may be of other nodes
			stopped = errBehind
		}
	}
	return first
}

// part is what goes to Redis under one Timeout: a few scripts, so that a backlog is no harder on it than many calls are.
type part struct {
	calls  []script.Call
	owners [][]*op // of each call's operations
}

func (p part) fail(err error) {
	for _, owners := range p.owners {
		for _, o := range owners {
			o.err = err
		}
	}
}

// nextPart returns the scripts for the first ops of a list, and the others.
func (s *Store) nextPart(list []*op, buckets int64) (p part, rest []*op) {
	size := 0
	w := newWriter(s, buckets, min(len(list), maxCallOps))
	for i, o := range list {
		if len(w.owners) > 0 && (s.cluster && o.series != w.owners[0].series || len(w.owners) >= maxCallOps || w.members+len(o.members) > maxCallMembers) {
			p.calls, p.owners = append(p.calls, w.call()), append(p.owners, w.owners)
			if size >= maxTripSize {
				return p, list[i:]
			}
			w = newWriter(s, buckets, 0)
		}
		size += 1 + len(o.members)
		w.add(o)
	}
	p.calls, p.owners = append(p.calls, w.call()), append(p.owners, w.owners)
	return p, nil
}

// send sends a part, and sends again what Redis could not do while a slot moved: it has surely not begun that.
func (s *Store) send(ctx context.Context, p part) (first error) {
	var moving error
	bound, cancel := s.bounds.Bound(ctx, sinceEpoch())
	defer cancel()
	for {
		sent := sinceEpoch()
		var few [1]rueidis.RedisResult
		results := few[:]
		if len(p.calls) == 1 {
			few[0] = script.Do(bound, s.client, p.calls[0])
		} else {
			results = script.DoMulti(bound, s.client, p.calls)
		}
		received := sinceEpoch()
		var again part
		for i, r := range results {
			err := s.settle(r, p.owners[i], sent, received)
			if err != nil {
				part{owners: p.owners[i : i+1]}.fail(err)
			}
			if e, ok := rueidis.IsRedisErr(r.Error()); ok && e.IsTryAgain() {
				again.calls, again.owners = append(again.calls, p.calls[i]), append(again.owners, p.owners[i])
				moving = err
			} else if first == nil {
				first = err
			}
		}
		if len(again.calls) == 0 {
			return first
		}
		timer := time.NewTimer(tryAgainAfter)
		select {
		case <-timer.C:
		case <-bound.Done():
			timer.Stop()
			return cmp.Or(first, moving)
		}
		p = again
		p.fail(nil)
	}
}

// settle gives each operation of a call its error, or returns one for all.
func (s *Store) settle(r rueidis.RedisResult, owners []*op, sent, received time.Duration) error {
	values, err := r.ToArray()
	switch {
	case err == nil:
	case rueidis.IsRedisNil(err):
		return fmt.Errorf("%w: %w", ErrUnknown, errReply)
	default:
		if e, ok := rueidis.IsRedisErr(err); ok {
			return refusedError(e.Error())
		}
		if mayPass(err) {
			return err
		}
		return fmt.Errorf("%w: %w", ErrUnknown, err)
	}
	if len(values) < 2 || len(values)%2 != 0 {
		return fmt.Errorf("%w: %w", ErrUnknown, errReply)
	}
	seconds, _ := values[0].AsInt64()
	micros, _ := values[1].AsInt64()
	s.clock.observe(time.Duration(seconds)*time.Second+time.Duration(micros)*time.Microsecond, sent, received)
	for i := 2; i < len(values); i += 2 {
		n, err := values[i].AsInt64()
		text, _ := values[i+1].ToString()
		if err != nil || n < 0 || n >= int64(len(owners)) {
			return fmt.Errorf("%w: %w", ErrUnknown, errReply)
		}
		switch {
		case text == "LATE":
			owners[n].err = ErrTooLate
		case strings.Contains(text, "overflow"):
			owners[n].err = ErrOverflow
		default:
			owners[n].err = refusedError(strings.TrimPrefix(text, "-"))
		}
	}
	return nil
}
