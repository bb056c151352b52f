package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"
)

// checkpointsOf returns after how many keys to read the memory: at several places between a power of two and the next, so
// that what tables take can be told from what keys take, and where Redis has done with moving the keys to the larger table.
func checkpointsOf(keys, primaries int) (all []int) {
	unit := float64(max(primaries, 1))
	for unit < float64(keys)/32 {
		unit *= 2
	}
	for ; unit <= float64(keys); unit *= 2 {
		for _, phase := range []float64{0.82, 0.91, 1} {
			all = append(all, int(phase*unit))
		}
	}
	all = append(all, keys)
	slices.Sort(all)
	return slices.Compact(all)
}

// progress is how far the loading is.
type progress struct {
	done, keys int
	took       time.Duration
	used       figure
}

func (p progress) String() string {
	perSecond := float64(p.done) / max(p.took.Seconds(), 1e-9)
	eta := "unknown"
	if p.done > 0 {
		eta = time.Duration(float64(p.keys-p.done) / perSecond * float64(time.Second)).Round(time.Second / 10).String()
	}
	used := "unknown"
	if p.used != nil {
		used = size(*p.used)
	}
	return fmt.Sprintf("preload %s of %s keys (%.0f%%)  %s/s  ETA %s  used_memory %s",
		count(float64(p.done)), count(float64(p.keys)), 100*float64(p.done)/float64(max(p.keys, 1)), count(perSecond), eta, used)
}

// leastKeys is how many keys a sizing takes: fewer are lost in the noise.
const leastKeys = 1000

// preload writes the dataset and reads what memory it takes. tell is called about once a second, from one goroutine.
func preload(ctx context.Context, t *target, w *workload, d *dataset, batch int, perSecond float64, tell func(progress)) (*preloaded, error) {
	begin := time.Now()
	p := &preloaded{}
	_, before, _ := t.primaries(ctx) // what cannot be read is unknown
	p.Before = before.sum("used_memory")
	var done atomic.Int64
	used := p.Before
	shown := begin
	show := func(force bool) {
		if force || time.Since(shown) >= time.Second {
			shown = time.Now()
			tell(progress{int(done.Load()), d.keys, time.Since(begin), used})
		}
	}
	from := 0
	for _, to := range checkpointsOf(d.keys, len(before)) {
		if err := fillPart(ctx, w, from, to, batch, perSecond, begin, &done, func() { show(false) }); err != nil {
			return p, fmt.Errorf("preload: after %s of %s keys: %s: %w", count(float64(done.Load())), count(float64(d.keys)), classify(err), err)
		}
		from = to
		_, all, err := t.primaries(ctx)
		if err != nil {
			continue
		}
		used = all.sum("used_memory")
		if c, ok := checkpointOf(to, all); ok {
			p.Checkpoints = append(p.Checkpoints, c)
		}
	}
	p.Seconds = time.Since(begin).Seconds()
	show(true)
	p.After = t.settled(ctx)
	if m, err := fit(p.Checkpoints, w.copies, t.client.Mode() == rueidis.ClientModeCluster); err == nil && d.keys >= leastKeys {
		p.Model = &m
	}
	p.MemoryUsage = memoryUsage(ctx, t, d)
	return p, nil
}

// checkpointOf makes a checkpoint, without what replication buffers take, and what the old tables take while keys are moved to
// larger ones, if the servers tell it.
func checkpointOf(numbers int, all infos) (checkpoint, bool) {
	used := all.sum("used_memory")
	if used == nil {
		return checkpoint{}, false
	}
	c := checkpoint{Numbers: numbers, Used: *used}
	for _, name := range []string{"mem_total_replication_buffers", "mem_aof_buffer"} { // which grow up to a bound as keys are written
		c.Used -= deref(all.sum(name))
	}
	if moving := all.sum("mem_overhead_db_hashtable_rehashing"); moving != nil {
		c.Used -= *moving
		c.Calm = true
	}
	for _, i := range all {
		k := i.keys()
		if k == nil {
			return c, false
		}
		c.Keys = append(c.Keys, *k)
	}
	return c, true
}

// settled returns used_memory once the servers have done with moving keys to larger tables, or after three seconds.
func (t *target) settled(ctx context.Context) figure {
	for begin := time.Now(); ; wait(ctx, 100*time.Millisecond) {
		_, all, err := t.primaries(ctx)
		if err != nil {
			return nil
		}
		moving := all.sum("mem_overhead_db_hashtable_rehashing")
		if moving == nil || *moving == 0 || time.Since(begin) > 3*time.Second || ctx.Err() != nil {
			return all.sum("used_memory")
		}
	}
}

const (
	preloaders  = 4                // pipelines that are under way while loading
	fillTimeout = 30 * time.Second // of one of them
)

func fillPart(ctx context.Context, w *workload, from, to, batch int, perSecond float64, begin time.Time, done *atomic.Int64, show func()) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	next.Store(int64(from))
	var wg sync.WaitGroup
	for range preloaders {
		wg.Go(func() {
			for ctx.Err() == nil {
				a := int(next.Add(int64(batch))) - batch
				if a >= to {
					return
				}
				if perSecond > 0 {
					wait(ctx, time.Until(begin.Add(time.Duration(float64(a)/perSecond*float64(time.Second)))))
				}
				if ctx.Err() != nil {
					return
				}
				// Not with ctx: what was begun is finished also after a Ctrl-C, or it would be written after the keys were removed.
				b := min(a+batch, to)
				filling, stop := context.WithTimeout(context.WithoutCancel(ctx), fillTimeout)
				err := w.fill(filling, a, b)
				stop()
				if err != nil {
					cancel(err)
					return
				}
				done.Add(int64(b - a))
			}
		})
	}
	ended := make(chan struct{})
	go func() {
		wg.Wait()
		close(ended)
	}()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			show()
		case <-ended:
			if err := context.Cause(ctx); err != nil {
				return err
			}
			return nil
		}
	}
}

// wait returns after d or when ctx ends.
func wait(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// memoryUsage returns the mean of MEMORY USAGE of some keys, of all classes in proportion.
func memoryUsage(ctx context.Context, t *target, d *dataset) figure {
	samples := min(100, d.keys)
	first := rand.IntN(d.keys - samples + 1) // one after the other, as classes take turns
	sum, n := 0.0, 0
	for i := range samples {
		v, err := t.info.Do(ctx, t.info.B().MemoryUsage().Key(d.key(first+i)).Build()).AsInt64()
		if err != nil {
			continue
		}
		sum += float64(v)
		n++
	}
	if n == 0 {
		return nil
	}
	return known(sum / float64(n))
}

// fits refuses what is larger than what the servers have left.
func fits(bytes float64, all infos) error {
	if len(all) == 0 {
		return errors.New("unknown")
	}
	for _, i := range all {
		used, most := i.figure("used_memory"), i.figure("maxmemory")
		if used == nil || most == nil {
			return errors.New("unknown")
		}
		share, free, of := bytes/float64(len(all)), *most-*used, "maxmemory "+size(*most)
		if *most == 0 {
			system := i.figure("total_system_memory")
			if system == nil {
				return errors.New("unknown")
			}
			free, of = 0.8**system-*used, "80% of the machine's "+size(*system)+", as maxmemory is not set"
		}
		if share > free {
			return &tooLargeError{fmt.Sprintf("it would take about %s, and a server has %s left (%s)", size(share), size(max(free, 0)), of)}
		}
	}
	return nil
}

// tooLargeError says that something does not fit.
type tooLargeError struct{ text string }

func (e *tooLargeError) Error() string { return e.text }
