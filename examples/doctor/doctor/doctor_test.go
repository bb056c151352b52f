package doctor

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const docs = "../../../docs"

// healthy is a primary with a replica, for everything but caches, about which there is nothing to say.
func healthy() Snapshot {
	info := func() fields {
		return parseInfo(strings.ReplaceAll(`# Server
redis_version:8.0.2
role:master
connected_slaves:1
maxmemory:1000000000
maxmemory_policy:noeviction
total_system_memory:4000000000
used_memory:500000000
used_memory_peak:500000000
allocator_frag_ratio:1.05
allocator_frag_bytes:2000000
mem_fragmentation_ratio:1.1
connected_clients:10
maxclients:10000
mem_clients_normal:20000
aof_enabled:1
aof_last_write_status:ok
rdb_last_bgsave_status:ok
aof_last_bgrewrite_status:ok
evicted_keys:0
keyspace_hits:100
keyspace_misses:900000
cmdstat_set:calls=10,usec=20,usec_per_call=2.00,rejected_calls=0,failed_calls=0
db0:keys=7,expires=3,avg_ttl=0
`, "\n", "\r\n"))
	}
	n := newNode("primary:6379")
	n.User, n.Interval, n.First, n.Second = "default", 5*time.Second, info(), info()
	n.Config = fields{
		"appendfsync": "always", "save": "3600 1", "no-appendfsync-on-rewrite": "no", "min-replicas-to-write": "1",
		"tracking-table-max-keys": "1000000", "bind": "* -::*", "protected-mode": "no", "port": "6379", "hash-max-listpack-entries": "512",
	}
	n.Keys = []*KeySample{
		{Prefix: "lock:", Pattern: Lock, Seen: 1, All: true},
		{Prefix: "buffer:", Pattern: Buffer, Seen: 2, NoTTL: 2, Odd: 1, All: true},
		{Prefix: "ts:", Pattern: TimeSeries, Seen: 2, All: true},
		{Prefix: "(streams)", Pattern: Stream, Seen: 1, NoTTL: 1, All: true},
	}
	n.Streams = []*StreamSample{{Key: "orders", Length: 10, Groups: []*GroupSample{{Name: "billing", Pending: 2, Lag: 3, LaterLag: 2}}}}
	return Snapshot{Mode: "standalone", Nodes: []*Node{n}}
}

func judged(t *testing.T, s Snapshot, expect Expect) Report {
	t.Helper()
	report, err := Judge(s, expect)
	require.NoError(t, err)
	return report
}

func TestJudge_HasNothingToSayOfAHealthyServer(t *testing.T) {
	report := judged(t, healthy(), Expect{})
	for _, f := range report.Findings {
		require.Equal(t, OK, f.Severity, f)
	}
	require.Equal(t, OK, report.Worst())
	require.True(t, report.Checked())
	require.Len(t, report.Findings, len(checks))
	require.Equal(t, NodeSummary{"primary:6379", "master", "Redis 8.0.2", "noeviction", 500_000_000, 1_000_000_000, 7}, report.Nodes[0])
	require.Equal(t, KeySummary{"buffer:", Buffer, 3, 2, true}, report.Keys[1])
}

func TestJudge_FindsEachThing(t *testing.T) {
	now := func(name, value string) func(*Node) { return func(n *Node) { n.Second[name] = value } }
	setting := func(name, value string) func(*Node) { return func(n *Node) { n.Config[name] = value } }
	both := func(name, value string) func(*Node) {
		return func(n *Node) { n.First[name], n.Second[name] = value, value }
	}
	onlyCache := func(n *Node) {
		n.Keys = []*KeySample{{Prefix: "cache:", Pattern: Cache, Seen: 1000, NoTTL: 1}}
		n.Second["maxmemory_policy"] = "allkeys-lru"
	}
	all := func(changes ...func(*Node)) func(*Node) {
		return func(n *Node) {
			for _, change := range changes {
				change(n)
			}
		}
	}
	noDisk := all(now("aof_enabled", "0"), setting("save", ""))
	found := map[string]bool{}
	for _, c := range []struct {
		name     string
		change   func(*Node)
		id       string
		severity Severity
		observed string
	}{
		{"locks may be evicted", now("maxmemory_policy", "allkeys-lru"), "POL01", Fail, "maxmemory-policy allkeys-lru"},
		{"no limit", now("maxmemory", "0"), "POL01", Warn, "maxmemory 0"},
		{"a policy of the future", now("maxmemory_policy", "magic"), "POL01", Unknown, "magic"},
		{"no maxmemory in INFO", func(n *Node) { delete(n.Second, "maxmemory") }, "POL01", Unknown, "no maxmemory"},
		{"a cache too", func(n *Node) { n.Keys = append(n.Keys, &KeySample{Prefix: "cache:", Pattern: Cache, Seen: 1}) }, "POL02", Fail, "cache shares the server with lock, buffer, stream, timeseries"},
		{"a cache and features", func(n *Node) {
			n.Keys = []*KeySample{{Pattern: Cache, Seen: 1}, {Pattern: FeatureStore, Seen: 1, NoTTL: 1}}
		}, "POL02", Warn, "featurestore"},
		{"other keys", func(n *Node) { n.Keys = append(n.Keys, &KeySample{Prefix: "x:", Seen: 3}) }, "KEY01", Info, "3 of 10 keys that were looked at are of no known pattern: x: (3)"},
		{"too much of the machine", now("total_system_memory", "1200000000"), "MEM01", Warn, "83%"},
		{"nearly full", now("used_memory", "900000000"), "MEM02", Warn, "90%"},
		{"full", now("used_memory", "990000000"), "MEM02", Fail, "99%"},
		{"evicting", all(now("maxmemory_policy", "allkeys-lru"), now("evicted_keys", "3")), "MEM03", Fail, "3 keys"},
		{"evicting what has a TTL, where only streams are", func(n *Node) {
			n.Keys = []*KeySample{{Pattern: Stream, Seen: 1, NoTTL: 1}}
			n.Second["maxmemory_policy"], n.Second["evicted_keys"] = "volatile-lru", "3"
		}, "MEM03", Warn, "3 keys"},
		{"has evicted", both("evicted_keys", "3"), "MEM03", Info, "3 keys were evicted since"},
		{"a cache that evicts", all(onlyCache, now("evicted_keys", "3")), "MEM03", Info, "3 keys"},
		{"a cache that is too small", all(onlyCache, now("evicted_keys", "900"), now("cmdstat_set", "calls=1010"), both("keyspace_misses", "10"), both("keyspace_hits", "1000"), now("keyspace_misses", "810"), now("keyspace_hits", "2000")), "MEM03", Warn, "90% of what was written, and 56% of lookups hit where 99% did"},
		{"OOM", all(now("errorstat_OOM", "count=4"), now("cmdstat_set", "calls=10,rejected_calls=3"), now("cmdstat_evalsha", "calls=1,failed_calls=1")), "MEM04", Fail, "4 times OOM in 5s: SET (3), EVALSHA (1)"},
		{"over the limit", all(both("current_eviction_exceeded_time", "1000"), now("current_eviction_exceeded_time", "6000")), "MEM04", Fail, "6.0s"},
		{"OOM once", both("errorstat_OOM", "count=4"), "MEM04", Info, "4 times"},
		{"fragmented", all(now("allocator_frag_ratio", "1.2"), now("allocator_frag_bytes", "20000000")), "MEM05", Info, "1.20"},
		{"very fragmented", all(now("allocator_frag_ratio", "1.6"), now("allocator_frag_bytes", "200000000")), "MEM05", Warn, "1.60"},
		{"swapped", now("mem_fragmentation_ratio", "0.7"), "MEM05", Fail, "0.70"},
		{"was larger", now("used_memory_peak", "900000000"), "MEM06", Info, "858.3 MB"},
		{"large buffers", now("mem_clients_normal", "9000000"), "MEM06", Warn, "0.9 MB each"},
		{"scripts", now("number_of_cached_scripts", "1001"), "MEM06", Warn, "1001 scripts"},
		{"cut off", now("client_output_buffer_limit_disconnections", "1"), "MEM07", Warn, "+1"},
		{"was cut off", both("client_query_buffer_limit_disconnections", "1"), "MEM07", Info, "1 since"},
		{"a lock for ever", func(n *Node) { n.Keys[0].NoTTL = 1 }, "TTL01", Fail, `1 of 1 keys that begin with "lock:"`},
		{"a cache for ever", all(onlyCache, func(n *Node) { n.Keys[0].NoTTL = 2 }), "TTL01", Warn, "2 of 1000"},
		{"a stream that expires", func(n *Node) { n.Keys[3].NoTTL = 0 }, "TTL02", Warn, "1 of 1"},
		{"expiry is slow", now("expired_time_cap_reached_count", "2"), "TTL03", Warn, "2 times"},
		{"many are stale", now("expired_stale_perc", "12.5"), "TTL03", Warn, "12%"},
		{"misses", all(onlyCache, now("keyspace_hits", "1100"), now("keyspace_misses", "901000")), "HIT01", Warn, "50% of 2000"},
		{"misses, not only of caches", all(func(n *Node) { n.Keys = append(n.Keys, &KeySample{Pattern: Cache, Seen: 1}) }, now("keyspace_misses", "901000")), "HIT01", Info, "0% of 1000"},
		{"nothing on disk", noDisk, "PER01", Fail, "neither"},
		{"snapshots", now("aof_enabled", "0"), "PER01", Warn, "save 3600 1"},
		{"never synced", setting("appendfsync", "no"), "PER01", Fail, "appendfsync no"},
		{"synced each second", setting("appendfsync", "everysec"), "PER01", Info, "everysec"},
		{"a failed write", now("aof_last_write_status", "err"), "PER02", Fail, "aof_last_write_status is err"},
		{"a slow disk", now("aof_delayed_fsync", "1"), "PER03", Warn, "1 delayed"},
		{"no sync while rewriting", setting("no-appendfsync-on-rewrite", "yes"), "PER03", Warn, "yes"},
		{"replicas of nothing", noDisk, "PER04", Fail, "no persistence"},
		{"a cache on disk", onlyCache, "PER05", Info, "a cache is written"},
		{"slow forks", now("latest_fork_usec", "600000"), "PER05", Warn, "0.6s"},
		{"a replica", now("role", "slave"), "REP01", Fail, "this is a replica"},
		{"a lost replica", func(n *Node) { n.Replica, n.Second["role"], n.Second["master_link_status"] = true, "slave", "down" }, "REP01", Warn, "down"},
		{"a silent primary", func(n *Node) {
			n.Replica, n.Second["role"], n.Second["master_link_status"], n.Second["master_last_io_seconds_ago"] = true, "slave", "up", "11"
		}, "REP01", Warn, "11s"},
		{"unseen", func(n *Node) { n.Unseen = []string{"replica:6379"} }, "REP01", Info, "replica:6379"},
		{"alone", now("connected_slaves", "0"), "REP02", Warn, "no replica"},
		{"writes without replicas", setting("min-replicas-to-write", "0"), "REP02", Warn, "min-replicas-to-write 0"},
		{"not a cluster's client", now("cluster_enabled", "1"), "CLU01", Warn, "a client for one server"},
		{"old", now("redis_version", "6.2.1"), "VER01", Fail, "Redis 6.2.1"},
		{"old Valkey", now("valkey_version", "7.2.5"), "VER01", Fail, "Valkey 7.2.5"},
		{"no version", now("redis_version", ""), "VER01", Unknown, "does not say"},
		{"much is tracked", all(now("tracking_clients", "3"), now("tracking_total_keys", "900000")), "CSC01", Warn, "900000 keys"},
		{"no room", now("connected_clients", "9000"), "CON01", Warn, "9000 of 10000"},
		{"refused", now("rejected_connections", "1"), "CON01", Fail, "1 connections"},
		{"slow", func(n *Node) { n.Latency = map[string]Latency{"get": {1000, 2113}, "set": {99, 90_000}} }, "LAT01", Warn, "GET: p99 of 1000 calls in 5s is above 1ms"},
		{"very slow", func(n *Node) { n.Latency = map[string]Latency{"get": {1000, 33_816}} }, "LAT01", Fail, "above 17ms"},
		{"abandoned", func(n *Node) { n.Streams[0].Groups[0].Abandoned = 2 }, "STR01", Fail, "orders, group billing: at least 2"},
		{"falls behind", func(n *Node) { n.Streams[0].Groups[0].LaterLag = 200 }, "STR01", Warn, "200 messages wait, 197 more"},
		{"unknown lag", func(n *Node) { n.Streams[0].Groups[0].LaterLag = -1 }, "STR01", Info, "does not know"},
		{"untrimmed", func(n *Node) { n.Streams[0].Length = 1_000_000 }, "STR01", Info, "1000000 entries, of which 4"},
		{"dead letters", func(n *Node) {
			n.Streams = append(n.Streams, &StreamSample{Key: "{orders}:dead:billing", Length: 1})
		}, "STR01", Info, "1 dead letters of group billing"},
		{"short listpacks", setting("hash-max-listpack-entries", "128"), "TS01", Info, "128"},
		{"open to all", func(n *Node) { n.NoPass = true }, "SEC01", Warn, "bind *"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := healthy()
			c.change(s.Nodes[0])
			report := judged(t, s, Expect{})
			i := slices.IndexFunc(report.Findings, func(f Finding) bool {
				return f.ID == c.id && f.Severity == c.severity && strings.Contains(f.Observed+f.Why, c.observed)
			})
			require.GreaterOrEqual(t, i, 0, "%v", report.Findings)
			require.Equal(t, runbooks+c.id+".md", report.Findings[i].Runbook)
			require.False(t, slices.ContainsFunc(report.Findings, func(f Finding) bool { return f.ID == c.id && f.Severity == OK }))

			for _, f := range judged(t, s, Expect{Skip: []string{c.id}}).Findings {
				require.NotEqual(t, c.id, f.ID)
			}
		})
		found[c.id] = true
	}
	for id := range Checks() {
		require.True(t, found[id], "%s never finds anything", id)
	}
}

func TestJudge_Cluster(t *testing.T) {
	for name, c := range map[string]struct {
		info     string
		severity Severity
	}{
		"well":    {"cluster_state:ok\r\ncluster_slots_pfail:0", OK},
		"failing": {"txt:cluster_state:fail\r\ncluster_slots_fail:5000", Fail},
		"doubted": {"cluster_state:ok\r\ncluster_slots_pfail:5000", Warn},
	} {
		s := healthy()
		s.Mode = "cluster"
		s.Nodes[0].Second["cluster_enabled"] = "1"
		s.Nodes[0].Cluster = parseInfo(c.info)
		require.Equal(t, c.severity, judged(t, s, Expect{}).Worst(), name)
		s.Nodes[0].Keys[0].Untagged = 1
		require.Contains(t, fmt.Sprint(judged(t, s, Expect{}).Findings), "no hash tag")
	}
}

// What could not be read is never well, and nothing else is said of it.
func TestJudge_WhatCouldNotBeRead(t *testing.T) {
	s := healthy()
	n := s.Nodes[0]
	for _, from := range []source{fromInfo, fromConfig, fromLatency, fromKeys, fromStreams, fromACL} {
		n.Denied[from] = "NOPERM User doc has no permissions to run the command"
	}
	n.User, n.First, n.Second, n.Config, n.Keys, n.Streams = "", fields{}, fields{}, fields{}, nil, nil
	report := judged(t, s, Expect{Uses: Patterns()})
	require.False(t, report.Checked())
	for _, f := range report.Findings {
		if f.ID == "POL02" { // is about what Uses says
			continue
		}
		require.Equal(t, Unknown, f.Severity, f)
		require.True(t, strings.HasPrefix(f.Fix, "ACL SETUSER doc +") || strings.HasPrefix(f.Fix, "ACL SETUSER doc %R~* +"), f.Fix)
	}

	s = healthy()
	s.Nodes[0].Denied[fromConfig] = "ERR unknown command 'CONFIG'"
	for _, f := range judged(t, s, Expect{}).Findings {
		switch f.ID {
		case "PER01", "REP02", "TS01", "SEC01":
			require.Equal(t, Unknown, f.Severity, f)
			require.Contains(t, f.Fix, "console")
		default:
			require.Equal(t, OK, f.Severity, f)
		}
	}

	s.Nodes[0].Denied[fromInfo] = "dial tcp: connection refused"
	require.Contains(t, fmt.Sprint(judged(t, s, Expect{}).Findings), "see that the server is up")
}

func TestJudge_TakesTheWorstFirst(t *testing.T) {
	s := healthy()
	s.Nodes[0].Second["maxmemory_policy"] = "allkeys-lru"
	s.Nodes[0].Config["min-replicas-to-write"] = "0"
	report := judged(t, s, Expect{})
	require.True(t, slices.IsSortedFunc(report.Findings, func(a, b Finding) int {
		return slices.Index(severities, b.Severity) - slices.Index(severities, a.Severity)
	}))
	require.Equal(t, Fail, report.Worst())
}

func TestSnapshot_SurvivesJSON(t *testing.T) {
	text, err := json.Marshal(healthy())
	require.NoError(t, err)
	var s Snapshot
	require.NoError(t, json.Unmarshal(text, &s))
	require.Equal(t, judged(t, healthy(), Expect{}), judged(t, s, Expect{}))
}

func TestExpect_BadValues(t *testing.T) {
	for field, e := range map[string]Expect{
		"Interval":   {Interval: time.Millisecond},
		"SampleKeys": {SampleKeys: -1},
		"Lease":      {Lease: -1},
		"Uses":       {Uses: []Pattern{"queue"}},
		"Prefixes":   {Prefixes: map[string]Pattern{"": Cache}},
		"Skip":       {Skip: []string{"MEM99"}},
	} {
		_, err := Judge(Snapshot{}, e)
		require.ErrorContains(t, err, field)
		_, err = Check(t.Context(), nil, e)
		require.ErrorContains(t, err, field)
	}
	_, err := Check(t.Context(), nil, Expect{})
	require.ErrorContains(t, err, "client")
}

func TestPrefixes(t *testing.T) {
	p := newPrefixes(map[string]Pattern{"lock:cache:": Cache, "orders": Stream})
	for key, want := range map[string]struct {
		prefix  string
		pattern Pattern
	}{
		"lock:{a}":       {"lock:", Lock},
		"lock:cache:{a}": {"lock:cache:", Cache},
		"orders":         {"orders", Stream},
		"scores:1:2":     {"scores:", ""},
		"user{1}":        {"user{", ""},
		"plain":          {"(others)", ""},
		"{orders2}:due":  {"(others)", ""},
	} {
		prefix, pattern := p.of(key)
		require.Equal(t, want.prefix, prefix, key)
		require.Equal(t, want.pattern, pattern, key)
	}
	require.True(t, isStreams("{orders}:due", "zset"))
	require.True(t, isStreams("anything", "stream"))
	require.False(t, isStreams("{user}:due", "string"))
	require.True(t, isBookkeeping(Buffer, "buffer:{views:0}:w:x"))
	require.False(t, isBookkeeping(Buffer, "buffer:{views:0}:cur"))
	require.False(t, isBookkeeping(Cache, "cache:::{views:0}:w:x"))
}

func TestBetween(t *testing.T) {
	before := map[string]histogram{"get": {1: 90, 2: 100}, "reset": {1: 100}}
	after := map[string]histogram{"get": {1: 90, 2: 298, 1056: 299, 2113: 300}, "set": {1: 1}, "reset": {1: 3}, "none": {}}
	require.Equal(t, map[string]Latency{"get": {200, 2}, "set": {1, 1}}, between(before, after)) // 198 of 200 at most 2
	after["get"][2] = 297
	require.Equal(t, Latency{200, 1056}, between(before, after)["get"])
}

func TestParseInfo(t *testing.T) {
	f := parseInfo("txt:first:1\r\n# Memory\r\nused_memory:5\r\ndir:/a:b\r\nempty:\r\n\r\ncmdstat_get:calls=3,usec=x\r\nnonsense\r\n")
	require.Equal(t, fields{"first": "1", "used_memory": "5", "dir": "/a:b", "empty": "", "cmdstat_get": "calls=3,usec=x"}, f)
	require.InDelta(t, 3, f.part("cmdstat_get", "calls"), 0)
	require.Zero(t, f.part("cmdstat_get", "usec"))
	require.Zero(t, f.part("cmdstat_set", "calls"))
	require.Zero(t, f.number("dir"))
	require.False(t, f.has("dir"))
}

func FuzzParseInfo(f *testing.F) {
	f.Add("used_memory:5\r\ncmdstat_get:calls=3,usec=x\r\n")
	f.Fuzz(func(_ *testing.T, text string) {
		info := parseInfo(text)
		for name := range info {
			info.part(name, "calls")
			info.number(name)
		}
	})
}

// Each check has a page whose title is the check's, and no page is left over.
func TestRunbooks(t *testing.T) {
	pages, err := filepath.Glob(filepath.Join(docs, "runbooks", "*.md"))
	require.NoError(t, err)
	left := map[string]bool{}
	for _, page := range pages {
		left[strings.TrimSuffix(filepath.Base(page), ".md")] = true
	}
	index := read(t, "runbooks/README.md")
	for id, title := range Checks() {
		text := read(t, "runbooks/"+id+".md")
		first, rest, _ := strings.Cut(text, "\n")
		require.Equal(t, "# "+id+": "+title, first)
		for _, section := range []string{"What it means", "Why it matters", "How to look", "What to do"} {
			_, body, ok := strings.Cut(rest, "\n## "+section+"\n")
			require.True(t, ok, "%s: %s", id, section)
			body, _, _ = strings.Cut(body, "\n## ")
			require.NotEmpty(t, strings.TrimSpace(body), "%s: %s", id, section)
		}
		require.Contains(t, index, "| ["+id+"]("+id+".md) | "+title+" |")
		delete(left, id)
	}
	require.Equal(t, []string{"README"}, slices.Collect(maps.Keys(left)))
}

// The table that users read is the one that the doctor uses.
func TestChoosingARedis(t *testing.T) {
	var b strings.Builder
	b.WriteString("| policy |")
	for _, p := range Patterns() {
		b.WriteString(" " + string(p) + " |")
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(Patterns())) + "\n")
	for _, policy := range Policies() {
		name := map[string]string{NoLimit: "maxmemory 0", "allkeys-lrm": "allkeys-lrm (Redis 8.6)", "volatile-lrm": "volatile-lrm (Redis 8.6)"}[policy]
		if name == "" {
			name = policy
		}
		b.WriteString("| " + name + " |")
		for _, p := range Patterns() {
			severity, why := Judgement(policy, p)
			require.NotEmpty(t, why)
			b.WriteString(" " + string(severity) + " |")
		}
		b.WriteString("\n")
	}
	require.Contains(t, read(t, "choosing-a-redis.md"), "-->\n"+b.String()+"<!-- end -->")
}

func TestJudgement_CachesWithoutTTL(t *testing.T) {
	severity, _ := judgement("volatile-lru", Cache, false)
	require.Equal(t, Fail, severity)
	severity, _ = judgement("volatile-lru", Stream, true)
	require.Equal(t, Fail, severity)
}

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(docs, name))
	require.NoError(t, err)
	return string(text)
}
