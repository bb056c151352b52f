package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// checkpointAt are the parts of the dataset after which memory is read: at different places between two powers of two, so
// that what tables take can be told from what keys take.
var checkpointAt = []float64{1. / 16, 3. / 32, 1. / 8, 3. / 16, 1. / 4, 3. / 8, 1. / 2, 5. / 8, 3. / 4, 7. / 8, 1}

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
		eta = (time.Duration(float64(p.keys-p.done) / perSecond * float64(time.Second))).Round(time.Second / 10).String()
	}
	used := "unknown"
	if p.used != nil {
		used = size(*p.used)
	}
	return fmt.Sprintf("preload %s of %s keys (%.0f%%)  %s/s  ETA %s  used_memory %s",
		count(float64(p.done)), count(float64(p.keys)), 100*float64(p.done)/float64(max(p.keys, 1)), count(perSecond), eta, used)
}

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
	for _, part := range checkpointAt {
		to := int(part * float64(d.keys))
		if to <= from {
			continue
		}
		if err := fillPart(ctx, w, from, to, batch, perSecond, begin, &done, func() { show(false) }); err != nil {
			return p, fmt.Errorf("preload: after %s of %s keys: %s: %w", count(float64(done.Load())), count(float64(d.keys)), classify(err), err)
		}
		from = to
		_, all, err := t.primaries(ctx)
		if err != nil {
			continue
		}
		c := checkpoint{Numbers: to}
		used = all.sum("used_memory")
		for _, i := range all {
			if k := i.keys(); k != nil {
				c.Keys = append(c.Keys, *k)
			}
		}
		if used != nil && len(c.Keys) == len(all) {
			c.Used = *used
			p.Checkpoints = append(p.Checkpoints, c)
		}
	}
	p.Seconds = time.Since(begin).Seconds()
	p.After = used
	show(true)
	// Tables double at different times on different nodes, and a dataset of a few thousand keys is lost in the noise.
	if m, err := fit(p.Checkpoints, w.copies); err == nil && d.keys >= 1000 {
		p.Model = &m
	}
	p.MemoryUsage = memoryUsage(ctx, t, d)
	return p, nil
}

// preloaders is how many pipelines are under way while loading.
const preloaders = 4

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
				b := min(a+batch, to)
				if err := w.fill(ctx, a, b); err != nil {
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

// memoryUsage returns the mean of MEMORY USAGE of some keys, each weighted as often as its class is there.
func memoryUsage(ctx context.Context, t *target, d *dataset) figure {
	const samples = 100
	sum, n := 0.0, 0
	for range min(samples, d.keys) {
		v, err := t.info.Do(ctx, t.info.B().MemoryUsage().Key(d.key(rand.IntN(d.keys))).Build()).AsInt64()
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
