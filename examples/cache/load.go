package main

import (
	"bufio"
	"context"
	crand "crypto/rand"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/rueidis"
)

const (
	clients = 8   // at the same time
	corpus  = 500 // different texts; few of them are asked for often, most hardly ever
)

var errNoFaster = errors.New("the cache made the service no faster")

// outcome is what the clients saw.
type outcome struct {
	took  []time.Duration // of each request, ascending
	texts map[string]bool // that were asked for
}

// measure drives a service for half of d without its cache and for half with it, prints how they compare, and
// fails if the cache does not help or the service counted something else than the clients did.
func measure(ctx context.Context, client rueidis.Client, d time.Duration, out io.Writer) error {
	// Nothing is to age meanwhile nor to stay in Redis for long. And if the machine is slow, that shall show in
	// the measurement, while the counts stay exact.
	s, err := newService(client, "load-"+crand.Text(), times{
		ttl: d.Truncate(time.Millisecond) + time.Minute, opTimeout: 5 * time.Second,
	})
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	serving, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- serve(serving, listener, s) }()
	err = compare(ctx, s, "http://"+listener.Addr().String(), d, out)
	stop()
	return errors.Join(err, <-ended)
}

func compare(ctx context.Context, s *service, base string, d time.Duration, out io.Writer) error {
	without, err := drive(ctx, base+"/score?cache=off&text=", d/2)
	if err != nil {
		return err
	}
	with, err := drive(ctx, base+"/score?text=", d/2)
	if err != nil {
		return err
	}
	// Refreshes go on behind the users' backs; when the cache is closed they have ended.
	if err := s.cache.Close(ctx); err != nil {
		return err
	}
	counted, err := scrape(ctx, base+"/metrics")
	if err != nil {
		return err
	}
	hits, loads := counted[`cache_keys_total{result="hit"}`], counted["cache_loads_total"]
	fmt.Fprintf(out, "%d clients, %d texts, zipf-distributed\n\n", clients, corpus)
	fmt.Fprintf(out, "%-14s %9s %9s %9s %9s\n", "", "requests", "per s", "p50", "p99")
	for _, row := range []struct {
		name string
		outcome
	}{{"without cache", without}, {"with cache", with}} {
		fmt.Fprintf(out, "%-14s %9d %9.0f %7.2fms %7.2fms\n", row.name, len(row.took),
			float64(len(row.took))/(d/2).Seconds(), millis(row.quantile(0.5)), millis(row.quantile(0.99)))
	}
	fmt.Fprintf(out, "\nhit ratio %.1f %%, %.0f calls of the model\n", 100*hits/float64(len(with.took)), loads)

	requests, different := float64(len(with.took)), float64(len(with.texts))
	lookups, misses := counted.sum("cache_keys_total"), counted[`cache_keys_total{result="miss"}`]
	for _, c := range []struct {
		what               string
		count, least, most float64
	}{
		{"lookups", lookups, requests, requests + misses}, // one that missed may look again after the load
		{"lookups, timed", counted["cache_lookup_seconds_count"], lookups, lookups},
		{"loads", loads, different, different}, // as many as texts: nothing is loaded twice
		{"loads, timed", counted["cache_load_seconds_count"], different, different},
		{"scores stored", counted["cache_stored_total"], different, different},
		{"failures", counted["cache_load_errors_total"] + counted.sum("cache_errors_total"), 0, 0},
	} {
		if c.count < c.least || c.count > c.most {
			return fmt.Errorf("%s: /metrics has %.0f, the clients counted %.0f", c.what, c.count, c.least)
		}
	}
	fmt.Fprintln(out, "the numbers of /metrics agree with those that the clients counted")
	if len(with.took) <= len(without.took) || with.quantile(0.5) >= without.quantile(0.5) {
		return errNoFaster
	}
	return nil
}

// drive asks for texts, zipf-distributed, as fast as the service answers.
func drive(ctx context.Context, address string, d time.Duration) (outcome, error) {
	web := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: clients}}
	defer web.CloseIdleConnections()
	texts := makeTexts()
	var (
		mu   sync.Mutex
		all  = outcome{texts: make(map[string]bool)}
		errs []error
		busy sync.WaitGroup
	)
	end := time.Now().Add(d)
	for n := range clients {
		busy.Go(func() {
			zipf := rand.NewZipf(rand.New(rand.NewPCG(uint64(n), 0)), 1.3, 1, corpus-1)
			var took []time.Duration
			asked := make(map[string]bool)
			var err error
			for err == nil && time.Now().Before(end) {
				text := texts[zipf.Uint64()]
				began := time.Now()
				_, err = get(ctx, web, address+url.QueryEscape(text))
				took = append(took, time.Since(began))
				asked[text] = true
			}
			mu.Lock()
			defer mu.Unlock()
			all.took = append(all.took, took...)
			for text := range asked {
				all.texts[text] = true
			}
			errs = append(errs, err)
		})
	}
	busy.Wait()
	if len(all.took) == 0 {
		errs = append(errs, errors.New("there was no time for a request"))
	}
	slices.Sort(all.took)
	return all, errors.Join(errs...)
}

// makeTexts pairs training sentences at random, the same ones each time.
func makeTexts() []string {
	random := rand.New(rand.NewPCG(3, 4))
	lines := strings.Split(strings.TrimSpace(training), "\n")
	pick := func() string { return lines[random.IntN(len(lines))][len("pos\t"):] }
	texts := make([]string, corpus)
	for i := range texts {
		texts[i] = pick() + " " + pick()
	}
	return texts
}

func get(ctx context.Context, web *http.Client, address string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return "", err
	}
	response, err := web.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("the service answered %s: %s", response.Status, body)
	}
	return string(body), err
}

// samples are metrics by name and labels, as they are written.
type samples map[string]float64

func scrape(ctx context.Context, address string) (samples, error) {
	body, err := get(ctx, http.DefaultClient, address)
	if err != nil {
		return nil, err
	}
	found := make(samples)
	for lines := bufio.NewScanner(strings.NewReader(body)); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "#") {
			continue
		}
		name, value, _ := strings.Cut(lines.Text(), " ")
		if found[name], err = strconv.ParseFloat(value, 64); err != nil {
			return nil, fmt.Errorf("read the metrics: %w", err)
		}
	}
	return found, nil
}

// sum returns the sum over all labels of a metric.
func (s samples) sum(name string) (sum float64) {
	for labelled, value := range s {
		if strings.HasPrefix(labelled, name+"{") {
			sum += value
		}
	}
	return sum
}

func (o outcome) quantile(q float64) time.Duration { return o.took[int(q*float64(len(o.took)))] }

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
