// Lock is a job that one process runs at a time, and that goes on whatever happens to that one. The program starts three
// workers, processes of their own. One gets the lock and works; it is killed, and another takes over where it was; that one is
// stopped for longer than its lease, and the third takes over; and when the second wakes up in the middle of a step and writes
// what it has, its fence is stale and it is refused. (Should it be stopped just before it looks whether it has the lock still, it
// gives up by itself.)
//
//	go -C examples run ./lock
//
// It runs with nothing installed: a Redis is embedded, unless REDIS_URL names one. To make it yours, copy the folder, then:
// go mod init example; until there is a release, go mod edit -replace
// github.com/redispatterns/redispatterns=where/you/cloned/it; go mod tidy; go run .
//
// It prints, with other times and fences:
//
//	0.00s  main  start ann
//	0.01s  ann   has the lock, fence 1795269837166353, and goes on after step 0
//	0.01s  main  start bob
//	0.02s  main  start eve
//	0.11s  ann   step 1
//	0.21s  ann   step 2
//	0.32s  ann   step 3
//	0.32s  main  kill ann
//	1.02s  bob   has the lock, fence 1795269838169195, and goes on after step 3
//	1.12s  bob   step 4
//	...
//	1.72s  bob   step 10
//	1.72s  main  stop bob
//	2.68s  eve   has the lock, fence 1795269839837189, and goes on after step 10
//	2.78s  eve   step 11
//	...
//	3.19s  eve   finished
//	3.19s  main  wake bob
//	3.20s  bob   refused: lock: stale fence
//	3.20s  main  15 steps, none twice
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
)

const (
	ttl   = time.Second
	steps = 15
	each  = 100 * time.Millisecond // how long a step takes
)

// What makes this program a worker.
const (
	workerEnv  = "EXAMPLE_LOCK_WORKER" // its name
	addressEnv = "EXAMPLE_LOCK_REDIS"  // of the embedded Redis
	prefixEnv  = "EXAMPLE_LOCK_PREFIX"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	var err error
	if name := os.Getenv(workerEnv); name != "" {
		err = work(ctx, name, os.Stdout)
	} else {
		err = run(ctx, os.Stdout)
	}
	stop()
	if errors.Is(err, context.Canceled) {
		err = errors.New("interrupted")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "lock:", err)
		os.Exit(1)
	}
}

// run is the play, in four acts.
func run(ctx context.Context, out io.Writer) error {
	redis, disconnect, err := connect()
	if err != nil {
		return err
	}
	defer disconnect()
	p, err := newPlay(redis, out)
	if err != nil {
		return err
	}
	defer p.end()

	if err := p.start("ann"); err != nil {
		return err
	}
	if err := p.until(ctx, "ann", "has the lock"); err != nil {
		return err
	}
	for i, name := range []string{"bob", "eve"} {
		if err := p.start(name); err != nil {
			return err
		}
		if err := p.waiting(ctx, i+1); err != nil {
			return err
		}
	}
	if err := p.until(ctx, "ann", "step 3"); err != nil {
		return err
	}
	if err := p.signal("kill", "ann", syscall.SIGKILL); err != nil {
		return err
	}
	if err := p.until(ctx, "bob", "step 10"); err != nil {
		return err
	}
	if err := p.signal("stop", "bob", stopSignal); err != nil {
		return err
	}
	if err := p.until(ctx, "eve", "finished"); err != nil {
		return err
	}
	if err := p.signal("wake", "bob", continueSignal); err != nil {
		return err
	}
	if err := p.until(ctx, "bob", "refused", "gives up"); err != nil {
		return err
	}
	return p.check(ctx)
}
