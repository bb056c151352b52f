// Package redistest gives tests real Redis and Valkey servers: shared ones for the whole run, dedicated ones that a test
// may kill, pause and restart, a Cluster, a Sentinel set-up and a TCP proxy that loses what it is told to lose.
//
// Servers come, in this order, from REDIS_URL (the shared server only), from containers, or from redis-server processes.
//
//	REDIS_URL=redis://host:6379       use this server as the shared one
//	REDIS_IMAGE=redis:7.4             use this image for the default server
//	REDISTEST_MODE=process            use redis-server from PATH although Docker is there
package redistest

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// startTimeout bounds every start of a server, a cluster or a container; building an image has its own bound.
const startTimeout = 60 * time.Second

// Run is the body of TestMain. It finds out where servers come from, runs the tests, stops the shared servers, looks for
// leaked goroutines, says what could not run, and returns the exit code.
func Run(m *testing.M) int {
	e, err := env()
	if err != nil {
		fmt.Fprintln(os.Stderr, "redistest:", err)
		return 1
	}
	if err := runMoreInParallel(); err != nil {
		fmt.Fprintln(os.Stderr, "redistest:", err)
		return 1
	}
	e.prepareImages()
	code := m.Run()
	if code == 0 {
		code = checkLeaks() // while servers still run: their end would end what a forgotten client does
	}
	run.stopAll()
	run.printNotRun()
	return code
}

// runMoreInParallel sets -parallel, unless it is given. Most tests wait for a server most of the time.
func runMoreInParallel() error {
	flag.Parse()
	isSet := false
	flag.Visit(func(f *flag.Flag) { isSet = isSet || f.Name == "test.parallel" })
	if isSet {
		return nil
	}
	return flag.Set("test.parallel", strconv.Itoa(2*runtime.GOMAXPROCS(0)))
}

// prepareImages makes the images that there are not yet, if all tests are to run. Made beside tests they would hold up servers, and
// so fail what is bounded in time. What cannot be made is for the tests to say that need it.
func (e *environment) prepareImages() {
	all := flag.Lookup("test.run").Value.String() == "" && flag.Lookup("test.list").Value.String() == ""
	if e.docker == nil || !all {
		return
	}
	for _, kind := range slices.Sorted(maps.Keys(sources)) {
		_, _ = e.docker.image(kind)
	}
}

const packagePath = "github.com/redispatterns/redispatterns/internal/integration/redistest"

// checkLeaks waits for goroutines to end, because closing a client or a proxy only begins their end.
func checkLeaks() int {
	var err error
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		err = goleak.Find(
			goleak.IgnoreAnyFunction(packagePath+".(*processes).start.func1"), // waits for a shared server to end
			// Toxiproxy forgets one when data arrives in the moment a toxic is added or removed.
			goleak.IgnoreAnyFunction("github.com/Shopify/toxiproxy/v2/toxics.(*ToxicStub).Run"),
			goleak.IgnoreAnyFunction("github.com/testcontainers/testcontainers-go.(*Reaper).connect.func1"),
		)
		if err == nil {
			return 0
		}
	}
	fmt.Fprintln(os.Stderr, "redistest: goroutines leaked:", err)
	return 1
}

// StartForMain starts the default server for a program that has no testing.TB. Call stop at the end. The address avoids
// Docker's userland proxy where it can, because a benchmark would measure that too.
func StartForMain() (addr string, stop func(), err error) {
	e, err := env()
	if err != nil {
		return "", nil, err
	}
	if e.url != nil {
		return e.url.InitAddress[0], func() {}, nil
	}
	s, err := shared(e.defaultKind)
	if err != nil {
		run.stopAll()
		return "", nil, err
	}
	addr = s.Addr()
	if c, ok := s.host.(*container); ok {
		if direct := c.directAddr(s.node); direct != "" {
			addr = direct
		}
	}
	return addr, run.stopAll, nil
}

// run is what lasts for the whole run.
var run state

type state struct {
	mu     sync.Mutex
	stops  []func()
	notRun map[string]int // what is missing and why: how many tests would have needed it

	servers   memo[Kind, *Server]
	clusters  memo[Kind, *Cluster]
	databases memo[Kind, *databaseServer]
	images    memo[Kind, string]
}

func (r *state) onStop(stop func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stops = append(r.stops, stop)
}

func (r *state) stopAll() {
	r.mu.Lock()
	stops := r.stops
	r.stops = nil
	r.mu.Unlock()
	for _, stop := range slices.Backward(stops) {
		stop()
	}
}

func (r *state) printNotRun() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.notRun) == 0 {
		return
	}
	fmt.Fprintln(os.Stderr, "redistest: not run in this environment:")
	for _, missing := range slices.Sorted(maps.Keys(r.notRun)) {
		fmt.Fprintf(os.Stderr, "  - %s (tests: %d)\n", missing, r.notRun[missing])
	}
}

// memo makes a value once per key. An error is remembered too: what failed once is not tried by every test.
type memo[K comparable, V any] struct {
	mu sync.Mutex
	m  map[K]func() (V, error)
}

func (m *memo[K, V]) get(key K, create func() (V, error)) (V, error) {
	m.mu.Lock()
	once, ok := m.m[key]
	if !ok {
		if m.m == nil {
			m.m = map[K]func() (V, error){}
		}
		once = sync.OnceValues(create)
		m.m[key] = once
	}
	m.mu.Unlock()
	return once()
}

// unavailableError says that this environment cannot have something, which is different from failing to start it.
type unavailableError struct{ what, why string }

func (e *unavailableError) Error() string { return e.what + ": " + e.why }

// must ends the test: as failed, or as not run where the environment lacks what it needs.
func must(tb testing.TB, err error) {
	tb.Helper()
	if err == nil {
		return
	}
	var missing *unavailableError
	if errors.As(err, &missing) {
		run.mu.Lock()
		if run.notRun == nil {
			run.notRun = map[string]int{}
		}
		run.notRun[missing.Error()]++
		run.mu.Unlock()
		tb.Skip("redistest:", missing)
	}
	tb.Fatal("redistest:", err)
}

// poll calls done until it says true, or ctx ends: then it returns the last error of done.
func poll(ctx context.Context, done func() (bool, error)) error {
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		ok, err := done()
		if ok {
			return nil
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		}
	}
}

func startContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), startTimeout)
}
