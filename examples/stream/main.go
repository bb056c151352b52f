// Stream is an order pipeline that loses nothing. The program publishes orders and starts three workers, processes of their
// own, which bill them. One worker is killed in the midst of its work, and the others take over what it had; one order
// cannot be billed, and becomes a dead letter; one is idempotent: it is sent twice, and there once. At the end it shows
// that each order was handled.
//
//	go -C examples run ./stream [-orders 400]
//
// It runs with nothing installed: a Redis is embedded, unless REDIS_URL names one. To make it yours, copy the folder, then:
// go mod init example; until there is a release, go mod edit -replace
// github.com/redispatterns/redispatterns=where/you/cloned/it; go mod tidy; go run .
//
// It prints, with other numbers; in a terminal the view stays in one place:
//
//	   time    lag  in flight   done   dead
//	  0.20s     38         36     26      0
//	  0.40s    117         36     66      0
//	...
//	  0.83s  bob is killed
//	...
//	  3.20s      0          0    399      1
//
//	400 orders published, 399 billed, 3 of them twice since bob was killed, 1 a dead letter: "no such customer", after 3 attempts
//	none is lost
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/stream"
)

const (
	lease    = time.Second           // after this time others take over what a dead worker had
	each     = 20 * time.Millisecond // how long it takes to bill an order
	workers  = 4                     // in each process
	attempts = 3
	group    = "billing"
)

// What makes this program a worker.
const (
	workerEnv  = "EXAMPLE_STREAM_WORKER" // its name
	addressEnv = "EXAMPLE_STREAM_REDIS"  // of the embedded Redis
	keyEnv     = "EXAMPLE_STREAM_KEY"    // of the stream
)

// order is what the pipeline is about.
type order struct {
	Number   int    `json:"number"`
	Customer string `json:"customer"`
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	var err error
	if os.Getenv(workerEnv) != "" {
		err = work(ctx)
	} else {
		err = run(ctx, os.Args[1:], os.Stdout)
	}
	stop()
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return
	case errors.Is(err, context.Canceled):
		err = errors.New("interrupted")
	}
	fmt.Fprintln(os.Stderr, "stream:", err)
	os.Exit(1)
}

func newOrders(client rueidis.Client, key string) (*stream.Stream[order], *stream.Group[order], error) {
	orders, err := stream.New(client, key, stream.Options[order]{})
	if err != nil {
		return nil, nil, err
	}
	return orders, orders.Group(group, stream.GroupOptions[order]{
		Workers: workers, Lease: lease, MaxAttempts: attempts,
		MaxInFlight: 3 * workers, // what a killed worker may have had
		Backoff:     func(int) time.Duration { return 100 * time.Millisecond },
	}), nil
}

var errNoCustomer = errors.New("no such customer")

// work bills orders until it is told to stop: then it finishes those that it has begun, and hands the others over.
func work(ctx context.Context) error {
	client, disconnect, err := connect()
	if err != nil {
		return err
	}
	defer disconnect()
	key := os.Getenv(keyEnv)
	_, billing, err := newOrders(client, key)
	if err != nil {
		return err
	}
	return billing.Run(ctx, func(ctx context.Context, m *stream.Message[order]) error {
		if m.Value.Customer == "" {
			return errNoCustomer
		}
		time.Sleep(each)
		// What was billed, how often. A real one would keep the order's number with the bill, and so not bill it twice.
		return client.Do(ctx, client.B().Hincrby().Key(billsKey(key)).Field(fmt.Sprint(m.Value.Number)).Increment(1).Build()).Error()
	})
}

func billsKey(key string) string { return key + ":bills" }

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("stream", flag.ContinueOnError)
	n := flags.Int("orders", 400, "how many")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 || *n < 10 {
		return errors.New("usage: stream [-orders number, at least 10]")
	}
	client, disconnect, err := connect()
	if err != nil {
		return err
	}
	defer disconnect()
	p, err := newPipeline(client, *n, out)
	if err != nil {
		return err
	}
	defer p.end()
	return p.play(ctx)
}
