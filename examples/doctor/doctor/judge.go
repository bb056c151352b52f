package doctor

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// runbooks is where each check has a page of its own.
const runbooks = "https://github.com/redispatterns/redispatterns/blob/main/docs/runbooks/"

// check is one thing to look at, on each node. What it says nothing of is OK.
type check struct {
	id    string
	title string
	needs []source
	run   func(j *judge, n *Node)
}

// Checks returns the ids of all checks, each with what it looks at.
func Checks() map[string]string {
	titles := map[string]string{}
	for _, c := range checks {
		titles[c.id] = c.title
	}
	return titles
}

// judge looks at a snapshot.
type judge struct {
	Snapshot
	used   []Pattern
	report Report

	check *check // the one that runs
	node  *Node
}

// Judge says what to think of a snapshot.
func Judge(s Snapshot, expect Expect) (Report, error) {
	if err := expect.setDefaults(); err != nil {
		return Report{}, err
	}
	j := judge{Snapshot: s, used: s.used(expect.Uses)}
	j.report.Keys = s.keys()
	for _, n := range s.Nodes {
		j.report.Nodes = append(j.report.Nodes, n.summary())
		if policy := n.policy(); policy != "" {
			for _, p := range Patterns() {
				severity, why := judgement(policy, p, n.hasTTL(p))
				j.report.Verdicts = append(j.report.Verdicts, Verdict{n.Addr, policy, p, slices.Contains(j.used, p), severity, why})
			}
		}
		for i := range checks {
			if !slices.Contains(expect.Skip, checks[i].id) {
				j.run(&checks[i], n)
			}
		}
	}
	slices.SortStableFunc(j.report.Findings, func(a, b Finding) int {
		return slices.Index(severities, b.Severity) - slices.Index(severities, a.Severity)
	})
	return j.report, nil
}

func (j *judge) run(c *check, n *Node) {
	j.check, j.node = c, n
	before := len(j.report.Findings)
	for _, from := range c.needs {
		if j.isDenied(from) {
			return
		}
	}
	c.run(j, n)
	if len(j.report.Findings) == before {
		j.say(Finding{Severity: OK, Observed: c.title})
	}
}

// say adds a finding of the check that runs.
func (j *judge) say(f Finding) {
	f.ID, f.Node, f.Runbook = j.check.id, j.node.Addr, runbooks+j.check.id+".md"
	j.report.Findings = append(j.report.Findings, f)
}

// isDenied reports whether something could not be read, and says so.
func (j *judge) isDenied(from source) bool {
	why, denied := j.node.Denied[from]
	if !denied {
		return false
	}
	fix := "see that the server is up and can be reached from here"
	switch {
	case strings.HasPrefix(why, "NOPERM"):
		user := j.node.User
		if _, rest, ok := strings.Cut(why, "User "); user == "" && ok { // which may not ask who it is; Redis 7.0 does not say
			user, _, _ = strings.Cut(rest, " ")
		}
		fix = fmt.Sprintf("ACL SETUSER %s %s", cmp.Or(user, "<user>"), from)
	case strings.Contains(why, "unknown command"), strings.Contains(why, "ERR"):
		fix = "this server does not tell: look in your provider's console"
	}
	j.say(Finding{Severity: Unknown, Observed: "could not be read: " + why, Fix: fix})
	return true
}

// uses returns those of patterns that are used.
func (j *judge) uses(patterns ...Pattern) []Pattern {
	return slices.DeleteFunc(slices.Clone(j.used), func(p Pattern) bool { return !slices.Contains(patterns, p) })
}

func (s Snapshot) used(expected []Pattern) []Pattern {
	var used []Pattern
	for _, p := range Patterns() {
		found := slices.ContainsFunc(s.Nodes, func(n *Node) bool {
			return slices.ContainsFunc(n.Keys, func(k *KeySample) bool { return k.Pattern == p && k.Seen+k.Odd > 0 })
		})
		if found || slices.Contains(expected, p) {
			used = append(used, p)
		}
	}
	return used
}

func (s Snapshot) keys() []KeySummary {
	var keys []KeySummary
	for _, n := range s.Nodes {
		for _, k := range n.Keys {
			i := slices.IndexFunc(keys, func(have KeySummary) bool { return have.Prefix == k.Prefix })
			if i < 0 {
				keys = append(keys, KeySummary{Prefix: k.Prefix, Pattern: k.Pattern, All: true})
				i = len(keys) - 1
			}
			keys[i].Sampled += k.Seen + k.Odd
			keys[i].NoTTL += k.NoTTL
			keys[i].All = keys[i].All && k.All
		}
	}
	slices.SortFunc(keys, func(a, b KeySummary) int { return strings.Compare(a.Prefix, b.Prefix) })
	return keys
}

func (n *Node) summary() NodeSummary {
	s := NodeSummary{Addr: n.Addr, Role: n.Second["role"], Policy: n.policy(), MaxMemory: n.bytes("maxmemory"), Used: n.bytes("used_memory")}
	if name, version := n.server(); version != "" {
		s.Server = name + " " + version
	}
	for name := range n.Second {
		if strings.HasPrefix(name, "db") {
			s.Keys += int64(n.Second.part(name, "keys"))
		}
	}
	return s
}

func (n *Node) server() (name, version string) {
	if v := n.Second["valkey_version"]; v != "" {
		return "Valkey", v
	}
	return "Redis", n.Second["redis_version"]
}

// policy returns maxmemory-policy, NoLimit, or "" if it is not known.
func (n *Node) policy() string {
	switch {
	case !n.Second.has("maxmemory"):
		return ""
	case n.Second.number("maxmemory") == 0:
		return NoLimit
	}
	return n.Second["maxmemory_policy"]
}

// hasTTL reports whether a pattern's keys have TTLs on this node, as far as they were seen.
func (n *Node) hasTTL(p Pattern) bool {
	var seen, noTTL int
	for _, k := range n.Keys {
		if k.Pattern == p {
			seen += k.Seen
			noTTL += k.NoTTL
		}
	}
	switch {
	case seen == 0:
		return p.hasTTL()
	case p == Cache: // what has none stays for ever
		return isCovered(seen, noTTL)
	}
	return noTTL < seen // what has one can be evicted
}

// isCovered reports whether practically all keys have a TTL.
func isCovered(seen, noTTL int) bool { return float64(noTTL) <= 0.001*float64(seen) }

func (n *Node) bytes(name string) int64 { return int64(n.Second.number(name)) }

// delta returns by how much a counter has grown between the samples.
func (n *Node) delta(name string) float64 {
	return max(0, n.Second.number(name)-n.First.number(name)) // it begins anew when the server restarts
}

// persists reports whether the node writes an append-only file or snapshots; known is false where that could not be read.
func (n *Node) persists() (aof, rdb, known bool) {
	_, denied := n.Denied[fromConfig]
	return n.Second["aof_enabled"] == "1", n.Config["save"] != "", !denied
}

func (n *Node) isPrimary() bool { return n.Second["role"] == "master" }

func (n *Node) seconds() string { return n.Interval.Round(100 * time.Millisecond).String() }

func megabytes(n float64) string { return fmt.Sprintf("%.1f MB", n/(1<<20)) }

func names(patterns []Pattern) string {
	s := make([]string, len(patterns))
	for i, p := range patterns {
		s[i] = string(p)
	}
	return strings.Join(s, ", ")
}
