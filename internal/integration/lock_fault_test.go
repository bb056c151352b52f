package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/redispatterns/redispatterns/internal/integration/redistest"
	"github.com/redispatterns/redispatterns/lock"
)

const recovery = time.Second // what any recovery may take

func send(t *testing.T, client rueidis.Client, args ...string) {
	t.Helper()
	require.NoError(t, client.Do(t.Context(), client.B().Arbitrary(args...).Build()).Error())
}

func TestLock_AHolderThatIsCutOffStopsInTime(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr())
	prefix := redistest.Prefix(t)
	const ttl = time.Second
	opts := lock.Options{Prefix: prefix, TTL: ttl}
	holder := newLocker(t, server.Client(t, proxy.Through), opts)
	other := newLocker(t, server.Client(t), opts)
	lk := acquire(t, holder, "name")
	ended := make(chan time.Time, 1)
	stop := context.AfterFunc(lk.Context(), func() { ended <- time.Now() })
	defer stop()
	got := lockInBackground(t, other, "name")
	requireWaiting(t, other, "name", 1)
	// After a renewal, so that it is one that counts.
	first := lk.Deadline()
	require.Eventually(t, func() bool { return lk.Deadline().After(first) }, 5*time.Second, time.Millisecond)
	proxy.BlackHole(t)
	next := <-got
	require.NoError(t, next.err)
	select {
	case at := <-ended:
		t.Logf("%v between the end of the one and the beginning of the other", next.at.Sub(at))
		require.True(t, at.Before(next.at))
	default:
		t.Fatal("two hold the lock")
	}
	require.ErrorIs(t, lk.Err(), lock.ErrLost)
	require.ErrorIs(t, context.Cause(lk.Context()), lock.ErrLost)
	require.ErrorIs(t, lk.Unlock(t.Context()), lock.ErrLost)
	proxy.Restore(t)
	require.NoError(t, next.Unlock(t.Context()))
}

func TestLock_LostReplies(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	direct := newLocker(t, server.Client(t), lock.Options{})
	begin := func(t *testing.T) (*redistest.Proxy, *lock.Locker) {
		proxy := redistest.NewProxy(t, server.Addr())
		l := newLocker(t, server.Client(t, proxy.Through, redistest.OneConnection), lock.Options{})
		require.NoError(t, acquire(t, l, "warm up").Unlock(t.Context()))
		proxy.DropReplies(t)
		return proxy, l
	}
	t.Run("given up", func(t *testing.T) {
		t.Parallel()
		proxy, l := begin(t)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		_, err := l.Lock(ctx, "given up")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		info, err := direct.Inspect(t.Context(), "given up")
		require.NoError(t, err)
		require.True(t, info.Held, "nobody knows")
		proxy.Restore(t) // nothing gets through before: a new connection needs replies
		began := time.Now()
		requireFree(t, direct, "given up")
		lk, err := direct.TryLock(t.Context(), "given up")
		require.NoError(t, err)
		require.Less(t, time.Since(began), recovery)
		require.NoError(t, lk.Unlock(t.Context()))
	})
	t.Run("asked again", func(t *testing.T) {
		t.Parallel()
		for _, lockIt := range []func(*lock.Locker, context.Context, string) (*lock.Lock, error){
			(*lock.Locker).Lock, (*lock.Locker).TryLock,
		} {
			proxy, l := begin(t)
			got := make(chan acquisition, 1)
			go func() {
				lk, err := lockIt(l, t.Context(), "asked again")
				got <- acquisition{lk, err, time.Now()}
			}()
			require.Eventually(t, func() bool {
				info, err := direct.Inspect(t.Context(), "asked again")
				return err == nil && info.Held
			}, 5*time.Second, time.Millisecond, "Redis granted it, and cannot say so")
			info, err := direct.Inspect(t.Context(), "asked again")
			require.NoError(t, err)
			proxy.Restore(t)
			a := <-got
			require.NoError(t, a.err, "nobody holds it but itself")
			require.Equal(t, info.Fence, a.Fence())
			require.NoError(t, a.Unlock(t.Context()))
			lk, err := direct.TryLock(t.Context(), "asked again")
			require.NoError(t, err)
			require.NoError(t, lk.Unlock(t.Context()))
		}
	})
	t.Run("release", func(t *testing.T) {
		t.Parallel()
		proxy := redistest.NewProxy(t, server.Addr())
		l := newLocker(t, server.Client(t, proxy.Through, redistest.OneConnection), lock.Options{})
		require.NoError(t, acquire(t, l, "warm up release").Unlock(t.Context())) // or the server does not know the script
		lk := acquire(t, l, "release")
		next := lockInBackground(t, direct, "release")
		requireWaiting(t, direct, "release", 1)
		proxy.DropReplies(t)
		unlocked := make(chan error, 1)
		go func() { unlocked <- lk.Unlock(t.Context()) }()
		a := <-next
		require.NoError(t, a.err)
		proxy.Restore(t)
		require.NoError(t, <-unlocked, "the repetition found another's lock: the first did it")
		require.NoError(t, a.Err())
		require.NoError(t, a.Unlock(t.Context()))
	})
}

// The command that gives up a token may overtake the one that acquires it.
func TestLock_AStallLeavesNoOrphan(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t)
	l := newLocker(t, client, lock.Options{})
	direct := newLocker(t, server.Client(t), lock.Options{})
	for range 5 {
		send(t, server.Client(t), "CLIENT", "PAUSE", "200", "ALL")
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
				defer cancel()
				lk, err := l.Lock(ctx, "name"+strconv.Itoa(i))
				if err == nil { // the pause was over already
					err = lk.Unlock(t.Context())
				}
				if err != nil && ctx.Err() == nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		began := time.Now()
		for i := range 20 {
			requireFree(t, direct, "name"+strconv.Itoa(i))
		}
		require.Less(t, time.Since(began), 200*time.Millisecond+recovery)
	}
	// A stall shorter than the caller's patience is waited out.
	send(t, client, "CLIENT", "PAUSE", "200", "ALL")
	began := time.Now()
	lk := acquire(t, l, "patient")
	require.Less(t, time.Since(began), 200*time.Millisecond+recovery)
	require.NoError(t, lk.Unlock(t.Context()))
}

func TestLock_CancelledWaitsLeaveNothingBehind(t *testing.T) {
	t.Parallel()
	redistest.EachTarget(t, func(t *testing.T, client rueidis.Client) {
		prefix := redistest.Prefix(t)
		holder := newLocker(t, client, lock.Options{Prefix: prefix})
		waiter := newLocker(t, client, lock.Options{Prefix: prefix})
		rounds := 500
		if soak() {
			rounds = 10_000
		}
		lk := acquire(t, holder, "name")
		var wg sync.WaitGroup
		for w := range 4 {
			wg.Go(func() {
				for i := range rounds / 4 {
					ctx, cancel := context.WithCancel(t.Context())
					if i%2 == 0 {
						time.AfterFunc(time.Duration(i*w%300)*time.Microsecond, cancel)
					} else {
						cancel2 := cancel
						go cancel2()
					}
					_, err := waiter.Lock(ctx, "name")
					cancel()
					if err == nil || ctx.Err() == nil {
						t.Error("expected the end of ctx, got", err)
						return
					}
				}
			})
		}
		wg.Wait()
		began := time.Now()
		requireWaiting(t, holder, "name", 0)
		require.Less(t, time.Since(began), recovery)
		require.NoError(t, lk.Unlock(t.Context()))
		began = time.Now()
		next := acquire(t, waiter, "name")
		require.Less(t, time.Since(began), recovery)
		require.NoError(t, next.Unlock(t.Context()))
		for _, part := range []string{":q", ":w"} {
			require.False(t, exists(t, client, lockKey(prefix, "name")+part))
		}
	})
}

func TestLock_FirstComeFirstServed(t *testing.T) {
	t.Parallel()
	redistest.EachTarget(t, func(t *testing.T, client rueidis.Client) {
		prefix := redistest.Prefix(t)
		lk := acquire(t, newLocker(t, client, lock.Options{Prefix: prefix}), "name")
		const waiters = 10
		got := make([]<-chan acquisition, waiters)
		for i := range got {
			l := newLocker(t, client, lock.Options{Prefix: prefix})
			got[i] = lockInBackground(t, l, "name")
			requireWaiting(t, l, "name", i+1)
		}
		fence := lk.Fence()
		require.NoError(t, lk.Unlock(t.Context()))
		for i := range got {
			a := <-got[i]
			require.NoError(t, a.err)
			require.Greater(t, a.Fence(), fence)
			for _, later := range got[i+1:] {
				require.Empty(t, later)
			}
			fence = a.Fence()
			require.NoError(t, a.Unlock(t.Context()))
		}
	})
}

// A thousand that wait in one process cost a command per third of the TTL, and the holder as much.
func TestLock_WaitingCostsLittle(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	const ttl = 1200 * time.Millisecond
	opts := lock.Options{TTL: ttl}
	holder, waiter := newLocker(t, server.Client(t), opts), newLocker(t, server.Client(t), opts)
	lk := acquire(t, holder, "name")
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 1000 {
		wg.Go(func() { _, _ = waiter.Lock(ctx, "name") })
	}
	requireWaiting(t, holder, "name", 1)
	requireListening(t, server.Client(t), "lock", 1)
	// Until the inbox has proven itself it polls a little more.
	settled := time.Now()
	require.Eventually(t, func() bool { return time.Since(settled) > 200*time.Millisecond }, 5*time.Second, 10*time.Millisecond)
	const thirds = 6
	calls := redistest.Commands(t, server, func() {
		began := time.Now()
		require.Eventually(t, func() bool { return time.Since(began) >= thirds*ttl/3 }, 10*time.Second, time.Millisecond)
	})
	require.LessOrEqual(t, calls["evalsha"]+calls["eval"], int64(2*(thirds+1)), calls)
	require.GreaterOrEqual(t, calls["evalsha"]+calls["eval"], int64(thirds/2), calls)
	info, err := holder.Inspect(t.Context(), "name")
	require.NoError(t, err)
	require.Equal(t, 1, info.Waiting)
	cancel()
	wg.Wait()
	requireWaiting(t, holder, "name", 0)
	require.NoError(t, lk.Unlock(t.Context()))
}

func TestLock_WaitersAreNeverStuck(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]func(t *testing.T, admin rueidis.Client, unlock func()){
		"stall": func(t *testing.T, c rueidis.Client, unlock func()) {
			send(t, c, "CLIENT", "PAUSE", "200", "ALL")
			unlock()
		},
		"all killed": func(t *testing.T, c rueidis.Client, unlock func()) {
			send(t, c, "CLIENT", "KILL", "SKIPME", "yes")
			unlock()
		},
		"inbox killed": func(t *testing.T, c rueidis.Client, unlock func()) {
			send(t, c, "CLIENT", "KILL", "TYPE", "pubsub")
			unlock()
		},
		"lost wake-up": func(t *testing.T, c rueidis.Client, unlock func()) {
			unlock()
			send(t, c, "CLIENT", "KILL", "TYPE", "pubsub")
		},
		"unknown": func(t *testing.T, c rueidis.Client, unlock func()) { send(t, c, "SCRIPT", "FLUSH"); unlock() },
		"queue deleted": func(t *testing.T, c rueidis.Client, unlock func()) {
			send(t, c, "DEL", lockKey("lock", "name")+":q", lockKey("lock", "name")+":w")
			unlock()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t)
			admin := server.Client(t)
			// The TTL is short where a poll is what helps: a deleted queue says nothing to those who were in it.
			ttl := 10 * time.Second
			if name == "queue deleted" {
				ttl = 1500 * time.Millisecond
			}
			holder := newLocker(t, server.Client(t), lock.Options{TTL: ttl})
			a := newLocker(t, server.Client(t), lock.Options{TTL: ttl})
			b := newLocker(t, server.Client(t), lock.Options{TTL: ttl})
			for range 3 {
				lk := acquire(t, holder, "name")
				first, second := lockInBackground(t, a, "name"), lockInBackground(t, b, "name")
				requireWaiting(t, holder, "name", 2)
				requireListening(t, admin, "lock", 2)
				began := time.Now()
				fault(t, admin, func() { require.NoError(t, lk.Unlock(t.Context())) })
				for range 2 {
					var next acquisition
					select {
					case next = <-first:
					case next = <-second:
					}
					require.NoError(t, next.err)
					require.Less(t, next.at.Sub(began), recovery)
					began = time.Now()
					require.NoError(t, next.Unlock(t.Context()))
				}
			}
		})
	}
}

func TestLock_WithoutPubSubWaitersPoll(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	admin := server.Client(t)
	for i, rights := range []string{"-@pubsub", "resetchannels", "-publish"} {
		user := "poller" + strconv.Itoa(i)
		send(t, admin, append([]string{"ACL", "SETUSER", user, "on", ">secret", "~*", "&*", "+@all"}, rights)...)
		as := func(o *rueidis.ClientOption) { o.Username, o.Password = user, "secret" }
		a := newLocker(t, server.Client(t, as), lock.Options{Prefix: user})
		b := newLocker(t, server.Client(t, as), lock.Options{Prefix: user})
		for range 3 {
			lk := acquire(t, a, "name")
			got := lockInBackground(t, b, "name")
			requireWaiting(t, a, "name", 1)
			began := time.Now()
			require.NoError(t, lk.Unlock(t.Context()))
			next := <-got
			require.NoError(t, next.err)
			require.Less(t, next.at.Sub(began), recovery, rights)
			require.NoError(t, next.Unlock(t.Context()))
		}
	}
}

func TestLock_FencesRiseWhateverIsLost(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t)
	const ttl = 300 * time.Millisecond
	l := newLocker(t, client, lock.Options{TTL: ttl})
	other := newLocker(t, server.Client(t), lock.Options{TTL: ttl})
	key := lockKey("lock", "name")
	// What is held when the fault comes has been passed on within its process, under fences of its own.
	for name, fault := range map[string]func(){
		"delete":                func() { send(t, client, "DEL", key) },
		"flush":                 func() { send(t, client, "FLUSHALL") },
		"expiry":                func() { send(t, client, "PEXPIRE", key, "1") },
		"restart":               func() { server.Restart(t) },
		"release":               func() {},
		"script flush, release": func() { send(t, client, "SCRIPT", "FLUSH") },
	} {
		var fence int64
		pass := func() *lock.Lock {
			lk := acquire(t, l, "name")
			require.Greater(t, lk.Fence(), fence, name)
			fence = lk.Fence()
			return lk
		}
		lk := pass()
		for range 200 {
			got := lockInBackground(t, l, "name")
			if err := lk.Unlock(t.Context()); err != nil {
				require.ErrorIs(t, err, lock.ErrLost)
			}
			a := <-got
			require.NoError(t, a.err)
			require.Greater(t, a.Fence(), fence, name)
			lk, fence = a.Lock, a.Fence()
		}
		fault()
		if strings.HasSuffix(name, "release") {
			require.NoError(t, lk.Unlock(t.Context()))
		}
		next := acquire(t, other, "name")
		require.Greater(t, next.Fence(), fence, name)
		fence = next.Fence()
		_ = lk.Unlock(t.Context())
		_ = next.Unlock(t.Context())
		requireFree(t, other, "name")
		last := pass()
		require.NoError(t, last.Unlock(t.Context()))
	}
}

// A failover that loses an acquisition gives the lock to another, under a higher fence; the one who lost it learns of it when
// it renews, and until then fences tell them apart.
func TestLock_AFailoverThatLosesTheLock(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	servers := redistest.StartSentinel(t)
	quick := func(o *rueidis.ClientOption) { o.Dialer.Timeout = time.Second } // else renewals wait 5s for a server that accepts and hangs
	client := servers.Client(t, quick)
	opts := lock.Options{TTL: 20 * time.Second}
	a, b := newLocker(t, client, opts), newLocker(t, servers.Client(t, quick), opts)
	kept := acquire(t, a, "kept")
	servers.CutReplicaOff(t)
	lk := acquire(t, a, "name")
	servers.KillPrimary(t)
	next := acquire(t, b, "name")
	require.Greater(t, next.Fence(), lk.Fence())
	require.Eventually(t, func() bool { // once all connections of client are to the new primary
		return lock.SetFenced(ctx, client, "resource", next.Fence(), "b") == nil
	}, opts.TTL/4, 10*time.Millisecond)
	if lk.Err() == nil { // as long as it has not tried to renew it
		require.ErrorIs(t, lock.SetFenced(ctx, client, "resource", lk.Fence(), "a"), lock.ErrStale)
	}
	require.Eventually(t, func() bool { return errors.Is(lk.Err(), lock.ErrLost) }, opts.TTL, 10*time.Millisecond)
	require.NoError(t, next.Err())
	require.NoError(t, kept.Err(), "it was replicated")
	require.ErrorIs(t, lk.Unlock(ctx), lock.ErrLost)
	require.NoError(t, next.Unlock(ctx))
	require.NoError(t, kept.Unlock(ctx))
}

func TestLock_SurvivesFailover(t *testing.T) {
	t.Parallel()
	if !soak() && testing.Short() {
		t.Skip("takes half a minute")
	}
	run := func(t *testing.T, a, b *lock.Locker, failover func()) {
		lk := acquire(t, a, "name")
		got := lockInBackground(t, b, "name")
		requireWaiting(t, a, "name", 1)
		failover()
		// The lock was replicated or not; the one who waits gets it when it is released, or at once.
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		_ = lk.Unlock(ctx)
		select {
		case next := <-got:
			require.NoError(t, next.err)
			require.Greater(t, next.Fence(), lk.Fence())
			require.NoError(t, next.Unlock(ctx))
		case <-ctx.Done():
			t.Fatal("nobody gets the lock")
		}
		requireFree(t, a, "name")
	}
	t.Run("sentinel", func(t *testing.T) {
		t.Parallel()
		s := redistest.StartSentinel(t)
		opts := lock.Options{TTL: 5 * time.Second}
		a, b := newLocker(t, s.Client(t), opts), newLocker(t, s.Client(t), opts)
		run(t, a, b, func() { s.Failover(t) })
		run(t, a, b, func() { s.KillPrimary(t) })
	})
	t.Run("cluster, reading from replicas", func(t *testing.T) {
		t.Parallel()
		c := redistest.StartCluster(t, 1)
		toReplicas := func(o *rueidis.ClientOption) {
			o.SendToReplicas = func(cmd rueidis.Completed) bool { return cmd.IsReadOnly() }
		}
		opts := lock.Options{TTL: 5 * time.Second}
		client := c.Client(t, toReplicas)
		a, b := newLocker(t, client, opts), newLocker(t, c.Client(t, toReplicas), opts)
		run(t, a, b, func() {})
		run(t, a, b, func() { c.Failover(t, lockKey("lock", "name")) })

		// While there are replicas, they can be waited for.
		replicated := newLocker(t, client, lock.Options{Replicas: 1, Prefix: "replicated"})
		tooMuch := newLocker(t, client, lock.Options{Replicas: 3, TTL: time.Second, Prefix: "replicated"})
		name := ""
		for i := 0; name == ""; i++ { // on a primary that still has its replica
			candidate := fmt.Sprint("name", i)
			if slotOf(client, lockKey("replicated", candidate))/5462 != slotOf(client, lockKey("lock", "name"))/5462 {
				name = candidate
			}
		}
		lk := acquire(t, replicated, name)
		got := lockInBackground(t, newLocker(t, client, lock.Options{Replicas: 1, Prefix: "replicated"}), name)
		requireWaiting(t, replicated, name, 1)
		require.NoError(t, lk.Unlock(t.Context()))
		next := <-got
		require.NoError(t, next.err)
		require.NoError(t, next.Unlock(t.Context()))
		_, err := tooMuch.Lock(t.Context(), name)
		require.ErrorIs(t, err, lock.ErrUnderReplicated)
		requireFree(t, replicated, name)
	})
}

func slotOf(client rueidis.Client, key string) uint16 {
	cmd := client.B().Get().Key(key).Build()
	return cmd.Slot()
}

func TestLock_AFullServerReleases(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, "--maxmemory-policy", "noeviction")
	client := server.Client(t)
	l := newLocker(t, client, lock.Options{TTL: 600 * time.Millisecond})
	kept, freed := acquire(t, l, "kept"), acquire(t, l, "freed")
	waiting := lockInBackground(t, newLocker(t, server.Client(t), lock.Options{TTL: time.Second}), "freed")
	requireWaiting(t, l, "freed", 1)
	send(t, client, "CONFIG", "SET", "maxmemory", "1")
	require.NoError(t, freed.Unlock(t.Context()))
	next := <-waiting
	require.NoError(t, next.err, "it was in the queue already")
	require.NoError(t, next.Unlock(t.Context()))
	info, err := l.Inspect(t.Context(), "freed")
	require.NoError(t, err)
	require.False(t, info.Held)
	_, err = l.TryLock(t.Context(), "new")
	require.ErrorContains(t, err, "OOM")
	_, err = l.Lock(t.Context(), "new")
	require.ErrorContains(t, err, "OOM")
	deadline := kept.Deadline()
	require.Eventually(t, func() bool { return kept.Deadline().Sub(deadline) > 600*time.Millisecond }, 5*time.Second, time.Millisecond,
		"it is renewed all the same")
	send(t, client, "CONFIG", "SET", "maxmemory", "0")
	require.NoError(t, acquire(t, l, "freed").Unlock(t.Context()))
	require.NoError(t, kept.Unlock(t.Context()))
}

func TestLock_ARedisThatIsDownIsAnError(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	const ttl = 500 * time.Millisecond
	l := newLocker(t, server.Client(t), lock.Options{TTL: ttl})
	lk := acquire(t, l, "held")
	server.Kill(t)
	began := time.Now()
	_, err := l.TryLock(t.Context(), "name")
	require.Error(t, err)
	var heldBy *lock.HeldError
	require.NotErrorAs(t, err, &heldBy)
	_, err = l.Lock(t.Context(), "name")
	require.Error(t, err)
	require.Less(t, time.Since(began), 2*ttl+2*time.Second)
	require.ErrorIs(t, lk.Unlock(t.Context()), lock.ErrLost)
	server.Restart(t)
	require.NoError(t, acquire(t, l, "name").Unlock(t.Context()))
}

func TestLock_ATTLBelowTheRoundTripIsAnError(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr())
	client := server.Client(t, proxy.Through)
	l := newLocker(t, client, lock.Options{TTL: 200 * time.Millisecond})
	require.NoError(t, acquire(t, newLocker(t, client, lock.Options{}), "name").Unlock(t.Context())) // it knows the scripts
	proxy.Latency(t, 400*time.Millisecond)
	for _, lockIt := range []func(context.Context, string) (*lock.Lock, error){l.Lock, l.TryLock} {
		ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
		_, err := lockIt(ctx, "name")
		require.NoError(t, ctx.Err())
		cancel()
		require.ErrorIs(t, err, lock.ErrSlow)
	}
	proxy.Restore(t)
	direct := newLocker(t, server.Client(t), lock.Options{})
	requireFree(t, direct, "name")
}

// Not parallel: it counts the goroutines of the process.
func TestLock_TenThousandAreRenewedTogether(t *testing.T) {
	server := redistest.Start(t)
	client := server.Client(t)
	const count, ttl = 10_000, 6 * time.Second
	l := newLocker(t, client, lock.Options{TTL: ttl})
	require.NoError(t, acquire(t, l, "warm up").Unlock(t.Context()))
	locks := make([]*lock.Lock, count)
	var wg sync.WaitGroup
	for w := range 64 {
		wg.Go(func() {
			for i := w; i < count; i += 64 {
				lk, err := l.Lock(t.Context(), strconv.Itoa(i))
				if err != nil {
					t.Error(err)
					return
				}
				locks[i] = lk
			}
		})
	}
	wg.Wait()
	require.False(t, t.Failed())
	settled := time.Now()
	require.Eventually(t, func() bool { return time.Since(settled) > ttl/3 }, 10*time.Second, 10*time.Millisecond)
	most := 0
	calls := redistest.Commands(t, server, func() {
		began := time.Now()
		require.Eventually(t, func() bool {
			most = max(most, goroutinesOf("redispatterns/lock."))
			return time.Since(began) >= 2*ttl/3
		}, 10*time.Second, 5*time.Millisecond)
	})
	t.Log(calls, most)
	require.LessOrEqual(t, most, 4)
	scripts := calls["evalsha"] + calls["eval"] // 200 locks each; twice a third of the TTL has one renewal of each lock at least
	require.GreaterOrEqual(t, scripts, int64(count/200), calls)
	require.LessOrEqual(t, scripts, int64(2*100), calls)
	for _, lk := range locks {
		require.NoError(t, lk.Err())
	}
	for w := range 64 {
		wg.Go(func() {
			for i := w; i < count; i += 64 {
				if err := locks[i].Unlock(t.Context()); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// goroutinesOf counts the goroutines that run code of a package.
func goroutinesOf(pkg string) int {
	buf := make([]byte, 1<<20)
	buf = buf[:runtime.Stack(buf, true)]
	n := 0
	for stack := range bytes.SplitSeq(buf, []byte("\n\n")) {
		if strings.Contains(string(stack), pkg) {
			n++
		}
	}
	return n
}

func TestLock_AForgottenLockEnds(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	prefix := redistest.Prefix(t)
	const ttl = 300 * time.Millisecond
	lost := make(chan lock.LostInfo, 1)
	l := newLocker(t, client, lock.Options{Prefix: prefix, TTL: ttl, Hooks: lock.Hooks{
		Lost: func(_ context.Context, info lock.LostInfo) { lost <- info },
	}})
	kept := acquire(t, l, "kept")
	ctx := func() context.Context { return acquire(t, l, "forgotten").Context() }()
	require.Eventually(t, func() bool {
		runtime.GC()
		return ctx.Err() != nil
	}, 10*time.Second, 10*time.Millisecond)
	require.ErrorIs(t, context.Cause(ctx), lock.ErrLost)
	require.Equal(t, "forgotten", (<-lost).Name)
	requireFree(t, l, "forgotten")
	require.NoError(t, kept.Err(), "it has been renewed meanwhile")
	require.NoError(t, kept.Unlock(t.Context()))
}

// Others are served while a process has calls of its own without end.
func TestLock_AProcessDoesNotKeepTheLock(t *testing.T) {
	t.Parallel()
	redistest.EachTarget(t, func(t *testing.T, client rueidis.Client) {
		prefix := redistest.Prefix(t)
		busy := newLocker(t, client, lock.Options{Prefix: prefix})
		other := newLocker(t, client, lock.Options{Prefix: prefix})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for ctx.Err() == nil {
					if err := busy.Do(ctx, "name", func(context.Context, int64) error { return nil }); err != nil && ctx.Err() == nil {
						t.Error(err)
						return
					}
				}
			})
		}
		for range 10 {
			began := time.Now()
			lk := acquire(t, other, "name")
			require.Less(t, time.Since(began), recovery)
			require.NoError(t, lk.Unlock(t.Context()))
		}
		cancel()
		wg.Wait()
	})
}
