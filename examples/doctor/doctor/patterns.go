package doctor

import (
	"maps"
	"slices"
	"strings"
)

// defaults are the prefixes that this library's packages use unless they are told otherwise. A cache's and a stream's name
// is up to its user: streams are known by their type, and caches have to be named.
var defaults = map[string]Pattern{
	"cache:":     Cache,
	"lock:":      Lock,
	"ratelimit:": RateLimit,
	"buffer:":    Buffer,
	"ts:":        TimeSeries,
	"features:":  FeatureStore,
}

// prefixes tells what keys are for.
type prefixes struct {
	patterns map[string]Pattern
	ordered  []string // the longest first
}

func newPrefixes(own map[string]Pattern) prefixes {
	p := prefixes{patterns: maps.Clone(defaults)}
	maps.Copy(p.patterns, own)
	p.ordered = slices.SortedFunc(maps.Keys(p.patterns), func(a, b string) int {
		if len(a) != len(b) {
			return len(b) - len(a)
		}
		return strings.Compare(a, b)
	})
	return p
}

// of returns the prefix that a key has, and its pattern, which is empty if no prefix is known.
func (p prefixes) of(key string) (string, Pattern) {
	for _, prefix := range p.ordered {
		if strings.HasPrefix(key, prefix) {
			return prefix, p.patterns[prefix]
		}
	}
	if i := strings.IndexAny(key, ":{"); i > 0 {
		return key[:i+1], ""
	}
	return "(others)", ""
}

// isBookkeeping reports whether a key of a pattern has a TTL, or none, by design, where the pattern's others have it the other way
// round.
func isBookkeeping(p Pattern, key string) bool {
	_, part, _ := strings.Cut(key, "}:")
	switch p {
	case Buffer: // the last round trip of each process
		return strings.HasPrefix(part, "w:")
	case Stream: // ids that were published
		return strings.HasPrefix(part, "once:")
	}
	return false
}

// isStreams reports whether a key of no known prefix is a stream, or belongs to one of package stream.
func isStreams(key, kind string) bool {
	_, part, _ := strings.Cut(key, "}:")
	return kind == "stream" || kind == "zset" && part == "due" || kind == "string" && strings.HasPrefix(part, "once:")
}

// hasTTL reports whether all keys of a pattern have a TTL, in this library.
func (p Pattern) hasTTL() bool {
	return p == Cache || p == Lock || p == RateLimit || p == TimeSeries
}
