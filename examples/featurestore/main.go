// Featurestore is an HTTP service that predicts how much a user will order next week: it loads the features of 100,000 users, and
// serves predictions of a small linear model. It runs with nothing installed: a Redis is embedded, unless REDIS_URL names one.
//
//	go -C examples run ./featurestore [-addr 127.0.0.1:8080] [-users 100000]
//	curl '127.0.0.1:8080/predict?user=42&user=43'
//
// To make it yours, copy the folder, then: go mod init example; until there is a release, go mod edit
// -replace github.com/redispatterns/redispatterns=where/you/cloned/it; go mod tidy; go run .
//
// With -load it puts itself under load, switches to a new version of all features meanwhile and back, reads what Feast wrote, and
// ends; it fails if a reply mixed versions:
//
//	$ go -C examples run ./featurestore -users 5000 -load 2s
//	loading v1  [########################################] 5000 of 5000
//	loading v2  [########################################] 5000 of 5000
//
//	predictions          4800 in requests of 100
//	p50               19.41ms
//	p99              862.12ms
//	by version          v1: 15  v2: 7
//	mixed                   0
//	missing                 0
//
// Those are the embedded Redis' times, on a busy machine, and not those of a real one.
//
//	a driver whom Feast wrote: conv_rate 0.927, acc_rate 0.500, avg_daily_trips 1001, at 2023-11-14T22:13:20Z
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
	"strconv"
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
	fmt.Fprintln(os.Stderr, "featurestore:", err)
	os.Exit(1)
}

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("featurestore", flag.ContinueOnError)
	addr := flags.String("addr", "127.0.0.1:8080", "address to serve at")
	users := flags.Int("users", 100_000, "how many users to load")
	load := flags.Duration("load", 0, "predict for so long, on a free port, switch versions meanwhile, and end")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 || *load < 0 || *users < 1 {
		return errors.New("usage: featurestore [-addr host:port] [-users n] [-load duration]")
	}
	client, disconnect, err := connect()
	if err != nil {
		return err
	}
	defer disconnect()
	s, err := newService(client, prefixOf(*load > 0))
	if err != nil {
		return err
	}
	if *load > 0 {
		return measure(ctx, s, *users, *load, out)
	}
	if err := s.release(ctx, "v"+strconv.FormatInt(time.Now().Unix(), 10), *users, 1, out); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", *addr)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "serving at http://%s\n", listener.Addr())
	return s.serve(ctx, listener)
}

func (s *service) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /predict", func(w http.ResponseWriter, r *http.Request) {
		var ids []int64
		for _, text := range r.URL.Query()["user"] {
			id, err := strconv.ParseInt(text, 10, 64)
			if err != nil || len(ids) == maxUsers {
				http.Error(w, fmt.Sprintf("up to %d users, by number", maxUsers), http.StatusBadRequest)
				return
			}
			ids = append(ids, id)
		}
		predictions, err := s.predict(r.Context(), ids)
		if err != nil {
			http.Error(w, "no features now", http.StatusServiceUnavailable)
			return
		}
		for i, p := range predictions {
			fmt.Fprintf(w, "%d %.3f %s\n", ids[i], p.orders, p.status)
		}
	})
	return mux
}

// serve answers requests until ctx ends.
func (s *service) serve(ctx context.Context, listener net.Listener) error {
	server := &http.Server{Handler: s.handler(), ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	var err error
	select {
	case err = <-failed:
	case <-ctx.Done():
	}
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	return errors.Join(err, server.Shutdown(ending))
}
