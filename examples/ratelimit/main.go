// Ratelimit is an HTTP service with limits: per user, by tier, and for all users together. It tells clients where they
// stand in header fields, and refuses with 429. It runs with nothing installed: a Redis is embedded, unless REDIS_URL
// names one.
//
//	go -C examples run ./ratelimit [-addr 127.0.0.1:8080]
//	curl -i -H 'Authorization: Bearer free-alice' 127.0.0.1:8080/quote
//	curl -i -H 'Authorization: Bearer paid-bob' 127.0.0.1:8080/quote
//
// To make it yours, copy the folder, then: go mod init example; until there is a release, go mod edit
// -replace github.com/redispatterns/redispatterns=where/you/cloned/it; go mod tidy; go run .
//
// With -demo it calls itself over the boundary of a window, for two seconds, shows what a fixed window lets through
// there and a sliding one does not, and ends:
//
//	$ go -C examples run ./ratelimit -demo
//	50 requests per second; admitted in each 100ms, with 20 asked for from 700ms on
//
//	    at  fixed                        sliding
//	    0ms  1 #                           1 #
//	  ...
//	  700ms 20 ####################       20 ####################
//	  800ms 20 ####################       20 ####################
//	  900ms  9 #########                   9 #########
//	 1000ms 20 ####################        1 #
//	 1100ms 20 ####################        0
//	 1200ms 10 ##########                  0
//	  ...
//	in the busiest second: fixed 99, sliding 50
//
//	a free user asks 6 times
//	200  RateLimit: "user";r=4;t=10, "everybody";r=999;t=1
//	  ...
//	429  RateLimit: "user";r=0;t=10, "everybody";r=995;t=1
//	     RateLimit-Policy: "user";q=5;w=10, "everybody";q=1000;w=10
//	     Retry-After: 10
//	     {"type":"https://iana.org/assignments/http-problem-types#quota-exceeded", ...}
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return
	case errors.Is(err, context.Canceled):
		err = errors.New("interrupted")
	}
	fmt.Fprintln(os.Stderr, "ratelimit:", err)
	os.Exit(1)
}

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("ratelimit", flag.ContinueOnError)
	addr := flags.String("addr", "127.0.0.1:8080", "address to serve at")
	isDemo := flags.Bool("demo", false, "show what the limits do, on a free port, and end")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return errors.New("usage: ratelimit [-addr host:port] [-demo]")
	}
	client, disconnect, err := connect()
	if err != nil {
		return err
	}
	defer disconnect()
	if *isDemo {
		return demo(ctx, client, out)
	}
	handler, err := newService(client, "example")
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", *addr)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "serving at http://%s\n", listener.Addr())
	return serve(ctx, listener, handler)
}

// serve answers requests until ctx ends, and those that have begun by then.
func serve(ctx context.Context, listener net.Listener, handler http.Handler) error {
	server := &http.Server{Handler: handler, ReadTimeout: 10 * time.Second, WriteTimeout: time.Minute}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	return server.Shutdown(ctx)
}
