package integration

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/redis/rueidis/rueidishook"
	"github.com/stretchr/testify/require"

	"github.com/redispatterns/redispatterns/internal/integration/redistest"
	"github.com/redispatterns/redispatterns/lock"
)

// lockHook decides of each script, by its arguments, whether it is sent, or what is returned in its place.
type lockHook struct {
	redistest.PassThrough
	mu   sync.Mutex
	sent [][]string
	fail func(args []string) error
}

func (h *lockHook) Do(client rueidis.Client, ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	if err := h.before(cmd.Commands()); err != nil {
		return rueidishook.NewErrorResult(err)
	}
	return client.Do(ctx, cmd)
}

func (h *lockHook) before(args []string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if args[0] != "EVALSHA" && args[0] != "EVAL" {
		return nil
	}
	h.sent = append(h.sent, slices.Clone(args))
	if h.fail == nil {
		return nil
	}
	return h.fail(args)
}

func (h *lockHook) failing(fail func(args []string) error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sent, h.fail = nil, fail
}

// first returns the first script that was sent since failing was called.
func (h *lockHook) first(t *testing.T) []string {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	require.NotEmpty(t, h.sent)
	return h.sent[0]
}

// times returns a fail that returns an error so many times.
func times(n int, err error) func([]string) error {
	return func([]string) error {
		if n--; n >= 0 {
			return err
		}
		return nil
	}
}

func hookedLocker(t *testing.T, client rueidis.Client, opts lock.Options) (*lockHook, *lock.Locker) {
	t.Helper()
	h := &lockHook{}
	return h, newLocker(t, rueidishook.WithHook(client, h), opts)
}

// A client that moves to another primary says of what was on its way that it is closed, and so does one that is.
func TestLockLate_ClientsThatMoveSayTheyAreClosed(t *testing.T) {
	t.Parallel()
	h, l := hookedLocker(t, redistest.Shared(t).Client(t), lock.Options{Prefix: redistest.Prefix(t)})
	for range 3 {
		h.failing(times(2, rueidis.ErrClosing))
		lk, err := l.Lock(t.Context(), "name")
		require.NoError(t, err)
		h.failing(times(2, rueidis.ErrClosing))
		require.NoError(t, lk.Unlock(t.Context()))
		requireFree(t, l, "name")
	}
	h.failing(times(100, rueidis.ErrClosing))
	began := time.Now()
	_, err := l.Lock(t.Context(), "name")
	require.ErrorIs(t, err, rueidis.ErrClosing)
	require.Less(t, time.Since(began), time.Second)
	h.failing(nil)
}

// A command that takes a lock may come after it was released, on another connection than that which repeated it.
func TestLockLate_CommandsOfTokensThatAreNoMore(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	prefix := redistest.Prefix(t)
	h, l := hookedLocker(t, client, lock.Options{Prefix: prefix, Meta: "meta"})
	other := newLocker(t, client, lock.Options{Prefix: prefix})
	late := func(args []string) {
		reply := client.Do(t.Context(), client.B().Arbitrary(args[0]).Args(args[1:]...).Build())
		require.NoError(t, reply.Error())
	}
	free := func(name string) {
		t.Helper()
		info, err := other.Inspect(t.Context(), name)
		require.NoError(t, err)
		require.False(t, info.Held)
		require.Zero(t, info.Waiting)
	}
	for i := range 3 {
		name := "name" + strconv.Itoa(i)
		h.failing(nil)
		lk := acquire(t, l, name)
		require.NoError(t, lk.Unlock(t.Context()))
		late(h.first(t)) // nobody else has had it since
		free(name)
		next := acquire(t, other, name)
		require.Greater(t, next.Fence(), lk.Fence())
		require.NoError(t, next.Unlock(t.Context()))

		// Others have. The first command failed, so that whoever sent it looks after it for a while.
		h.failing(times(1, io.EOF))
		lk = acquire(t, l, name)
		require.NoError(t, lk.Unlock(t.Context()))
		next = acquire(t, other, name)
		require.NoError(t, next.Unlock(t.Context()))
		late(h.first(t))
		require.Eventually(t, func() bool {
			info, err := other.Inspect(t.Context(), name)
			return err == nil && !info.Held
		}, 2*time.Second, 5*time.Millisecond)
	}

	// Nor if the lock was taken away before it could be released.
	h.failing(times(1, io.EOF))
	lk := acquire(t, l, "broken")
	was, err := l.Break(t.Context(), "broken")
	require.NoError(t, err)
	require.True(t, was)
	require.ErrorIs(t, lk.Err(), lock.ErrLost)
	next := acquire(t, other, "broken")
	require.NoError(t, next.Unlock(t.Context()))
	late(h.first(t))
	require.Eventually(t, func() bool {
		info, err := other.Inspect(t.Context(), "broken")
		return err == nil && !info.Held
	}, 2*time.Second, 5*time.Millisecond)

	// Nor are there locks which are taken late together with others.
	h.failing(nil)
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			lk, err := l.Lock(t.Context(), "many"+strconv.Itoa(i))
			if err == nil {
				_ = lk.Unlock(t.Context())
			}
		})
	}
	wg.Wait()
	h.mu.Lock()
	sent := slices.Clone(h.sent)
	h.mu.Unlock()
	for _, args := range sent {
		late(args)
	}
	for i := range 200 {
		free("many" + strconv.Itoa(i))
	}
}

// The caller may recover from a panic of the client, or of a hook around it.
func TestLockLate_AClientPanics(t *testing.T) {
	t.Parallel()
	h, l := hookedLocker(t, redistest.Shared(t).Client(t), lock.Options{Prefix: redistest.Prefix(t)})
	panics := func() func([]string) error {
		done := false
		return func([]string) error {
			if !done {
				done = true
				panic("client")
			}
			return nil
		}
	}
	for range 3 {
		h.failing(panics())
		require.PanicsWithValue(t, "client", func() { _, _ = l.Lock(t.Context(), "name") })
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		lk, err := l.Lock(ctx, "name")
		require.NoError(t, err)
		h.failing(panics())
		require.PanicsWithValue(t, "client", func() { _ = lk.Unlock(t.Context()) })
		lk, err = l.Lock(ctx, "name")
		require.NoError(t, err)
		require.NoError(t, lk.Unlock(t.Context()))
	}
}

// What a call leaves to the next one in its process is confirmed by replicas too.
func TestLockLate_ReplicasConfirmWhatIsPassedOn(t *testing.T) {
	t.Parallel()
	servers := redistest.StartSentinel(t)
	l := newLocker(t, servers.Client(t), lock.Options{Replicas: 1, TTL: 5 * time.Second})
	for _, cut := range []bool{false, true} {
		lk := acquire(t, l, "name")
		require.NoError(t, lk.Extend(t.Context(), time.Minute)) // which is not for the next
		got := lockInBackground(t, l, "name")
		require.NoError(t, after(t.Context(), 50*time.Millisecond))
		if cut {
			servers.CutReplicaOff(t)
			requireNoReplica(t, servers.Client(t))
		}
		require.NoError(t, lk.Unlock(t.Context()))
		next := <-got
		if cut {
			require.ErrorIs(t, next.err, lock.ErrUnderReplicated)
			continue
		}
		require.NoError(t, next.err)
		require.NoError(t, next.Unlock(t.Context()))
	}
}

// WAIT waits for what its connection wrote last. So a command that finds the lock taken by itself writes too.
func TestLockLate_AskingAgainIsConfirmedToo(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t)
	h, l := hookedLocker(t, client, lock.Options{Prefix: "p"})
	h.failing(nil)
	lk := acquire(t, l, "name")
	asked := h.first(t)
	changes := func() int {
		info, err := client.Do(t.Context(), client.B().Info().Section("persistence").Build()).ToString()
		require.NoError(t, err)
		_, rest, _ := strings.Cut(info, "rdb_changes_since_last_save:")
		number, _, _ := strings.Cut(rest, "\r")
		n, err := strconv.Atoi(number)
		require.NoError(t, err)
		return n
	}
	before := changes()
	const times = 3
	transaction := rueidis.Commands{client.B().Multi().Build()} // in which time stands still
	for range times {
		transaction = append(transaction, client.B().Arbitrary(asked[0]).Args(asked[1:]...).Build())
	}
	for _, reply := range client.DoMulti(t.Context(), append(transaction, client.B().Exec().Build())...) {
		require.NoError(t, reply.Error())
	}
	require.GreaterOrEqual(t, changes()-before, times)
	require.NoError(t, lk.Unlock(t.Context()))
}

// A lease that was extended for no longer than the TTL is passed on like any other.
func TestLockLate_ExtendedForATTLItIsPassedOn(t *testing.T) {
	t.Parallel()
	h, l := hookedLocker(t, redistest.Shared(t).Client(t), lock.Options{Prefix: redistest.Prefix(t), TTL: time.Minute, MaxHold: time.Hour})
	lk := acquire(t, l, "name")
	got := lockInBackground(t, l, "name")
	require.NoError(t, after(t.Context(), 50*time.Millisecond))
	require.NoError(t, lk.Extend(t.Context(), time.Minute))
	var released atomic.Int32
	h.failing(func(args []string) error {
		if len(args) == 12 { // a release that queues the next token: a script, three keys, and six arguments
			released.Add(1)
		}
		return nil
	})
	require.NoError(t, lk.Unlock(t.Context()))
	next := <-got
	require.NoError(t, next.err)
	require.Zero(t, released.Load())
	require.NoError(t, next.Unlock(t.Context()))
}

// A server whose clock was set back gives fences above those it gave before, one at a time: a process has none in store.
func TestLockLate_ClockSetBack(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	opts := lock.Options{Prefix: redistest.Prefix(t)}
	h, l := hookedLocker(t, client, opts)
	other := newLocker(t, client, opts)
	fence := time.Now().Add(time.Hour).UnixMicro()
	send(t, client, "SET", lockKey(opts.Prefix, "name"), "|"+strconv.FormatInt(fence, 10)+"|before.1", "PX", "5000")
	lk := acquire(t, l, "name")
	waiting := []<-chan acquisition{lockInBackground(t, l, "name"), lockInBackground(t, l, "name")}
	require.NoError(t, after(t.Context(), 50*time.Millisecond))
	waiting = append(waiting, lockInBackground(t, other, "name"))
	requireWaiting(t, other, "name", 1)
	h.failing(nil)
	for len(waiting) > 0 {
		require.Greater(t, lk.Fence(), fence)
		fence = lk.Fence()
		require.NoError(t, lk.Unlock(t.Context()))
		for i := 0; ; i = (i + 1) % len(waiting) {
			select {
			case next := <-waiting[i]:
				require.NoError(t, next.err)
				lk = next.Lock
				waiting = append(waiting[:i], waiting[i+1:]...)
			case <-time.After(time.Millisecond):
				continue
			case <-t.Context().Done():
			}
			break
		}
	}
	require.NoError(t, lk.Unlock(t.Context()))
	h.mu.Lock()
	defer h.mu.Unlock()
	require.Less(t, len(h.sent), 100)
}

func requireNoReplica(t *testing.T, client rueidis.Client) {
	t.Helper()
	require.Eventually(t, func() bool {
		info, err := client.Do(t.Context(), client.B().Info().Section("replication").Build()).ToString()
		return err == nil && strings.Contains(info, "connected_slaves:0")
	}, 10*time.Second, 10*time.Millisecond)
}

// lockDeafConn hears nothing once it is told to, if it has subscribed.
type lockDeafConn struct {
	net.Conn
	subscribed atomic.Bool
	deaf       *atomic.Int32 // how many connections that have subscribed there are to be
	closed     chan struct{}
	once       sync.Once
	number     int32
	count      *atomic.Int32
}

func (c *lockDeafConn) Write(b []byte) (int, error) {
	if strings.Contains(string(b), "SUBSCRIBE") && c.subscribed.CompareAndSwap(false, true) {
		c.number = c.count.Add(1)
	}
	return c.Conn.Write(b)
}

func (c *lockDeafConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.subscribed.Load() && c.number <= c.deaf.Load() {
		<-c.closed
		return 0, net.ErrClosed
	}
	return n, err
}

func (c *lockDeafConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// A subscription may fall silent: a waiter subscribes anew after two looks, of which there is one per third of the TTL.
func TestLockLate_WaitersThatBecameDeaf(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	var deaf, count atomic.Int32
	client := server.Client(t, func(o *rueidis.ClientOption) {
		o.DialCtxFn = func(ctx context.Context, addr string, d *net.Dialer, _ *tls.Config) (net.Conn, error) {
			conn, err := d.DialContext(ctx, "tcp", addr)
			return &lockDeafConn{Conn: conn, deaf: &deaf, count: &count, closed: make(chan struct{})}, err
		}
	})
	opts := lock.Options{Prefix: redistest.Prefix(t), TTL: 6 * time.Second}
	holder, waiter := newLocker(t, server.Client(t), opts), newLocker(t, client, opts)
	lk := acquire(t, holder, "name")
	got := lockInBackground(t, waiter, "name")
	requireWaiting(t, holder, "name", 1)
	requireListening(t, client, opts.Prefix, 1)
	require.NoError(t, after(t.Context(), time.Second)) // it has proven itself
	deaf.Store(count.Load())
	require.Eventually(t, func() bool { return count.Load() > deaf.Load() }, opts.TTL, 5*time.Millisecond)
	require.NoError(t, after(t.Context(), time.Second))
	released := time.Now()
	require.NoError(t, lk.Unlock(t.Context()))
	next := <-got
	require.NoError(t, next.err)
	require.Less(t, next.at.Sub(released), time.Second)
	require.NoError(t, next.Unlock(t.Context()))
}

// lockSilentConn is one of the first connections, and hears nothing once they are to be silent.
type lockSilentConn struct {
	net.Conn
	silent *atomic.Int32
	mine   int32
	closed chan struct{}
	once   sync.Once
}

func (c *lockSilentConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.mine <= c.silent.Load() {
		<-c.closed
		return 0, net.ErrClosed
	}
	return n, err
}

func (c *lockSilentConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

func (c *lockSilentConn) SetDeadline(t time.Time) error {
	if !t.IsZero() && c.mine <= c.silent.Load() { // a Read that hangs on purpose does not see it
		time.AfterFunc(time.Until(t), func() { _ = c.Close() })
	}
	return c.Conn.SetDeadline(t)
}

// All connections there are may fall silent, as when a firewall forgets them: locks live on, on new ones.
func TestLockLate_LocksLiveOnWhereConnectionsFellSilent(t *testing.T) {
	t.Parallel()
	for name, connect := range map[string]func(t *testing.T, opt func(*rueidis.ClientOption)) rueidis.Client{
		"single": func(t *testing.T, opt func(*rueidis.ClientOption)) rueidis.Client {
			return redistest.Shared(t).Client(t, opt)
		},
		"cluster": func(t *testing.T, opt func(*rueidis.ClientOption)) rueidis.Client {
			return redistest.SharedCluster(t).Client(t, opt)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var number, silent atomic.Int32
			client := connect(t, func(o *rueidis.ClientOption) {
				o.DialCtxFn = func(ctx context.Context, addr string, d *net.Dialer, _ *tls.Config) (net.Conn, error) {
					conn, err := d.DialContext(ctx, "tcp", addr)
					return &lockSilentConn{Conn: conn, silent: &silent, mine: number.Add(1), closed: make(chan struct{})}, err
				}
			})
			l := newLocker(t, client, lock.Options{Prefix: redistest.Prefix(t), TTL: 6 * time.Second})
			locks := make([]*lock.Lock, 8)
			for i := range locks {
				locks[i] = acquire(t, l, "name"+strconv.Itoa(i))
			}
			silent.Store(number.Load())
			require.NoError(t, after(t.Context(), 8*time.Second)) // a TTL, and not the 11s in which the client notices
			for _, lk := range locks {
				require.NoError(t, lk.Err())
			}
			for i, lk := range locks {
				_ = lk.Unlock(t.Context()) // the first may be on a connection that has not been found out yet: then it goes on in the background
				require.Eventually(t, func() bool {
					info, err := l.Inspect(t.Context(), "name"+strconv.Itoa(i))
					return err == nil && !info.Held
				}, 5*time.Second, 10*time.Millisecond)
			}
		})
	}
}
