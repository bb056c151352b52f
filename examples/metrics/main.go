// Metrics shows how the packages' Hooks become metrics: hooks.go has a few lines for each package, and docs/grafana has a dashboard
// that draws just these.
//
//	go -C examples run ./metrics                       # does a little with each package, and prints the metrics
//	go -C examples run ./metrics -listen 127.0.0.1:9100  # does so again and again, and serves them at /metrics
//
// It runs with nothing installed: a Redis is embedded, unless REDIS_URL names one.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/buffer"
	"github.com/redispatterns/redispatterns/cache"
	"github.com/redispatterns/redispatterns/lock"
	"github.com/redispatterns/redispatterns/ratelimit"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "metrics:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("metrics", flag.ContinueOnError)
	listen := flags.String("listen", "", "serve /metrics at this address until interrupted")
	if err := flags.Parse(args); err != nil {
		return err
	}
	client, disconnect, err := connect()
	if err != nil {
		return err
	}
	defer disconnect()
	m := newMetrics()
	s, err := newService(client, m)
	if err != nil {
		return err
	}
	defer s.close()
	if *listen == "" {
		for range 20 {
			if err := s.work(ctx); err != nil {
				return err
			}
		}
		if err := m.watch(ctx, "views", s.counts); err != nil {
			return err
		}
		return m.writeTo(out)
	}

	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		if err := m.watch(r.Context(), "views", s.counts); err != nil {
			fmt.Fprintln(os.Stderr, "metrics:", err) // the others are as good as before
		}
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		_ = m.writeTo(w) // who asked has left
	})
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "http://%s/metrics\n", listener.Addr())
	server := &http.Server{Handler: mux, ReadHeaderTimeout: time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	for ctx.Err() == nil {
		if err := s.work(ctx); err != nil && ctx.Err() == nil {
			fmt.Fprintln(os.Stderr, "metrics:", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
	if err := server.Close(); err != nil {
		return err
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// service uses each package, with hooks.
type service struct {
	scores  *cache.Cache[string, float64]
	limiter *ratelimit.Limiter
	locks   *lock.Locker
	counts  *buffer.Buffer
	sink    discard
}

func newService(client rueidis.Client, m *metrics) (*service, error) {
	prefix := "metrics-" + strconv.FormatUint(rand.Uint64(), 36)
	scores, err1 := cache.New(client, prefix, cache.Options[string, float64]{TTL: time.Second, Hooks: m.cacheHooks("scores")})
	limiter, err2 := ratelimit.NewSlidingWindow(client, ratelimit.PerSecond(5), ratelimit.Options{Prefix: prefix + "-limit", Hooks: m.ratelimitHooks("api")})
	locks, err3 := lock.New(client, lock.Options{Prefix: prefix + "-lock", Hooks: m.lockHooks("jobs")})
	counts, err4 := buffer.New(client, "views", []buffer.Column{{Name: "views", Op: buffer.Sum}}, buffer.Options{Prefix: prefix, Shards: 1, Hooks: m.bufferHooks("views")})
	return &service{scores, limiter, locks, counts, discard{}}, errors.Join(err1, err2, err3, err4)
}

func (s *service) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := errors.Join(s.scores.Close(ctx), s.locks.Close(ctx), s.counts.Close(ctx)); err != nil {
		fmt.Fprintln(os.Stderr, "metrics:", err)
	}
}

// discard is a sink that does nothing. Package sqlsink has real ones.
type discard struct{}

func (discard) Apply(context.Context, *buffer.Batch) error { return nil }

// work is one request.
func (s *service) work(ctx context.Context) error {
	user := "user-" + strconv.Itoa(rand.IntN(10))
	if _, err := s.limiter.Allow(ctx, "all"); err != nil {
		return err
	}
	if _, err := s.scores.Fetch(ctx, user, func(context.Context, string) (float64, error) { return 0.93, nil }); err != nil {
		return err
	}
	err := s.locks.Do(ctx, "report", func(ctx context.Context, _ int64) error {
		held := new(lock.HeldError)
		if _, err := s.locks.TryLock(ctx, "report"); !errors.As(err, &held) {
			return fmt.Errorf("it should be held: %w", err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := s.counts.Add(ctx, user, buffer.Int("views", 1)); err != nil {
		return err
	}
	_, err = s.counts.Flush(ctx, s.sink)
	return err
}

// connect returns a client of the Redis at REDIS_URL or else of an embedded one, and what ends both.
func connect() (client rueidis.Client, disconnect func(), err error) {
	if address := os.Getenv("REDIS_URL"); address != "" {
		option, err := rueidis.ParseURL(address)
		if err != nil { // which may quote the password
			return nil, nil, errors.New("REDIS_URL is not of the form redis://user:password@host:port/db")
		}
		option.Dialer.Timeout = time.Second // by default all who use a client wait 5s while it opens a connection
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
	return client, func() {
		client.Close()
		server.Close()
	}, nil
}
