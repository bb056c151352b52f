package integration

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/redispatterns/redispatterns/internal/integration/redistest"
	"github.com/redispatterns/redispatterns/lock"
)

// insideScript is the checker outside the lock: one at a time may be inside, with a fence above the last.
var insideScript = rueidis.NewLuaScript(`
if ARGV[1] == 'leave' then return redis.call('DECR', KEYS[1]) end
if redis.call('INCR', KEYS[1]) ~= 1 then redis.call('INCR', KEYS[1] .. ':violations') end
local last = redis.call('GETSET', KEYS[1] .. ':fence', ARGV[2])
if last and tonumber(last) >= tonumber(ARGV[2]) then redis.call('INCR', KEYS[1] .. ':violations') end
return redis.call('INCR', KEYS[1] .. ':sections')`)

// lockChild is a process that locks: it writes what happens to its standard output, and does what it reads.
func lockChild() error {
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{os.Getenv("LOCK_ADDR")}})
	if err != nil {
		return err
	}
	defer client.Close()
	prefix := os.Getenv("LOCK_PREFIX")
	ttl, err := time.ParseDuration(os.Getenv("LOCK_TTL"))
	if err != nil {
		return err
	}
	ctx := context.Background()
	l, err := lock.New(client, lock.Options{Prefix: prefix, TTL: ttl})
	if err != nil {
		return err
	}
	defer l.Close(ctx)
	if d := os.Getenv("LOCK_FOR"); d != "" {
		duration, err := time.ParseDuration(d)
		if err != nil {
			return err
		}
		return lockMany(l, client, prefix, duration)
	}
	lk, err := l.Lock(ctx, "name")
	if err != nil {
		return err
	}
	held := lk.Context()
	fmt.Println("held", lk.Fence())
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return err
	}
	// The first use after whatever happened meanwhile.
	fmt.Println("lost", errors.Is(lk.Err(), lock.ErrLost), held.Err() != nil,
		errors.Is(lock.SetFenced(ctx, client, prefix+":resource", lk.Fence(), "stale"), lock.ErrStale))
	return nil
}

// lockMany locks and unlocks with 64 goroutines.
func lockMany(l *lock.Locker, client rueidis.Client, prefix string, duration time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), duration)
	defer cancel()
	inside := []string{prefix + ":inside"}
	var wg sync.WaitGroup
	errs := make(chan error, 64)
	for range 64 {
		wg.Go(func() {
			for ctx.Err() == nil {
				err := l.Do(ctx, "name", func(_ context.Context, fence int64) error {
					_, err := insideScript.Exec(context.Background(), client, inside, []string{"enter", strconv.FormatInt(fence, 10)}).AsInt64()
					if err == nil {
						_, err = insideScript.Exec(context.Background(), client, inside, []string{"leave"}).AsInt64()
					}
					return err
				})
				if err != nil && !errors.Is(err, context.DeadlineExceeded) {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	select {
	case err := <-errs:
		return err
	default:
		return nil
	}
}

// locking is a running lockChild.
type locking struct {
	*exec.Cmd
	in  io.Writer
	out *bufio.Reader
}

func startLocking(t *testing.T, addr, prefix string, ttl time.Duration, env ...string) *locking {
	t.Helper()
	cmd := child(t, "lock", append(env, "LOCK_ADDR="+addr, "LOCK_PREFIX="+prefix, "LOCK_TTL="+ttl.String())...)
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	return &locking{cmd, in, bufio.NewReader(out)}
}

func (p *locking) line(t *testing.T) string {
	t.Helper()
	line, err := p.out.ReadString('\n')
	require.NoError(t, err)
	return strings.TrimSpace(line)
}

func (p *locking) fence(t *testing.T) int64 {
	t.Helper()
	fence, err := strconv.ParseInt(strings.TrimPrefix(p.line(t), "held "), 10, 64)
	require.NoError(t, err)
	return fence
}

// isStill reports whether a process that was sent SIGKILL or SIGSTOP does nothing any more. It is so once.
func (p *locking) isStill() bool {
	var status syscall.WaitStatus
	pid, err := syscall.Wait4(p.Process.Pid, &status, syscall.WUNTRACED|syscall.WNOHANG, nil)
	return err == nil && pid == p.Process.Pid
}

func TestLock_ExcludesAcrossProcesses(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client, prefix := server.Client(t), redistest.Prefix(t)
	duration := 2 * time.Second
	if soak() {
		duration = 30 * time.Second
	}
	processes := make([]*locking, 4)
	for i := range processes {
		processes[i] = startLocking(t, server.Addr(), prefix, 10*time.Second, "LOCK_FOR="+duration.String())
	}
	for _, p := range processes {
		require.NoError(t, p.Wait())
	}
	count := func(key string) int64 {
		n, err := client.Do(t.Context(), client.B().Get().Key(prefix+":inside"+key).Build()).AsInt64()
		if !rueidis.IsRedisNil(err) {
			require.NoError(t, err)
		}
		return n
	}
	require.Zero(t, count(":violations"))
	require.Zero(t, count(""))
	require.Greater(t, count(":sections"), int64(100))
	t.Log(count(":sections"), "sections")
	requireFree(t, newLocker(t, client, lock.Options{Prefix: prefix}), "name")
}

func TestLock_APausedHolderSeesThatItLost(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client, prefix := server.Client(t), redistest.Prefix(t)
	const ttl = 500 * time.Millisecond
	p := startLocking(t, server.Addr(), prefix, ttl)
	fence := p.fence(t)
	require.NoError(t, p.Process.Signal(syscall.SIGSTOP))
	began := time.Now()
	l := newLocker(t, client, lock.Options{Prefix: prefix, TTL: ttl})
	lk := acquire(t, l, "name")
	require.Greater(t, lk.Fence(), fence)
	require.NoError(t, lock.SetFenced(t.Context(), client, prefix+":resource", lk.Fence(), "mine"))
	require.Eventually(t, func() bool { return time.Since(began) > 2*ttl }, 10*time.Second, 10*time.Millisecond)
	_, err := io.WriteString(p.in, "\n") // it is there when the process wakes up
	require.NoError(t, err)
	require.NoError(t, p.Process.Signal(syscall.SIGCONT))
	require.Equal(t, "lost true true true", p.line(t))
	require.NoError(t, p.Wait())
	require.NoError(t, lk.Err())
	require.NoError(t, lk.Unlock(t.Context()))
}

func TestLock_TheDeathOfAHolderIsSurvived(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	prefix := redistest.Prefix(t)
	const ttl = time.Second
	holder := startLocking(t, server.Addr(), prefix, ttl)
	fence := holder.fence(t)
	const waiters = 5
	var got []<-chan acquisition
	var lockers []*lock.Locker
	for i := range waiters {
		l := newLocker(t, server.Client(t), lock.Options{Prefix: prefix, TTL: ttl})
		lockers = append(lockers, l)
		got = append(got, lockInBackground(t, l, "name"))
		requireWaiting(t, l, "name", i+1)
	}
	require.NoError(t, holder.Process.Kill())
	died := time.Now()
	for _, g := range got { // in the order in which they came
		next := <-g
		require.NoError(t, next.err)
		require.Greater(t, next.Fence(), fence)
		if fence = next.Fence(); g == got[0] {
			t.Logf("next owner after %v", next.at.Sub(died))
			require.Less(t, next.at.Sub(died), ttl+100*time.Millisecond)
		}
		require.NoError(t, next.Unlock(t.Context()))
	}
	requireFree(t, lockers[0], "name")
}

func TestLock_DeadWaitersDelayTheNextALittle(t *testing.T) {
	t.Parallel()
	for name, signal := range map[string]syscall.Signal{"killed": syscall.SIGKILL, "stopped": syscall.SIGSTOP} {
		for where, start := range map[string]func(*testing.T) (rueidis.Client, string){
			"single": func(t *testing.T) (rueidis.Client, string) {
				s := redistest.Shared(t)
				return s.Client(t), s.Addr()
			},
			"cluster": func(t *testing.T) (rueidis.Client, string) {
				c := redistest.SharedCluster(t)
				return c.Client(t), c.Addrs()[0]
			},
		} {
			t.Run(name+"/"+where, func(t *testing.T) {
				t.Parallel()
				client, addr := start(t)
				prefix := redistest.Prefix(t)
				l := newLocker(t, client, lock.Options{Prefix: prefix})
				last := newLocker(t, client, lock.Options{Prefix: prefix})
				lk := acquire(t, l, "name")
				dead := startLocking(t, addr, prefix, 10*time.Second)
				requireWaiting(t, l, "name", 1)
				got := lockInBackground(t, last, "name")
				requireWaiting(t, l, "name", 2)
				requireListening(t, client, prefix, 2)
				// Until the inboxes have proven themselves they are looked after more often.
				settled := time.Now()
				require.Eventually(t, func() bool { return time.Since(settled) > 500*time.Millisecond }, 5*time.Second, 10*time.Millisecond)
				require.NoError(t, dead.Process.Signal(signal))
				require.Eventually(t, dead.isStill, 5*time.Second, time.Millisecond) // else it may claim what it is handed
				began := time.Now()
				require.NoError(t, lk.Unlock(t.Context()))
				next := <-got
				require.NoError(t, next.err)
				t.Logf("after %v", next.at.Sub(began))
				require.Less(t, next.at.Sub(began), time.Second)
				require.NoError(t, next.Unlock(t.Context()))
			})
		}
	}
}

// requireListening waits until so many Lockers listen to their inboxes.
func requireListening(t *testing.T, client rueidis.Client, prefix string, n int) {
	t.Helper()
	require.Eventually(t, func() bool {
		found := 0
		for _, node := range client.Nodes() {
			channels, err := node.Do(t.Context(), node.B().PubsubChannels().Pattern(prefix+":inbox:*").Build()).AsStrSlice()
			if err != nil {
				return false
			}
			found += len(channels)
		}
		return found == n
	}, 10*time.Second, 5*time.Millisecond)
}
