package main

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/redis/rueidis"
)

type plan struct {
	only    []string
	pattern string
	round   time.Duration
	rounds  int
}

// benchCase is one comparison. The first contestant is ours.
type benchCase struct {
	name        string // package/case
	goroutines  int
	contestants []contestant
	// turn, in place of their do, lets the contestant of that name work for a while, and returns how many operations
	// took how long.
	turn func(name string, d time.Duration) (n int, took time.Duration, err error)
	// fixed has, if it is set, each contestant's figure, which does not depend on time: entries per byte, say.
	fixed []float64
}

func (c benchCase) title() string { return fmt.Sprintf("%s_%d", c.name, c.goroutines) }

// contestant does the work of a case.
type contestant struct {
	name string
	// do does it once. n differs between calls, worker between goroutines.
	do func(ctx context.Context, worker, n int) error
}

// row is what was measured of one contestant.
type row struct {
	caseName, name string
	perRound       []float64 // operations per second
	latency        *hdrhistogram.Histogram
	commands       float64 // server commands per operation
	allocs         float64 // per operation
}

// bench is the server under load and the clients that all contestants of a library share.
type bench struct {
	addr   string
	admin  rueidis.Client
	prefix string
	closes []func()
	notes  []string // ratios of what is no speed, printed last
	failed error    // of setting up
}

func newBench(addr string) (*bench, error) {
	admin, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{addr}, DisableCache: true})
	if err != nil {
		return nil, err
	}
	return &bench{addr: addr, admin: admin, prefix: "bench" + strconv.FormatInt(time.Now().UnixNano(), 36)}, nil
}

func (b *bench) close() {
	for _, f := range slices.Backward(b.closes) {
		f()
	}
	b.admin.Close()
}

// fail keeps the first error of setting up, so that cases can be written down plainly.
func (b *bench) fail(err error) {
	if err != nil && b.failed == nil {
		b.failed = err
	}
}

// latencyEvery says which operations are timed: timing each would cost as much as a local cache hit.
const latencyEvery = 8

func (b *bench) measure(ctx context.Context, p plan, c benchCase) ([]row, error) {
	rows := make([]row, len(c.contestants))
	for i, ct := range c.contestants {
		rows[i] = row{caseName: c.title(), name: ct.name, latency: hdrhistogram.New(1, 60e9, 3)}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if c.fixed != nil {
			rows[i].perRound = c.fixed[i : i+1]
			continue
		}
		if _, _, err := c.let(ct, p.round/4, nil); err != nil { // warm up
			return nil, fmt.Errorf("%s: %w", ct.name, err)
		}
	}
	if c.fixed != nil {
		return rows, nil
	}
	for r := range p.rounds {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		for k := range c.contestants {
			i := (k + r) % len(c.contestants) // each goes first, and after each other one, now and then
			before, err := b.commands(ctx)
			if err != nil {
				return nil, err
			}
			var m0, m1 runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&m0)
			n, took, err := c.let(c.contestants[i], p.round, rows[i].latency)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", c.contestants[i].name, err)
			}
			runtime.ReadMemStats(&m1)
			after, err := b.commands(ctx)
			if err != nil {
				return nil, err
			}
			rows[i].perRound = append(rows[i].perRound, float64(n)/took.Seconds())
			rows[i].allocs += float64(m1.Mallocs-m0.Mallocs) / float64(n) / float64(p.rounds)
			rows[i].commands += float64(after-before) / float64(n) / float64(p.rounds)
		}
	}
	return rows, nil
}

// let gives a contestant its turn.
func (c benchCase) let(ct contestant, d time.Duration, latency *hdrhistogram.Histogram) (int, time.Duration, error) {
	if c.turn != nil {
		return c.turn(ct.name, d)
	}
	return turn(c.goroutines, d, ct, latency)
}

// turn lets one contestant work for a while and returns how many operations it did, and how long they took. The context is one that
// cannot end, as in everybody's benchmarks; cases about contexts make their own.
func turn(goroutines int, d time.Duration, c contestant, latency *hdrhistogram.Histogram) (int, time.Duration, error) {
	ctx := context.Background()
	began := time.Now()
	var mu sync.Mutex
	var wg sync.WaitGroup
	var total int
	var failed error
	stop := make(chan struct{})
	for w := range goroutines {
		wg.Go(func() {
			var sampled []time.Duration
			var err error
			n := 0
			for err == nil {
				select {
				case <-stop:
				default:
					if n%latencyEvery == 0 && latency != nil {
						began := time.Now()
						err = c.do(ctx, w, n)
						sampled = append(sampled, time.Since(began))
					} else {
						err = c.do(ctx, w, n)
					}
					n++
					continue
				}
				break
			}
			mu.Lock()
			defer mu.Unlock()
			total += n
			if err != nil && failed == nil {
				failed = err
			}
			for _, s := range sampled {
				_ = latency.RecordValue(min(int64(s), 60e9)) // within bounds: no error
			}
		})
	}
	<-time.After(d)
	close(stop)
	wg.Wait()
	return total, time.Since(began), failed
}

// commands returns how many commands the server has processed, scripts' own calls included, INFO excluded.
func (b *bench) commands(ctx context.Context) (int64, error) {
	stats, err := b.admin.Do(ctx, b.admin.B().Info().Section("commandstats").Build()).ToString()
	if err != nil {
		return 0, err
	}
	var total int64
	for line := range strings.Lines(stats) {
		name, rest, ok := strings.Cut(line, ":calls=")
		if !ok || name == "cmdstat_info" {
			continue
		}
		calls, _, _ := strings.Cut(rest, ",")
		n, err := strconv.ParseInt(calls, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("INFO commandstats: %w", err)
		}
		total += n
	}
	return total, nil
}

func median(xs []float64) float64 {
	xs = slices.Sorted(slices.Values(xs))
	if len(xs)%2 == 1 {
		return xs[len(xs)/2]
	}
	return (xs[len(xs)/2-1] + xs[len(xs)/2]) / 2
}

// report prints the table and the ratios. A ratio is the median of the rounds' own ratios.
func report(w io.Writer, rows []row) {
	fmt.Fprintln(w, "| case | contestant | ops/s | p50 µs | p99 µs | commands/op | allocs/op |")
	fmt.Fprintln(w, "|---|---|---:|---:|---:|---:|---:|")
	for _, r := range rows {
		fmt.Fprintf(w, "| %s | %s | %.0f | %.1f | %.1f | %.2f | %.1f |\n", r.caseName, r.name, median(r.perRound),
			float64(r.latency.ValueAtQuantile(50))/1e3, float64(r.latency.ValueAtQuantile(99))/1e3, r.commands, r.allocs)
	}
	fmt.Fprintln(w)
	var ours row
	for _, r := range rows {
		if r.caseName != ours.caseName {
			ours = r
			continue
		}
		ratios := make([]float64, len(r.perRound))
		for i := range ratios {
			ratios[i] = ours.perRound[i] / r.perRound[i]
		}
		fmt.Fprintf(w, "ratio %s %s/%s: %.2f\n", r.caseName, ours.name, r.name, median(ratios))
	}
}
