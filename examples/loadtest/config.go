package main

import (
	"cmp"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/redis/rueidis"
)

// usageError is a wrong command line.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }

func usage(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// list is a flag that may be given several times.
type list []string

func (l *list) String() string { return strings.Join(*l, " ") }

func (l *list) Set(s string) error {
	*l = append(*l, s)
	return nil
}

// config is what run and preload are told.
type config struct {
	connection
	arguments []string

	scenario     scenario
	raw          bool
	prefix       string
	keys         int
	classes      []class
	dist         distribution
	compressible bool
	ttl          time.Duration
	jitter       float64
	batch        int
	preloadRate  float64
	noPreload    bool

	schedule    schedule
	closed      bool
	think       time.Duration
	poisson     bool
	warmup      time.Duration
	duration    time.Duration
	maxInflight int
	timeout     time.Duration
	knee        []condition
	kneeStep    time.Duration
	kneeFrom    float64
	pressure    time.Duration

	live   string
	web    string
	html   string
	json   string
	csv    string
	hgrm   string
	sample time.Duration
	failOn []condition
	size   sizeOptions
	sizing sizingFlags
	doctor bool
	safety safety
}

// safety is what a user must say before the program does what could hurt.
type safety struct{ keep, yes, allowBig bool }

var prefixForm = regexp.MustCompile(`^lt:[A-Za-z0-9_.-]{1,64}:$`)

// texts are options that are more than a flag of package flag can read.
type texts struct {
	scenario, keys, values, dist, jitter, preloadRate          string
	rate, users, ramp, stages, failOn, kneeCondition, kneeFrom string
	operations                                                 list
}

// parseRun reads the arguments of run, preload or clean, of which each has a part of the options of the one before.
func parseRun(command string, args []string, errOut io.Writer) (*config, error) {
	c := &config{arguments: append([]string{command}, safeArguments(args)...)}
	f := newFlags(command, errOut)
	var t texts
	c.addTarget(f)
	if command != "clean" {
		c.addData(f, &t)
	}
	if command == "run" {
		c.addLoad(f, &t)
		c.addOutput(f, &t)
	}
	if err := parseFlags(f, args); err != nil {
		return nil, err
	}
	if f.NArg() > 0 {
		return nil, usage("what is %q? Options begin with --", f.Arg(0))
	}
	if c.url = cmp.Or(c.url, os.Getenv("REDIS_URL"), embedded); c.url == embedded && command != "run" {
		return nil, usage("%s: give --redis, or REDIS_URL: a server in this process is gone when it ends", command)
	}
	given := map[string]bool{}
	f.Visit(func(g *flag.Flag) { given[g.Name] = true })
	r := &reader{}
	r.parse("prefix", func() error { return c.readPrefix(command) })
	if command != "clean" {
		c.readData(r, &t)
		r.parse("op", func() error { return c.readScenario(&t, given["scenario"]) })
	}
	if command == "run" {
		c.readLoad(r, &t)
		r.parse("json, --html, --csv and --hgrm", c.checkFiles)
	}
	return c, r.err
}

func (c *config) addTarget(f *flag.FlagSet) {
	f.StringVar(&c.url, "redis", "", "`URL`: redis://, rediss:// or unix://; ?addr=host:port for more nodes of a cluster, ?master_set=name for Sentinel.\nDefaults to REDIS_URL, and without it run takes a miniredis in this process")
	f.StringVar(&c.ca, "ca", "", "TLS: `file` of the authority that signed the server's certificate")
	f.StringVar(&c.cert, "cert", "", "TLS: `file` of the client's certificate")
	f.StringVar(&c.key, "key", "", "TLS: `file` of the client's key")
	f.BoolVar(&c.insecure, "insecure", false, "TLS: do not check the server's certificate")
	f.BoolVar(&c.safety.yes, "yes", false, "load a host that is not this machine")
	f.StringVar(&c.prefix, "prefix", "", "begins all keys: lt:name: (default, but for clean: lt: and a random name)")
}

func (c *config) addData(f *flag.FlagSet, t *texts) {
	f.BoolVar(&c.pool, "pool", false, "a connection per request under way instead of pipelines")
	f.IntVar(&c.multiplex, "multiplex", 0, "2 to the power of this many connections for pipelines, up to 8; 0 for the client's default")
	f.DurationVar(&c.flushDelay, "max-flush-delay", 0, "how long a pipeline waits for more: less CPU for more latency")
	f.BoolVar(&c.csc, "csc", false, "client-side caching of get")
	f.BoolVar(&c.retry, "retry", false, "let the client retry reads that failed, instead of counting them")
	f.StringVar(&t.scenario, "scenario", "django-cache", "one of "+scenarioNames())
	f.Var(&t.operations, "op", "an operation and its weight, instead of a scenario; several times: get:60, mget[10]:15, set(ttl=2s,val=claims):10, del, incr, ping")
	f.BoolVar(&c.raw, "raw", false, "beside each operation of a package, do the same by hand, as often, and compare")
	f.StringVar(&t.keys, "keys", "400k", "how many keys to load before, and to use")
	f.StringVar(&t.values, "value", "claims=300@50,token=1500@50", "classes of values: name=bytes@weight")
	f.StringVar(&t.dist, "dist", "uniform", "which keys are asked for: uniform, seq, zipf:1.1, hot:1%/90%")
	f.BoolVar(&c.compressible, "compressible", false, "values that compress well; random ones do not")
	f.DurationVar(&c.ttl, "ttl", time.Hour, "of the keys that are loaded before")
	f.StringVar(&t.jitter, "ttl-jitter", "10%", "up to which part of it a TTL is shorter")
	f.IntVar(&c.batch, "preload-batch", 500, "keys per pipeline while loading, 1 to 10000")
	f.StringVar(&t.preloadRate, "preload-rate", "0", "keys per second while loading; 0: as fast as it goes")
	f.StringVar(&c.json, "json", "", "write the result to this `file`")
	f.StringVar(&c.live, "live", "", "table, plain or off (default: table on a terminal, else plain)")
	c.sizing.add(f)
}

func (c *config) addLoad(f *flag.FlagSet, t *texts) {
	f.BoolVar(&c.noPreload, "no-preload", false, "the keys are there already, from the command preload; they are kept")
	f.BoolVar(&c.safety.keep, "keep", false, "keep the keys at the end")
	f.BoolVar(&c.safety.allowBig, "allow-big", false, "allow mget of more than 1 MB")
	f.StringVar(&t.rate, "rate", "", "open loop: requests per second (default 1000)")
	f.StringVar(&t.users, "users", "", "closed loop: so many users, each of whom waits for an answer before the next request")
	f.DurationVar(&c.think, "think", 0, "closed loop: how long a user pauses between requests")
	f.StringVar(&t.ramp, "ramp", "", "by how much the level grows: 5/s is five users, or requests per second, more each second")
	f.StringVar(&t.stages, "stages", "", "levels instead of one, each for a time: 5k:30s,20k:60s")
	f.BoolVar(&c.poisson, "poisson", false, "open loop: requests come at random instead of evenly")
	f.DurationVar(&c.warmup, "warmup", 0, "how long to load before anything counts")
	f.DurationVar(&c.duration, "duration", 30*time.Second, "how long to load, without the warm-up")
	f.IntVar(&c.maxInflight, "max-inflight", 20_000, "open loop: how many requests may be under way")
	f.DurationVar(&c.timeout, "timeout", 5*time.Second, "of a request")
	f.StringVar(&t.kneeCondition, "find-knee", "", "find the highest rate at which this holds, such as p99<2ms")
	f.DurationVar(&c.kneeStep, "knee-step", 5*time.Second, "how long to try each rate")
	f.StringVar(&t.kneeFrom, "knee-from", "1000", "the rate to begin with")
	f.DurationVar(&c.pressure, "pressure", 0, "go on adding keys at such a pace that maxmemory is reached after this time")
}

func (c *config) addOutput(f *flag.FlagSet, t *texts) {
	f.StringVar(&c.web, "web", "", "serve a live page at this `address`; :8089 is 127.0.0.1:8089")
	f.StringVar(&c.html, "html", "", "write a report to this `file`, which needs nothing else")
	f.StringVar(&c.csv, "csv", "", "write `prefix`_stats.csv, _stats_history.csv and _failures.csv")
	f.StringVar(&c.hgrm, "hgrm", "", "write the distributions to `prefix`_response.hgrm and _service.hgrm")
	f.DurationVar(&c.sample, "sample", time.Second, "how often to look at the servers and to draw")
	f.BoolVar(&c.doctor, "doctor", true, "have the doctor judge the servers for this use; it reads a sample of the keys at the begin")
	f.StringVar(&t.failOn, "fail-on", "", "end with code 4 if one of these is true: 'p99>5ms,errors>0.1%,hit<95%,evicted>0'")
}

// reader keeps the first error of several options.
type reader struct{ err error }

func (r *reader) parse(option string, parse func() error) {
	if r.err == nil {
		if r.err = parse(); r.err != nil {
			r.err = usage("--%s: %w", option, r.err)
		}
	}
}

func (r *reader) number(option, text string, least, most float64, to *float64) {
	r.parse(option, func() (err error) {
		if *to, err = parseCount(text); err == nil && (*to < least || *to > most) {
			err = fmt.Errorf("must be %g to %g", least, most)
		}
		return err
	})
}

// check is for what must be true of an option.
func (r *reader) check(option string, ok bool, must string) {
	r.parse(option, func() error {
		if !ok {
			return errors.New("must be " + must)
		}
		return nil
	})
}

func (c *config) readPrefix(command string) error {
	switch {
	case c.prefix == "" && command == "clean":
		return errors.New("is needed: lt:name: says which keys")
	case c.prefix == "" && c.noPreload:
		return errors.New("give that which the command preload used")
	case c.prefix == "":
		c.prefix = "lt:" + strings.ToLower(rand.Text()[:8]) + ":"
	case !prefixForm.MatchString(c.prefix):
		return errors.New("must be of the form lt:name: so that it cannot be that of anything else")
	}
	return nil
}

func (c *config) readData(r *reader, t *texts) {
	var keys float64
	r.number("keys", t.keys, 1, 2e9, &keys)
	c.keys = int(keys)
	r.parse("value", func() (err error) { c.classes, err = parseClasses(t.values); return err })
	r.parse("dist", func() (err error) { c.dist, err = parseDistribution(t.dist); return err })
	r.number("ttl-jitter", strings.TrimSuffix(t.jitter, "%"), 0, 99, &c.jitter)
	c.jitter /= 100
	r.number("preload-rate", t.preloadRate, 0, maxRate, &c.preloadRate)
	r.parse("size options", func() error { return c.sizing.to(&c.size) })
	r.check("preload-batch", c.batch >= 1 && c.batch <= 10_000, "1 to 10000")
	r.check("ttl", c.ttl >= time.Millisecond && c.ttl%time.Millisecond == 0, "whole milliseconds, at least 1ms")
	r.check("live", slices.Contains([]string{"", "table", "plain", "off"}, c.live), "table, plain or off")
	r.check("multiplex", c.multiplex >= 0 && c.multiplex <= rueidis.MaxPipelineMultiplex, "0 to 8")
	r.check("max-flush-delay", c.flushDelay >= 0 && c.flushDelay <= time.Second, "0 to 1s")
}

func (c *config) readScenario(t *texts, named bool) error {
	if len(t.operations) == 0 {
		var ok bool
		if c.scenario, ok = scenarioNamed(t.scenario); !ok {
			return fmt.Errorf("--scenario must be one of %s", scenarioNames())
		}
		return nil
	}
	if named {
		return errors.New("--op and --scenario exclude each other")
	}
	var specs []operationSpec
	for _, o := range t.operations {
		spec, err := parseOperation(o)
		if err != nil {
			return err
		}
		specs = append(specs, spec)
	}
	c.scenario = plainScenario(specs)
	return nil
}

func (c *config) readLoad(r *reader, t *texts) {
	level, grow := 1000.0, 0.0
	switch {
	case t.rate != "" && t.users != "":
		r.check("rate", false, "without --users: it is for the open loop, and that for the closed one")
	case t.users != "":
		c.closed = true
		r.number("users", t.users, 1, 100_000, &level)
	case t.rate != "":
		r.number("rate", t.rate, 0.001, maxRate, &level)
	}
	r.parse("ramp", func() (err error) { grow, err = parseRamp(t.ramp); return err })
	r.check("duration", c.duration > 0, "above 0")
	r.check("warmup", c.warmup >= 0, "at least 0")
	r.check("think", c.think >= 0, "at least 0")
	r.check("pressure", c.pressure >= 0, "at least 0")
	r.check("timeout", c.timeout >= time.Millisecond && c.timeout <= time.Minute && c.timeout%time.Millisecond == 0, "whole milliseconds, 1ms to 1m")
	r.check("max-inflight", c.maxInflight >= 1 && c.maxInflight <= 1_000_000, "1 to 1000000")
	r.check("sample", c.sample >= 100*time.Millisecond && c.sample <= time.Minute, "100ms to 1m")
	r.check("knee-step", c.kneeStep >= time.Second, "at least 1s")
	all := []stage{{level, c.duration}}
	if t.stages != "" {
		r.parse("stages", func() (err error) { all, err = parseStages(t.stages); return err })
	}
	if t.failOn != "" {
		r.parse("fail-on", func() (err error) { c.failOn, err = parseConditions(t.failOn); return err })
	}
	if t.kneeCondition != "" {
		r.parse("find-knee", func() (err error) { c.knee, err = parseConditions(t.kneeCondition); return err })
		r.number("knee-from", t.kneeFrom, 1, maxRate, &c.kneeFrom)
	}
	if r.err == nil {
		all[0].d += c.warmup
		c.schedule = newSchedule(all, grow)
		r.check("stages", c.schedule.requests(c.schedule.duration()) > 0, "of some load")
	}
}

// checkFiles fails if a result could not be written at the end.
func (c *config) checkFiles() error {
	for _, file := range []string{c.json, c.html, c.csv, c.hgrm} {
		if file == "" {
			continue
		}
		if err := writeFile(file, nil); err != nil {
			return err
		}
	}
	return nil
}

func scenarioNames() string {
	names := make([]string, len(scenarios))
	for i, s := range scenarios {
		names[i] = s.name
	}
	return strings.Join(names, ", ")
}

// sizingFlags are the options of a sizing.
type sizingFlags struct {
	keys, rate, nodes    string
	replicas             int
	utilisation, reserve float64
}

func (s *sizingFlags) add(f *flag.FlagSet) {
	f.StringVar(&s.keys, "size-keys", "0", "sizing: for how many keys; 0 for those that were loaded")
	f.StringVar(&s.rate, "size-rate", "0", "sizing: for how many requests per second; 0 for those that were made")
	f.IntVar(&s.replicas, "replicas", 1, "sizing: per primary")
	f.Float64Var(&s.utilisation, "utilisation", 80, "sizing: percent of maxmemory that may be used")
	f.Float64Var(&s.reserve, "reserve", 25, "sizing: percent of a node's RAM that is not for maxmemory")
	f.StringVar(&s.nodes, "nodes", "", "sizing: CSV `file` of machines: name, GiB, and Gbit/s if known")
}

func (s *sizingFlags) to(o *sizeOptions) (err error) {
	if o.keys, err = parseCount(s.keys); err != nil {
		return err
	}
	if o.rate, err = parseCount(s.rate); err != nil {
		return err
	}
	if s.replicas < 0 || s.replicas > 5 || !(s.utilisation > 0 && s.utilisation <= 100) || !(s.reserve >= 0 && s.reserve < 100) {
		return errors.New("replicas are 0 to 5, percentages below 100")
	}
	o.replicas, o.utilisation, o.reserve, o.nodes = s.replicas, s.utilisation, s.reserve, generic()
	if s.nodes != "" {
		if o.nodes, err = readNodes(s.nodes); err != nil {
			return fmt.Errorf("%s: %w", s.nodes, err)
		}
	}
	return nil
}

func newFlags(command string, errOut io.Writer) *flag.FlagSet {
	f := flag.NewFlagSet("loadtest "+command, flag.ContinueOnError)
	f.SetOutput(errOut)
	return f
}

// parseFlags reads the command line, and what it does not say from the environment: LOADTEST_MAX_INFLIGHT is --max-inflight.
func parseFlags(f *flag.FlagSet, args []string) error {
	f.Usage = func() {
		fmt.Fprintf(f.Output(), "%s: options, also from the environment as LOADTEST_NAME\n", f.Name())
		f.PrintDefaults()
	}
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return usageError{err}
	}
	given := map[string]bool{}
	f.Visit(func(g *flag.Flag) { given[g.Name] = true })
	var err error
	f.VisitAll(func(g *flag.Flag) {
		name := "LOADTEST_" + strings.ToUpper(strings.ReplaceAll(g.Name, "-", "_"))
		if v, ok := os.LookupEnv(name); ok && !given[g.Name] && err == nil {
			if e := f.Set(g.Name, v); e != nil {
				err = usage("%s: %w", name, e)
			}
		}
	})
	return err
}

// safeArguments are what a report says of the command line: no secrets of URLs.
func safeArguments(args []string) []string {
	safe := slices.Clone(args)
	for i, a := range safe {
		name, value, ok := strings.Cut(a, "=")
		switch {
		case ok && strings.TrimLeft(name, "-") == "redis":
			safe[i] = name + "=" + safeURL(value)
		case i > 0 && strings.TrimLeft(safe[i-1], "-") == "redis":
			safe[i] = safeURL(a)
		}
	}
	return safe
}
