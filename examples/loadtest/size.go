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
