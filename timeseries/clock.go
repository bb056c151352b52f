package timeseries

import (
	"context"
	_ "embed"
	"strconv"
	"sync"
	"sync/atomic"
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
	clockDrift  = 2000        // a sample's uncertainty grows by 1/2000 of its age
)

var epoch = time.Now()

func sinceEpoch() time.Duration { return time.Since(epoch) }

// sample is what a reply has said about the server's clock.
type sample struct {
	offset      time.Duration // server's time since 1970 minus sinceEpoch
	uncertainty time.Duration // half of the round trip
	taken       time.Duration // since epoch
}

// doubt is how wrong a sample may be by now.
func (c sample) doubt(now time.Duration) time.Duration {
	return c.uncertainty + (now-c.taken)/clockDrift
}

// clock has the server's time and how it wants its chunks.
type clock struct {
	current atomic.Pointer[sample]
	buckets atomic.Int64 // per chunk, 0 before open

	mu     sync.Mutex // one open at a time
	opened atomic.Int64
}

// observe takes a reply's time into account, if it tells more than what is known: the clock was set, or the trip was shorter.
func (c *clock) observe(server time.Duration, sent, received time.Duration) {
	next := sample{server - (sent+received)/2, (received - sent) / 2, received}
	old := c.current.Load()
	if old != nil {
		doubt := old.doubt(received)
		if difference := (next.offset - old.offset).Abs(); next.uncertainty > doubt && difference <= doubt+next.uncertainty {
			return
		}
	}
	c.current.CompareAndSwap(old, &next)
}

// ready returns the time and how many buckets a chunk has. At first, and each hour, it asks Redis.
func (s *Store) ready(ctx context.Context) (time.Time, int64, error) {
	c := &s.clock
	mono := sinceEpoch()
	if opened := c.opened.Load(); opened == 0 || mono-time.Duration(opened) > openEvery {
		err := s.open(ctx)
		mono = sinceEpoch()
		switch {
		case err == nil:
		case opened == 0:
			return time.Time{}, 0, err
		default: // what is known will do; the layout lives a day longer
			c.opened.CompareAndSwap(opened, int64(mono-openEvery+reopenAfter))
		}
	}
	if s.opts.Clock != nil {
		return s.opts.Clock(), c.buckets.Load(), nil
	}
	return time.Unix(0, int64(mono+c.current.Load().offset)), c.buckets.Load(), nil
}

// open learns the server's time and agrees with all other processes on the buckets per chunk: who comes first decides by the
// server's limit for small hashes, and the key outlives all chunks.
func (s *Store) open(ctx context.Context) error {
	c := &s.clock
	c.mu.Lock()
	defer c.mu.Unlock()
	if opened := c.opened.Load(); opened != 0 && sinceEpoch()-time.Duration(opened) <= openEvery {
		return nil
	}
	proposal := c.buckets.Load()
	for {
		sent := sinceEpoch()
		bound, cancel := s.bounds.Bound(ctx, sent)
		values, err := script.Do(bound, s.client, openScript.Call([]string{s.keys.layout()},
			strconv.FormatInt(s.layoutTTL().Milliseconds(), 10), strconv.FormatInt(proposal, 10))).AsIntSlice()
		cancel()
		if err != nil {
			return err
		}
		if len(values) != 3 {
			return errReply
		}
		received := sinceEpoch()
		c.observe(time.Duration(values[0])*time.Second+time.Duration(values[1])*time.Microsecond, sent, received)
		if values[2] > 0 {
			c.buckets.Store(values[2])
			c.opened.Store(int64(received))
			return nil
		}
		bound, cancel = s.bounds.Bound(ctx, received)
		proposal = s.proposal(bound)
		cancel()
	}
}

// layoutTTL is longer than any chunk lives that is written until the layout is looked at again.
func (s *Store) layoutTTL() time.Duration {
	var longest int64
	for _, l := range s.levels {
		longest = max(longest, l.keep+(chunkBuckets+2)*l.step)
	}
	return time.Duration(longest)*time.Second + s.opts.MaxFuture + openEvery + 24*time.Hour
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
