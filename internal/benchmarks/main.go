// Benchmarks compares the packages with their peers, and with rueidis doing the same by hand, in one process and
// one run: round by round and contestant by contestant in turn, so that a machine that slows down slows all.
//
//	go -C internal/benchmarks run .                  everything
//	go -C internal/benchmarks run . -only cache      one package, or several: cache,lock
//	go -C internal/benchmarks run . -case hit_512    one case, or those whose names contain this
//	go -C internal/benchmarks run . -quick           short rounds, to see that it runs
//
// It prints a Markdown table and then one line per comparison, above 1 where we are faster. Absolute numbers
// are for comparison within one run only.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"

	"github.com/redispatterns/redispatterns/internal/integration/redistest"
)

func main() {
	if setup := os.Getenv(lockChildEnv); setup != "" {
		if err := lockChild(setup); err != nil {
			fmt.Fprintln(os.Stderr, "benchmarks: lock child:", err)
			os.Exit(1)
		}
		return
	}
	only := flag.String("only", "", "packages to run, separated by commas; all by default")
	pattern := flag.String("case", "", "only cases whose name contains this, such as hit_512")
	quick := flag.Bool("quick", false, "five very short rounds: shows that it runs, not how fast")
	round := flag.Duration("round", time.Second, "length of one contestant's turn")
	rounds := flag.Int("rounds", 7, "turns of each contestant, at least 5")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	plan := plan{round: *round, rounds: max(*rounds, 5), pattern: *pattern}
	if *quick {
		plan.round, plan.rounds = 50*time.Millisecond, 5
	}
	if *only != "" {
		plan.only = strings.Split(*only, ",")
	}
	if err := run(ctx, plan); err != nil {
		fmt.Fprintln(os.Stderr, "benchmarks:", err)
		os.Exit(1)
	}
}

// suite is the cases of one package.
type suite struct {
	name  string
	cases func(*bench) []benchCase
}

var suites = []suite{
	{"buffer", bufferCases},
	{"cache", cacheCases},
	{"ratelimit", ratelimitCases},
	{"timeseries", timeseriesCases},
	{"lock", lockCases},
	{"stream", streamCases},
	{"featurestore", featurestoreCases},
}

func run(ctx context.Context, p plan) error {
	for _, name := range p.only {
		if !slices.ContainsFunc(suites, func(s suite) bool { return s.name == name }) {
			return fmt.Errorf("-only: there is no package %q", name)
		}
	}
	addr, stop, err := redistest.StartForMain()
	if err != nil {
		return err
	}
	defer stop()
	b, err := newBench(addr)
	if err != nil {
		return err
	}
	defer b.close()
	var rows []row
	for _, s := range suites {
		if len(p.only) > 0 && !slices.Contains(p.only, s.name) {
			continue
		}
		cases := s.cases(b)
		if b.failed != nil {
			return fmt.Errorf("%s: %w", s.name, b.failed)
		}
		for _, c := range cases {
			if !strings.Contains(c.title(), p.pattern) {
				continue
			}
			rs, err := b.measure(ctx, p, c)
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			rows = append(rows, rs...)
		}
	}
	report(os.Stdout, rows)
	for _, note := range b.notes {
		fmt.Println(note)
	}
	return nil
}
