// Doctor says whether a Redis is safe for what is done with it: whether its policy may evict locks, whether a restart would
// lose what is pending, which of its keys lack a TTL, and some twenty things more; each with the reason, a command that
// helps and a page to read. It only reads.
//
//	go -C examples run ./doctor redis://127.0.0.1:6379
//	go -C examples run ./doctor -pattern cache=scores:,lock redis://127.0.0.1:6379
//	go -C examples run ./doctor -format json -strict rediss://me:secret@cache.example.com:6380
//
// The address may also be in REDIS_URL; redis://one:7000?addr=two:7000 is for a cluster, and ?master_set=name for Sentinel.
// With no address the doctor looks at a server that it starts for the purpose, with locks beside a full cache under
// allkeys-lru, if there is a redis-server or valkey-server to start; and else at what it once saw of such a one. That is a
// demonstration and always ends with 0.
//
// The exit code is 0 if all is well, 1 with -strict if there are warnings or something could not be read, 2 if something is wrong,
// and 3 if nothing could be checked.
//
// The checks are the folder doctor: it needs nothing but rueidis. Copy it into a service, and have it look at its Redis when it
// starts.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/examples/doctor/doctor"
)

// Exit codes.
const (
	exitOK = iota
	exitWarn
	exitFail
	exitUnchecked
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code, err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "doctor:", strings.TrimPrefix(err.Error(), "doctor: "))
		code = exitUnchecked
	}
	os.Exit(code)
}

type config struct {
	format  string
	strict  bool
	verbose bool
	address string
	expect  doctor.Expect
}

func parse(args []string) (config, error) {
	var c config
	var patterns, skip string
	flags := flag.NewFlagSet("doctor", flag.ContinueOnError)
	flags.StringVar(&c.format, "format", "text", "text, json, markdown, or snapshot: what was read, as JSON, for doctor.Judge")
	flags.BoolVar(&c.strict, "strict", false, "end with 1 if there are warnings, or something could not be read")
	flags.BoolVar(&c.verbose, "v", false, "show also what is well")
	flags.StringVar(&patterns, "pattern", "", "what the server is for, and which prefixes: cache=scores:,lock,stream=orders\npatterns: "+join(doctor.Patterns()))
	flags.StringVar(&skip, "skip", "", "ids of checks to leave out: SEC01,LAT01")
	flags.DurationVar(&c.expect.Interval, "interval", 5*time.Second, "time between the two samples")
	flags.IntVar(&c.expect.SampleKeys, "keys", 2000, "how many keys of each prefix to look at")
	flags.DurationVar(&c.expect.Lease, "lease", 30*time.Second, "GroupOptions.Lease of streams")
	flags.Usage = func() {
		fmt.Fprintln(flags.Output(), "doctor [flags] [redis://user:password@host:port/db]")
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		return c, err
	}
	if flags.NArg() > 1 {
		return c, fmt.Errorf("one address at most, got %d; flags come before it", flags.NArg())
	}
	if !slices.Contains([]string{"text", "json", "markdown", "snapshot"}, c.format) {
		return c, fmt.Errorf("-format must be text, json, markdown or snapshot, got %q", c.format)
	}
	c.address = os.Getenv("REDIS_URL")
	if flags.NArg() == 1 {
		c.address = flags.Arg(0)
	}
	if skip != "" {
		c.expect.Skip = strings.Split(skip, ",")
	}
	c.expect.Prefixes = map[string]doctor.Pattern{}
	for item := range strings.SplitSeq(patterns, ",") {
		name, prefix, _ := strings.Cut(item, "=")
		if name == "" {
			continue
		}
		c.expect.Uses = append(c.expect.Uses, doctor.Pattern(name))
		if prefix = strings.TrimSuffix(prefix, "*"); prefix != "" {
			c.expect.Prefixes[prefix] = doctor.Pattern(name)
		}
	}
	return c, nil
}

func join(patterns []doctor.Pattern) string {
	s := make([]string, len(patterns))
	for i, p := range patterns {
		s[i] = string(p)
	}
	return strings.Join(s, ", ")
}

// run returns the exit code. An error means that nothing was checked.
func run(ctx context.Context, args []string, out io.Writer) (int, error) {
	c, err := parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitOK, nil
	case err != nil:
		return exitUnchecked, err
	}
	if c.address == "" {
		return exitOK, demonstrate(ctx, c, out)
	}
	client, dial, err := connect(c.address)
	if err != nil {
		return exitUnchecked, err
	}
	defer client.Close()
	c.expect.Dial = dial
	snapshot, err := doctor.Collect(ctx, client, c.expect)
	if err != nil {
		return exitUnchecked, err
	}
	report, err := doctor.Judge(snapshot, c.expect)
	if err != nil {
		return exitUnchecked, err
	}
	return code(report, c.strict), write(out, snapshot, report, c)
}

func code(report doctor.Report, strict bool) int {
	switch worst := report.Worst(); {
	case worst == doctor.Fail:
		return exitFail
	case !report.Checked():
		return exitUnchecked
	case strict && (worst == doctor.Warn || worst == doctor.Unknown):
		return exitWarn
	}
	return exitOK
}

// connect returns a client, and what connects to one more node in the same way.
func connect(address string) (rueidis.Client, func(addr string) (rueidis.Client, error), error) {
	option, err := rueidis.ParseURL(address)
	if err != nil { // which may quote the password
		return nil, nil, errors.New("the address is not of the form redis://user:password@host:port/db")
	}
	option.ClientName = "doctor"
	option.DisableCache = true
	option.Dialer.Timeout = 3 * time.Second
	client, err := rueidis.NewClient(option)
	if err != nil {
		return nil, nil, fmt.Errorf("connect: %w", err)
	}
	return client, func(addr string) (rueidis.Client, error) {
		node := option
		node.InitAddress = []string{addr}
		node.Sentinel = rueidis.SentinelOption{}
		node.ForceSingleClient = true
		return rueidis.NewClient(node)
	}, nil
}

func write(out io.Writer, snapshot doctor.Snapshot, report doctor.Report, c config) error {
	encoder := json.NewEncoder(out)
	encoder.SetIndent("", "  ")
	switch c.format {
	case "snapshot":
		return encoder.Encode(snapshot)
	case "json":
		return encoder.Encode(report)
	case "markdown":
		return writeMarkdown(out, report, c.verbose)
	}
	return writeText(out, report, c.verbose)
}
