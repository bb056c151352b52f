package doctor

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// checks are all checks. An id is never given to another check, and each has a page in docs/runbooks.
var checks = []check{
	{"POL01", "maxmemory-policy suits what the server is used for", []source{fromInfo}, checkPolicy},
	{"POL02", "what shares the server can live under one policy", nil, checkMix},
	{"KEY01", "all keys are of known patterns", []source{fromKeys}, checkUnknownKeys},

	{"MEM01", "maxmemory leaves the machine room", []source{fromInfo}, checkLimit},
	{"MEM02", "there is room for writes", []source{fromInfo}, checkFull},
	{"MEM03", "nothing is evicted that must stay", []source{fromInfo}, checkEvicted},
	{"MEM04", "no command is refused for lack of memory", []source{fromInfo}, checkRefused},
	{"MEM05", "memory is neither fragmented nor swapped out", []source{fromInfo}, checkFragmented},
	{"MEM06", "clients and scripts take little memory", []source{fromInfo}, checkOverhead},
	{"MEM07", "no client is cut off for its buffers", []source{fromInfo}, checkBuffers},

	{"TTL01", "what should expire has a TTL", []source{fromKeys}, checkMissingTTL},
	{"TTL02", "what must stay has no TTL", []source{fromKeys}, checkUnwantedTTL},
	{"TTL03", "expired keys are removed in time", []source{fromInfo}, checkExpiry},
	{"HIT01", "the cache is hit", []source{fromInfo}, checkHits},

	{"PER01", "what must survive a restart is written to disk", []source{fromInfo}, checkPersistence},
	{"PER02", "writing to disk works", []source{fromInfo}, checkDisk},
	{"PER03", "the disk keeps up", []source{fromInfo}, checkSync},
	{"PER04", "an empty primary does not wipe its replicas", []source{fromInfo}, checkWipe},
	{"PER05", "persistence costs nothing in vain", []source{fromInfo}, checkCost},

	{"REP01", "replication works, and writes go to a primary", []source{fromInfo}, checkLink},
	{"REP02", "a replica has what was acknowledged", []source{fromInfo}, checkReplicas},
	{"CLU01", "the cluster serves all slots", []source{fromInfo}, checkCluster},

	{"VER01", "the version is one that the packages support", []source{fromInfo}, checkVersion},
	{"CSC01", "client-side caches are told in detail", []source{fromInfo}, checkTracking},
	{"CON01", "there is room for connections", []source{fromInfo}, checkConnections},
	{"LAT01", "commands are quick", []source{fromLatency}, checkLatency},
	{"STR01", "consumer groups keep up", []source{fromStreams}, checkStreams},
	{"TS01", "time series are stored compactly", nil, checkSeries},
	{"SEC01", "not everybody can get in", nil, checkAccess},
}

func checkPolicy(j *judge, n *Node) {
	policy := n.policy()
	if policy == "" {
		j.say(Finding{Severity: Unknown, Observed: "INFO has no maxmemory", Fix: "look in your provider's console"})
		return
	}
	observed := "maxmemory-policy " + policy + ", maxmemory " + megabytes(n.Second.number("maxmemory"))
	if policy == NoLimit {
		observed = "maxmemory 0"
	}
	for _, p := range j.used {
		severity, why := judgement(policy, p, n.hasTTL(p))
		if severity == OK {
			continue
		}
		var good []string
		for _, candidate := range Policies() {
			if s, _ := Judgement(candidate, p); s == OK {
				good = append(good, candidate)
			}
		}
		j.say(Finding{
			Severity: severity, Pattern: p, Observed: observed, Why: why,
			Expected: "a maxmemory, and one of " + strings.Join(good, ", "), Fix: j.fixPolicy(policy),
		})
	}
}

func (j *judge) fixPolicy(policy string) string {
	better, worst := best(j.used)
	switch {
	case worst == Fail:
		return "no policy is safe for all of them: see POL02"
	case policy == NoLimit:
		return "CONFIG SET maxmemory <three quarters of the memory there is>; CONFIG SET maxmemory-policy " + better + "; both in the configuration too"
	case policy == better:
		return "give them servers of their own: see POL02"
	}
	return "CONFIG SET maxmemory-policy " + better + ", and in the configuration too"
}

// checkMix says its word once, as it is about all nodes.
func checkMix(j *judge, n *Node) {
	if n != j.Nodes[0] || !isMixed(j.used) {
		return
	}
	others := slices.DeleteFunc(slices.Clone(j.used), func(p Pattern) bool { return p == Cache })
	f := Finding{
		Severity: Fail, Observed: "cache shares the server with " + names(others), Expected: "a server of its own for each of the two",
		Why: "a cache is to be evicted and what else is there is not: no policy does both",
		Fix: "two servers: cache under allkeys-lru, " + names(others) + " under noeviction",
	}
	if policy, worst := best(j.used); worst != Fail {
		f.Severity = Warn
		f.Why = "a cache is to be evicted and what else is there is not: " + policy + " is a compromise"
	}
	j.say(f)
}

func checkUnknownKeys(j *judge, n *Node) {
	var seen, unknown int
	var prefixes []string
	for _, k := range slices.SortedFunc(slices.Values(n.Keys), func(a, b *KeySample) int { return b.Seen - a.Seen }) {
		seen += k.Seen + k.Odd
		if k.Pattern == "" {
			unknown += k.Seen
			prefixes = append(prefixes, fmt.Sprintf("%s (%d)", k.Prefix, k.Seen))
		}
	}
	if unknown > 0 {
		j.say(Finding{
			Severity: Info, Observed: fmt.Sprintf("%d of %d keys that were looked at are of no known pattern: %s", unknown, seen, strings.Join(prefixes, ", ")),
			Expected: "a pattern for each prefix", Why: "nothing was said of what may happen to them",
			Fix: "name them, as in -pattern cache=scores:",
		})
	}
}

func checkLimit(j *judge, n *Node) {
	limit, total := n.Second.number("maxmemory"), n.Second.number("total_system_memory")
	if limit == 0 || total == 0 {
		return // POL01 says what no limit means
	}
	share := limit / total
	aof, rdb, known := n.persists()
	most := 0.9
	if aof || rdb || !known {
		most = 0.75
	}
	if share > most {
		j.say(Finding{
			Severity: Warn, Observed: fmt.Sprintf("maxmemory is %.0f%% of the machine's memory", 100*share), Expected: fmt.Sprintf("at most %.0f%%", 100*most),
			Why: "a fork for a snapshot or a rewrite copies pages that are written meanwhile, up to all, and buffers come on top",
			Fix: fmt.Sprintf("CONFIG SET maxmemory %.0f", most*total),
		})
	}
}

func checkFull(j *judge, n *Node) {
	limit := n.Second.number("maxmemory")
	policy := n.policy()
	if limit == 0 || strings.HasPrefix(policy, "allkeys-") || strings.HasPrefix(policy, "volatile-") && len(j.used) == 1 && j.used[0] == Cache && n.hasTTL(Cache) {
		return // it is full as soon as it works, and then evicts
	}
	share := (n.Second.number("used_memory") - n.Second.number("mem_not_counted_for_evict")) / limit
	if share <= 0.8 {
		return
	}
	f := Finding{
		Severity: Warn, Observed: fmt.Sprintf("%.0f%% of maxmemory is used", 100*share), Expected: "at most 80%",
		Why: "at 100% writes are refused under " + policy + " once there is nothing to evict", Fix: "raise maxmemory, or find out what grows",
	}
	if share > 0.95 {
		f.Severity = Fail
	}
	j.say(f)
}

func checkEvicted(j *judge, n *Node) {
	evicted := n.delta("evicted_keys")
	if evicted == 0 {
		if total := n.Second.number("evicted_keys"); total > 0 && len(j.uses(Cache)) < len(j.used) {
			j.say(Finding{
				Severity: Info, Observed: fmt.Sprintf("%.0f keys were evicted since the counters began, none in %s", total, n.seconds()), Expected: "0",
				Why: "Redis does not say which", Fix: "CONFIG RESETSTAT after the policy was changed, to see whether it goes on",
			})
		}
		return
	}
	worst, whose := OK, Pattern("")
	for _, p := range j.used {
		if s, _ := judgement(n.policy(), p, n.hasTTL(p)); p != Cache && s.worse(worst) {
			worst, whose = s, p
		}
	}
	observed := fmt.Sprintf("%.0f keys were evicted in %s", evicted, n.seconds())
	if worst == Fail || worst == Warn {
		j.say(Finding{
			Severity: worst, Pattern: whose, Observed: observed, Expected: "0",
			Why: "Redis does not say which, and under " + n.policy() + " some may be of " + string(whose), Fix: "see POL01",
		})
		return
	}
	f := Finding{Severity: Info, Pattern: Cache, Observed: observed, Why: "a full cache makes room"}
	hit, seen, _ := n.hits()
	if writes := n.writes(); seen && writes > 0 && evicted/writes > 0.2 && hit < n.lifetimeHits()-0.05 {
		f.Severity = Warn
		f.Observed += fmt.Sprintf(", %.0f%% of what was written, and %.0f%% of lookups hit where %.0f%% did before", 100*evicted/writes, 100*hit, 100*n.lifetimeHits())
		f.Why, f.Fix = "it is too small for what is asked of it", "raise maxmemory, or shorten TTLs"
	}
	j.say(f)
}

// writes returns how many keys were written between the samples, about.
func (n *Node) writes() float64 {
	var calls float64
	for _, name := range []string{"set", "setex", "psetex", "setnx", "getset", "mset", "hset", "hincrby", "incrby", "incr", "zadd", "xadd", "rpush", "lpush"} {
		calls += n.Second.part("cmdstat_"+name, "calls") - n.First.part("cmdstat_"+name, "calls")
	}
	return calls
}

// hits returns the share of lookups that found a key between the samples, if there were enough to tell.
func (n *Node) hits() (share float64, enough bool, lookups float64) {
	hits, misses := n.delta("keyspace_hits"), n.delta("keyspace_misses")
	if hits+misses < 1000 {
		return 0, false, hits + misses
	}
	return hits / (hits + misses), true, hits + misses
}

func (n *Node) lifetimeHits() float64 {
	hits, misses := n.First.number("keyspace_hits"), n.First.number("keyspace_misses")
	return hits / max(1, hits+misses)
}

func checkRefused(j *judge, n *Node) {
	refused := n.Second.part("errorstat_OOM", "count") - n.First.part("errorstat_OOM", "count")
	exceeded := n.Second.number("current_eviction_exceeded_time") > n.First.number("current_eviction_exceeded_time") &&
		n.First.number("current_eviction_exceeded_time") > 0
	switch {
	case refused > 0:
		j.say(Finding{
			Severity: Fail, Observed: fmt.Sprintf("%.0f times OOM in %s: %s", refused, n.seconds(), n.failing()), Expected: "0",
			Why: "memory is full and nothing may be evicted", Fix: "raise maxmemory, or delete what is not needed; reads and deletes still work",
		})
	case exceeded:
		j.say(Finding{
			Severity: Fail, Observed: fmt.Sprintf("over maxmemory for %.1fs", n.Second.number("current_eviction_exceeded_time")/1000), Expected: "0",
			Why: "eviction does not keep up, or may not evict anything: writes are refused", Fix: "raise maxmemory, or delete what is not needed",
		})
	case n.Second.part("errorstat_OOM", "count") > 0:
		j.say(Finding{
			Severity: Info, Observed: fmt.Sprintf("%.0f times OOM since the counters began, none in %s", n.Second.part("errorstat_OOM", "count"), n.seconds()),
			Expected: "0", Why: "memory was full once", Fix: "compare used_memory_peak with maxmemory",
		})
	}
}

// failing names the commands that were refused, or failed, most often.
func (n *Node) failing() string {
	type command struct {
		name  string
		times float64
	}
	var commands []command
	for name := range n.Second {
		if short, ok := strings.CutPrefix(name, "cmdstat_"); ok {
			var times float64
			for _, part := range []string{"rejected_calls", "failed_calls"} {
				times += n.Second.part(name, part) - n.First.part(name, part)
			}
			if times > 0 {
				commands = append(commands, command{short, times})
			}
		}
	}
	slices.SortFunc(commands, func(a, b command) int {
		return cmp.Or(cmp.Compare(b.times, a.times), strings.Compare(a.name, b.name))
	})
	var b strings.Builder
	for i, c := range commands[:min(5, len(commands))] {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%s (%.0f)", strings.ToUpper(strings.ReplaceAll(c.name, "|", " ")), c.times)
	}
	return b.String()
}

func checkFragmented(j *judge, n *Node) {
	used := n.Second.number("used_memory")
	if used < 5<<20 {
		return // ratios of next to nothing
	}
	ratio, wasted := n.Second.number("allocator_frag_ratio"), n.Second.number("allocator_frag_bytes")
	limit := cmp.Or(n.Second.number("maxmemory"), n.Second.number("total_system_memory"))
	f := Finding{
		Severity: Info, Observed: fmt.Sprintf("allocator_frag_ratio %.2f: %s", ratio, megabytes(wasted)), Expected: "at most 1.1",
		Why: "memory that was freed in small pieces cannot be used for large ones", Fix: "CONFIG SET activedefrag yes, or a restart",
	}
	switch {
	case ratio > 1.5 && wasted > 10<<20 && wasted > 0.05*limit:
		f.Severity = Warn
		j.say(f)
	case ratio > 1.1 && wasted > 10<<20:
		j.say(f)
	}
	if rss := n.Second.number("mem_fragmentation_ratio"); rss > 0 && rss < 1 && used > 100<<20 {
		j.say(Finding{
			Severity: Fail, Observed: fmt.Sprintf("mem_fragmentation_ratio %.2f", rss), Expected: "at least 1",
			Why: "a part of the data is not in memory but swapped out: every command may wait for the disk", Fix: "lower maxmemory, or give the machine more memory",
		})
	}
}

func checkOverhead(j *judge, n *Node) {
	used, peak := n.Second.number("used_memory"), n.Second.number("used_memory_peak")
	if used > 5<<20 && peak > 1.5*used {
		j.say(Finding{
			Severity: Info, Observed: fmt.Sprintf("%s were in use once, %s are now", megabytes(peak), megabytes(used)),
			Why: "the process may not have given it back", Fix: "MEMORY PURGE",
		})
	}
	clients := n.Second.number("connected_clients")
	if each := n.Second.number("mem_clients_normal") / max(1, clients); each > 200<<10 {
		j.say(Finding{
			Severity: Warn, Observed: fmt.Sprintf("connections take %s each", megabytes(each)), Expected: "at most 0.2 MB",
			Why: "large commands or replies, or readers that are too slow for them; eviction may pay for it", Fix: "smaller MGETs and pipelines; CONFIG SET maxmemory-clients 5%",
		})
	}
	if scripts := n.Second.number("number_of_cached_scripts"); scripts > 1000 {
		j.say(Finding{
			Severity: Warn, Observed: fmt.Sprintf("%.0f scripts", scripts), Expected: "a few dozen",
			Why: "somebody puts values into the text of scripts, and each stays", Fix: "pass values as ARGV; SCRIPT FLUSH once",
		})
	}
}

func checkBuffers(j *judge, n *Node) {
	for _, name := range []string{"client_output_buffer_limit_disconnections", "client_query_buffer_limit_disconnections"} {
		switch cut := n.delta(name); {
		case cut > 0:
			j.say(Finding{
				Severity: Warn, Observed: fmt.Sprintf("%s +%.0f in %s", name, cut, n.seconds()), Expected: "0",
				Why: "a subscriber that reads too slowly, or a giant command", Fix: "read faster, send less at once, or raise client-output-buffer-limit",
			})
		case n.Second.number(name) > 0:
			j.say(Finding{Severity: Info, Observed: fmt.Sprintf("%s %.0f since the counters began, none in %s", name, n.Second.number(name), n.seconds())})
		}
	}
}

func checkMissingTTL(j *judge, n *Node) {
	for _, k := range n.Keys {
		switch {
		case k.NoTTL == 0 || !k.Pattern.hasTTL():
		case k.Pattern == Lock:
			j.say(Finding{
				Severity: Fail, Pattern: Lock, Observed: fmt.Sprintf("%d of %d keys that begin with %q have no TTL", k.NoTTL, k.Seen, k.Prefix), Expected: "0",
				Why: "a lock without a TTL whose holder has died is never free again", Fix: "make sure nobody holds them, and delete them; find who sets them",
			})
		case !isCovered(k.Seen, k.NoTTL):
			j.say(Finding{
				Severity: Warn, Pattern: k.Pattern, Observed: fmt.Sprintf("%d of %d keys that begin with %q have no TTL", k.NoTTL, k.Seen, k.Prefix), Expected: "at most 1 in 1,000",
				Why: "they stay for ever", Fix: "find who writes them: this library always sets a TTL; PEXPIRE what is there",
			})
		}
	}
}

func checkUnwantedTTL(j *judge, n *Node) {
	for _, k := range n.Keys {
		if withTTL := k.Seen - k.NoTTL; withTTL > 0 && (k.Pattern == Stream || k.Pattern == Buffer) {
			j.say(Finding{
				Severity: Warn, Pattern: k.Pattern, Observed: fmt.Sprintf("%d of %d keys that begin with %q have a TTL", withTTL, k.Seen, k.Prefix), Expected: "0",
				Why: "they expire as a whole, with what nobody has handled yet", Fix: "PERSIST them, and find who sets it; bound streams with MAXLEN or by trimming",
			})
		}
	}
}

func checkExpiry(j *judge, n *Node) {
	if capped := n.delta("expired_time_cap_reached_count"); capped > 0 {
		j.say(Finding{
			Severity: Warn, Observed: fmt.Sprintf("removal of expired keys ran out of time %.0f times in %s", capped, n.seconds()), Expected: "0",
			Why: "many keys expire at once; until they are removed they take memory", Fix: "spread TTLs (jitter); CONFIG SET active-expire-effort 5",
		})
	}
	if stale := n.Second.number("expired_stale_perc"); stale > 10 {
		j.say(Finding{
			Severity: Warn, Observed: fmt.Sprintf("%.0f%% of the keys with a TTL have expired and are still there", stale), Expected: "at most 10%",
			Why: "they take memory", Fix: "CONFIG SET active-expire-effort 5",
		})
	}
}

func checkHits(j *judge, n *Node) {
	share, enough, lookups := n.hits()
	if !enough || share >= 0.8 || len(j.uses(Cache)) == 0 {
		return
	}
	f := Finding{
		Severity: Warn, Pattern: Cache, Observed: fmt.Sprintf("%.0f%% of %.0f lookups in %s found a key", 100*share, lookups, n.seconds()), Expected: "at least 80%",
		Why: "each miss is a load of the origin", Fix: "longer TTLs, a larger maxmemory, or fewer keys that are asked for once; the cache's Stats tell more",
	}
	if len(j.used) > 1 {
		f.Severity = Info
		f.Why = "other patterns look for keys that are not there, too: see the cache's own Stats"
	}
	j.say(f)
}

func checkPersistence(j *judge, n *Node) {
	aof, rdb, known := n.persists()
	for _, p := range j.used {
		if p == Cache {
			continue
		}
		if !known {
			j.isDenied(fromConfig)
			return
		}
		f := Finding{Pattern: p, Expected: "appendonly yes, appendfsync everysec", Fix: "CONFIG SET appendonly yes, and in the configuration too"}
		critical := p == Buffer || p == Stream
		switch sync := n.Config["appendfsync"]; {
		case aof && sync == "always":
			continue
		case aof && sync == "no":
			f.Severity, f.Observed = Warn, "appendfsync no"
			f.Why, f.Fix = "what the kernel has not written when the power fails is lost: about 30s", "CONFIG SET appendfsync everysec"
			if critical {
				f.Severity = Fail
			}
		case aof:
			if !critical && p != Lock {
				continue
			}
			f.Severity, f.Observed, f.Fix = Info, "appendfsync "+sync, ""
			f.Why = "a power failure loses the last second, or two if the disk is slow; a killed process loses nothing"
			if p == Lock {
				f.Why += "; two may then hold a lock, and a failover does the same: guard what counts with fences"
			}
		case rdb:
			if p == RateLimit || p == FeatureStore {
				continue
			}
			f.Severity, f.Observed = Warn, "snapshots only: save "+n.Config["save"]
			f.Why = "a restart goes back to the last snapshot"
			if p == TimeSeries {
				f.Severity = Info
			}
		default:
			f.Severity, f.Observed = Warn, "neither an append-only file nor snapshots"
			switch p {
			case Buffer, Stream:
				f.Severity, f.Why = Fail, "a restart loses all that is pending, and it is the only copy"
			case Lock:
				f.Why = "a restart forgets who holds what: two holders, until the first renews"
			case TimeSeries:
				f.Why = "a restart loses all counts"
			case RateLimit:
				f.Severity, f.Why = Info, "limits begin anew after a restart"
			default:
				f.Severity, f.Why = Info, "after a restart everything must be loaded again"
			}
		}
		j.say(f)
	}
}

func checkDisk(j *judge, n *Node) {
	for _, name := range []string{"aof_last_write_status", "rdb_last_bgsave_status", "aof_last_bgrewrite_status"} {
		if status := n.Second[name]; status != "" && status != "ok" {
			j.say(Finding{
				Severity: Fail, Observed: name + " is " + status, Expected: "ok",
				Why: "with stop-writes-on-bgsave-error, or a failing append-only file, all writes are refused with MISCONF", Fix: "look for space and rights on the disk, and in the server's log",
			})
		}
	}
}

func checkSync(j *judge, n *Node) {
	if delayed := n.delta("aof_delayed_fsync"); delayed > 0 {
		j.say(Finding{
			Severity: Warn, Observed: fmt.Sprintf("%.0f delayed fsyncs in %s", delayed, n.seconds()), Expected: "0",
			Why: "the disk is too slow: up to 2s or more are lost when the power fails, and writes wait", Fix: "a faster disk, or one that is shared with less",
		})
	}
	if aof, _, _ := n.persists(); aof && n.Config["no-appendfsync-on-rewrite"] == "yes" {
		j.say(Finding{
			Severity: Warn, Observed: "no-appendfsync-on-rewrite yes", Expected: "no",
			Why: "while the file is rewritten nothing is synced: up to 30s are lost when the power fails", Fix: "CONFIG SET no-appendfsync-on-rewrite no",
		})
	}
}

func checkWipe(j *judge, n *Node) {
	kept := j.uses(Buffer, Stream, TimeSeries)
	if !n.isPrimary() || n.Second.number("connected_slaves") == 0 || len(kept) == 0 {
		return
	}
	aof, rdb, known := n.persists()
	switch {
	case aof || rdb:
	case !known:
		j.isDenied(fromConfig)
	default:
		j.say(Finding{
			Severity: Fail, Observed: "a primary with replicas and no persistence", Expected: "an append-only file or snapshots",
			Why: "if it restarts before anybody notices it comes back empty, and the replicas copy that: " + names(kept) + " are lost everywhere",
			Fix: "CONFIG SET appendonly yes, or do not restart it automatically",
		})
	}
}

func checkCost(j *judge, n *Node) {
	aof, rdb, _ := n.persists()
	if (aof || rdb) && len(j.used) == 1 && j.used[0] == Cache {
		j.say(Finding{
			Severity: Info, Pattern: Cache, Observed: "a cache is written to disk", Why: "it can be made again: the fork and the disk are cost without benefit, unless a cold start hurts",
			Fix: `CONFIG SET save ""; CONFIG SET appendonly no`,
		})
	}
	if fork := n.Second.number("latest_fork_usec"); fork > 500_000 {
		j.say(Finding{
			Severity: Warn, Observed: fmt.Sprintf("the last fork took %.1fs", fork/1e6), Expected: "at most 0.5s",
			Why: "nothing is answered meanwhile", Fix: "less memory per server; no transparent huge pages",
		})
	}
}

func checkLink(j *judge, n *Node) {
	if len(n.Unseen) > 0 {
		j.say(Finding{
			Severity: Info, Observed: "replicas were not looked at: " + strings.Join(n.Unseen, ", "), Why: "after a failover their settings count",
			Fix: "check them one by one, or set Expect.Dial",
		})
	}
	if n.Second["role"] != "slave" {
		return
	}
	if j.Mode != "cluster" && !n.Replica {
		j.say(Finding{
			Severity: Fail, Observed: "this is a replica", Expected: "a primary", Why: "writes are refused with READONLY", Fix: "connect to " + n.Second["master_host"] + ", or through Sentinel",
		})
	}
	switch silent := n.Second.number("master_last_io_seconds_ago"); {
	case n.Second["master_link_status"] != "up":
		j.say(Finding{
			Severity: Warn, Observed: "the link to its primary is " + n.Second["master_link_status"], Expected: "up",
			Why: "it falls behind: a failover to it loses what it lacks", Fix: "see the network, and both logs",
		})
	case silent > 10:
		j.say(Finding{
			Severity: Warn, Observed: fmt.Sprintf("the primary has been silent for %.0fs", silent), Expected: "at most 10s",
			Why: "the link may be dead", Fix: "see the network",
		})
	}
}

func checkReplicas(j *judge, n *Node) {
	kept := j.uses(Lock, Buffer, Stream)
	if !n.isPrimary() || len(kept) == 0 {
		return
	}
	const why = "a failover is asynchronous: what no replica has yet is lost"
	if n.Second.number("connected_slaves") == 0 {
		j.say(Finding{
			Severity: Warn, Observed: "no replica", Expected: "at least one",
			Why: "when the machine is lost, so is what " + names(kept) + " have there", Fix: "add a replica",
		})
		return
	}
	if j.isDenied(fromConfig) {
		return
	}
	if n.Config["min-replicas-to-write"] == "0" {
		j.say(Finding{
			Severity: Warn, Observed: "min-replicas-to-write 0", Expected: "1",
			Why: why + ", and a primary that is cut off goes on: " + names(kept), Fix: "CONFIG SET min-replicas-to-write 1; fences for locks; WAIT where it counts",
		})
	}
}

func checkCluster(j *judge, n *Node) {
	if n.Second["cluster_enabled"] != "1" {
		return
	}
	if j.Mode != "cluster" {
		j.say(Finding{
			Severity: Warn, Observed: "a node of a cluster, and a client for one server", Expected: "a client for the cluster",
			Why: "keys of other nodes are answered with MOVED, and were not looked at", Fix: "give rueidis the addresses of the nodes, and not ForceSingleClient",
		})
		return
	}
	if j.isDenied(fromCluster) {
		return
	}
	if state := n.Cluster["cluster_state"]; state != "ok" || n.Cluster.number("cluster_slots_fail") > 0 {
		j.say(Finding{
			Severity: Fail, Observed: fmt.Sprintf("cluster_state %s, %s slots assigned, %s failing", state, n.Cluster["cluster_slots_assigned"], n.Cluster["cluster_slots_fail"]),
			Expected: "ok, 16384, 0", Why: "commands are refused with CLUSTERDOWN", Fix: "CLUSTER NODES tells who is missing; redis-cli --cluster fix",
		})
	} else if n.Cluster.number("cluster_slots_pfail") > 0 {
		j.say(Finding{Severity: Warn, Observed: n.Cluster["cluster_slots_pfail"] + " slots are of a node that does not answer", Expected: "0", Why: "a failover may come", Fix: "CLUSTER NODES"})
	}
	for _, k := range n.Keys {
		if k.Untagged > 0 && (k.Pattern == Lock || k.Pattern == RateLimit || k.Pattern == Buffer || k.Pattern == TimeSeries) {
			j.say(Finding{
				Severity: Warn, Pattern: k.Pattern, Observed: fmt.Sprintf("%d of %d keys that begin with %q have no hash tag", k.Untagged, k.Seen, k.Prefix), Expected: "0",
				Why: "they are not this library's, and scripts with several of them fail with CROSSSLOT", Fix: "find who writes them",
			})
		}
	}
}

func checkVersion(j *judge, n *Node) {
	name, version := n.server()
	least := 7
	if name == "Valkey" {
		least = 8
	}
	major, _, _ := strings.Cut(version, ".")
	number, err := strconv.Atoi(major)
	if err != nil {
		j.say(Finding{Severity: Unknown, Observed: "the server does not say its version"})
		return
	}
	if number < least {
		j.say(Finding{
			Severity: Fail, Observed: name + " " + version, Expected: fmt.Sprintf("%s %d or later", name, least),
			Why: "the packages use what older ones do not have, and are not tested with them", Fix: "upgrade",
		})
	}
}

func checkTracking(j *judge, n *Node) {
	clients, keys := n.Second.number("tracking_clients"), n.Second.number("tracking_total_keys")
	if clients == 0 || keys == 0 {
		return
	}
	if j.isDenied(fromConfig) {
		return
	}
	most := n.Config.number("tracking-table-max-keys")
	if most > 0 && keys > 0.8*most {
		j.say(Finding{
			Severity: Warn, Pattern: Cache, Observed: fmt.Sprintf("%.0f keys are tracked for %.0f clients, of %.0f that may be", keys, clients, most), Expected: "at most 80%",
			Why: "beyond, clients are told to forget keys that have not changed, and hit less", Fix: "CONFIG SET tracking-table-max-keys, or client-side caching for fewer keys",
		})
	}
}

func checkConnections(j *judge, n *Node) {
	if rejected := n.delta("rejected_connections"); rejected > 0 {
		j.say(Finding{
			Severity: Fail, Observed: fmt.Sprintf("%.0f connections were refused in %s", rejected, n.seconds()), Expected: "0",
			Why: "maxclients is reached", Fix: "CONFIG SET maxclients; look for clients that are made and not closed: CLIENT LIST",
		})
	}
	clients, most := n.Second.number("connected_clients"), n.Second.number("maxclients")
	if most > 0 && clients > 0.8*most {
		j.say(Finding{
			Severity: Warn, Observed: fmt.Sprintf("%.0f of %.0f connections, %s of them waiting in blocking commands", clients, most, n.Second["blocked_clients"]), Expected: "at most 80%",
			Why: "beyond, nobody gets in", Fix: "CONFIG SET maxclients; each consumer that blocks takes a connection",
		})
	}
}

// Bounds are powers of two, about: what is reported as 2ms took more than 1ms.
const (
	slowWarn  = 2_000  // microseconds
	slowFail  = 20_000 // microseconds
	slowLeast = 100    // calls
)

func checkLatency(j *judge, n *Node) {
	for _, name := range slices.Sorted(maps.Keys(n.Latency)) {
		l := n.Latency[name]
		if l.Calls < slowLeast || l.P99 < slowWarn {
			continue
		}
		f := Finding{
			Severity: Warn, Observed: fmt.Sprintf("%s: p99 of %d calls in %s is above %.0fms", strings.ToUpper(name), l.Calls, n.seconds(), float64(l.P99)/2000), Expected: "at most 1ms",
			Why: "Redis runs one command at a time: all others wait as long", Fix: "SLOWLOG GET shows with what; smaller ranges, batches and scripts; or the machine is overloaded",
		}
		if l.P99 >= slowFail {
			f.Severity = Fail
		}
		j.say(f)
	}
}

func checkStreams(j *judge, n *Node) {
	for _, s := range n.Streams {
		if _, part, ok := strings.Cut(s.Key, ":dead:"); ok && s.Length > 0 && len(s.Groups) == 0 {
			j.say(Finding{Severity: Info, Pattern: Stream, Observed: fmt.Sprintf("%s: %d dead letters of group %s", s.Key, s.Length, part), Fix: "look at them, and redrive or delete them"})
		}
		var behind int64
		for _, g := range s.Groups {
			behind = max(behind, g.Pending+max(0, g.LaterLag))
			of := fmt.Sprintf("%s, group %s: ", s.Key, g.Name)
			if g.Abandoned > 0 {
				j.say(Finding{
					Severity: Fail, Pattern: Stream, Observed: fmt.Sprintf("%sat least %d messages were delivered ten leases ago and not acknowledged", of, g.Abandoned), Expected: "0",
					Why: "their consumer has died and nobody takes over", Fix: "see whether a consumer of this group runs at all, and what its Hooks.Error says",
				})
			}
			switch {
			case g.LaterLag >= 100 && g.Lag >= 0 && g.LaterLag > g.Lag:
				j.say(Finding{
					Severity: Warn, Pattern: Stream, Observed: fmt.Sprintf("%s%d messages wait, %d more than %s before", of, g.LaterLag, g.LaterLag-g.Lag, n.seconds()), Expected: "not growing",
					Why: "more is published than handled", Fix: "more consumers or workers",
				})
			case g.LaterLag < 0:
				j.say(Finding{Severity: Info, Pattern: Stream, Observed: of + "Redis does not know how many messages wait", Why: "entries were deleted from the middle, or the group was set to an id by hand"})
			}
		}
		if len(s.Groups) > 0 && s.Length > 100_000 && s.Length > 10*behind {
			j.say(Finding{
				Severity: Info, Pattern: Stream, Observed: fmt.Sprintf("%s: %d entries, of which %d at most are still to be handled", s.Key, s.Length, behind),
				Why: "acknowledged entries stay until somebody removes them", Fix: "TrimAcked, DeleteOnAck or MAXLEN",
			})
		}
	}
}

func checkSeries(j *judge, n *Node) {
	if len(j.uses(TimeSeries)) == 0 || j.isDenied(fromConfig) {
		return
	}
	if most := n.Config["hash-max-listpack-entries"]; n.Config.has("hash-max-listpack-entries") && n.Config.number("hash-max-listpack-entries") < 512 {
		j.say(Finding{
			Severity: Info, Pattern: TimeSeries, Observed: "hash-max-listpack-entries " + most, Expected: "at least 512",
			Why: "package timeseries makes its hashes as small as that, so that there are more keys; others' take several times the memory", Fix: "CONFIG SET hash-max-listpack-entries 512 before series are written",
		})
	}
}

func checkAccess(j *judge, n *Node) {
	if j.isDenied(fromConfig) {
		return
	}
	isLocal := n.Config["bind"] != ""
	for addr := range strings.FieldsSeq(n.Config["bind"]) {
		addr = strings.TrimPrefix(addr, "-")
		isLocal = isLocal && (strings.HasPrefix(addr, "127.") || addr == "::1" || addr == "localhost")
	}
	if isLocal || n.Config["protected-mode"] == "yes" || n.Config["port"] == "0" { // 0: TLS only
		return
	}
	if j.isDenied(fromACL) || !n.NoPass {
		return
	}
	j.say(Finding{
		Severity: Warn, Observed: "no password, no TLS, protected-mode no, bind " + n.Config["bind"], Expected: "a password, or protected-mode yes",
		Why: "whoever reaches the port can read and delete everything", Fix: "ACL SETUSER default >password, and TLS where the network is not yours",
	})
}
