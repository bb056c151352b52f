// Cache is an HTTP service that says whether texts are positive, and asks its model only for texts that are
// not in the cache. With Redis gone it goes on, slower; a score that has aged is served and made anew
// behind the user's back. It runs with nothing installed: a Redis is embedded, unless REDIS_URL names one.
//
//	go -C examples run ./cache [-addr 127.0.0.1:8080]
//	curl '127.0.0.1:8080/score?text=I+love+it&tenant=acme'
//	curl '127.0.0.1:8080/score?tenant=acme' -d '["I love it", "never again"]'
//	curl -X POST '127.0.0.1:8080/invalidate?tenant=acme'
//	curl 127.0.0.1:8080/metrics
//
// To make it yours, copy the folder, then: go mod init example; until there is a release, go mod edit
// -replace github.com/redispatterns/redispatterns=where/you/cloned/it; go mod tidy; go run .
//
// With -load it measures itself, half of the time without the cache and half with it, and ends:
//
//	$ go -C examples run ./cache -load 3s
//	8 clients, 500 texts, zipf-distributed
//
//	                requests     per s       p50       p99
//	without cache        633       422   16.39ms   49.48ms
//	with cache          2602      1735    1.88ms   30.11ms
//
//	hit ratio 89.0 %, 278 calls of the model
//	the numbers of /metrics agree with those that the clients counted
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
	fmt.Fprintln(os.Stderr, "cache:", err)
	os.Exit(1)
}

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("cache", flag.ContinueOnError)
	addr := flags.String("addr", "127.0.0.1:8080", "address to serve at")
	load := flags.Duration("load", 0, "measure for so long, on a free port, and end")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 || *load < 0 {
		return errors.New("usage: cache [-addr host:port] [-load duration]")
	}
	client, disconnect, err := connect()
	if err != nil {
		return err
	}
	defer disconnect()
	if *load > 0 {
		return measure(ctx, client, *load, out)
	}
	s, err := newService(client, "scores", production)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", *addr)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "serving at http://%s\n", listener.Addr())
	return serve(ctx, listener, s)
}

// serve answers requests until ctx ends, and those that have begun by then.
func serve(ctx context.Context, listener net.Listener, s *service) error {
	server := &http.Server{Handler: s.handler(), ReadTimeout: 10 * time.Second, WriteTimeout: time.Minute}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	return errors.Join(server.Shutdown(ctx), s.cache.Close(ctx)) // no requests, then no refreshes
}
