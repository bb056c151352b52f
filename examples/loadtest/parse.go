package main

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// parseCount reads "400000", "400k", "10M" or "1.5G", in steps of 1000.
func parseCount(s string) (float64, error) {
	unit := 1.0
	if s != "" {
		switch s[len(s)-1] {
		case 'k', 'K':
			unit = 1e3
		case 'M', 'm':
			unit = 1e6
		case 'G', 'g':
			unit = 1e9
		}
	}
	digits := s
	if unit > 1 {
		digits = s[:len(s)-1]
	}
	n, err := strconv.ParseFloat(digits, 64)
	if err != nil || math.IsNaN(n) || n < 0 || n*unit > 1e15 {
		return 0, fmt.Errorf("%q is not a number such as 400000, 400k or 10M", s)
	}
	return n * unit, nil
}

// parseRamp reads "5/s" or "5".
func parseRamp(s string) (float64, error) {
	if s == "" {
		return 0, nil
	}
	return parseCount(strings.TrimSuffix(s, "/s"))
}

// parseStages reads "5k:30s,20k:1m": levels and how long each is kept.
func parseStages(s string) ([]stage, error) {
	var all []stage
	for part := range strings.SplitSeq(s, ",") {
		level, length, ok := strings.Cut(strings.TrimSpace(part), ":")
		if !ok {
			return nil, fmt.Errorf("stage %q is not of the form 5k:30s", part)
		}
		n, err := parseCount(level)
		if err != nil {
			return nil, fmt.Errorf("stage %q: %w", part, err)
		}
		d, err := time.ParseDuration(length)
		if err != nil || d <= 0 {
			return nil, fmt.Errorf("stage %q is not of the form 5k:30s", part)
		}
		if n > maxRate {
			return nil, fmt.Errorf("stage %q: at most %d", part, int(maxRate))
		}
		all = append(all, stage{n, d})
	}
	return all, nil
}

const (
	maxRate   = 5e6       // far above what a process can do
	maxValue  = 512 << 20 // Redis' own bound
	maxWidth  = 100_000
	maxWeight = 1000 // of a class
)

// class is one kind of values.
type class struct {
	Name   string `json:"name"`
	Size   int    `json:"bytes"`
	Weight int    `json:"weight"`
}

var plainName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_-]{0,31}$`)

// parseClasses reads "claims=300@50,token=1500@50": names, sizes in bytes, and weights, which may be left out.
func parseClasses(s string) ([]class, error) {
	var all []class
	seen := map[string]bool{}
	for part := range strings.SplitSeq(s, ",") {
		name, rest, ok := strings.Cut(strings.TrimSpace(part), "=")
		size, weight, weighted := strings.Cut(rest, "@")
		if !weighted {
			weight = "1"
		}
		b, err := strconv.Atoi(size)
		w, werr := strconv.Atoi(weight)
		switch {
		case !ok, err != nil, werr != nil, !plainName.MatchString(name):
			return nil, fmt.Errorf("value %q is not of the form name=bytes@weight", part)
		case b < 1 || b > maxValue:
			return nil, fmt.Errorf("value %q: bytes must be 1 to %d", part, maxValue)
		case w < 1 || w > maxWeight:
			return nil, fmt.Errorf("value %q: weight must be 1 to %d", part, maxWeight)
		case seen[name]:
			return nil, fmt.Errorf("value %q: the name comes twice", part)
		}
		seen[name] = true
		all = append(all, class{name, b, w})
	}
	return all, nil
}

// operationSpec is an --op.
type operationSpec struct {
	kind   string // get, mget, set, del, incr or ping
	width  int    // of mget
	class  string // or "" for all, by weight
	ttl    time.Duration
	weight float64
}

var operationForm = regexp.MustCompile(`^(get|mget|set|del|incr|ping)(?:\[(\d+)\])?(?:\(([^()]*)\))?(?::([0-9.]+))?$`)

// parseOperation reads "get:60", "mget[10]:15" or "set(ttl=2s,val=claims):10".
func parseOperation(s string) (operationSpec, error) {
	m := operationForm.FindStringSubmatch(s)
	if m == nil {
		return operationSpec{}, fmt.Errorf("operation %q is not of a form such as get:60, mget[10]:15 or set(ttl=2s,val=claims):10", s)
	}
	o := operationSpec{kind: m[1], weight: 1}
	if (o.kind == "mget") != (m[2] != "") {
		return o, fmt.Errorf("operation %q: mget, and only that, has a width: mget[10]", s)
	}
	if m[2] != "" {
		n, err := strconv.Atoi(m[2])
		if err != nil || n < 1 || n > maxWidth {
			return o, fmt.Errorf("operation %q: the width must be 1 to %d", s, maxWidth)
		}
		o.width = n
	}
	if m[4] != "" {
		w, err := strconv.ParseFloat(m[4], 64)
		if err != nil || w <= 0 || w > 1e9 {
			return o, fmt.Errorf("operation %q: the weight must be above 0", s)
		}
		o.weight = w
	}
	if m[3] == "" {
		return o, nil
	}
	for part := range strings.SplitSeq(m[3], ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		switch {
		case name == "ttl" && (o.kind == "set" || o.kind == "incr"):
			d, err := time.ParseDuration(value)
			if err != nil || d < time.Millisecond {
				return o, fmt.Errorf("operation %q: ttl must be at least 1ms", s)
			}
			o.ttl = d
		case name == "val" && plainName.MatchString(value) && o.kind != "ping" && o.kind != "incr":
			o.class = value
		default:
			return o, fmt.Errorf("operation %q: what is %q?", s, part)
		}
	}
	return o, nil
}

// condition is a bound on something that a report has, such as p99>5ms.
type condition struct {
	metric string
	op     string
	bound  float64 // microseconds, percent or a plain number: see metrics
	text   string
}

type unit int

const (
	plain unit = iota
	percent
	duration
)

// text writes a figure of a unit.
func (u unit) text(v float64) string {
	switch u {
	case duration:
		return msText(v)
	case percent:
		return strconv.FormatFloat(v, 'g', 4, 64) + "%"
	}
	return count(v)
}

// metrics are what conditions can be about.
var metrics = map[string]unit{
	"min": duration, "avg": duration, "p50": duration, "p90": duration, "p95": duration, "p99": duration, "p99.9": duration,
	"max": duration, "lag": duration,
	"errors": percent, "hit": percent, "memory": percent, "cpu": percent,
	"evicted": plain, "expired": plain, "rps": plain,
}

var conditionForm = regexp.MustCompile(`^([a-z0-9.]+)\s*(<=|>=|<|>)\s*([^<>=\s]+)$`)

// parseConditions reads "p99>5ms,errors>0.1%".
func parseConditions(s string) ([]condition, error) {
	var all []condition
	for part := range strings.SplitSeq(s, ",") {
		part = strings.TrimSpace(part)
		m := conditionForm.FindStringSubmatch(part)
		if m == nil {
			return nil, fmt.Errorf("condition %q is not of the form p99>5ms", part)
		}
		c := condition{metric: m[1], op: m[2], text: m[1] + m[2] + m[3]}
		u, ok := metrics[c.metric]
		if !ok {
			return nil, fmt.Errorf("condition %q: there is no %q; there are min, avg, p50, p90, p95, p99, p99.9, max, lag, errors, hit, memory, cpu, evicted, expired and rps", part, c.metric)
		}
		var err error
		switch u {
		case duration:
			var d time.Duration
			d, err = time.ParseDuration(m[3])
			if d < 0 {
				err = errors.New("negative")
			}
			c.bound = micros(d)
		case percent:
			number, ok := strings.CutSuffix(m[3], "%")
			if !ok {
				return nil, fmt.Errorf("condition %q: %s is in percent, as in %s%s1%%", part, c.metric, c.metric, c.op)
			}
			c.bound, err = parseCount(number)
		default:
			c.bound, err = parseCount(m[3])
		}
		if err != nil {
			return nil, fmt.Errorf("condition %q: %q is not %s", part, m[3], []string{"a number", "a percentage", "a time such as 5ms"}[u])
		}
		all = append(all, c)
	}
	return all, nil
}

func (c condition) holds(v float64) bool {
	switch c.op {
	case "<":
		return v < c.bound
	case "<=":
		return v <= c.bound
	case ">":
		return v > c.bound
	default:
		return v >= c.bound
	}
}

// parseDistribution reads "uniform", "zipf:1.1", "hot:1%/90%" (one percent of the keys gets 90% of the requests) or "seq".
func parseDistribution(s string) (distribution, error) {
	name, rest, _ := strings.Cut(s, ":")
	switch name {
	case "uniform", "seq":
		if rest == "" {
			return distribution{kind: name}, nil
		}
	case "zipf":
		e, err := strconv.ParseFloat(rest, 64)
		if err == nil && e > 1 && e <= 10 {
			return distribution{kind: name, a: e}, nil
		}
	case "hot":
		keys, share, _ := strings.Cut(rest, "/")
		k, err := strconv.ParseFloat(strings.TrimSuffix(keys, "%"), 64)
		p, perr := strconv.ParseFloat(strings.TrimSuffix(share, "%"), 64)
		if err == nil && perr == nil && k > 0 && k < 100 && p > 0 && p <= 100 {
			return distribution{kind: name, a: k / 100, b: p / 100}, nil
		}
	}
	return distribution{}, fmt.Errorf("distribution %q is not one of uniform, seq, zipf:1.1 (above 1) and hot:1%%/90%%", s)
}
