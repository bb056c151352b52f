package doctor

import (
	"fmt"
	"slices"
	"strings"
)

// NoLimit stands for a maxmemory of 0, under which no policy matters.
const NoLimit = "no limit"

// Policies returns all values of maxmemory-policy, and NoLimit. The two lrm ones are of Redis 8.6 and later.
func Policies() []string {
	return []string{
		"noeviction", "allkeys-lru", "allkeys-lfu", "allkeys-lrm", "allkeys-random",
		"volatile-lru", "volatile-lfu", "volatile-lrm", "volatile-random", "volatile-ttl", NoLimit,
	}
}

// Judgement returns what a policy means for a pattern whose keys have TTLs as this library's have, and why.
func Judgement(policy string, p Pattern) (Severity, string) {
	return judgement(policy, p, p.hasTTL())
}

// judgement is the table. hasTTL says whether the pattern's keys, but for bookkeeping, have TTLs.
func judgement(policy string, p Pattern, hasTTL bool) (Severity, string) {
	scope, order, _ := strings.Cut(policy, "-")
	switch {
	case policy == NoLimit:
		if p == Cache {
			return Fail, "nothing is ever evicted: it grows until the kernel kills the server"
		}
		return Warn, "nothing bounds the memory: the kernel kills the server where a limit would refuse writes"
	case policy == "noeviction":
		if p == Cache {
			return Fail, "once memory is full nothing new is stored, and every miss goes to the origin"
		}
		return OK, "what is there stays; writes are refused once memory is full, so see to it that it does not get full"
	case scope != "allkeys" && scope != "volatile":
		return Unknown, fmt.Sprintf("this policy is not known to the doctor: %q", policy)
	case p == Cache && scope == "volatile" && !hasTTL:
		return Fail, "keys without a TTL are never evicted: they fill the memory, and then writes are refused"
	case p == Cache && (order == "random" || order == "ttl"):
		return Info, "entries that are in use are evicted too: lru or lfu would hit more often"
	case p == Cache:
		return OK, "what is used least makes room"
	}
	return lasting(scope, order, p, hasTTL)
}

// lasting judges the policies that evict, for all patterns but caches.
func lasting(scope, order string, p Pattern, hasTTL bool) (Severity, string) {
	evictable := scope == "allkeys" || hasTTL
	switch {
	case p == RateLimit && order == "ttl":
		return Fail, "the shortest windows are evicted first, and an evicted counter begins at zero: the limit does not hold"
	case p == RateLimit:
		return Warn, "an evicted counter begins at zero: more passes than the limit"
	case p == FeatureStore:
		return Warn, "rows are evicted: fine only if misses fall back to a default or the offline store, and rows are loaded again"
	case p == Lock && order == "ttl":
		return Fail, "the shortest TTLs are evicted first, and those are the locks': two holders"
	case p == Lock && evictable:
		return Fail, "a lock that is held is an idle key, and is evicted like one: two holders"
	case p == TimeSeries && scope == "volatile" && hasTTL && order == "ttl":
		return Warn, "what expires first is evicted first: the finest and oldest buckets go while there is nothing shorter-lived"
	case p == TimeSeries && evictable:
		return Fail, "buckets are evicted, and counts come out too low without a sign of it"
	case p == Buffer && evictable:
		return Fail, "what is pending is evicted: acknowledged counts are lost"
	case p == Stream && evictable:
		return Fail, "a stream is evicted as a whole, with its groups and what they have pending"
	case p == Buffer:
		return Warn, "what is pending has no TTL and stays; but the memory of what was sent is evicted, and a call repeated after a lost reply may count twice; writes are refused once nothing with a TTL is left"
	case p == Stream:
		return Warn, "streams have no TTL and stay; but idempotency keys are evicted, and a message may be published twice; writes are refused once nothing with a TTL is left"
	}
	return Warn, "keys without a TTL stay; writes are refused once nothing with a TTL is left"
}

// best returns the policy under which the worst verdict on the patterns is least bad, and that verdict.
func best(used []Pattern) (string, Severity) {
	policy, least := "", Fail
	for _, candidate := range []string{"noeviction", "allkeys-lru", "volatile-lru"} {
		worst := OK
		for _, p := range used {
			if s, _ := Judgement(candidate, p); s.worse(worst) {
				worst = s
			}
		}
		if policy == "" || least.worse(worst) {
			policy, least = candidate, worst
		}
	}
	return policy, least
}

// isMixed reports whether caches share a server with what must not be evicted.
func isMixed(used []Pattern) bool { return slices.Contains(used, Cache) && len(used) > 1 }
