package main

import (
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"
)

// schemaVersion is that of the JSON. It changes when a field changes its meaning or goes.
const schemaVersion = 1

// report is what a run found. All latencies are in microseconds, all sizes in bytes. What is unknown is null.
type report struct {
	Schema      int        `json:"schema"`
	Started     time.Time  `json:"started"`
	Seconds     float64    `json:"seconds"` // that were measured, without the warm-up
	Interrupted bool       `json:"interrupted,omitempty"`
	Arguments   []string   `json:"arguments"`
	Scenario    string     `json:"scenario"`
	Revision    string     `json:"revision,omitempty"` // of this program
	Target      targetInfo `json:"target"`
	Load        load       `json:"load"`
	Data        data       `json:"data"`
	Preload     *preloaded `json:"preload"`
	Rows        []row      `json:"rows"`
	Total       row        `json:"total"`
	Series      []point    `json:"series"`
	Wire        wire       `json:"wire"`
	CPU         figure     `json:"server_cpu"`    // percent of a core, of the busiest primary's main thread
	Generator   figure     `json:"generator_cpu"` // percent of what this process may use
	Memory      figure     `json:"used_memory"`   // at the end, of all primaries
	MaxMemory   figure     `json:"maxmemory"`     // of all primaries; 0: no bound
	Evicted     figure     `json:"evicted"`       // keys, during the run
	Expired     figure     `json:"expired"`
	Clients     figure     `json:"clients"`
	Knee        *knee      `json:"knee,omitempty"`
	Doctor      *diagnosis `json:"doctor,omitempty"`
	Overheads   []overhead `json:"overheads,omitempty"`
	Gates       []gate     `json:"gates,omitempty"`
	Warnings    []string   `json:"warnings"`
	Merged      int        `json:"merged,omitempty"` // how many reports this one is made of

	latest *point // while it runs: of the last second, also of the warm-up
}

type targetInfo struct {
	Address   string `json:"address"`
	Version   string `json:"version"`
	Mode      string `json:"mode"`
	Policy    string `json:"maxmemory_policy"`
	Primaries int    `json:"primaries"`
}

type load struct {
	Loop      string  `json:"loop"`     // open or closed
	Planned   float64 `json:"planned"`  // requests that were due; open loop
	Rate      float64 `json:"rate"`     // per second, on average; open loop
	Achieved  float64 `json:"achieved"` // requests per second that were done in time
	Users     float64 `json:"users"`    // at the end; closed loop
	Saturated string  `json:"saturated,omitempty"`
	MaxLag    float64 `json:"max_lag"` // how late a request began at most
}

type data struct {
	Prefix  string  `json:"prefix"`
	Keys    int     `json:"keys"`
	TTL     float64 `json:"ttl_seconds"`
	Jitter  float64 `json:"ttl_jitter"`
	Classes []class `json:"classes"`
}

// preloaded is what loading the dataset before the run took.
type preloaded struct {
	Seconds     float64      `json:"seconds"`
	Before      figure       `json:"used_memory_before"`
	After       figure       `json:"used_memory_after"`
	Checkpoints []checkpoint `json:"checkpoints"`
	Model       *model       `json:"model"`
	MemoryUsage figure       `json:"memory_usage"` // the mean of MEMORY USAGE of some keys
}

// row is a line of the table.
type row struct {
	Name        string           `json:"name"`
	Command     string           `json:"command,omitempty"`
	Requests    int64            `json:"requests"`
	Failures    int64            `json:"failures"`
	Errors      map[string]int64 `json:"errors"`
	Hits        int64            `json:"hits"`
	Misses      int64            `json:"misses"`
	BytesIn     int64            `json:"bytes_in"`
	BytesOut    int64            `json:"bytes_out"`
	Response    latency          `json:"response"` // from when the request was due: what a user waits
	Service     latency          `json:"service"`  // from when it was sent
	ServerP50   figure           `json:"server_p50"`
	ServerP99   figure           `json:"server_p99"`
	RPS         float64          `json:"rps"` // of the last ten seconds
	FailuresPS  float64          `json:"failures_per_second"`
	TTL         float64          `json:"ttl_seconds,omitempty"` // of what it writes under ever new names
	BytesPerKey float64          `json:"bytes_per_key,omitempty"`
}

func (r *row) hitPercent() figure {
	if r.Hits+r.Misses == 0 {
		return nil
	}
	return known(100 * float64(r.Hits) / float64(r.Hits+r.Misses))
}

func (r *row) errorPercent() float64 {
	if r.Requests == 0 {
		return 0
	}
	return 100 * float64(r.Failures) / float64(r.Requests)
}

// point is a second of the run.
type point struct {
	T        float64 `json:"t"` // seconds since the load began; negative while warming up
	RPS      float64 `json:"rps"`
	Errors   float64 `json:"errors"` // per second
	P50      figure  `json:"p50"`
	P95      figure  `json:"p95"`
	P99      figure  `json:"p99"`
	P999     figure  `json:"p99.9"`
	Lag      float64 `json:"lag"`
	Inflight float64 `json:"inflight"`
	Used     figure  `json:"used_memory"`
	Max      figure  `json:"maxmemory"`
	Hit      figure  `json:"hit"`     // percent, as the clients saw it
	Evicted  figure  `json:"evicted"` // per second
	Expired  figure  `json:"expired"`
	OOM      figure  `json:"oom"`
	CPU      figure  `json:"server_cpu"`
	NetIn    figure  `json:"net_in"` // bytes per second, as the server counts
	NetOut   figure  `json:"net_out"`
	Clients  figure  `json:"clients"`
	Frag     figure  `json:"fragmentation"`
	Own      figure  `json:"generator_cpu"`
	GCPause  figure  `json:"gc_pause"` // the longest of this process in that time
}

// wire is what went over the client's connections.
type wire struct {
	Seconds float64 `json:"seconds"`
	In      float64 `json:"in"`
	Out     float64 `json:"out"`
}

// overhead compares an operation of a package with the same by hand.
type overhead struct {
	Name string  `json:"name"`
	Raw  string  `json:"raw"`
	P50  float64 `json:"p50"` // microseconds more
	P99  float64 `json:"p99"`
	Mean float64 `json:"mean"`
}

// gate is a condition of --fail-on that was judged.
type gate struct {
	Condition string `json:"condition"`
	Value     figure `json:"value"`
	Failed    bool   `json:"failed"`
}

func rowOf(o operation, c *counts) row {
	return row{
		Name: o.name, Command: o.command, Requests: c.requests, Failures: c.failures(), Errors: maps.Clone(c.errors),
		Hits: c.hits, Misses: c.misses, BytesIn: c.in, BytesOut: c.out,
		Response: c.response.latency(), Service: c.service.latency(), TTL: o.ttl.Seconds(), BytesPerKey: o.bytes,
	}
}

// figureOf returns a metric of conditions, in the unit of metrics.
func (r *report) figureOf(metric string) figure {
	l := r.Total.Response
	switch metric {
	case "errors":
		if r.Total.Requests == 0 {
			return nil
		}
		return known(r.Total.errorPercent())
	case "hit":
		return r.Total.hitPercent()
	case "rps":
		return known(r.Load.Achieved)
	case "evicted":
		return r.Evicted
	case "expired":
		return r.Expired
	case "cpu":
		return r.CPU
	case "lag":
		return known(r.Load.MaxLag)
	case "memory":
		if r.Memory == nil || r.MaxMemory == nil || *r.MaxMemory == 0 {
			return nil
		}
		return known(100 * *r.Memory / *r.MaxMemory)
	}
	if l.Count == 0 {
		return nil
	}
	switch metric {
	case "min":
		return &l.Min
	case "avg":
		return &l.Mean
	case "p50":
		return &l.P50
	case "p90":
		return &l.P90
	case "p95":
		return &l.P95
	case "p99":
		return &l.P99
	case "p99.9":
		return &l.P999
	case "max":
		return &l.Max
	}
	return nil
}

// judge applies conditions of --fail-on. What is unknown fails: a gate that cannot see must not stay open.
func (r *report) judge(conditions []condition) (failed bool) {
	for _, c := range conditions {
		v := r.figureOf(c.metric)
		g := gate{Condition: c.text, Value: v, Failed: v == nil || c.holds(*v)}
		failed = failed || g.Failed
		r.Gates = append(r.Gates, g)
	}
	return failed
}

func (g gate) String() string {
	verdict, is := "passed  ", "unknown"
	if g.Failed {
		verdict = "FAILED  "
	}
	if m := conditionForm.FindStringSubmatch(g.Condition); g.Value != nil && m != nil {
		is = "it is " + metrics[m[1]].text(*g.Value)
	}
	return verdict + g.Condition + ": " + is
}

func (r *report) writeJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", " ")
	return e.Encode(r)
}

func readReport(file string) (*report, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	r := new(report)
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if r.Schema != schemaVersion {
		return nil, fmt.Errorf("%s: its schema is %d, this program reads %d", file, r.Schema, schemaVersion)
	}
	return r, nil
}

// writeFile writes a file as a whole or not at all; without write, it only tries whether it could.
func writeFile(name string, write func(io.Writer) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(name), ".loadtest-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	if write == nil {
		return errors.Join(f.Close(), os.Remove(f.Name()))
	}
	if err := write(f); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := errors.Join(f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}

// writeCSV writes prefix_stats.csv, prefix_stats_history.csv and prefix_failures.csv, with the columns that Locust's have,
// in milliseconds as there, and some more.
func (r *report) writeCSV(prefix string) error {
	ms := func(micros float64) string { return strconv.FormatFloat(micros/1000, 'f', 3, 64) }
	or := func(f figure, scale float64) string {
		if f == nil {
			return "N/A"
		}
		return strconv.FormatFloat(*f*scale, 'f', 3, 64)
	}
	n := func(v int64) string { return strconv.FormatInt(v, 10) }
	stats := [][]string{{
		"Type", "Name", "Request Count", "Failure Count", "Median Response Time", "Average Response Time", "Min Response Time",
		"Max Response Time", "Average Content Size", "Requests/s", "Failures/s", "50%", "90%", "95%", "99%", "99.9%", "Hit %", "Bytes In",
		"Bytes Out", "Service 50%", "Service 99%", "Server 99%",
	}}
	failures := [][]string{{"Method", "Name", "Error", "Occurrences"}}
	for _, w := range append(slices.Clone(r.Rows), r.Total) {
		l, requests, seconds := w.Response, float64(max(w.Requests, 1)), max(r.Seconds, 1e-9)
		stats = append(stats, []string{
			w.Command, w.Name, n(w.Requests), n(w.Failures), ms(l.P50), ms(l.Mean), ms(l.Min), ms(l.Max),
			strconv.FormatFloat(float64(w.BytesIn)/requests, 'f', 1, 64), strconv.FormatFloat(float64(w.Requests)/seconds, 'f', 2, 64),
			strconv.FormatFloat(float64(w.Failures)/seconds, 'f', 2, 64), ms(l.P50), ms(l.P90), ms(l.P95), ms(l.P99), ms(l.P999),
			or(w.hitPercent(), 1), n(w.BytesIn), n(w.BytesOut), ms(w.Service.P50), ms(w.Service.P99), or(w.ServerP99, 0.001),
		})
	}
	for _, w := range r.Rows {
		for _, class := range slices.Sorted(maps.Keys(w.Errors)) {
			failures = append(failures, []string{w.Command, w.Name, class, n(w.Errors[class])})
		}
	}
	history := [][]string{{
		"Timestamp", "Requests/s", "Failures/s", "50%", "95%", "99%", "99.9%", "Lag", "In Flight", "Used Memory", "Max Memory", "Hit %",
		"Evicted/s", "Expired/s", "Server CPU %", "Net In", "Net Out", "Clients",
	}}
	for _, p := range r.Series {
		at := r.Started.Add(time.Duration(p.T * float64(time.Second)))
		history = append(history, []string{
			n(at.Unix()), or(&p.RPS, 1), or(&p.Errors, 1), or(p.P50, 0.001), or(p.P95, 0.001), or(p.P99, 0.001), or(p.P999, 0.001), ms(p.Lag),
			or(&p.Inflight, 1), or(p.Used, 1), or(p.Max, 1), or(p.Hit, 1), or(p.Evicted, 1), or(p.Expired, 1), or(p.CPU, 1), or(p.NetIn, 1), or(p.NetOut, 1), or(p.Clients, 1),
		})
	}
	for name, records := range map[string][][]string{"stats": stats, "stats_history": history, "failures": failures} {
		if err := writeFile(prefix+"_"+name+".csv", func(w io.Writer) error { return csv.NewWriter(w).WriteAll(records) }); err != nil {
			return err
		}
	}
	return nil
}

// writeHGRM writes the distribution of all response times, in milliseconds, as HdrHistogram's plotters read it.
func (r *report) writeHGRM(prefix string) error {
	for name, l := range map[string]*latency{"response": &r.Total.Response, "service": &r.Total.Service} {
		t, err := l.times()
		if err != nil {
			return err
		}
		if err := writeFile(prefix+"_"+name+".hgrm", func(w io.Writer) error {
			_, err := t.hist.PercentilesPrint(w, 5, 1000)
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}
