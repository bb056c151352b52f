package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redispatterns/redispatterns/timeseries"
)

// counting is many workers that count hits, and what they know of them.
type counting struct {
	store  *timeseries.Store
	series []string
	began  time.Time

	acknowledged []atomic.Int64 // per series: Redis said that it has them
	unknown      atomic.Int64   // it did not say
	refused      atomic.Int64   // it said that it has not
	lastRefusal  atomic.Value

	stop    context.CancelFunc
	workers sync.WaitGroup
}

func newCounting(store *timeseries.Store, series int) *counting {
	c := &counting{store: store, series: make([]string, series), acknowledged: make([]atomic.Int64, series)}
	for i := range c.series {
		c.series[i] = "page-" + strconv.Itoa(i)
	}
	return c
}

// start makes workers count hits of random series until pause.
func (c *counting) start(ctx context.Context, workers int) {
	if c.began.IsZero() {
		c.began = time.Now()
	}
	ctx, c.stop = context.WithCancel(ctx)
	for range workers {
		c.workers.Go(func() {
			for ctx.Err() == nil {
				i := rand.N(len(c.series))
				// Not with ctx: what is under way is waited for, so that its outcome is known.
				c.note(i, c.store.Counter(c.series[i]).Incr(context.WithoutCancel(ctx), 1))
			}
		})
	}
}

func (c *counting) note(i int, err error) {
	switch {
	case err == nil:
		c.acknowledged[i].Add(1)
	case errors.Is(err, timeseries.ErrUnknown):
		c.unknown.Add(1)
	default:
		c.refused.Add(1)
		c.lastRefusal.Store(err.Error())
	}
}

// pause waits until nothing is under way.
func (c *counting) pause() {
	c.stop()
	c.workers.Wait()
}

func (c *counting) total() int64 {
	var n int64
	for i := range c.acknowledged {
		n += c.acknowledged[i].Load()
	}
	return n
}

// difference is what Redis has for all series, less what it had acknowledged.
type difference struct {
	read, acknowledged int64
	missing, extra     int64 // counted per series, so that they do not make up for each other
	took               time.Duration
}

// readBack reads all series, with one pipeline per node at the same time.
func (c *counting) readBack(ctx context.Context) (difference, error) {
	var d difference
	from, to := c.began.Truncate(time.Hour).Add(-time.Hour), time.Now().Add(time.Minute)
	var answers []timeseries.Series
	err := eventually(ctx, func() (err error) { // right after a failover the client may still ask the primary that is dead
		began := time.Now()
		answers, err = c.store.RangeMany(ctx, timeseries.Range{From: from, To: to, Step: time.Hour}, c.series...)
		d.took = time.Since(began)
		return err
	})
	if err != nil {
		return d, fmt.Errorf("read back: %w", err)
	}
	for i, answer := range answers {
		var n int64
		for _, p := range answer.Points {
			n += p.Value
		}
		want := c.acknowledged[i].Load()
		d.read += n
		d.acknowledged += want
		d.missing += max(0, want-n)
		d.extra += max(0, n-want)
	}
	return d, nil
}
