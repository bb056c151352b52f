package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bsm/redislock"
	"github.com/go-redsync/redsync/v4"
	"github.com/go-redsync/redsync/v4/redis/goredis/v9"
	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
	"github.com/redis/rueidis/rueidislock"

	"github.com/redispatterns/redispatterns/lock"
)

const (
	lockTTL       = 10 * time.Second
	lockPoll      = 2 * time.Millisecond // of peers that poll
	lockProcesses = 8
	lockPerChild  = 8
)

var errNotAlone = errors.New("somebody else is in the section")

// locking locks a name, calls fn and unlocks.
type locking func(ctx context.Context, name string, fn func()) error

// lockers are the contestants: us first, then the peers.
type lockers struct {
	names []string
	do    map[string]locking
	close func()
}

func newLockers(addr, prefix string) (*lockers, error) {
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{addr}})
	if err != nil {
		return nil, err
	}
	ours, err := lock.New(client, lock.Options{Prefix: prefix, TTL: lockTTL})
	if err != nil {
		return nil, err
	}
	theirs, err := rueidislock.NewLocker(rueidislock.LockerOption{
		ClientOption: rueidis.ClientOption{InitAddress: []string{addr}}, KeyPrefix: prefix + "r", KeyMajority: 1, NoLoopTracking: true,
		KeyValidity: lockTTL, TryNextAfter: time.Second,
	})
	if err != nil {
		return nil, err
	}
	goClient := redis.NewClient(&redis.Options{Addr: addr, PoolSize: 64})
	bsm := redislock.New(goClient)
	sync := redsync.New(goredis.NewPool(goClient))
	compareAndDelete := rueidis.NewLuaScript(`if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0`)
	var number atomic.Int64
	l := &lockers{
		names: []string{"lock", "rueidislock", "redislock", "redsync", "rueidis-setnx"},
		close: func() {
			_ = ours.Close(context.Background())
			theirs.Close()
			_ = goClient.Close()
			client.Close()
		},
	}
	l.do = map[string]locking{
		"lock": func(ctx context.Context, name string, fn func()) error {
			lk, err := ours.Lock(ctx, name)
			if err != nil {
				return err
			}
			fn()
			return lk.Unlock(ctx)
		},
		"rueidislock": func(ctx context.Context, name string, fn func()) error {
			_, unlock, err := theirs.WithContext(ctx, name)
			if err != nil {
				return err
			}
			fn()
			unlock()
			return nil
		},
		// Where it is contended it sometimes waits for ever for a lock that is free: then it is asked again.
		"rueidislock-bounded": func(ctx context.Context, name string, fn func()) error {
			for {
				bounded, cancel := context.WithTimeout(ctx, time.Second)
				_, unlock, err := theirs.WithContext(bounded, name)
				if err == nil {
					fn()
					unlock()
				}
				cancel()
				if !errors.Is(err, context.DeadlineExceeded) {
					return err
				}
			}
		},
		"redislock": func(ctx context.Context, name string, fn func()) error {
			lk, err := bsm.Obtain(ctx, prefix+"b"+name, lockTTL, &redislock.Options{RetryStrategy: redislock.LinearBackoff(lockPoll)})
			if err != nil {
				return err
			}
			fn()
			return lk.Release(ctx)
		},
		"redsync": func(ctx context.Context, name string, fn func()) error {
			m := sync.NewMutex(prefix+"s"+name, redsync.WithExpiry(lockTTL), redsync.WithTries(1<<30), redsync.WithRetryDelay(lockPoll))
			if err := m.LockContext(ctx); err != nil {
				return err
			}
			fn()
			_, err := m.UnlockContext(ctx)
			return err
		},
		"rueidis-setnx": func(ctx context.Context, name string, fn func()) error {
			key, token := prefix+"n"+name, strconv.FormatInt(number.Add(1), 36)
			for {
				err := client.Do(ctx, client.B().Set().Key(key).Value(token).Nx().Px(lockTTL).Build()).Error()
				if err == nil {
					break
				}
				if !rueidis.IsRedisNil(err) {
					return err
				}
				time.Sleep(lockPoll) // as this way of locking does: it is what is measured
			}
			fn()
			return compareAndDelete.Exec(ctx, client, []string{key}, []string{token}).Error()
		},
	}
	return l, nil
}

func lockCases(b *bench) []benchCase {
	l, err := newLockers(b.addr, b.prefix+"lock")
	if err != nil {
		b.fail(err)
		return nil
	}
	b.closes = append(b.closes, l.close)
	own := make([]string, 64)
	for i := range own {
		own[i] = "job-" + strconv.Itoa(i)
	}
	uncontended := make([]contestant, 0, len(l.names))
	hot := make([]contestant, 0, len(l.names))
	processes := make([]contestant, 0, len(l.names))
	for _, name := range l.names {
		free := l.do[name]
		uncontended = append(uncontended, contestant{name: name, do: func(ctx context.Context, w, _ int) error { return free(ctx, own[w], func() {}) }})
		if name == "rueidislock" {
			name = "rueidislock-bounded"
		}
		processes = append(processes, contestant{name: name})
		do := l.do[name]
		var inside atomic.Int32
		hot = append(hot, contestant{name: name, do: func(ctx context.Context, _, _ int) error {
			alone := true
			err := do(ctx, "hot", func() {
				alone = inside.Add(1) == 1
				inside.Add(-1)
			})
			if !alone {
				return errNotAlone
			}
			return err
		}})
	}
	children := newLockChildren(b)
	return []benchCase{
		{name: "lock/uncontended", goroutines: 1, contestants: uncontended},
		{name: "lock/uncontended", goroutines: 64, contestants: uncontended},
		{name: "lock/hot", goroutines: 16, contestants: hot},
		{name: "lock/hot", goroutines: 64, contestants: hot},
		{name: "lock/hot_processes", goroutines: lockProcesses * lockPerChild, contestants: processes, turn: children.turn},
		handoff(b),
	}
}

// handoff has two Lockers with a client each take turns. Its time is the median from the call of Unlock by the one until Lock
// returns to the other, which waited; and that of a round trip of rueidis.
func handoff(b *bench) benchCase {
	var ours [2]*lock.Locker
	var client rueidis.Client
	for i := range ours {
		var err error
		if client, err = rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{b.addr}}); err != nil {
			b.fail(err)
			return benchCase{}
		}
		ours[i], err = lock.New(client, lock.Options{Prefix: b.prefix + "handoff", TTL: lockTTL})
		b.fail(err)
		b.closes = append(b.closes, client.Close, func() { _ = ours[i].Close(context.Background()) })
	}
	ctx := context.Background()
	median := func(times []time.Duration) (int, time.Duration, error) {
		slices.Sort(times)
		return len(times), time.Duration(len(times)) * times[len(times)/2], nil
	}
	type entry struct {
		*lock.Lock
		at  time.Time
		err error
	}
	turns := map[string]func(d time.Duration) (int, time.Duration, error){
		"lock": func(d time.Duration) (int, time.Duration, error) {
			held, err := ours[0].Lock(ctx, "handoff")
			if err != nil {
				return 0, 0, err
			}
			var times []time.Duration
			for began, i := time.Now(), 1; time.Since(began) < d || len(times) < 10; i++ {
				next := make(chan entry, 1)
				go func() {
					lk, err := ours[i%2].Lock(ctx, "handoff")
					next <- entry{lk, time.Now(), err}
				}()
				for {
					info, err := ours[1-i%2].Inspect(ctx, "handoff")
					if err != nil {
						return 0, 0, err
					}
					if info.Waiting == 1 {
						break
					}
				}
				time.Sleep(time.Millisecond) // until the waiter's own commands have ended: the hand-off is to be alone
				began := time.Now()
				if err := held.Unlock(ctx); err != nil {
					return 0, 0, err
				}
				e := <-next
				if e.err != nil {
					return 0, 0, e.err
				}
				held = e.Lock
				times = append(times, e.at.Sub(began))
			}
			if err := held.Unlock(ctx); err != nil {
				return 0, 0, err
			}
			return median(times)
		},
		"rueidis-roundtrip": func(d time.Duration) (int, time.Duration, error) {
			var times []time.Duration
			for began := time.Now(); time.Since(began) < d; {
				time.Sleep(time.Millisecond) // as before each hand-off, so that connections are as idle
				sent := time.Now()
				if err := client.Do(ctx, client.B().Incr().Key(b.prefix+"roundtrip").Build()).Error(); err != nil {
					return 0, 0, err
				}
				times = append(times, time.Since(sent))
			}
			return median(times)
		},
	}
	return benchCase{
		name: "lock/handoff", goroutines: 1, contestants: []contestant{{name: "lock"}, {name: "rueidis-roundtrip"}},
		turn: func(name string, d time.Duration) (int, time.Duration, error) { return turns[name](d) },
	}
}

// lockChildren are processes that lock one name. They start when they are first needed.
type lockChildren struct {
	b       *bench
	started bool
	in      []io.WriteCloser
	out     []*bufio.Reader
	perProc map[string][]int
}

func newLockChildren(b *bench) *lockChildren {
	return &lockChildren{b: b, perProc: map[string][]int{}}
}

// lockChildEnv makes this program a child.
const lockChildEnv = "BENCHMARKS_LOCK_CHILD"

type lockChildSetup struct{ Addr, Prefix string }

func (c *lockChildren) start() error {
	setup, err := json.Marshal(lockChildSetup{c.b.addr, c.b.prefix + "processes"})
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for range lockProcesses {
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), lockChildEnv+"="+string(setup))
		cmd.Stderr = os.Stderr
		in, err := cmd.StdinPipe()
		if err != nil {
			return err
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			return err
		}
		if err := cmd.Start(); err != nil {
			return err
		}
		c.in, c.out = append(c.in, in), append(c.out, bufio.NewReader(out))
		c.b.closes = append(c.b.closes, func() {
			_ = in.Close()
			_ = cmd.Wait()
		})
	}
	c.b.closes = append(c.b.closes, func() {
		for name, counts := range c.perProc {
			fmt.Printf("fairness lock/hot_processes %s: most/least per process %.2f\n", name,
				float64(slices.Max(counts))/float64(max(1, slices.Min(counts))))
		}
	})
	return nil
}

func (c *lockChildren) turn(name string, d time.Duration) (int, time.Duration, error) {
	if !c.started {
		c.started = true
		if err := c.start(); err != nil {
			return 0, 0, err
		}
	}
	began := time.Now()
	for _, in := range c.in {
		if _, err := fmt.Fprintln(in, name, d); err != nil {
			return 0, 0, err
		}
	}
	total := 0
	counts := make([]int, len(c.out))
	for i, out := range c.out {
		line, err := out.ReadString('\n')
		if err != nil {
			return 0, 0, fmt.Errorf("child: %w", err)
		}
		if _, err := fmt.Sscan(line, &counts[i]); err != nil {
			return 0, 0, fmt.Errorf("child: %w", err)
		}
		total += counts[i]
	}
	if c.perProc[name] == nil {
		c.perProc[name] = make([]int, len(counts))
	}
	for i, n := range counts {
		c.perProc[name][i] += n
	}
	return total, time.Since(began), nil
}

// lockChild locks for as long as each line that it reads says, and writes how often it did.
func lockChild(setup string) error {
	var s lockChildSetup
	if err := json.Unmarshal([]byte(setup), &s); err != nil {
		return err
	}
	l, err := newLockers(s.Addr, s.Prefix)
	if err != nil {
		return err
	}
	defer l.close()
	ctx := context.Background()
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		var name, length string
		if _, err := fmt.Sscan(lines.Text(), &name, &length); err != nil {
			return err
		}
		d, err := time.ParseDuration(length)
		if err != nil {
			return err
		}
		var n atomic.Int64
		var wg sync.WaitGroup
		failed := make(chan error, lockPerChild)
		for range lockPerChild {
			wg.Go(func() {
				for began := time.Now(); time.Since(began) < d; n.Add(1) {
					if err := l.do[name](ctx, "hot", func() {}); err != nil {
						failed <- err
						return
					}
				}
			})
		}
		wg.Wait()
		select {
		case err := <-failed:
			return fmt.Errorf("%s: %w", name, err)
		default:
		}
		fmt.Println(n.Load())
	}
	return nil
}
