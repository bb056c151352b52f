// Quickstart is a tour of the patterns, one stop each, on one small job: a model says whether reviews are
// positive. It needs nothing installed: a Redis is embedded, unless REDIS_URL names one.
//
//	go -C examples run ./quickstart               the reviews in sample.txt
//	go -C examples run ./quickstart reviews.txt   yours, one per line; the path is relative to examples/
//	go -C examples run ./quickstart - <file       or from the standard input
//
// It prints, in about a second and with other times:
//
//	cache: 26 reviews and how likely each is positive, by 400 classifiers
//
//	            label  score  90 % interval      took  text
//	   1  MISS  pos    0.979  0.901 - 1.000    8.70ms  The blender is quiet, sturdy and easy to clean.
//	   2  MISS  neg    0.304  0.002 - 0.958    1.85ms  I waited two hours and nobody answered the phon...
//	   3  MISS  pos    0.816  0.371 - 0.992    1.59ms  Lovely breakfast, friendly staff, and the room ...
//	   4  HIT   pos    0.979  0.901 - 1.000    0.05ms  The blender is quiet, sturdy and easy to clean.
//	  ...
//
//	and all of them again: 33 of 52 calls of the model saved
//	median miss 2.06ms, median hit 0.10ms: 21.0 times faster
//
//	a new model, with the same prefix and another Options.Version, and the text of line 1
//	      HIT   model-1  0.979  scored above
//	      MISS  model-2  0.992  does not see that score
//	      HIT   model-2  0.992  sees its own
//	      HIT   model-1  0.979  goes on beside it
//
//	two tenants, each with a cache.Segment, and the text of line 1
//	      MISS  acme     0.979  each has scores of its own
//	      MISS  globex   0.979
//	      HIT   acme     0.979
//	      HIT   globex   0.979
//	      MISS  acme     0.979  after Invalidate of acme's
//	      HIT   globex   0.979  not touched
//
//	ratelimit: 3 texts per user in any 1s
//
//	      PASS  1 left  alice   2
//	      PASS  0 left  bob     3  each user has a limit
//	      WAIT   999ms  alice   2  all or nothing: one is left, and stays
//	      PASS  0 left  alice   1
//	      PASS  7 left  bob    20  who has paid for ten times as much
//	      PASS  0 left  alice   2  after that time
//
//	lock: 4 workers, two Lockers as if in two processes, add to one count, which has no lock of its own
//	      the count is 20, and each fence was above the last
//	      who comes late with the first of them is refused: lock: stale fence
//
//	buffer: the 26 reviews counted by label, in Redis, and flushed to SQL
//	      flush 1   26 pending before,  26 in SQL after: the connection broke during COMMIT
//	      flush 2   26 pending before,  26 in SQL after: flushed
//	      the second one found the first in the ledger: no review is lost, and none counts twice
//
//	timeseries: 26 texts, one every 3 minutes until now, counted when they came
//	      ...
//	      16:00  #####
//	      16:15  #####
//	      16:30  ####   running
//	      26 in all, in one round trip of 0.19ms; 22 to 67 bytes, mean 51
//
//	stream: the 26 reviews in a stream, handled by two consumers of one group
//	      26 handled and acknowledged, 1 is a dead letter:
//	      DEAD  after 3 attempts: "no text"
//	      redriven, for this group alone, and handled
//
//	featurestore: 26 rows loaded, read in one round trip
//	      partial  score 0.979  the reply is null; a late write was older
//	      stale    score 0.500  of two hours ago
//	      missing  score 0.000  never written
package main

import (
	"context"
	"crypto/rand"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/rueidis"
)

// maxInput is how many bytes of input a tour takes.
const maxInput = 1 << 20

//go:embed sample.txt
var sampleText string

// tour is what the stops share.
type tour struct {
	client rueidis.Client
	prefix string // of this run's keys, so that a second run begins with an empty cache
	texts  []string
	out    io.Writer
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout)
	stop()
	if errors.Is(err, context.Canceled) {
		err = errors.New("interrupted")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdin io.Reader, stdout io.Writer) error {
	texts, err := input(ctx, args, stdin)
	if err != nil {
		return err
	}
	client, disconnect, err := connect()
	if err != nil {
		return err
	}
	defer disconnect()
	t := &tour{client: client, prefix: "quickstart-" + rand.Text(), texts: texts, out: stdout}
	for _, stop := range []struct {
		name  string
		visit func(context.Context) error
	}{
		{"cache", t.visitCache},
		{"ratelimit", t.visitRatelimit},
		{"lock", t.visitLock},
		{"buffer", t.visitBuffer},
		{"timeseries", t.visitTimeseries},
		{"stream", t.visitStream},
		{"featurestore", t.visitFeaturestore},
	} {
		if err := stop.visit(ctx); err != nil {
			return fmt.Errorf("%s: %w", stop.name, err)
		}
	}
	return nil
}

// input returns the lines of the file that args name, or else of sample.txt, without blank ones.
func input(ctx context.Context, args []string, stdin io.Reader) ([]string, error) {
	if len(args) > 1 || len(args) == 1 && strings.HasPrefix(args[0], "-") && args[0] != "-" {
		return nil, errors.New("usage: quickstart [file | -]")
	}
	source := io.Reader(strings.NewReader(sampleText))
	if len(args) == 1 {
		source = stdin
		if args[0] != "-" {
			file, err := os.Open(args[0])
			if err != nil {
				return nil, err
			}
			defer file.Close()
			source = file
		}
	}
	var content []byte
	read := make(chan error, 1)
	go func() { // so that an interrupt is heeded while nothing is typed
		var err error
		content, err = io.ReadAll(io.LimitReader(source, maxInput+1))
		read <- err
	}()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case err := <-read:
		if err != nil {
			return nil, fmt.Errorf("read the input: %w", err)
		}
	}
	if len(content) > maxInput {
		return nil, fmt.Errorf("the input is larger than %d bytes", maxInput)
	}
	var texts []string
	for line := range strings.Lines(string(content)) {
		if line = strings.TrimSpace(line); line != "" {
			texts = append(texts, line)
		}
	}
	if len(texts) == 0 {
		return nil, errors.New("the input has no text")
	}
	return texts, nil
}

// connect returns a client of the Redis at REDIS_URL or else of an embedded one, and what ends both.
func connect() (client rueidis.Client, disconnect func(), err error) {
	if address := os.Getenv("REDIS_URL"); address != "" {
		option, err := rueidis.ParseURL(address)
		if err != nil { // which may quote the password
			return nil, nil, errors.New("REDIS_URL is not of the form redis://user:password@host:port/db")
		}
		client, err := rueidis.NewClient(option)
		if err != nil {
			return nil, nil, fmt.Errorf("connect to REDIS_URL: %w", err)
		}
		return client, client.Close, nil
	}
	server := miniredis.NewMiniRedis()
	if err := server.Start(); err != nil {
		return nil, nil, fmt.Errorf("start the embedded Redis: %w", err)
	}
	client, err = rueidis.NewClient(rueidis.ClientOption{
		InitAddress: []string{server.Addr()},
		// miniredis has no CLIENT TRACKING, and would pass for a cluster.
		DisableCache:      true,
		ForceSingleClient: true,
	})
	if err != nil {
		server.Close()
		return nil, nil, fmt.Errorf("connect to the embedded Redis: %w", err)
	}
	stopClock := runClock(server)
	return client, func() {
		client.Close()
		stopClock()
		server.Close()
	}, nil
}

// runClock lets keys of miniredis expire: it has no clock of its own, and time passes when it is told so.
func runClock(server *miniredis.Miniredis) (stop func()) {
	quit := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		last := time.Now()
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
				now := time.Now()
				server.FastForward(now.Sub(last))
				last = now
			}
		}
	})
	return func() {
		close(quit)
		running.Wait()
	}
}
