package main

import (
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
	safety safety
}

// safety is what a user must say before the program does what could hurt.
type safety struct{ keep, yes, allowBig bool }

var prefixForm = regexp.MustCompile(`^lt:[A-Za-z0-9_.-]{1,64}:$`)

// parseRun reads the arguments of run (or of preload).
func parseRun(command string, args []string, errOut io.Writer) (*config, error) {
	c := &config{arguments: append([]string{command}, safeArguments(args)...)}
	f := newFlags(command, errOut)
	var operations list
	var values, dist, scenarioName, keys, rate, users, ramp, stages, failOn, kneeText, jitter, preloadRate, kneeFrom string
	target := func() {
		f.StringVar(&c.url, "redis", "", "`URL`: redis://, rediss:// or unix://; ?addr=host:port for more nodes of a cluster, ?master_set=name for Sentinel.\nDefaults to REDIS_URL, and without it to a miniredis in this process")
		f.StringVar(&c.ca, "ca", "", "TLS: `file` of the authority that signed the server's certificate")
		f.StringVar(&c.cert, "cert", "", "TLS: `file` of the client's certificate")
		f.StringVar(&c.key, "key", "", "TLS: `file` of the client's key")
		f.BoolVar(&c.insecure, "insecure", false, "TLS: do not check the server's certificate")
		f.BoolVar(&c.safety.yes, "yes", false, "load a host that is not this machine")
	}
	target()
	f.BoolVar(&c.pool, "pool", false, "a connection per request under way instead of pipelines")
	f.IntVar(&c.multiplex, "multiplex", 0, "2 to the power of this many connections for pipelines; 0 for the client's default")
	f.DurationVar(&c.flushDelay, "max-flush-delay", 0, "how long a pipeline waits for more: less CPU for more latency")
	f.BoolVar(&c.csc, "csc", false, "client-side caching of get")
	f.BoolVar(&c.retry, "retry", false, "let the client retry reads that failed, instead of counting them")

	f.StringVar(&scenarioName, "scenario", "django-cache", "one of "+scenarioNames())
	f.Var(&operations, "op", "an operation and its weight, instead of a scenario; several times: get:60, mget[10]:15, set(ttl=2s,val=claims):10, del, incr, ping")
	f.BoolVar(&c.raw, "raw", false, "beside each operation of a package, do the same by hand, as often, and compare")
	f.StringVar(&c.prefix, "prefix", "", "begins all keys: lt:name: (default: lt: and a random name)")
	f.StringVar(&keys, "keys", "400k", "how many keys to load before, and to use")
	f.StringVar(&values, "value", "claims=300@50,token=1500@50", "classes of values: name=bytes@weight")
	f.StringVar(&dist, "dist", "uniform", "which keys are asked for: uniform, seq, zipf:1.1, hot:1%/90%")
	f.BoolVar(&c.compressible, "compressible", false, "values that compress well; random ones do not")
	f.DurationVar(&c.ttl, "ttl", time.Hour, "of the keys that are loaded before")
	f.StringVar(&jitter, "ttl-jitter", "10%", "up to which part of it a TTL is shorter")
	f.IntVar(&c.batch, "preload-batch", 500, "keys per pipeline while loading, 1 to 10000")
	f.StringVar(&preloadRate, "preload-rate", "0", "keys per second while loading; 0: as fast as it goes")
	f.StringVar(&c.json, "json", "", "write the result to this `file`")
	f.StringVar(&c.live, "live", "", "table, plain or off (default: table on a terminal, else plain)")
	c.sizing.add(f)
	if command == "run" {
		f.BoolVar(&c.noPreload, "no-preload", false, "the keys are there already, from the command preload; they are kept")
		f.BoolVar(&c.safety.keep, "keep", false, "keep the keys at the end")
		f.BoolVar(&c.safety.allowBig, "allow-big", false, "allow mget of more than 1 MB")
		f.StringVar(&rate, "rate", "", "open loop: requests per second (default 1000)")
		f.StringVar(&users, "users", "", "closed loop: so many users, each of whom waits for an answer before the next request")
		f.DurationVar(&c.think, "think", 0, "closed loop: how long a user pauses between requests")
		f.StringVar(&ramp, "ramp", "", "by how much the level grows: 5/s is five users, or requests per second, more each second")
		f.StringVar(&stages, "stages", "", "levels instead of one, each for a time: 5k:30s,20k:60s")
		f.BoolVar(&c.poisson, "poisson", false, "open loop: requests come at random instead of evenly")
		f.DurationVar(&c.warmup, "warmup", 0, "how long to load before anything counts")
		f.DurationVar(&c.duration, "duration", 30*time.Second, "how long to load, without the warm-up")
		f.IntVar(&c.maxInflight, "max-inflight", 20_000, "open loop: how many requests may be under way")
		f.DurationVar(&c.timeout, "timeout", 5*time.Second, "of a request")
		f.StringVar(&kneeText, "find-knee", "", "find the highest rate at which this holds, such as p99<2ms")
		f.DurationVar(&c.kneeStep, "knee-step", 5*time.Second, "how long to try each rate")
		f.StringVar(&kneeFrom, "knee-from", "1000", "the rate to begin with")
		f.DurationVar(&c.pressure, "pressure", 0, "go on adding keys at such a pace that maxmemory is reached after this time")
		f.StringVar(&c.web, "web", "", "serve a live page at this `address`; :8089 is 127.0.0.1:8089")
		f.StringVar(&c.html, "html", "", "write a report to this `file`, which needs nothing else")
		f.StringVar(&c.csv, "csv", "", "write `prefix`_stats.csv, _stats_history.csv and _failures.csv")
		f.StringVar(&c.hgrm, "hgrm", "", "write the distributions to `prefix`_response.hgrm and _service.hgrm")
		f.DurationVar(&c.sample, "sample", time.Second, "how often to look at the servers and to draw")
		f.StringVar(&failOn, "fail-on", "", "end with code 4 if one of these is true: 'p99>5ms,errors>0.1%,hit<95%,evicted>0'")
	}
	if err := parseFlags(f, args); err != nil {
		return nil, err
	}
	if f.NArg() > 0 {
		return nil, usage("what is %q? Options begin with --", f.Arg(0))
	}
	given := map[string]bool{}
	f.Visit(func(g *flag.Flag) { given[g.Name] = true })

	var err error
	parse := func(name string, parse func() error) {
		if err == nil {
			if err = parse(); err != nil {
				err = usage("--%s: %w", name, err)
			}
		}
	}
	number := func(name, text string, least, most float64, to *float64) {
		parse(name, func() error {
			n, err := parseCount(text)
			if err == nil && (n < least || n > most) {
				err = fmt.Errorf("must be %g to %g", least, most)
			}
			*to = n
			return err
		})
	}
	var n float64
	number("keys", keys, 1, 2e9, &n)
	c.keys = int(n)
	parse("value", func() (err error) { c.classes, err = parseClasses(values); return err })
	parse("dist", func() (err error) { c.dist, err = parseDistribution(dist); return err })
	number("ttl-jitter", strings.TrimSuffix(jitter, "%"), 0, 99, &c.jitter)
	c.jitter /= 100
	number("preload-rate", preloadRate, 0, maxRate, &c.preloadRate)
	parse("size options", func() error { return c.sizing.to(&c.size) })
	if command == "run" {
		if e := c.parseLoad(rate, users, ramp, stages, number, parse); err == nil {
			err = e
		}
		if failOn != "" {
			parse("fail-on", func() (err error) { c.failOn, err = parseConditions(failOn); return err })
		}
		if kneeText != "" {
			parse("find-knee", func() (err error) { c.knee, err = parseConditions(kneeText); return err })
			number("knee-from", kneeFrom, 1, maxRate, &c.kneeFrom)
		}
	}
	if err != nil {
		return nil, err
	}
	if c.url == "" {
		c.url = os.Getenv("REDIS_URL")
	}
	if c.url == "" {
		c.url = embedded
	}
	if c.prefix == "" {
		c.prefix = "lt:" + strings.ToLower(rand.Text()[:8]) + ":"
		if c.noPreload {
			return nil, usage("--no-preload: give the --prefix that the command preload used")
		}
	} else if !prefixForm.MatchString(c.prefix) {
		return nil, usage("--prefix must be of the form lt:name: so that it cannot be that of anything else")
	}
	if len(operations) > 0 {
		if given["scenario"] {
			return nil, usage("--op and --scenario exclude each other")
		}
		var specs []operationSpec
		for _, o := range operations {
			spec, err := parseOperation(o)
			if err != nil {
				return nil, usage("--op: %w", err)
			}
			specs = append(specs, spec)
		}
		c.scenario = plainScenario(specs)
	} else {
		var ok bool
		if c.scenario, ok = scenarioNamed(scenarioName); !ok {
			return nil, usage("--scenario must be one of %s", scenarioNames())
		}
	}
	switch {
	case c.batch < 1 || c.batch > 10_000:
		return nil, usage("--preload-batch must be 1 to 10000")
	case c.ttl < time.Millisecond || c.ttl%time.Millisecond != 0:
		return nil, usage("--ttl must be whole milliseconds, at least 1ms")
	case !slices.Contains([]string{"", "table", "plain", "off"}, c.live):
		return nil, usage("--live must be table, plain or off")
	}
	return c, nil
}

func (c *config) parseLoad(rate, users, ramp, stages string, number func(string, string, float64, float64, *float64), parse func(string, func() error)) (err error) {
	var level, grow float64
	switch {
	case rate != "" && users != "":
		return usage("--rate is for the open loop, --users for the closed one")
	case users != "":
		c.closed = true
		number("users", users, 1, 100_000, &level)
	case rate != "":
		number("rate", rate, 0.001, maxRate, &level)
	default:
		level = 1000
	}
	parse("ramp", func() (err error) { grow, err = parseRamp(ramp); return err })
	all := []stage{{level, c.duration}}
	if stages != "" {
		parse("stages", func() (err error) { all, err = parseStages(stages); return err })
	}
	switch {
	case c.duration <= 0, c.warmup < 0, c.think < 0, c.pressure < 0:
		return usage("--duration, --warmup, --think and --pressure must not be negative, nor --duration 0")
	case c.timeout < time.Millisecond || c.timeout > time.Minute || c.timeout%time.Millisecond != 0:
		return usage("--timeout must be whole milliseconds, 1ms to 1m")
	case c.maxInflight < 1 || c.maxInflight > 1_000_000:
		return usage("--max-inflight must be 1 to 1000000")
	case c.sample < 100*time.Millisecond || c.sample > time.Minute:
		return usage("--sample must be 100ms to 1m")
	case c.kneeStep < time.Second:
		return usage("--knee-step must be at least 1s")
	}
	if len(all) > 0 {
		all[0].d += c.warmup
		c.schedule = newSchedule(all, grow)
		if c.schedule.requests(c.schedule.duration()) <= 0 {
			return usage("the load is zero")
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
