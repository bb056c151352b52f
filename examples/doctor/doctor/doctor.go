// Package doctor says whether a Redis is safe for what is done with it: it reads a server's settings, counters and a sample of
// its keys, and judges them pattern by pattern, since what a cache wants is what a lock cannot bear.
//
//	report, err := doctor.Check(ctx, client, doctor.Expect{Uses: []doctor.Pattern{doctor.Cache}, Interval: time.Second})
//	for _, f := range report.Findings {
//		if f.Severity == doctor.Fail { log.Println(f) }
//	}
//
// It needs nothing but rueidis: copy the folder into a service and call Check when it starts.
//
// # What it does to the server
//
// It only reads: INFO twice, CONFIG GET, LATENCY HISTOGRAM, CLUSTER INFO, ACL WHOAMI and GETUSER, SCAN in small steps that stop
// early, TYPE and PTTL of the keys found, and XLEN, XINFO GROUPS and XPENDING of streams. It reads no value and no password, and
// never uses KEYS or MONITOR. The two samples are Expect.Interval apart, as Redis' counters are since its start: what happened last
// year is mentioned at most.
//
// # What it looks at
//
// All nodes that the client knows, primaries and replicas; with Expect.Dial also the replicas that a client of one server or of
// Sentinel does not know. Keys are sampled on primaries, or on what there is.
//
// A pattern is judged if a sample has keys of it or Expect.Uses names it. Keys are known by their prefixes: those that the
// packages of this library have by default, and Expect.Prefixes. Streams are known by their type. Keys of no known prefix
// are counted, and KEY01 says so: nothing is known then of what may happen to them.
//
// Where there are many keys it walks over 50,000 for each prefix at most, and may meet none of a pattern that has few; and
// keys that were evicted are not met at all. So name what the server is for.
//
// # What it cannot see
//
// Where a command is not allowed, or a managed service has none, what depends on it is [Unknown], never [OK], with the grant that
// would help. It cannot see whether lost data can be made again, what a container may use of its host's memory, or how a replica is
// backed up.
package doctor

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/redis/rueidis"
)

// Severity is how bad a finding is.
type Severity string

// Severities, from good to bad. Unknown is between Info and Warn.
const (
	OK      Severity = "OK"
	Info    Severity = "INFO"    // good to know, nothing to do
	Unknown Severity = "UNKNOWN" // could not be read
	Warn    Severity = "WARN"    // will hurt one day
	Fail    Severity = "FAIL"    // loses data or refuses commands, now or when memory runs out
)

var severities = []Severity{OK, Info, Unknown, Warn, Fail}

// worse reports whether s is worse than other.
func (s Severity) worse(other Severity) bool {
	return slices.Index(severities, s) > slices.Index(severities, other)
}

// Pattern is what keys are used for.
type Pattern string

// The patterns, each what the package of its name does, or anything like it.
const (
	Cache        Pattern = "cache"
	Lock         Pattern = "lock"
	RateLimit    Pattern = "ratelimit"
	Buffer       Pattern = "buffer"
	Stream       Pattern = "stream"
	TimeSeries   Pattern = "timeseries"
	FeatureStore Pattern = "featurestore"
)

// Patterns returns all patterns.
func Patterns() []Pattern {
	return []Pattern{Cache, Lock, RateLimit, Buffer, Stream, TimeSeries, FeatureStore}
}

// Expect is what the server is for, and how to look at it. The zero value works.
type Expect struct {
	// Uses are the patterns that the server is for, whether or not there are keys of them by now.
	Uses []Pattern

	// Prefixes says what keys are used for, by what they begin with; the longest prefix counts. They come on top of the packages'
	// defaults: "cache:", "lock:", "ratelimit:", "buffer:", "ts:" and "features:".
	Prefixes map[string]Pattern

	// Interval is the time between the two samples. 10ms to 10min. Defaults to 5s.
	Interval time.Duration

	// SampleKeys is how many keys of each prefix are looked at on each node. 1 to 100,000. Defaults to 2,000.
	SampleKeys int

	// Lease is how long a stream's message is with its consumer before another takes over. At least 1ms. Defaults to 30s, as in
	// package stream.
	Lease time.Duration

	// Skip are the ids of checks to leave out.
	Skip []string

	// Dial returns a client of the one node at addr, which Check closes. With it, replicas are looked at that the client given to
	// Check does not know. Nil leaves them out, and REP01 says so.
	Dial func(addr string) (rueidis.Client, error)
}

func (e *Expect) setDefaults() error {
	if e.Interval == 0 {
		e.Interval = 5 * time.Second
	}
	if e.SampleKeys == 0 {
		e.SampleKeys = 2000
	}
	if e.Lease == 0 {
		e.Lease = 30 * time.Second
	}
	switch {
	case e.Interval < 10*time.Millisecond || e.Interval > 10*time.Minute:
		return fmt.Errorf("doctor: Interval must be between 10ms and 10m, got %v", e.Interval)
	case e.SampleKeys < 1 || e.SampleKeys > 100_000:
		return fmt.Errorf("doctor: SampleKeys must be between 1 and 100000, got %d", e.SampleKeys)
	case e.Lease < time.Millisecond:
		return fmt.Errorf("doctor: Lease must be at least 1ms, got %v", e.Lease)
	}
	for _, p := range e.Uses {
		if !slices.Contains(Patterns(), p) {
			return fmt.Errorf("doctor: Uses: there is no pattern %q", p)
		}
	}
	for prefix, p := range e.Prefixes {
		if prefix == "" || !slices.Contains(Patterns(), p) {
			return fmt.Errorf("doctor: Prefixes: %q: %q: a prefix must not be empty, and the pattern be one of %v", prefix, p, Patterns())
		}
	}
	for _, id := range e.Skip {
		if !slices.ContainsFunc(checks, func(c check) bool { return c.id == id }) {
			return fmt.Errorf("doctor: Skip: there is no check %q", id)
		}
	}
	return nil
}

// Finding is what one check says of one node.
type Finding struct {
	ID       string   `json:"id"`
	Severity Severity `json:"severity"`
	Node     string   `json:"node,omitempty"`    // host:port, or empty if it is about all
	Pattern  Pattern  `json:"pattern,omitempty"` // whose users notice, or empty
	Observed string   `json:"observed"`
	Expected string   `json:"expected,omitempty"`
	Why      string   `json:"why,omitempty"`
	Fix      string   `json:"fix,omitempty"`
	Runbook  string   `json:"runbook"` // an address
}

// String is the finding in one line.
func (f Finding) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s", f.Severity, f.ID)
	if f.Node != "" {
		b.WriteString(" " + f.Node)
	}
	if f.Pattern != "" {
		b.WriteString(" " + string(f.Pattern))
	}
	b.WriteString(": " + f.Observed)
	if f.Why != "" {
		b.WriteString(": " + f.Why)
	}
	if f.Fix != "" {
		b.WriteString("; " + f.Fix)
	}
	return b.String()
}

// Verdict is what a node's maxmemory and its policy mean for a pattern, used or not.
type Verdict struct {
	Node     string   `json:"node"`
	Policy   string   `json:"policy"` // maxmemory-policy, or "no limit" where maxmemory is 0
	Pattern  Pattern  `json:"pattern"`
	Used     bool     `json:"used"`
	Severity Severity `json:"severity"`
	Why      string   `json:"why"`
}

// Report is what Check has found. The worst findings come first.
type Report struct {
	Nodes    []NodeSummary `json:"nodes"`
	Keys     []KeySummary  `json:"keys"`
	Verdicts []Verdict     `json:"verdicts"`
	Findings []Finding     `json:"findings"`
}

// NodeSummary is what there is to know of a node before anything is judged.
type NodeSummary struct {
	Addr      string `json:"addr"`
	Role      string `json:"role"`
	Server    string `json:"server"` // such as "Redis 8.0.2"
	Policy    string `json:"policy"`
	Used      int64  `json:"used"`      // bytes
	MaxMemory int64  `json:"maxMemory"` // bytes; 0 if there is no limit
	Keys      int64  `json:"keys"`
}

// KeySummary is what was found of a prefix, on all nodes.
type KeySummary struct {
	Prefix  string  `json:"prefix"`
	Pattern Pattern `json:"pattern,omitempty"` // empty if it is not known
	Sampled int     `json:"sampled"`
	NoTTL   int     `json:"noTTL"`
	All     bool    `json:"all"` // whether no key was left out
}

// Group is findings that differ in their nodes only, or what could not be read for one reason, for all checks that lack it:
// their ids are in ID.
type Group struct {
	Finding
	Nodes []string `json:"nodes"`
}

// Groups returns the findings with nothing said twice. It leaves out what is well, unless all is wanted.
func (r Report) Groups(all bool) []Group {
	var list []Group
	for _, f := range r.Findings {
		if f.Severity == OK && !all {
			continue
		}
		node := f.Node
		f.Node = ""
		i := slices.IndexFunc(list, func(g Group) bool {
			if f.Severity == Unknown {
				return g.Severity == f.Severity && g.Observed == f.Observed && g.Fix == f.Fix
			}
			return g.Finding == f
		})
		if i < 0 {
			list = append(list, Group{Finding: f})
			i = len(list) - 1
		} else if !strings.Contains(list[i].ID, f.ID) {
			list[i].ID += " " + f.ID
		}
		if !slices.Contains(list[i].Nodes, node) {
			list[i].Nodes = append(list[i].Nodes, node)
		}
	}
	return list
}

// Worst returns the severity of the worst finding.
func (r Report) Worst() Severity {
	worst := OK
	for _, f := range r.Findings {
		if f.Severity.worse(worst) {
			worst = f.Severity
		}
	}
	return worst
}

// Checked reports whether any node could be judged at all.
func (r Report) Checked() bool {
	return slices.ContainsFunc(r.Nodes, func(n NodeSummary) bool { return n.Server != "" })
}

// Check looks at all nodes and judges what it sees. It takes Expect.Interval and the time of reading. An error means that
// nothing was looked at: expect is wrong, or ctx has ended.
func Check(ctx context.Context, client rueidis.Client, expect Expect) (Report, error) {
	snapshot, err := Collect(ctx, client, expect)
	if err != nil {
		return Report{}, err
	}
	return Judge(snapshot, expect)
}
