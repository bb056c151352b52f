package lock

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"
)

// clockwork is as much of a Redis as it takes to hold, renew and release leases, and to ask for those of others, within a
// bubble of synctest: a real client talks to it, and both have a fake clock, so that hours take no time and moments are exact.
type clockwork struct {
	speed float64              // of its clock, by the client's
	delay func() time.Duration // before a command is executed, and again before its reply is sent

	mu       sync.Mutex
	conns    []net.Conn
	silent   int // of the first so many connections nothing is heard any more
	began    time.Time
	leases   map[string]clockworkLease
	stalled  chan struct{} // closed when it goes on
	mute     bool          // it executes what it is told and says nothing, nor ever again on that connection
	renewals []int         // how many locks each script was for
	looks    int           // how often a lock was asked for that another has
	scripts  int           // that were run
	failing  string        // what scripts are answered with, if it is not empty; they do nothing then but take locks
	listens  int           // how often it was asked for a subscription
	deaf     bool          // it refuses them
	channel  string        // that is subscribed to
	inbox    chan<- string // where its messages go, or nil
	gagged   bool          // it publishes nothing
	closing  time.Duration // what it takes to close a connection
}

type clockworkLease struct {
	token string
	until time.Time // by the client's clock
}

type clockworkConn struct {
	net.Conn
	c *clockwork
}

func (c *clockworkConn) Close() error {
	c.c.mu.Lock()
	closing := c.c.closing
	c.c.mu.Unlock()
	if closing > 0 {
		<-time.After(closing)
	}
	return c.Conn.Close()
}

// startClockwork must be called in a bubble.
func startClockwork(t *testing.T, speed float64, delay func() time.Duration, opts ...func(*rueidis.ClientOption)) (*clockwork, rueidis.Client) {
	t.Helper()
	<-time.After(50 * 365 * 24 * time.Hour) // bubbles begin in the year 2000, which is before epoch
	going := make(chan struct{})
	close(going)
	c := &clockwork{speed: speed, delay: delay, began: time.Now(), leases: make(map[string]clockworkLease), stalled: going}
	option := rueidis.ClientOption{
		InitAddress: []string{"clockwork:6379"}, ForceSingleClient: true, DisableCache: true,
		DialCtxFn: func(context.Context, string, *net.Dialer, *tls.Config) (net.Conn, error) {
			ours, theirs := net.Pipe()
			c.mu.Lock()
			c.conns = append(c.conns, ours)
			number := len(c.conns)
			c.mu.Unlock()
			go c.serve(number, ours)
			return &clockworkConn{theirs, c}, nil
		},
	}
	for _, opt := range opts {
		opt(&option)
	}
	client, err := rueidis.NewClient(option)
	require.NoError(t, err)
	t.Cleanup(func() {
		client.Close()
		for _, conn := range c.conns {
			_ = conn.Close() // a client that was dialling when it was closed does not
		}
		<-time.After(time.Hour) // for what is on its way: the clock stands still afterwards
	})
	return c, client
}

// stall makes commands wait for what it returns to be called.
func (c *clockwork) stall() (goOn func()) {
	stalled := make(chan struct{})
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stalled = stalled
	return sync.OnceFunc(func() { close(stalled) })
}

func (c *clockwork) lease(name string) clockworkLease {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.leases["lock:{"+name+"}"]
}

// serve answers the commands of one connection, one after the other.
func (c *clockwork) serve(number int, conn net.Conn) {
	replies := make(chan string, 1000) // the client may write on while a reply is on its way
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.inbox == replies {
			c.inbox = nil
		}
		close(replies)
	}()
	go func() {
		defer conn.Close()
		for reply := range replies {
			if _, err := io.WriteString(conn, reply); err != nil {
				_ = conn.Close()
			}
		}
	}()
	mute := false
	for in := bufio.NewReader(conn); ; {
		args, err := readCommand(in)
		if err != nil {
			return
		}
		<-time.After(c.delay())
		c.mu.Lock()
		stalled := c.stalled
		silent := number <= c.silent
		c.mu.Unlock()
		if silent {
			continue
		}
		<-stalled
		if args[0] == "SUBSCRIBE" {
			c.mu.Lock()
			c.channel, c.inbox = args[1], replies
			c.mu.Unlock()
		}
		reply, heard := c.execute(args)
		<-time.After(c.delay())
		if mute = mute || !heard; !mute {
			replies <- reply
		}
	}
}

func readCommand(in *bufio.Reader) ([]string, error) {
	number := func() (int, error) {
		line, err := in.ReadString('\n')
		if err != nil {
			return 0, err
		}
		return strconv.Atoi(strings.TrimSpace(line[1:]))
	}
	n, err := number()
	if err != nil {
		return nil, err
	}
	args := make([]string, n)
	for i := range args {
		size, err := number()
		if err != nil {
			return nil, err
		}
		arg := make([]byte, size+len("\r\n"))
		if _, err := io.ReadFull(in, arg); err != nil {
			return nil, err
		}
		args[i] = string(arg[:size])
	}
	return args, nil
}

// execute returns the reply, and whether it is to be heard.
func (c *clockwork) execute(args []string) (string, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	reply := "+OK\r\n"
	switch args[0] {
	case "HELLO":
		reply = "%2\r\n$7\r\nversion\r\n$5\r\n8.0.0\r\n$5\r\nproto\r\n:3\r\n"
	case "SUBSCRIBE":
		c.listens++
		if reply = ">3\r\n" + bulk("subscribe") + bulk(args[1]) + ":1\r\n"; c.deaf {
			reply = "-NOPERM no channels\r\n"
		}
	case "EVALSHA":
		reply = "-NOSCRIPT it knows sources alone\r\n"
	case "EVAL":
		c.scripts++
		keys, _ := strconv.Atoi(args[2])
		if c.failing == "" || args[1] == withCommon(acquireSource) {
			reply = c.run(args[1], args[3:3+keys], args[3+keys:])
		}
		if c.failing != "" {
			reply = c.failing
		}
	}
	return reply, !c.mute
}

func bulk(s string) string { return fmt.Sprintf("$%d\r\n%s\r\n", len(s), s) }

// run does what a script does with locks, but for queues.
func (c *clockwork) run(source string, keys, args []string) string {
	now := time.Now()
	micros := c.began.UnixMicro() + int64(float64(now.Sub(c.began).Microseconds())*c.speed)
	until := func(ttl string) time.Time {
		ms, _ := strconv.ParseFloat(ttl, 64)
		return now.Add(time.Duration(ms / c.speed * float64(time.Millisecond)))
	}
	free := func(key string) bool { return !c.leases[key].until.After(now) }
	switch source {
	case withCommon(acquireSource):
		if free(keys[0]) {
			c.leases[keys[0]] = clockworkLease{args[0], until(args[1])}
			return fmt.Sprintf(":%d\r\n", micros)
		}
		if c.leases[keys[0]].token == args[0] { // asked again
			return fmt.Sprintf("*4\r\n:1\r\n:%d\r\n:%[1]d\r\n:0\r\n", micros)
		}
		c.looks++
		if args[3] == "hello" && c.inbox != nil && !c.gagged {
			_, number, _ := strings.Cut(args[0], ".")
			c.inbox <- ">3\r\n" + bulk("message") + bulk(c.channel) + bulk("hello "+number+" "+keys[0])
		}
		other := c.leases[keys[0]]
		return fmt.Sprintf("*5\r\n:0\r\n:%d\r\n:%d\r\n", micros, other.until.Sub(now).Milliseconds()) + bulk(other.token) + bulk("")
	case withCommon(releaseSource):
		if free(keys[0]) || c.leases[keys[0]].token != args[0] {
			return ":0\r\n"
		}
		delete(c.leases, keys[0])
		return ":1\r\n"
	case renewSource:
		c.renewals = append(c.renewals, len(keys)/2)
		reply := fmt.Sprintf("*%d\r\n:%d\r\n", 1+len(keys)/2, micros)
		for i := 0; i < len(keys); i += 2 {
			state := renewalLost
			if lease := c.leases[keys[i]]; !free(keys[i]) && lease.token == args[i] {
				state = renewalDone
				if later := until(args[i+1]); later.After(lease.until) {
					c.leases[keys[i]] = clockworkLease{args[i], later}
				}
			}
			reply += fmt.Sprintf(":%d\r\n", state)
		}
		return reply
	}
	return "-ERR that is not for clockwork\r\n"
}

func lockerOf(t *testing.T, client rueidis.Client, opts Options) *Locker {
	t.Helper()
	l, err := New(client, opts)
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := l.Close(ctx); err != nil { // of a Redis that does not answer
			require.ErrorIs(t, err, context.DeadlineExceeded)
		}
	})
	return l
}

func lockOf(t *testing.T, l *Locker, name string) *Lock {
	t.Helper()
	lk, err := l.TryLock(t.Context(), name)
	require.NoError(t, err)
	return lk
}

func TestRenewal_ManyLocksForAWhile(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, client := startClockwork(t, 1, func() time.Duration { return 100 * time.Microsecond })
		l := lockerOf(t, client, Options{})
		const many, ttl = 500, defaultTTL
		locks := make([]*Lock, many)
		for i := range locks {
			locks[i] = lockOf(t, l, strconv.Itoa(i))
		}
		<-time.After(ttl)
		c.mu.Lock()
		c.renewals = nil
		c.mu.Unlock()
		const thirds = 10 * time.Minute / (ttl / 3)
		for range thirds {
			<-time.After(ttl / 3)
			for i, lk := range locks {
				left := time.Until(c.lease(strconv.Itoa(i)).until)
				if lk.Err() != nil || left < ttl*2/3-10*time.Millisecond || left < time.Until(lk.Deadline()) {
					t.Fatal(lk.Err(), left, lk.Deadline())
				}
			}
		}
		c.mu.Lock()
		scripts, renewed := len(c.renewals), 0
		for _, n := range c.renewals {
			require.LessOrEqual(t, n, maxBatch)
			renewed += n
		}
		c.mu.Unlock()
		require.LessOrEqual(t, scripts, int(thirds*(many/maxBatch+4)), "what is due within a twelfth of the TTL goes together")
		require.GreaterOrEqual(t, renewed, int(thirds-1)*many)
		require.LessOrEqual(t, renewed, int(thirds+1)*many*4/3)
		require.NoError(t, l.Close(t.Context()))
		require.Empty(t, c.leases)
	})
}

// However long replies take, whichever clock is fast, and whether Redis has stopped or only its replies are lost: a holder
// knows that its lease is over before another could have it, and not long before.
func TestRenewal_CutOffHoldersKnowFirst(t *testing.T) {
	t.Parallel()
	for seed := range uint64(150) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 2))
			ttl := []time.Duration{100 * time.Millisecond, time.Second, 10 * time.Second, time.Minute}[random.IntN(4)]
			slowest := opTimeout(ttl) / 20
			var mu sync.Mutex
			c, client := startClockwork(t, 0.99+0.02*random.Float64(), func() time.Duration {
				mu.Lock()
				defer mu.Unlock()
				return time.Duration(random.Int64N(int64(slowest)))
			})
			lk := lockOf(t, lockerOf(t, client, Options{TTL: ttl}), "name")
			held := lk.Context()
			mu.Lock()
			since, mute := time.Duration(random.Int64N(int64(5*ttl))), random.IntN(2) == 0
			mu.Unlock()
			<-time.After(since)
			require.NoError(t, lk.Err(), "seed %d", seed)
			if mute {
				c.mu.Lock()
				c.mute = true
				c.mu.Unlock()
			} else {
				t.Cleanup(c.stall())
			}
			cut := time.Now()
			<-held.Done()
			require.False(t, time.Now().Before(lk.Deadline()), "seed %d", seed)
			require.WithinDuration(t, lk.Deadline(), time.Now(), time.Millisecond, "seed %d", seed)
			require.Greater(t, time.Until(c.lease("name").until), time.Duration(0), "seed %d", seed)
			require.Greater(t, time.Since(cut), ttl*2/3-guard(ttl)-4*slowest, "seed %d", seed)
			require.ErrorIs(t, context.Cause(held), ErrLost)
			require.ErrorIs(t, lk.Err(), ErrLost)
			require.ErrorIs(t, lk.Unlock(t.Context()), ErrLost)
		})
	}
}

func TestRenewal_OutlastsStalls(t *testing.T) {
	t.Parallel()
	for seed := range uint64(60) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 3))
			c, client := startClockwork(t, 1, func() time.Duration { return time.Millisecond })
			const ttl = 6 * time.Second
			lk := lockOf(t, lockerOf(t, client, Options{TTL: ttl}), "name")
			for range 20 {
				<-time.After(ttl/2 + time.Duration(random.Int64N(int64(ttl))))
				goOn := c.stall()
				<-time.After(ttl / 3)
				goOn()
				<-time.After(ttl/2 + time.Duration(random.Int64N(int64(ttl))))
				require.NoError(t, lk.Err(), "seed %d", seed)
				require.NoError(t, lk.Context().Err(), "seed %d", seed)
			}
			require.NoError(t, lk.Unlock(t.Context()))
		})
	}
}

func TestRenewal_StopsAtMaxHold(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, client := startClockwork(t, 1, func() time.Duration { return time.Millisecond })
		lk := lockOf(t, lockerOf(t, client, Options{TTL: time.Second, MaxHold: 10*time.Second + 1}), "name")
		got := time.Now()
		<-lk.Context().Done()
		require.Equal(t, 10*time.Second+1, time.Since(got))
		require.ErrorIs(t, context.Cause(lk.Context()), ErrLost)
		require.Len(t, c.renewals, 28, "none after the one that reaches it")
		<-time.After(100 * time.Millisecond)
		require.Empty(t, c.leases, "it is left to others at once")
	})
}

func TestRenewal_NotWithNoRenewal(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, client := startClockwork(t, 1, func() time.Duration { return time.Millisecond })
		asked := time.Now()
		lk := lockOf(t, lockerOf(t, client, Options{NoRenewal: true}), "name")
		<-lk.Context().Done()
		require.Equal(t, defaultTTL-guard(defaultTTL), time.Since(asked))
		require.Empty(t, c.renewals)
	})
}

func TestRenewal_NoticesThatALockIsGone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, client := startClockwork(t, 1, func() time.Duration { return time.Millisecond })
		lk := lockOf(t, lockerOf(t, client, Options{}), "name")
		<-time.After(time.Minute)
		c.mu.Lock()
		clear(c.leases)
		c.mu.Unlock()
		gone := time.Now()
		<-lk.Context().Done()
		require.LessOrEqual(t, time.Since(gone), defaultTTL/3)
		require.ErrorIs(t, context.Cause(lk.Context()), ErrLost)
	})
}

// A Lock that was forgotten is given back when it is garbage, which here it is after a minute.
func TestRenewal_StopsForGarbage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		_, client := startClockwork(t, 1, func() time.Duration { return time.Millisecond })
		lk := lockOf(t, lockerOf(t, client, Options{}), "name")
		held := lk.Context()
		<-time.After(time.Minute)
		runtime.KeepAlive(lk)
		require.NoError(t, held.Err())
		runtime.GC()
		forgotten := time.Now()
		<-held.Done()
		require.LessOrEqual(t, time.Since(forgotten), defaultTTL)
		require.ErrorIs(t, context.Cause(held), ErrLost)
	})
}

// Connections may fall silent, as when a firewall forgets them: new ones are made for what is to be done soon, and it is.
func TestRenewal_GoesOnWhereConnectionsFellSilent(t *testing.T) {
	t.Parallel()
	for _, multiplex := range []int{-1, 0, 2} { // -1: 1 connection; 0: the client's default; 2: 4
		for seconds := range 10 {
			synctest.Test(t, func(t *testing.T) {
				c, client := startClockwork(t, 1, func() time.Duration { return time.Millisecond }, func(o *rueidis.ClientOption) { o.PipelineMultiplex = multiplex })
				l := lockerOf(t, client, Options{})
				locks := []*Lock{lockOf(t, l, "a"), lockOf(t, l, "b"), lockOf(t, l, "c")}
				silence := func() {
					c.mu.Lock()
					defer c.mu.Unlock()
					c.silent = len(c.conns)
				}
				for range 3 {
					<-time.After(time.Duration(seconds) * time.Second)
					silence()
					<-time.After(20 * time.Second)
					for _, lk := range locks {
						require.NoError(t, lk.Err())
					}
				}
				silence()
				for _, lk := range locks {
					_ = lk.Unlock(t.Context()) // which may go on in the background
				}
				<-time.After(3 * maxOpTimeout)
				require.Empty(t, c.leases)
				lockOf(t, l, "d")
			})
		}
	}
}

// A subscription that is given back when nobody waits had proven itself. The next one, which may begin before that is closed,
// has not, and until it does waiters ask ten times a second.
func TestInbox_EachSubscriptionProvesItself(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, client := startClockwork(t, 1, func() time.Duration { return time.Millisecond })
		l := lockerOf(t, client, Options{})
		looks := func(gagged bool) int {
			c.mu.Lock()
			c.leases["lock:{name}"] = clockworkLease{"another.1", time.Now().Add(time.Hour)}
			c.looks, c.gagged = 0, gagged
			c.mu.Unlock()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			_, err := l.Lock(ctx, "name")
			require.ErrorIs(t, err, context.DeadlineExceeded)
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.looks
		}
		c.mu.Lock()
		c.closing = time.Second
		c.mu.Unlock()
		require.Less(t, looks(false), 10)
		for running := true; running; {
			<-time.After(time.Second / 2)
			l.mu.Lock()
			running = l.inbox.runs
			l.mu.Unlock()
		}
		require.Greater(t, looks(true), 80)
	})
}

// handedContext ends without a word.
type handedContext struct {
	context.Context //nolint:containedctx // it is one
	over            atomic.Bool
}

func (c *handedContext) Err() error {
	if c.over.Load() {
		return context.Canceled
	}
	return nil
}

// A Lock whose ctx ends in the moment in which the lock is passed on to it gives that back in the background.
func TestLock_EndsAsItIsHandedTheLock(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, client := startClockwork(t, 1, func() time.Duration { return time.Millisecond })
		l := lockerOf(t, client, Options{})
		lk := lockOf(t, l, "name")
		ctx := &handedContext{Context: t.Context()}
		var err error
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, err = l.Lock(ctx, "name")
		}()
		<-time.After(defaultTTL / 2) // renewed once, it has fences to give
		ctx.over.Store(true)
		goOn := c.stall()
		defer goOn()
		require.NoError(t, lk.Unlock(t.Context()))
		synctest.Wait()
		select {
		case <-done:
			require.ErrorIs(t, err, context.Canceled)
		default:
			t.Fatal("it waits for the release")
		}
		goOn()
		<-time.After(time.Second)
		require.Empty(t, c.leases)
	})
}

// Of calls that try at the same time one gets the lock, and the others are told at once that it is held.
func TestTryLock_DoesNotWaitForOthersOfItsProcess(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		_, client := startClockwork(t, 1, func() time.Duration { return time.Millisecond })
		l := lockerOf(t, client, Options{Meta: "us"})
		var holder *Lock
		for range 5 {
			const tries = 10
			locks, errs := make([]*Lock, tries), make([]error, tries)
			var wg sync.WaitGroup
			if holder != nil { // they meet its release
				wg.Go(func() { require.NoError(t, holder.Unlock(t.Context())) })
				synctest.Wait()
			}
			began := time.Now()
			for i := range tries {
				wg.Go(func() { locks[i], errs[i] = l.TryLock(t.Context(), "name") })
			}
			wg.Wait()
			require.LessOrEqual(t, time.Since(began), 20*time.Millisecond)
			holder = nil
			for i, err := range errs {
				if err == nil {
					require.Nil(t, holder, "two have it")
					holder = locks[i]
					continue
				}
				var held *HeldError
				require.ErrorAs(t, err, &held)
				require.Equal(t, "us", held.Meta)
				require.Positive(t, held.TTL)
			}
			require.NotNil(t, holder)
			require.NoError(t, holder.Err())
		}
		require.NoError(t, holder.Unlock(t.Context()))
	})
}

// Who may not subscribe is not asked again and again when nobody waits any more.
func TestInbox_IsGivenUpWhenNobodyWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, client := startClockwork(t, 1, func() time.Duration { return time.Millisecond })
		c.deaf = true
		l := lockerOf(t, client, Options{})
		c.leases["lock:{name}"] = clockworkLease{"another.1", time.Now().Add(time.Hour)}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err := l.Lock(ctx, "name")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		<-time.After(2 * idleInbox)
		c.mu.Lock()
		before := c.listens
		c.mu.Unlock()
		require.Greater(t, before, 5)
		<-time.After(2 * idleInbox)
		require.Equal(t, before, c.listens)
	})
}

// An outage in which many calls fail is no reason for a flood of releases, and nothing is left of them afterwards.
func TestLock_GivesUpGentlyInAnOutage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, client := startClockwork(t, 1, func() time.Duration { return time.Microsecond })
		const ttl, calls = time.Minute, 50
		l := lockerOf(t, client, Options{TTL: ttl})
		outage := func(reply string) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.scripts, c.failing = 0, reply
		}
		outage("-LOADING\r\n")
		var wg sync.WaitGroup
		for i := range calls {
			wg.Go(func() {
				_, err := l.TryLock(t.Context(), strconv.Itoa(i))
				require.ErrorContains(t, err, "LOADING")
			})
		}
		wg.Wait()
		<-time.After(10 * time.Second)
		outage("-LOADING\r\n")
		<-time.After(10 * time.Second)
		c.mu.Lock()
		scripts, leases := c.scripts, len(c.leases)
		c.mu.Unlock()
		require.Less(t, scripts, 10*calls*3)
		require.Equal(t, calls, leases)
		outage("")
		<-time.After(time.Second)
		require.Zero(t, len(c.leases)) //nolint:testifylint // not each of them is of interest
		<-time.After(ttl)
		l.mu.Lock()
		defer l.mu.Unlock()
		require.Zero(t, l.repeats)
		require.Zero(t, l.running)
	})
}

// A command that is not answered in time is another thing than a caller who has no more.
func TestErrSlow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, client := startClockwork(t, 1, func() time.Duration { return time.Millisecond })
		l := lockerOf(t, client, Options{TTL: time.Minute})
		lk := lockOf(t, l, "name")
		goOn := c.stall()
		defer goOn()
		calls := map[string]func(ctx context.Context) error{
			"extend":  func(ctx context.Context) error { return lk.Extend(ctx, time.Minute) },
			"inspect": func(ctx context.Context) error { _, err := l.Inspect(ctx, "name"); return err },
			"break":   func(ctx context.Context) error { _, err := l.Break(ctx, "name"); return err },
		}
		for name, call := range calls {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			require.ErrorIs(t, call(ctx), context.DeadlineExceeded, name)
			cancel()
			err := call(t.Context())
			require.ErrorIs(t, err, ErrSlow, name)
			require.ErrorContains(t, err, "lock: "+name+": ")
		}
		require.ErrorIs(t, lk.Unlock(t.Context()), ErrSlow)
	})
}
