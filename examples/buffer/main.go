// Buffer is an HTTP service that counts page views: in Redis, at its speed, and from there in batches in SQL, exactly once. It
// runs with nothing installed: a Redis is embedded, unless REDIS_URL names one, and the database is an SQLite file, unless
// DATABASE_URL names a PostgreSQL.
//
//	go -C examples run ./buffer [-addr 127.0.0.1:8080] [-db views.db]
//	curl -X POST '127.0.0.1:8080/view?page=/home'
//	curl '127.0.0.1:8080/views?page=/home'
//
// To make it yours, copy the folder, then: go mod init example; until there is a release, go mod edit
// -replace github.com/redispatterns/redispatterns=where/you/cloned/it; go mod tidy; go run .
//
// With -load it puts itself under load, with a flusher in a process of its own which it kills and starts again all the time,
// and ends; it fails if the totals differ:
//
//	$ go -C examples run ./buffer -load 3s
//	8 clients view 100 pages; the flusher is killed every 150ms or so
//
//	views acknowledged      4574
//	views in SQL            4574
//	difference                 0
//	flushers killed           19
package main

import (
	"context"
	"database/sql"
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

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/buffer"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	var err error
	if os.Getenv(flusherEnv) != "" {
		err = flusher(ctx)
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
	fmt.Fprintln(os.Stderr, "buffer:", err)
	os.Exit(1)
}

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("buffer", flag.ContinueOnError)
	addr := flags.String("addr", "127.0.0.1:8080", "address to serve at")
	file := flags.String("db", "views.db", "SQLite file, unless DATABASE_URL is set; with -load a temporary one")
	load := flags.Duration("load", 0, "count for so long, on a free port, compare the totals, and end")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 || *load < 0 {
		return errors.New("usage: buffer [-addr host:port] [-db file] [-load duration]")
	}
	client, url, disconnect, err := connect()
	if err != nil {
		return err
	}
	defer disconnect()
	if *load > 0 {
		return measure(ctx, client, url, *load, out)
	}
	db, err := openDatabase(ctx, os.Getenv("DATABASE_URL"), *file)
	if err != nil {
		return err
	}
	defer db.Close()
	s, err := newService(client, "pages", db)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", *addr)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "serving at http://%s\n", listener.Addr())
	return s.serve(ctx, listener)
}

// service counts views.
type service struct {
	views *buffer.Buffer
	sink  buffer.Sink
	db    *sql.DB
}

func newService(client rueidis.Client, prefix string, db *sql.DB) (*service, error) {
	sink, err := newSink(db)
	if err != nil {
		return nil, err
	}
	views, err := buffer.New(client, "views", []buffer.Column{
		{Name: "views", Op: buffer.Sum},
		{Name: "last_seen", Op: buffer.Max}, // milliseconds since 1970
	}, buffer.Options{
		Prefix:     prefix,
		FlushEvery: 20 * time.Millisecond,  // so that there is something to see
		Lease:      200 * time.Millisecond, // likewise: after this time another flusher takes over
	})
	if err != nil {
		return nil, err
	}
	return &service{views, sink, db}, nil
}

func (s *service) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /view", func(w http.ResponseWriter, r *http.Request) {
		err := s.views.Add(r.Context(), r.FormValue("page"), buffer.Int("views", 1), buffer.Int("last_seen", time.Now().UnixMilli()))
		switch {
		case err == nil:
			w.WriteHeader(http.StatusNoContent)
		case errors.Is(err, buffer.ErrUnconfirmed): // it will be counted
			w.WriteHeader(http.StatusAccepted)
		default: // it was not
			http.Error(w, "the view was not counted", http.StatusServiceUnavailable)
		}
	})
	mux.HandleFunc("GET /views", func(w http.ResponseWriter, r *http.Request) {
		page := r.FormValue("page")
		flushed, err := viewsOf(r.Context(), s.db, page)
		if err == nil {
			var pending map[string]buffer.Row
			if pending, err = s.views.Pending(r.Context(), page); err == nil {
				n := int64(0)
				if row, ok := pending[page]; ok {
					n = row.Values[0].Int
				}
				fmt.Fprintf(w, "%d views in SQL, %d on the way\n", flushed, n)
				return
			}
		}
		http.Error(w, "the views cannot be told now", http.StatusServiceUnavailable)
	})
	return mux
}

// serve answers requests and flushes until ctx ends, and then what is left.
func (s *service) serve(ctx context.Context, listener net.Listener) error {
	server := &http.Server{Handler: s.handler(), ReadTimeout: 10 * time.Second, WriteTimeout: time.Minute}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	failed, flushed := make(chan error, 1), make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	go func() { flushed <- s.views.Run(ctx, s.sink) }()
	var err error
	select {
	case err = <-failed:
	case <-ctx.Done():
	}
	stop()
	err = errors.Join(err, <-flushed)
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	err = errors.Join(err, server.Shutdown(ending), s.views.Close(ending)) // no requests, then no views on the way to Redis
	_, flushErr := s.views.Flush(ending, s.sink)
	return errors.Join(err, flushErr)
}
