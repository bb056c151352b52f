package timeseries

import (
	"context"
	_ "embed"
	"strconv"
	"time"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/internal/script"
)

//go:embed open.lua
var openSource string

var openScript = script.NewRetryable(openSource)

const (
	chunkBuckets = 120 // per hash, unless the server's small hashes are smaller
	minBuckets   = 16  // below this limit the server shall have no small hashes

	openEvery   = time.Hour   // how often the layout is looked at again
	reopenAfter = time.Minute // if that failed
	layoutSpare = 24 * time.Hour
)

// opening is one for all that come meanwhile.
type opening struct {
	done chan struct{}
	err  error
}

// ready returns the time and how many buckets a chunk has. At first it asks Redis, and again each hour, without waiting for
// that: the layout lives a day longer.
func (s *Store) ready(ctx context.Context) (time.Time, int64, error) {
	c := &s.clock
	mono := sinceEpoch()
	opened := c.opened.Load()
	stale := opened == 0 || mono-time.Duration(opened) > openEvery+layoutSpare
	if stale || mono >= time.Duration(c.renew.Load()) {
		if o := s.open(ctx, opened, stale); o != nil && stale {
			select {
			case <-o.done:
				if o.err != nil {
					return time.Time{}, 0, o.err
				}
			case <-ctx.Done():
				return time.Time{}, 0, ctx.Err()
			}
			mono = sinceEpoch()
		}
	}
	if s.opts.Clock != nil {
		return s.opts.Clock(), c.buckets.Load(), nil
	}
	return time.Unix(0, int64(mono+c.current.Load().offset)), c.buckets.Load(), nil
}

// open begins an opening, or returns that which is under way; nil if there has just been one.
func (s *Store) open(ctx context.Context, opened int64, stale bool) *opening {
	c := &s.clock
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.opening != nil {
		return c.opening
	}
	if c.opened.Load() != opened || !stale && sinceEpoch() < time.Duration(c.renew.Load()) {
		return nil
	}
	o := &opening{done: make(chan struct{})}
	c.opening = o
	ctx = context.WithoutCancel(ctx) // it is for many callers
	go func() {
		next := reopenAfter
		if o.err = s.agree(ctx); o.err == nil {
			next = openEvery
			c.opened.Store(int64(sinceEpoch()))
		}
		c.renew.Store(int64(sinceEpoch() + next))
		c.mu.Lock()
		c.opening = nil
		c.mu.Unlock()
		close(o.done)
	}()
	return o
}

// agree learns the server's time and agrees with all other processes on the buckets per chunk: who comes first decides by the
// server's limit for small hashes, and the key outlives all chunks.
func (s *Store) agree(ctx context.Context) error {
	c := &s.clock
	bound, cancel := s.bounds.Bound(ctx, sinceEpoch())
	defer cancel()
	proposal := c.buckets.Load()
	for range 2 {
		sent := sinceEpoch()
		values, err := script.Do(bound, s.client, openScript.Call([]string{s.keys.layout()},
			strconv.FormatInt(s.layoutTTL().Milliseconds(), 10), strconv.FormatInt(proposal, 10))).AsIntSlice()
		if err != nil {
			return err
		}
		if len(values) != 3 {
			return errReply
		}
		received := sinceEpoch()
		c.observe(time.Duration(values[0])*time.Second+time.Duration(values[1])*time.Microsecond, sent, received)
		if values[2] >= minBuckets && values[2] <= chunkBuckets {
			c.buckets.Store(values[2])
			return nil
		}
		proposal = s.proposal(bound)
	}
	return errReply
}

// layoutTTL is longer than any chunk lives that is written until the layout is looked at again.
func (s *Store) layoutTTL() time.Duration {
	var longest int64
	for _, l := range s.levels {
		longest = max(longest, l.keep+(chunkBuckets+2)*l.step)
	}
	return time.Duration(longest)*time.Second + s.opts.MaxFuture + openEvery + layoutSpare
}

// proposal is how many buckets per chunk suit the server, or servers. One that does not tell has the default limit.
func (s *Store) proposal(ctx context.Context) int64 {
	least := int64(chunkBuckets)
	nodes := map[string]rueidis.Client{"": s.client}
	if s.cluster {
		nodes = s.client.Nodes()
	}
	for _, node := range nodes {
		config, err := node.Do(ctx, node.B().ConfigGet().Parameter("hash-max-listpack-entries").Build()).AsStrMap()
		if err != nil {
			continue
		}
		if limit, err := strconv.ParseInt(config["hash-max-listpack-entries"], 10, 64); err == nil && limit >= minBuckets {
			least = min(least, limit)
		}
	}
	return least
}
