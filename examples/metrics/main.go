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
	"github.com/redispatterns/redispatterns/featurestore"
	"github.com/redispatterns/redispatterns/lock"
	"github.com/redispatterns/redispatterns/ratelimit"
	"github.com/redispatterns/redispatterns/stream"
	"github.com/redispatterns/redispatterns/timeseries"
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
		if err := s.watch(ctx, m); err != nil {
			return err
		}
		return m.writeTo(out)
	}

	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		if err := s.watch(r.Context(), m); err != nil {
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
	series  *timeseries.Store
	orders  *stream.Stream[string]
	users   *featurestore.View[string, features]

	group   *stream.Group[string]
	handled chan struct{}
	stop    context.CancelFunc
	ran     chan error
}

type features struct {
	Orders int64 `feature:"orders"`
}

func newService(client rueidis.Client, m *metrics) (*service, error) {
	prefix := "metrics-" + strconv.FormatUint(rand.Uint64(), 36)
	scores, err1 := cache.New(client, prefix, cache.Options[string, float64]{TTL: time.Second, Hooks: m.cacheHooks("scores")})
	limiter, err2 := ratelimit.NewSlidingWindow(client, ratelimit.PerSecond(5), ratelimit.Options{Prefix: prefix + "-limit", Hooks: m.ratelimitHooks("api")})
	locks, err3 := lock.New(client, lock.Options{Prefix: prefix + "-lock", Hooks: m.lockHooks("jobs")})
	counts, err4 := buffer.New(client, "views", []buffer.Column{{Name: "views", Op: buffer.Sum}}, buffer.Options{Prefix: prefix, Shards: 1, Hooks: m.bufferHooks("views")})
	series, err5 := timeseries.New(client, "site", timeseries.Options{Prefix: prefix + "-ts", Hooks: m.timeseriesHooks("site")})
	orders, err6 := stream.New[string](client, prefix+"-orders", stream.Options[string]{})
	users, err7 := featurestore.NewView[string, features](client, "users", featurestore.Options{Prefix: prefix + "-features", Hooks: m.featurestoreHooks("users")})
	if err := errors.Join(err1, err2, err3, err4, err5, err6, err7); err != nil {
		return nil, err
	}
	s := &service{
		scores: scores, limiter: limiter, locks: locks, counts: counts, series: series, orders: orders, users: users,
		handled: make(chan struct{}), ran: make(chan error, 1),
	}
	s.group = orders.Group("packing", stream.GroupOptions[string]{Hooks: m.streamHooks("packing")})
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	go func() {
		s.ran <- s.group.Run(ctx, func(ctx context.Context, _ *stream.Message[string]) error {
			select {
			case s.handled <- struct{}{}:
			case <-ctx.Done():
			}
			return nil
		})
	}()
	return s, nil
}

// watch reads what hooks cannot tell.
func (s *service) watch(ctx context.Context, m *metrics) error {
	return errors.Join(m.watch(ctx, "views", s.counts), watchGroup(ctx, m, "packing", s.group))
}

func (s *service) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	s.stop()
	if err := errors.Join(<-s.ran, s.scores.Close(ctx), s.locks.Close(ctx), s.counts.Close(ctx), s.series.Close(ctx)); err != nil {
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
	if _, err := s.counts.Flush(ctx, s.sink); err != nil {
		return err
	}
	if err := s.series.Counter("views").Incr(ctx, 1); err != nil {
		return err
	}
	if _, err := s.users.Put(ctx, user, features{Orders: 1}, time.Now()); err != nil {
		return err
	}
	if _, err := s.users.Get(ctx, user); err != nil {
		return err
	}
	if _, err := s.orders.Publish(ctx, "a book"); err != nil {
		return err
	}
	select {
	case <-s.handled:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
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
