// Loadtest loads a Redis at a steady rate, shows what its users and the server felt, and says which Redis to buy. README.md
// has its options. Without an argument it is a demonstration of some seconds that needs nothing installed: a miniredis is
// embedded, unless REDIS_URL names a Redis.
//
//	go -C examples run ./loadtest
//	go -C examples run ./loadtest run --redis redis://127.0.0.1:6379 --rate 20000 --duration 2m --web :8089 --html report.html
//	go -C examples run ./loadtest preload --redis redis://127.0.0.1:6379 --keys 400k --json loaded.json
//	go -C examples run ./loadtest size --size-keys 10M loaded.json
//	go -C examples run ./loadtest merge -o all.json one.json two.json
//	go -C examples run ./loadtest html -o report.html all.json
//	go -C examples run ./loadtest clean --redis redis://127.0.0.1:6379 --prefix lt:name:
//
// To make it yours, copy the folder, and ../doctor/doctor with it, then: go mod init example; until there is a release, go mod edit
// -replace github.com/redispatterns/redispatterns=where/you/cloned/it; go mod tidy; go build.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// What the program ends with. (go run makes a 1 of all but 0.)
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitSaturated   = 3
	exitGate        = 4
	exitInterrupted = 130
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second Ctrl-C ends the program at once, but not one that comes with the first: some send a signal to the process and to
	// its group.
	context.AfterFunc(ctx, func() {
		time.Sleep(time.Second)
		stop()
	})
	code, err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	if err != nil {
		fmt.Fprintln(os.Stderr, "loadtest:", err)
	}
	os.Exit(code)
}

const usageText = `usage: loadtest [command] [options]; loadtest command -h lists the options

  run      loads the dataset, makes the load, reports, removes its keys; this is what happens without a command
  preload  loads the dataset and keeps it: run --no-preload --prefix lt:name: uses it
  size     result.json --keys 10M --rate 50k: which Redis so much needs
  merge    a.json b.json -o all.json: one report of several generators that ran at the same time
  html     result.json -o report.html: the report as a page
  clean    --prefix lt:name: removes the keys of a run that was killed, or kept them`

func run(ctx context.Context, args []string, out, errOut io.Writer) (code int, err error) {
	command, demo := "run", len(args) == 0
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		command, args = args[0], args[1:]
	}
	switch command {
	case "help":
		_, err = fmt.Fprintln(out, usageText)
	case "run":
		code, err = runLoad(ctx, args, demo, out, errOut)
	case "preload":
		err = runPreload(ctx, args, out, errOut)
	case "size":
		err = runSize(args, out, errOut)
	case "merge":
		err = runMerge(args, out, errOut)
	case "html":
		err = runHTML(args, errOut)
	case "clean":
		err = runClean(ctx, args, out, errOut)
	default:
		err = usage("there is no command %q\n%s", command, usageText)
	}
	var wrong usageError
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitOK, nil
	case errors.As(err, &wrong):
		return exitUsage, err
	case err != nil && ctx.Err() != nil:
		return exitInterrupted, errors.New("interrupted")
	case err != nil:
		return exitFailed, err
	}
	return code, nil
}

// demonstration is small enough for a miniredis and a few seconds.
var demonstration = []string{"--keys", "20k", "--rate", "1000", "--warmup", "1s", "--duration", "6s"}

func runLoad(ctx context.Context, args []string, demo bool, out, errOut io.Writer) (code int, err error) {
	if demo {
		args = demonstration
		fmt.Fprintf(out, "A demonstration: loadtest run %s\n\n", strings.Join(args, " "))
	}
	c, err := parseRun("run", args, errOut)
	if err != nil {
		return 0, err
	}
	var p *page
	if c.web != "" {
		if p, err = servePage(c.web); err != nil {
			return 0, err
		}
		defer p.close()
		fmt.Fprintf(out, "live page: http://%s\n", p.addr)
	}
	s, err := open(ctx, c, out)
	if err != nil {
		return 0, err
	}
	defer s.close()
	s.sampler, s.page = &sampler{t: s.t}, p
	r := s.report
	fmt.Fprintf(out, "%s on %s, %s, %s; keys %s*\n", c.scenario.name, r.Target.Address, r.Target.Version, r.Target.Mode, c.prefix)
	defer func() { err = errors.Join(err, s.end(ctx)) }()
	if err := s.load(ctx); err != nil {
		return 0, err
	}
	s.screen.keep()
	if err := s.run(ctx); err != nil {
		return 0, err
	}
	s.screen.keep()
	r.warn(c)
	failed := r.judge(c.failOn)
	r.print(out, c.size)
	s.page.show(r, "ended")
	if err := r.write(c); err != nil {
		return 0, err
	}
	switch {
	case r.Interrupted || ctx.Err() != nil:
		return exitInterrupted, nil
	case r.Load.Saturated != "" && !demo: // a demonstration has shown what it can
		return exitSaturated, nil
	case failed:
		return exitGate, nil
	}
	return exitOK, nil
}

// write writes the files that were asked for.
func (r *report) write(c *config) error {
	var errs []error
	if c.json != "" {
		errs = append(errs, writeFile(c.json, r.writeJSON))
	}
	if c.html != "" {
		errs = append(errs, writeFile(c.html, func(w io.Writer) error { return r.writeHTML(w, c.size) }))
	}
	if c.csv != "" {
		errs = append(errs, r.writeCSV(c.csv))
	}
	if c.hgrm != "" {
		errs = append(errs, r.writeHGRM(c.hgrm))
	}
	return errors.Join(errs...)
}

// end closes what the scenario began and removes the keys, also after a Ctrl-C.
func (s *session) end(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Minute)
	defer cancel()
	var errs []error
	if s.w.close != nil {
		closing, cancel := context.WithTimeout(ctx, 10*time.Second)
		errs = append(errs, s.w.close(closing))
		cancel()
	}
	if s.c.safety.keep || s.c.noPreload {
		fmt.Fprintf(s.out, "kept: keys %s*; loadtest clean --prefix %s removes them\n", s.c.prefix, s.c.prefix)
		return errors.Join(errs...)
	}
	removed, err := s.t.cleanUp(ctx, s.c.prefix)
	if err != nil {
		err = fmt.Errorf("the keys %s* were not all removed: %w; loadtest clean --prefix %s does it", s.c.prefix, err, s.c.prefix)
	} else {
		fmt.Fprintf(s.out, "removed: %s keys\n", count(float64(removed)))
	}
	return errors.Join(append(errs, err)...)
}

func runPreload(ctx context.Context, args []string, out, errOut io.Writer) (err error) {
	c, err := parseRun("preload", args, errOut)
	if err != nil {
		return err
	}
	s, err := open(ctx, c, out)
	if err != nil {
		return err
	}
	defer s.close()
	if s.w.fill == nil {
		return usage("--scenario %s loads nothing before", c.scenario.name)
	}
	if err := s.load(ctx); err != nil {
		return errors.Join(err, s.end(ctx))
	}
	c.safety.keep = true
	s.screen.keep()
	p := s.report.Preload
	fmt.Fprintf(out, "loaded %s keys in %.1fs; used_memory %s before, %s after\n", count(float64(c.keys)), p.Seconds, orUnknown(p.Before, size), orUnknown(p.After, size))
	sizeOf(s.report, c.size).print(out)
	if c.json != "" {
		err = writeFile(c.json, s.report.writeJSON)
	}
	return errors.Join(err, s.end(ctx))
}

func runSize(args []string, out, errOut io.Writer) error {
	f := newFlags("size", errOut)
	var s sizingFlags
	s.add(f)
	f.StringVar(&s.keys, "keys", "0", "the same as --size-keys")
	f.StringVar(&s.rate, "rate", "0", "the same as --size-rate")
	files, err := filesAndFlags(f, args)
	if err != nil {
		return err
	}
	if len(files) != 1 {
		return usage("usage: loadtest size result.json [--keys 10M] [--rate 20k]")
	}
	var o sizeOptions
	if err := s.to(&o); err != nil {
		return usage("%w", err)
	}
	r, err := readReport(files[0])
	if err != nil {
		return err
	}
	sizeOf(r, o).print(out)
	return nil
}

func runMerge(args []string, out, errOut io.Writer) error {
	f := newFlags("merge", errOut)
	to := f.String("o", "", "write the result to this `file`")
	files, err := filesAndFlags(f, args)
	if err != nil {
		return err
	}
	var reports []*report
	for _, name := range files {
		r, err := readReport(name)
		if err != nil {
			return err
		}
		reports = append(reports, r)
	}
	all, err := merge(reports)
	if err != nil {
		return err
	}
	all.table(out, fmt.Sprintf("%d reports", len(reports)))
	for _, text := range all.Warnings {
		fmt.Fprintln(out, "NOTE:", text)
	}
	if *to == "" {
		return nil
	}
	return writeFile(*to, all.writeJSON)
}

func runHTML(args []string, errOut io.Writer) error {
	f := newFlags("html", errOut)
	to := f.String("o", "report.html", "write the page to this `file`")
	var s sizingFlags
	s.add(f)
	files, err := filesAndFlags(f, args)
	if err != nil {
		return err
	}
	if len(files) != 1 {
		return usage("usage: loadtest html result.json [-o report.html]")
	}
	var o sizeOptions
	if err := s.to(&o); err != nil {
		return usage("%w", err)
	}
	r, err := readReport(files[0])
	if err != nil {
		return err
	}
	return writeFile(*to, func(w io.Writer) error { return r.writeHTML(w, o) })
}

func runClean(ctx context.Context, args []string, out, errOut io.Writer) error {
	c, err := parseRun("clean", args, errOut)
	if err != nil {
		return err
	}
	if host := c.remote(); host != "" && !c.safety.yes {
		return usage("%s is not this machine: give --yes too", host)
	}
	t, err := connect(c.connection)
	if err != nil {
		return err
	}
	defer t.close()
	removed, err := t.cleanUp(ctx, c.prefix)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "removed: %s keys\n", count(float64(removed)))
	return nil
}

// filesAndFlags reads flags and names of files in any order.
func filesAndFlags(f *flag.FlagSet, args []string) (files []string, err error) {
	for {
		if err := parseFlags(f, args); err != nil {
			return nil, err
		}
		if f.NArg() == 0 {
			return files, nil
		}
		files = append(files, f.Arg(0))
		args = f.Args()[1:]
	}
}
