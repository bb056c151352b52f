// Timeseries counts the hits of a day through an HTTP handler, and draws them: per minute, and in all. It runs with nothing
// installed: a Redis is embedded, unless REDIS_URL names one.
//
//	go -C examples run ./timeseries [-out chart.html]
//
// It plays the last 24 hours, some thousand requests that say when they happened, and then asks for the chart and the total in
// one round trip each:
//
//	$ go -C examples run ./timeseries
//	6062 hits in 1.1s, counted in 3 resolutions
//
//	hits per minute, 20 minutes per column, from 16:43
//	 9.3 |                                       #
//	     |                                   ## ####
//	     |                                ##########
//	  ...
//	last 24 hours: 6062 hits, in 0.31ms; today since 00:00: 4215
//	chart: /tmp/timeseries.html
//
// To make it yours, copy the folder, then: go mod init example; until there is a release, go mod edit
// -replace github.com/redispatterns/redispatterns=where/you/cloned/it; go mod tidy; go run .
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/timeseries"
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
	fmt.Fprintln(os.Stderr, "timeseries:", err)
	os.Exit(1)
}

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("timeseries", flag.ContinueOnError)
	file := flags.String("out", filepath.Join(os.TempDir(), "timeseries.html"), "file for the chart")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return errors.New("usage: timeseries [-out file]")
	}
	client, disconnect, err := connect()
	if err != nil {
		return err
	}
	defer disconnect()
	store, err := newStore(client)
	if err != nil {
		return err
	}
	defer store.Close(ctx)

	began := time.Now()
	hits, err := play(ctx, store)
	if err != nil {
		return err
	}
	if err := store.Flush(ctx); err != nil {
		return err
	}
	fmt.Fprintf(out, "%d hits in %.1fs, counted in 3 resolutions\n\n", hits, time.Since(began).Seconds())
	return report(ctx, store, hits, out, *file)
}

// newStore returns a store of this run's own, with the usual resolutions.
func newStore(client rueidis.Client) (*timeseries.Store, error) {
	return timeseries.New(client, "example", timeseries.Options{
		Prefix:     fmt.Sprintf("ts-%d", time.Now().UnixNano()),
		FlushEvery: 100 * time.Millisecond, // what a process that is killed may lose
		Timeout:    5 * time.Second,
	})
}

// newHandler counts requests. One without a time of its own happens now.
func newHandler(store *timeseries.Store) http.Handler {
	hits := store.Counter("hits")
	mux := http.NewServeMux()
	mux.HandleFunc("POST /hit", func(w http.ResponseWriter, r *http.Request) {
		var at time.Time
		if s := r.URL.Query().Get("at"); s != "" {
			var err error
			if at, err = time.Parse(time.RFC3339, s); err != nil {
				http.Error(w, "at is no time", http.StatusBadRequest)
				return
			}
		}
		switch err := hits.IncrAt(r.Context(), at, 1); {
		case errors.Is(err, timeseries.ErrTooLate), errors.Is(err, timeseries.ErrFuture):
			http.Error(w, "at is out of bounds", http.StatusBadRequest)
		case err != nil:
			http.Error(w, "not counted", http.StatusServiceUnavailable)
		default:
			w.WriteHeader(http.StatusNoContent)
		}
	})
	return mux
}

// play sends the hits of the last 24 hours: few at night, many in the afternoon.
func play(ctx context.Context, store *timeseries.Store) (int64, error) {
	now, err := store.Now(ctx)
	if err != nil {
		return 0, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	server := &http.Server{Handler: newHandler(store), ReadTimeout: 10 * time.Second}
	go func() { _ = server.Serve(listener) }() // ends with Close
	defer server.Close()

	const workers = 8
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: workers}, Timeout: 10 * time.Second}
	defer client.CloseIdleConnections()
	times := make(chan time.Time)
	var hits int64
	var failed error
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for at := range times {
				err := hit(ctx, client, "http://"+listener.Addr().String(), at)
				mu.Lock()
				if err == nil {
					hits++
				} else if failed == nil {
					failed = err
				}
				mu.Unlock()
			}
		})
	}
	for minute := range 24 * 60 {
		at := now.Add(time.Duration(minute-24*60) * time.Minute)
		hour := float64(at.Hour()) + float64(at.Minute())/60
		rate := 4 - 3.5*math.Cos((hour-3)/24*2*math.Pi) // hits per minute
		for range int(rate + rand.Float64()) {
			times <- at.Add(rand.N(time.Minute))
		}
	}
	close(times)
	wg.Wait()
	return hits, failed
}

func hit(ctx context.Context, client *http.Client, base string, at time.Time) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/hit?at="+at.UTC().Format(time.RFC3339), nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusNoContent {
		return fmt.Errorf("status %s", response.Status)
	}
	return nil
}

// report asks for what was counted, and draws it.
func report(ctx context.Context, store *timeseries.Store, hits int64, out io.Writer, file string) error {
	counter := store.Counter("hits")
	now, err := store.Now(ctx)
	if err != nil {
		return err
	}
	to := now.Truncate(time.Minute).Add(time.Minute)
	minutes, err := counter.Range(ctx, timeseries.Range{From: to.Add(-24*time.Hour - 5*time.Minute), To: to, Step: time.Minute})
	if err != nil {
		return err
	}
	began := time.Now()
	day, err := counter.Sum(ctx, minutes.From, minutes.To)
	if err != nil {
		return err
	}
	took := time.Since(began)
	midnight, tomorrow, err := store.Today(ctx, time.Local)
	if err != nil {
		return err
	}
	today, err := counter.Sum(ctx, midnight, tomorrow)
	if err != nil {
		return err
	}
	if day.Value != hits {
		return fmt.Errorf("%d hits were counted as %d", hits, day.Value)
	}
	fmt.Fprintf(out, "hits per minute, %d minutes per column, from %s\n", perColumn, minutes.Points[0].Start.Local().Format("15:04"))
	fmt.Fprint(out, bars(minutes.Points))
	summary := fmt.Sprintf("last 24 hours: %d hits, in %.2fms; today since %s: %d", day.Value, float64(took.Microseconds())/1000,
		midnight.In(time.Local).Format("15:04"), today.Value)
	fmt.Fprintln(out, summary)
	if err := os.WriteFile(file, []byte(page(minutes.Points, strings.ReplaceAll(summary, "; ", ". "))), 0o600); err != nil {
		return err
	}
	fmt.Fprintln(out, "chart:", file)
	return nil
}
