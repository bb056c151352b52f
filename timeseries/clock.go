package timeseries

import (
	"sync"
	"sync/atomic"
	"time"
)

const clockDrift = 2000 // a sample's uncertainty grows by 1/2000 of its age

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
	opened  atomic.Int64 // when that was last agreed on, since epoch; 0 before
	renew   atomic.Int64 // when it shall be again

	mu      sync.Mutex
	opening *opening // under way
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
