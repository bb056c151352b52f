package main

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"
)

// figure is a number, or nil: unknown. What a server does not tell is never shown as zero.
type figure = *float64

func known(v float64) figure { return &v }

// info is what INFO says of a node.
type info map[string]string

func parseInfo(text string) info {
	i := info{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok && !strings.HasPrefix(line, "#") {
			i[name] = value
		}
	}
	return i
}

func (i info) figure(name string) figure {
	v, err := strconv.ParseFloat(i[name], 64)
	if err != nil {
		return nil
	}
	return &v
}

// keys returns how many keys all databases have.
func (i info) keys() figure {
	if _, ok := i["used_memory"]; !ok { // it has no line of keys when there are none
		return nil
	}
	sum := 0.0
	for name, value := range i {
		if db, ok := strings.CutPrefix(name, "db"); ok && strings.Trim(db, "0123456789") == "" {
			n, _, _ := strings.Cut(strings.TrimPrefix(value, "keys="), ",")
			k, err := strconv.ParseFloat(n, 64)
			if err != nil {
				return nil
			}
			sum += k
		}
	}
	return &sum
}

// infos are all primaries'.
type infos []info

// sum adds a figure of all nodes; it is unknown if one does not tell it.
func (all infos) sum(name string) figure {
	return all.add(func(i info) figure { return i.figure(name) })
}

func (all infos) add(of func(info) figure) figure {
	if len(all) == 0 {
		return nil
	}
	sum := 0.0
	for _, i := range all {
		f := of(i)
		if f == nil {
			return nil
		}
		sum += *f
	}
	return &sum
}

// most is the largest of all nodes.
func (all infos) most(name string) (most figure) {
	for _, i := range all {
		if f := i.figure(name); f != nil && (most == nil || *f > *most) {
			most = f
		}
	}
	return most
}

func (all infos) text(name string) string {
	values := map[string]bool{}
	for _, i := range all {
		values[cmp.Or(i[name], "unknown")] = true
	}
	return strings.Join(slices.Sorted(maps.Keys(values)), ", ")
}

// primaries returns a client of each primary; of a replica, if that is all there is.
func (t *target) primaries(ctx context.Context) (map[string]rueidis.Client, infos, error) {
	nodes := t.info.Nodes()
	addrs := slices.Sorted(maps.Keys(nodes))
	found, all, errs := map[string]rueidis.Client{}, make(infos, len(addrs)), make([]error, len(addrs))
	var wg sync.WaitGroup
	for i, addr := range addrs {
		wg.Go(func() { all[i], errs[i] = readInfo(ctx, nodes[addr]) })
	}
	wg.Wait()
	var kept infos
	var kinds []error
	for i, addr := range addrs {
		switch {
		case errs[i] != nil:
			kinds = append(kinds, errs[i])
		case all[i]["role"] != "slave" || len(addrs) == 1:
			found[addr] = nodes[addr]
			kept = append(kept, all[i])
		}
	}
	// A replica that is gone is none of our business; a primary that is shows in the missing figures.
	if len(found) == 0 {
		return nil, nil, errors.Join(append(kinds, errors.New("no primary answers INFO"))...)
	}
	return found, kept, nil
}

var infoSections = []string{"server", "clients", "memory", "persistence", "stats", "replication", "cpu", "errorstats", "keyspace"}

func readInfo(ctx context.Context, node rueidis.Client) (info, error) {
	text, err := node.Do(ctx, node.B().Info().Section(infoSections...).Build()).ToString()
	if _, ok := rueidis.IsRedisErr(err); ok && !strings.HasPrefix(err.Error(), "NOPERM") { // one section at a time, or none
		text, err = node.Do(ctx, node.B().Info().Build()).ToString()
	}
	if err != nil {
		return nil, err
	}
	return parseInfo(text), nil
}

// sample is what the servers said at a time.
type sample struct {
	at    time.Time
	infos infos
}

// sampler asks the servers at a steady rate.
type sampler struct {
	t    *target
	last atomic.Pointer[sample]
}

func (s *sampler) run(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		asking, cancel := context.WithTimeout(ctx, max(every, time.Second))
		if _, all, err := s.t.primaries(asking); err == nil {
			s.last.Store(&sample{time.Now(), all})
		}
		cancel()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// rate returns the change per second of a counter between two samples, unknown if a server was restarted meanwhile.
func rate(a, b *sample, name string) figure {
	return per(a, b, func(s *sample) figure { return s.infos.sum(name) })
}

func per(a, b *sample, of func(*sample) figure) figure {
	if a == nil || b == nil || len(a.infos) != len(b.infos) {
		return nil
	}
	from, to, d := of(a), of(b), b.at.Sub(a.at).Seconds()
	if from == nil || to == nil || *to < *from || d <= 0 {
		return nil
	}
	return known((*to - *from) / d)
}

// cpuTime is what the busiest primary's main thread has used, in seconds, or its whole process, before Redis 6.2.
func cpuTime(s *sample) figure {
	var most figure
	for _, i := range s.infos {
		sys, user := i.figure("used_cpu_sys_main_thread"), i.figure("used_cpu_user_main_thread")
		if sys == nil || user == nil {
			sys, user = i.figure("used_cpu_sys"), i.figure("used_cpu_user")
		}
		if sys != nil && user != nil && (most == nil || *sys+*user > *most) {
			most = known(*sys + *user)
		}
	}
	return most
}

// histogram is what LATENCY HISTOGRAM says of a command: how many calls took up to so many microseconds, per power of two and
// not cumulative.
type histogram map[int64]int64

// serverLatency reads the histograms of all commands from all primaries; nil if one does not tell.
func (t *target) serverLatency(ctx context.Context) map[string]histogram {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	nodes, _, err := t.primaries(ctx)
	if err != nil {
		return nil
	}
	all := map[string]histogram{}
	for _, node := range nodes {
		commands, err := node.Do(ctx, node.B().LatencyHistogram().Build()).ToArray()
		if err != nil {
			return nil
		}
		// The connection speaks RESP2: [command, [calls, n, histogram_usec, [bound, calls up to it, …]], …]
		for c := 0; c+1 < len(commands); c += 2 {
			name, err := commands[c].ToString()
			fields, ferr := commands[c+1].ToArray()
			if err != nil || ferr != nil || len(fields) < 4 {
				return nil
			}
			pairs, err := fields[3].AsIntSlice()
			if err != nil {
				return nil
			}
			h := all[name]
			if h == nil {
				h = histogram{}
				all[name] = h
			}
			below := int64(0)
			for p := 0; p+1 < len(pairs); p += 2 {
				h[pairs[p]] += pairs[p+1] - below
				below = pairs[p+1]
			}
		}
	}
	return all
}

// since returns what was added to a histogram.
func (h histogram) since(before histogram) histogram {
	d := histogram{}
	for bound, n := range h {
		if n -= before[bound]; n > 0 {
			d[bound] = n
		}
	}
	return d
}

// quantile returns the upper end of the power of two that p percent are in, in microseconds.
func (h histogram) quantile(p float64) figure {
	all := int64(0)
	for _, n := range h {
		all += n
	}
	if all == 0 {
		return nil
	}
	seen, bounds := int64(0), slices.Sorted(maps.Keys(h))
	for _, bound := range bounds {
		if seen += h[bound]; float64(seen) >= p/100*float64(all) {
			return known(float64(bound))
		}
	}
	return known(float64(bounds[len(bounds)-1]))
}

// stepTimeout bounds a step of the clean-up: a server that is gone must not keep the program.
const stepTimeout = 10 * time.Second

// cleanUp removes all keys that begin with the prefix, and returns how many there were. It looks until there are none: requests
// that timed out may have been executed a little later.
func (t *target) cleanUp(ctx context.Context, prefix string) (removed int64, err error) {
	looking, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	nodes, _, err := t.primaries(looking)
	var reply *rueidis.RedisError
	switch {
	case errors.As(err, &reply): // it may not ask which are primaries
		nodes = t.info.Nodes()
	case err != nil:
		return 0, err
	}
	var errs []error
	for _, node := range nodes {
		for {
			n, err := t.removeFrom(ctx, node, prefix)
			removed += n
			if err != nil {
				errs = append(errs, err)
			}
			if err != nil || n == 0 {
				break
			}
		}
	}
	return removed, errors.Join(errs...)
}

// removeFrom walks over a node's keys once.
func (t *target) removeFrom(ctx context.Context, node rueidis.Client, prefix string) (removed int64, err error) {
	for cursor := uint64(0); ; {
		n, next, err := t.removeSome(ctx, node, prefix, cursor)
		removed += n
		if cursor = next; err != nil || cursor == 0 {
			return removed, err
		}
	}
}

func (t *target) removeSome(ctx context.Context, node rueidis.Client, prefix string, cursor uint64) (removed int64, next uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	entry, err := node.Do(ctx, node.B().Scan().Cursor(cursor).Match(prefix+"*").Count(1000).Build()).AsScanEntry()
	if err != nil {
		return 0, 0, err
	}
	unlinks := make(rueidis.Commands, 0, len(entry.Elements))
	for _, key := range entry.Elements {
		if strings.HasPrefix(key, prefix) {
			unlinks = append(unlinks, t.info.B().Unlink().Key(key).Build()) // one each: in a cluster they are in different slots
		}
	}
	for _, r := range t.info.DoMulti(ctx, unlinks...) {
		n, uerr := r.AsInt64()
		removed += n
		err = cmp.Or(err, uerr)
	}
	return removed, entry.Cursor, err
}

// mayCleanUp reports whether what will be written can be removed again.
func (t *target) mayCleanUp(ctx context.Context, prefix string) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	for _, node := range t.info.Nodes() {
		if _, _, err := t.removeSome(ctx, node, prefix+"none", 0); err != nil {
			return err
		}
	}
	return t.info.Do(ctx, t.info.B().Unlink().Key(prefix+"none").Build()).Error()
}
