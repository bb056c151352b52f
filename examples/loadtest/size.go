package main

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
)

// checkpoint is how much memory the servers used with so many keys.
type checkpoint struct {
	Numbers int       `json:"numbers"` // keys of the dataset that are loaded
	Keys    []float64 `json:"keys"`    // of each primary, all that it has
	Used    float64   `json:"used"`    // bytes, of all primaries together
	Calm    bool      `json:"calm"`    // what tables that are being doubled take besides is known, and not in Used
}

// model is what memory is made of: Base + PerKey·keys + PerSlot·slots, where slots are those of hash tables that double when
// they are full, PerBucket keys to a bucket: 1 in Redis, 7 in Valkey 8.1. A primary has one such table; but a cluster since Redis
// 7.4 and Valkey 8 has one for each of its 16384 slots as soon as there is a key in it, which takes PerTable besides: over 2 kB
// in Redis 8. Which of them it is is found by the fit.
type model struct {
	Base      float64 `json:"base"`
	PerKey    float64 `json:"per_key"`
	PerSlot   float64 `json:"per_slot"`
	PerBucket float64 `json:"per_bucket"`
	Spread    bool    `json:"spread"` // over the tables of a cluster's slots
	PerTable  float64 `json:"per_table"`
	R2        float64 `json:"r2"`
	Copies    int     `json:"copies"` // keys of Redis per key of the dataset
	Points    int     `json:"points"`
}

// slots returns those of the one table of so many keys.
func slots(keys, perBucket float64) float64 {
	if keys <= 0 || perBucket == 0 {
		return 0
	}
	return math.Exp2(math.Ceil(math.Log2(max(keys/perBucket, 1)))) * perBucket
}

// clusterSlots is how many slots a cluster has.
const clusterSlots = 16384

// spread returns how many of a cluster's tables have a key, and the slots of these. Keys fall into them at random, so that they
// double one after the other. One that is there at all has at least four slots.
func spread(keys, perBucket float64) (tables, all float64) {
	mean := keys / clusterSlots
	deviation := math.Sqrt(mean)
	for n := math.Floor(max(mean-8*deviation, 0)) + 1; n <= mean+8*deviation+8; n++ {
		lgamma, _ := math.Lgamma(n + 1)
		chance := math.Exp(n*math.Log(mean) - mean - lgamma) // Poisson's
		tables += clusterSlots * chance
		all += clusterSlots * chance * max(slots(n, perBucket), 4)
	}
	return tables, all
}

// tables returns how many tables some primaries have, and the slots of these.
func (m model) tables(keys []float64) (tables, all float64) {
	sum := 0.0
	for _, k := range keys {
		sum += k
		all += slots(k, m.PerBucket)
	}
	if m.Spread && sum > 0 {
		return spread(sum, m.PerBucket)
	}
	return float64(len(keys)), all
}

// evenly returns so many keys of each primary.
func evenly(keys float64, primaries int) []float64 {
	return slices.Repeat([]float64{keys / float64(primaries)}, primaries)
}

// fit finds the model that comes nearest to the checkpoints. The slope alone would be wrong by up to what a doubling takes: 16
// bytes a key in Redis, where keys with a TTL are in two tables.
func fit(points []checkpoint, copies int, cluster bool) (model, error) {
	if len(points) < 3 {
		return model{}, errors.New("too few checkpoints")
	}
	points = calm(points)
	var best model
	bestError := math.Inf(1)
	for _, m := range []model{{}, {PerBucket: 1}, {PerBucket: 7}, {PerBucket: 1, PerSlot: 2 * 8, Spread: true}, {PerBucket: 7, PerSlot: 2 * 64 / 7.0, Spread: true}} {
		if m.PerBucket > 0 && len(points) < 6 || m.Spread && !cluster {
			continue
		}
		// One parameter more must be worth it.
		if squares, ok := m.fit(points); ok && squares < bestError*0.8 {
			best, bestError = m, squares
		}
	}
	if math.IsInf(bestError, 1) {
		return model{}, errors.New("memory did not grow with the keys: is somebody else using the server?")
	}
	best.Copies = copies
	return best, nil
}

// fit sets the coefficients of a kind of model, and returns the sum of the squares by which it misses.
func (m *model) fit(points []checkpoint) (squares float64, ok bool) {
	rows, used, mean := make([][]float64, len(points)), make([]float64, len(points)), 0.0
	for i, p := range points {
		rows[i], used[i] = []float64{1, float64(p.Numbers)}, p.Used
		tables, all := m.tables(p.Keys)
		switch {
		case m.Spread: // tables are so small that what their slots take must be known
			rows[i] = append(rows[i], tables)
			used[i] -= m.PerSlot * all
		case m.PerBucket > 0:
			rows[i] = append(rows[i], all)
		}
		mean += used[i] / float64(len(points))
	}
	x, ok := leastSquares(rows, used)
	if !ok || x[1] <= 0 || len(x) > 2 && (x[2] < 0 || x[2] > 64 && !m.Spread) {
		return 0, false
	}
	total := 0.0
	for i, row := range rows {
		v := 0.0
		for j, r := range row {
			v += r * x[j]
		}
		squares += (v - used[i]) * (v - used[i])
		total += (used[i] - mean) * (used[i] - mean)
	}
	if total <= 0 {
		return 0, false
	}
	m.Base, m.PerKey, m.Points, m.R2 = x[0], x[1], len(points), 1-squares/total
	switch {
	case m.Spread:
		m.PerTable = x[2]
	case m.PerBucket > 0:
		m.PerSlot = x[2]
	}
	return squares, true
}

// calm leaves out checkpoints at which keys were being moved to a larger table, and the old one was still there. Where the
// server does not tell (Redis 7.0), these are the first three fifths between two powers of two.
func calm(points []checkpoint) (kept []checkpoint) {
	for _, p := range points {
		busy := false
		for _, k := range p.Keys {
			busy = busy || k > 0 && slots(k, 1)/k > 1.24
		}
		if p.Calm || !busy {
			kept = append(kept, p)
		}
	}
	if len(kept) < 3 {
		return points
	}
	return kept
}

// leastSquares solves the normal equations by Gauss-Jordan elimination, with columns scaled to 1.
func leastSquares(rows [][]float64, y []float64) ([]float64, bool) {
	n := len(rows[0])
	scale := make([]float64, n)
	for _, r := range rows {
		for j, v := range r {
			scale[j] = max(scale[j], math.Abs(v))
		}
	}
	m := make([][]float64, n)
	for i := range m {
		m[i] = make([]float64, n+1)
		if scale[i] == 0 {
			return nil, false
		}
		for k, r := range rows {
			for j := range n {
				m[i][j] += r[i] / scale[i] * r[j] / scale[j]
			}
			m[i][n] += r[i] / scale[i] * y[k]
		}
	}
	for i := range m {
		pivot := i
		for k := i + 1; k < n; k++ {
			if math.Abs(m[k][i]) > math.Abs(m[pivot][i]) {
				pivot = k
			}
		}
		m[i], m[pivot] = m[pivot], m[i]
		if math.Abs(m[i][i]) < 1e-9 {
			return nil, false
		}
		for k := range m {
			if k == i {
				continue
			}
			f := m[k][i] / m[i][i]
			for j := i; j <= n; j++ {
				m[k][j] -= f * m[i][j]
			}
		}
	}
	x := make([]float64, n)
	for i := range x {
		x[i] = m[i][n] / m[i][i] / scale[i]
	}
	return x, true
}

// predict returns the memory that so many keys take, spread over so many primaries, each with what an empty server takes.
func (m model) predict(keys float64, primaries int) float64 {
	tables, all := m.tables(evenly(keys*float64(m.Copies), primaries))
	return m.Base + m.PerKey*keys + m.PerSlot*all + m.PerTable*tables
}

// spike returns what a table takes more while it doubles: the old one is there until all is moved.
func (m model) spike(keys float64, primaries int) float64 {
	if m.Spread { // one of very many, and each is small
		return 0
	}
	per := max(m.PerBucket, 1)
	return max(m.PerSlot, 16) * float64(primaries) * slots(keys*float64(max(m.Copies, 1))/float64(primaries)+1, per)
}

// sizeOptions is what the size command asks about.
type sizeOptions struct {
	keys        float64 // or 0: as measured
	rate        float64 // requests per second, or 0: as measured
	replicas    int
	utilisation float64 // percent of maxmemory
	reserve     float64 // percent of a node's RAM
	nodes       []node
}

// node is a kind of machine.
type node struct {
	name string
	ram  float64 // bytes
	gbit float64 // of the network, or 0: unknown
}

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
)

// generic machines are sizes of RAM, without names or prices of anybody's.
func generic() (all []node) {
	for _, n := range []float64{0.5, 1, 2, 4, 8, 16, 32, 64, 128} {
		all = append(all, node{name: fmt.Sprintf("%g GiB", n), ram: n * gib})
	}
	return all
}

// readNodes reads a CSV of name, RAM in GiB and, if known, network in Gbit/s. A first line that is a header is skipped.
func readNodes(file string) ([]node, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r := csv.NewReader(f)
	r.FieldsPerRecord, r.TrimLeadingSpace, r.Comment = -1, true, '#'
	records, err := r.ReadAll()
	if err != nil {
		return nil, err
	}
	var all []node
	for i, record := range records {
		if len(record) < 2 {
			return nil, fmt.Errorf("line %d: expected name,GiB[,Gbit/s]", i+1)
		}
		ram, err := strconv.ParseFloat(strings.TrimSpace(record[1]), 64)
		if err != nil || ram <= 0 {
			if i == 0 {
				continue
			}
			return nil, fmt.Errorf("line %d: expected name,GiB[,Gbit/s]", i+1)
		}
		n := node{name: record[0], ram: ram * gib}
		if len(record) > 2 && strings.TrimSpace(record[2]) != "" {
			if n.gbit, err = strconv.ParseFloat(strings.TrimSpace(record[2]), 64); err != nil || n.gbit <= 0 {
				return nil, fmt.Errorf("line %d: Gbit/s", i+1)
			}
		}
		all = append(all, n)
	}
	if len(all) == 0 {
		return nil, errors.New("no machine in it")
	}
	slices.SortStableFunc(all, func(a, b node) int { return int(math.Copysign(1, a.ram-b.ram)) })
	return all, nil
}

// sizingTerm is a line of a sizing: what, how much, and where that comes from.
type sizingTerm struct{ What, Value, Source string }

// sizing is an answer to "which Redis?".
type sizing struct {
	Terms    []sizingTerm
	Warnings []string
	Answer   string
}

// sizeOf computes a sizing from a report. Where the report lacks a figure the term says unknown.
func sizeOf(r *report, o sizeOptions) sizing {
	var s sizing
	add := func(what, value, source string) { s.Terms = append(s.Terms, sizingTerm{what, value, source}) }
	keys := o.keys
	if keys == 0 {
		keys = float64(r.Data.Keys)
	}
	primaries := max(r.Target.Primaries, 1)
	perSecond := r.Load.Achieved
	if o.rate > 0 {
		perSecond = o.rate
	}

	// What is written under ever new names and expires: rate × TTL, Little's law.
	moving, movingBytes := 0.0, 0.0
	byTTL := map[float64]float64{}
	for _, row := range r.Rows {
		if row.TTL > 0 && r.Total.Requests > 0 {
			writes := float64(row.Requests) / float64(r.Total.Requests) * perSecond
			byTTL[row.TTL] += writes
			moving += writes * row.TTL
			movingBytes += writes * row.TTL * row.BytesPerKey
		}
	}
	if moving > 0 {
		var products []string
		for _, ttl := range slices.Sorted(maps.Keys(byTTL)) {
			products = append(products, fmt.Sprintf("%s/s × %gs", count(byTTL[ttl]), ttl))
		}
		add("short-lived keys", count(moving), "writes × TTL, how many there are at a time: "+strings.Join(products, " + "))
	}
	var need float64
	var m model
	measured := false
	if r.Preload != nil && r.Preload.Model != nil {
		m = *r.Preload.Model
		measured = true
		data := m.predict(keys, primaries)
		perTable := ""
		if m.Spread {
			perTable = fmt.Sprintf(" + %.0f per slot of the cluster", m.PerTable)
		}
		add("bytes per key", fmt.Sprintf("%.0f", (data-m.Base)/keys), fmt.Sprintf(
			"used_memory over %d checkpoints while loading, R² %.6f: %.1f per key + %.1f per slot of tables that double%s", m.Points, m.R2, m.PerKey, m.PerSlot, perTable))
		if mu := r.Preload.MemoryUsage; mu != nil {
			add("MEMORY USAGE says", fmt.Sprintf("%.0f", *mu), "mean of some keys, without what tables have free, and on some versions without tables")
		}
		add("empty server", size(m.Base), "the same fit at 0 keys")
		add("dataset of "+count(keys)+" keys", size(data), "empty server + bytes per key × keys")
		need = data + movingBytes
		if moving > 0 {
			add("memory of short-lived keys", size(movingBytes), "estimated from their sizes")
		}
		spike := m.spike(keys+moving, primaries)
		add("while a table doubles", size(spike), "the old tables are kept until all is moved")
		need += spike
	} else {
		why := "nothing was loaded before, or the server does not tell used_memory"
		if r.Preload != nil && len(r.Preload.Checkpoints) > 0 && r.Data.Keys < leastKeys {
			why = fmt.Sprintf("%d keys are lost in the noise: load at least %s", r.Data.Keys, count(leastKeys))
		}
		add("bytes per key", "unknown", why)
	}
	clients := 20 * kib * max(deref(r.Clients), 1)
	if r.Clients != nil {
		add("clients", size(clients), fmt.Sprintf("%.0f connections × 20 KiB, an assumption", *r.Clients))
	} else {
		add("clients", "unknown", "the server does not tell connected_clients")
	}
	shards := 1
	if measured {
		need += clients
		if o.replicas > 0 {
			need += mib
			add("replication backlog", size(mib), "repl-backlog-size, its default")
		}
		maxmemory := need / (o.utilisation / 100)
		add("maxmemory", size(maxmemory), fmt.Sprintf("the sum, %.0f%% of it used", o.utilisation))
		ram := maxmemory / (1 - o.reserve/100)
		add("RAM", size(ram), fmt.Sprintf("%.0f%% reserved for copy-on-write while saving and replicating, buffers, fragmentation; 50%% if much is written", o.reserve))
		largest := o.nodes[len(o.nodes)-1].ram
		shards = max(int(math.Ceil(ram/largest)), 1)
		add("shards for RAM", strconv.Itoa(shards), "RAM / largest machine, "+o.nodes[len(o.nodes)-1].name)
		cpuShards(r, perSecond, &shards, add)
		netShards(r, perSecond, o, &shards, add)
		per := ram / float64(shards)
		choice := o.nodes[len(o.nodes)-1]
		for _, n := range o.nodes {
			if n.ram >= per {
				choice = n
				break
			}
		}
		s.Answer = fmt.Sprintf("%s + %s, each %s with maxmemory %s", plural(shards, "primary", "primaries"), plural(shards*o.replicas, "replica", "replicas"),
			choice.name, size(maxmemory/float64(shards)))
	} else {
		cpuShards(r, perSecond, &shards, add)
		netShards(r, perSecond, o, &shards, add)
		s.Answer = "unknown: load keys on a real server first (preload, or run with a scenario that loads)"
	}
	if measured && m.Copies > 1 {
		s.Warnings = append(s.Warnings, "with --raw each key was loaded twice, by the package and by hand: without it the sizing is right")
	}
	for _, c := range r.Data.Classes {
		whole := allocatedString(c.Size)
		less := c.Size
		for less > 1 && allocatedString(less) == whole {
			less--
		}
		if trim, saved := c.Size-less, whole-allocatedString(less); less > 1 && trim*20 <= c.Size && saved*12 >= whole {
			s.Warnings = append(s.Warnings, fmt.Sprintf("values of %s: %d bytes take %d of the allocator's; %d bytes less would take %d, %.0f%% less (jemalloc's size classes)",
				c.Name, c.Size, whole, trim, whole-saved, 100*float64(saved)/float64(whole)))
		}
	}
	return s
}

func cpuShards(r *report, perSecond float64, shards *int, add func(what, value, source string)) {
	if r.CPU == nil || r.Load.Achieved <= 0 {
		add("CPU", "unknown", "the server does not tell, or nothing ran")
		return
	}
	perPrimary := r.Load.Achieved / float64(max(r.Target.Primaries, 1))
	add("CPU", fmt.Sprintf("%.0f%% of a core", *r.CPU), fmt.Sprintf("the busiest primary's main thread at %s/s, measured", count(perPrimary)))
	if *r.CPU < 1 {
		return
	}
	most := perPrimary * 70 / *r.CPU
	n := max(int(math.Ceil(perSecond/most)), 1)
	add("shards for CPU", strconv.Itoa(n), fmt.Sprintf("%s/s, of which one core does %s/s at 70%%", count(perSecond), count(most)))
	*shards = max(*shards, n)
}

func netShards(r *report, perSecond float64, o sizeOptions, shards *int, add func(what, value, source string)) {
	if r.Wire.Seconds <= 0 || r.Load.Achieved <= 0 {
		return
	}
	gbit := max(r.Wire.In, r.Wire.Out) / r.Wire.Seconds * perSecond / r.Load.Achieved * 8 / 1e9
	add("network", fmt.Sprintf("%.3f Gbit/s", gbit), "bytes on the connections, the busier direction; compare with the machine's baseline, not its burst")
	if n := o.nodes[len(o.nodes)-1]; n.gbit > 0 {
		need := max(int(math.Ceil(gbit/(0.7*n.gbit))), 1)
		add("shards for network", strconv.Itoa(need), fmt.Sprintf("70%% of %g Gbit/s of %s", n.gbit, n.name))
		*shards = max(*shards, need)
	}
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + many
}

func deref(f figure) float64 {
	if f == nil {
		return 0
	}
	return *f
}

func (s sizing) print(w io.Writer) {
	fmt.Fprintln(w, "SIZING")
	for _, t := range s.Terms {
		fmt.Fprintf(w, "  %-28s %14s   %s\n", t.What, t.Value, t.Source)
	}
	for _, warning := range s.Warnings {
		fmt.Fprintln(w, "  note:", warning)
	}
	fmt.Fprintln(w, "  =>", s.Answer)
}

// size writes bytes for people.
func size(b float64) string {
	switch {
	case b >= gib:
		return fmt.Sprintf("%.2f GiB", b/gib)
	case b >= mib:
		return fmt.Sprintf("%.1f MiB", b/mib)
	case b >= kib:
		return fmt.Sprintf("%.1f KiB", b/kib)
	}
	return fmt.Sprintf("%.0f B", b)
}

// count writes a number with separators of thousands, and with two digits if it is small: half a request per second is not none.
func count(n float64) string {
	if math.Abs(n) < 9.5 && n != math.Trunc(n) {
		return strconv.FormatFloat(n, 'g', 2, 64)
	}
	s := strconv.FormatFloat(math.Round(n), 'f', -1, 64)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
