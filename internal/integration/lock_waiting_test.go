package integration

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/redispatterns/redispatterns/internal/integration/redistest"
	"github.com/redispatterns/redispatterns/lock"
)

// promptly is how long a waiter may take that need not wait for a lease to end.
const promptly = 5 * time.Second

// However few goroutines of a process pass a lock on among themselves, they learn that another process waits.
func TestLock_LocalPassesLetOthersIn(t *testing.T) {
	t.Parallel()
	for _, goroutines := range []int{2, 8} {
		for _, noRenewal := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d goroutines, no renewal %t", goroutines, noRenewal), func(t *testing.T) {
				t.Parallel()
				server, prefix := redistest.Shared(t), redistest.Prefix(t)
				busy := newLocker(t, server.Client(t), lock.Options{Prefix: prefix, TTL: time.Minute, NoRenewal: noRenewal})
				other := newLocker(t, server.Client(t), lock.Options{Prefix: prefix, TTL: time.Minute})
				ctx, cancel := context.WithCancel(t.Context())
				var all sync.WaitGroup
				passes := make(chan struct{}, 1)
				for range goroutines {
					all.Go(func() {
						for ctx.Err() == nil {
							lk, err := busy.Lock(ctx, "n")
							if err != nil {
								continue
							}
							_ = after(ctx, time.Millisecond)
							_ = lk.Unlock(ctx)
							select {
							case passes <- struct{}{}:
							default:
							}
						}
					})
				}
				for range 3 {
					for range 20 {
						<-passes
					}
					began := time.Now()
					lk := acquire(t, other, "n")
					require.Less(t, time.Since(began), promptly)
					require.NoError(t, lk.Unlock(t.Context()))
				}
				cancel()
				all.Wait()
			})
		}
	}
}

func TestLock_TwoStoppedWaitersDelayTheThirdALittle(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	opts := lock.Options{Prefix: redistest.Prefix(t), TTL: time.Minute}
	holder := newLocker(t, server.Client(t), opts)
	lk := acquire(t, holder, "n")
	ctx, cancel := context.WithCancel(t.Context())
	var stopped sync.WaitGroup
	var proxies []*redistest.Proxy
	for i := range 2 {
		proxy := redistest.NewProxy(t, server.Addr())
		proxies = append(proxies, proxy)
		l := newLocker(t, server.Client(t, proxy.Through), opts)
		stopped.Go(func() { _, _ = l.Lock(ctx, "n") })
		requireWaiting(t, holder, "n", i+1)
	}
	third := lockInBackground(t, newLocker(t, server.Client(t), opts), "n")
	requireWaiting(t, holder, "n", 3)
	admin := server.Client(t)
	require.Eventually(t, func() bool { // all listen
		channels, err := admin.Do(ctx, admin.B().PubsubChannels().Build()).ToArray()
		return err == nil && len(channels) == 3
	}, 10*time.Second, time.Millisecond)
	for _, proxy := range proxies {
		proxy.BlackHole(t)
	}
	began := time.Now()
	require.NoError(t, lk.Unlock(ctx))
	got := <-third
	require.NoError(t, got.err)
	require.Less(t, time.Since(began), promptly)
	require.NoError(t, got.Unlock(ctx))
	for _, proxy := range proxies {
		proxy.Restore(t)
	}
	cancel()
	stopped.Wait()
}

func TestLock_ASubscriptionMayBeLostForGood(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	opts := lock.Options{Prefix: redistest.Prefix(t), TTL: time.Minute}
	holder := newLocker(t, server.Client(t), opts)
	lk := acquire(t, holder, "n")
	waiter := lockInBackground(t, newLocker(t, server.Client(t), opts), "n")
	requireWaiting(t, holder, "n", 1)
	admin := server.Client(t)
	run := func(words ...string) rueidis.RedisResult {
		return admin.Do(t.Context(), admin.B().Arbitrary(words...).Build())
	}
	listening := func() int {
		channels, err := run("PUBSUB", "CHANNELS").ToArray()
		require.NoError(t, err)
		return len(channels)
	}
	require.Eventually(t, func() bool { return listening() == 1 }, 10*time.Second, time.Millisecond)
	require.NoError(t, run("ACL", "SETUSER", "default", "-subscribe").Error())
	require.NoError(t, run("CLIENT", "KILL", "TYPE", "pubsub").Error())
	require.Eventually(t, func() bool { return listening() == 0 }, 10*time.Second, time.Millisecond)
	began := time.Now()
	require.NoError(t, lk.Unlock(t.Context()))
	got := <-waiter
	require.NoError(t, got.err)
	require.Less(t, time.Since(began), promptly)
	require.NoError(t, got.Unlock(t.Context()))
}

// Half a minute after the last wait, and the next wait subscribes again.
func TestLock_AnIdleSubscriptionIsGivenBack(t *testing.T) {
	t.Parallel()
	shared, opts := redistest.Shared(t), lock.Options{Prefix: redistest.Prefix(t)}
	client := shared.Client(t)
	holder, waiter := newLocker(t, client, opts), newLocker(t, shared.Client(t), opts)
	wait := func() time.Time {
		lk := acquire(t, holder, "name")
		got := lockInBackground(t, waiter, "name")
		requireListening(t, client, opts.Prefix, 1)
		require.NoError(t, lk.Unlock(t.Context()))
		next := <-got
		require.NoError(t, next.err)
		require.NoError(t, next.Unlock(t.Context()))
		return time.Now()
	}
	last := wait()
	require.Eventually(t, func() bool {
		channels, err := client.Do(t.Context(), client.B().PubsubChannels().Pattern(opts.Prefix+":inbox:*").Build()).AsStrSlice()
		return err == nil && len(channels) == 0
	}, 50*time.Second, 100*time.Millisecond)
	require.Greater(t, time.Since(last), 25*time.Second)
	wait()
}

func TestLock_TryLockGivesUpSoonWhileOthersWait(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	l := newLocker(t, server.Client(t), lock.Options{Prefix: redistest.Prefix(t), TTL: 20 * time.Second})
	server.Kill(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	waits := make(chan error, 1)
	go func() {
		_, err := l.Lock(ctx, "n")
		waits <- err
	}()
	require.NoError(t, after(ctx, 50*time.Millisecond))
	began := time.Now()
	_, err := l.TryLock(ctx, "n")
	require.Error(t, err)
	require.Less(t, time.Since(began), promptly)
	cancel()
	require.Error(t, <-waits)
	server.Restart(t)
}

func TestLock_MaxHoldBoundsWhatIsExtended(t *testing.T) {
	t.Parallel()
	client, prefix := redistest.Shared(t).Client(t), redistest.Prefix(t)
	const maxHold = 20 * time.Second
	l := newLocker(t, client, lock.Options{Prefix: prefix, TTL: 500 * time.Millisecond, MaxHold: maxHold})
	lk := acquire(t, l, "n")
	require.NoError(t, lk.Extend(t.Context(), time.Hour))
	pttl, err := client.Do(t.Context(), client.B().Pttl().Key(lockKey(prefix, "n")).Build()).AsInt64()
	require.NoError(t, err)
	require.Greater(t, pttl, (maxHold - 10*time.Second).Milliseconds())
	require.LessOrEqual(t, pttl, (maxHold + time.Second).Milliseconds())
	require.LessOrEqual(t, time.Until(lk.Deadline()), maxHold)
	require.NoError(t, lk.Unlock(t.Context()))
}

func TestLock_AQueueThatIsDeletedIsMadeAnew(t *testing.T) {
	t.Parallel()
	client, prefix := redistest.Shared(t).Client(t), redistest.Prefix(t)
	opts := lock.Options{Prefix: prefix, TTL: 3 * time.Second}
	holder := newLocker(t, client, opts)
	lk := acquire(t, holder, "n")
	waiter := lockInBackground(t, newLocker(t, client, opts), "n")
	requireWaiting(t, holder, "n", 1)
	require.NoError(t, client.Do(t.Context(), client.B().Del().Key(lockKey(prefix, "n")+":q").Build()).Error())
	requireWaiting(t, holder, "n", 1) // at its next look
	require.NoError(t, lk.Unlock(t.Context()))
	got := <-waiter
	require.NoError(t, got.err)
	require.NoError(t, got.Unlock(t.Context()))
}

// What an Extend asked for is not for who gets the lock next in the process, even if Redis has yet to be asked.
func TestLock_AnExtensionIsForOneHolder(t *testing.T) {
	t.Parallel()
	const ttl = 5 * time.Second
	server := redistest.Shared(t)
	proxy := redistest.NewProxy(t, server.Addr())
	locker := newLocker(t, server.Client(t, proxy.Through), lock.Options{Prefix: redistest.Prefix(t), TTL: ttl})
	proxy.Latency(t, 200*time.Millisecond)
	for _, wait := range []time.Duration{0, time.Second} { // until Unlock
		lk := acquire(t, locker, "n")
		next := lockInBackground(t, locker, "n")
		require.NoError(t, after(t.Context(), 50*time.Millisecond)) // until it waits
		extended := make(chan error, 1)
		go func() { extended <- lk.Extend(t.Context(), time.Minute) }()
		require.NoError(t, after(t.Context(), 50*time.Millisecond+wait)) // until it is on its way, or done
		require.NoError(t, lk.Unlock(t.Context()))
		got := <-next
		require.NoError(t, got.err)
		require.Less(t, time.Until(got.Deadline()), ttl)
		if err := <-extended; wait == 0 {
			require.ErrorIs(t, err, lock.ErrReleased)
		} else {
			require.NoError(t, err)
		}
		require.Less(t, time.Until(got.Deadline()), ttl)
		info, err := locker.Inspect(t.Context(), "n")
		require.NoError(t, err)
		require.LessOrEqual(t, info.TTL, ttl)
		require.NoError(t, got.Unlock(t.Context()))
	}
}

func TestLock_HeldErrorTellsWhoIsNext(t *testing.T) {
	t.Parallel()
	server, prefix := redistest.Shared(t), redistest.Prefix(t)
	one := newLocker(t, server.Client(t), lock.Options{Prefix: prefix, Meta: "one"})
	two := newLocker(t, server.Client(t), lock.Options{Prefix: prefix, Meta: "two"})
	lk := acquire(t, one, "n")
	require.NoError(t, lk.Extend(t.Context(), time.Minute)) // so that Unlock hands the lock on and queues again
	second := lockInBackground(t, two, "n")
	requireWaiting(t, one, "n", 1)
	third := lockInBackground(t, one, "n")
	require.NoError(t, after(t.Context(), 20*time.Millisecond))
	require.NoError(t, lk.Unlock(t.Context()))
	got := <-second
	require.NoError(t, got.err)
	_, err := one.TryLock(t.Context(), "n")
	var held *lock.HeldError
	require.ErrorAs(t, err, &held)
	require.NotEmpty(t, held.Holder)
	require.Equal(t, "two", held.Meta)
	require.NoError(t, got.Unlock(t.Context()))
	got = <-third
	require.NoError(t, got.err)
	require.NoError(t, got.Unlock(t.Context()))
}

// One primary that hangs costs none of the locks of the others, however many are held.
func TestLock_AHangingPrimaryCostsTheOthersNothing(t *testing.T) {
	t.Parallel()
	const n, ttl = 1500, 3 * time.Second
	cluster := redistest.StartCluster(t, 0)
	client, prefix := cluster.Client(t), redistest.Prefix(t)
	var lost sync.Map
	l := newLocker(t, client, lock.Options{Prefix: prefix, TTL: ttl, Hooks: lock.Hooks{
		Lost: func(_ context.Context, info lock.LostInfo) { lost.Store(info.Name, true) },
	}})
	locks := make([]*lock.Lock, n)
	var all sync.WaitGroup
	var next atomic.Int64
	for range 30 {
		all.Go(func() {
			for i := next.Add(1) - 1; i < n; i = next.Add(1) - 1 {
				lk, err := l.Lock(context.Background(), strconv.Itoa(int(i)))
				if err != nil {
					t.Error(err)
					return
				}
				locks[i] = lk
			}
		})
	}
	all.Wait()
	one, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: cluster.Addrs()[:1], ForceSingleClient: true, DisableCache: true})
	require.NoError(t, err)
	defer one.Close()
	require.NoError(t, one.Do(t.Context(), one.B().Arbitrary("CLIENT", "PAUSE", strconv.FormatInt(2*ttl.Milliseconds(), 10), "ALL").Build()).Error())
	require.NoError(t, after(t.Context(), ttl*3/2))
	hung, others := 0, 0
	for i, lk := range locks {
		_, isLost := lost.Load(strconv.Itoa(i))
		if lk.Err() == nil && !isLost {
			continue
		}
		if slotOf(client, lockKey(prefix, strconv.Itoa(i))) < 5461 { // of the first primary
			hung++
		} else {
			others++
		}
	}
	require.Zero(t, others)
	require.Positive(t, hung)
}

// What was handed on by a primary is claimed there, also while leases are renewed at another one that hangs.
func TestLock_AHangingPrimaryDelaysNoClaim(t *testing.T) {
	t.Parallel()
	cluster := redistest.StartCluster(t, 0)
	client, prefix := cluster.Client(t), redistest.Prefix(t)
	l := newLocker(t, client, lock.Options{Prefix: prefix})
	other := newLocker(t, cluster.Client(t), lock.Options{Prefix: prefix})
	name := func(first bool) string { // of a lock that is at the first primary, or elsewhere
		for i := 0; ; i++ {
			if slot := slotOf(client, lockKey(prefix, strconv.Itoa(i))); slot < 5461 == first {
				return strconv.Itoa(i)
			}
		}
	}
	there := acquire(t, other, name(false))
	got := lockInBackground(t, l, name(false))
	requireWaiting(t, other, name(false), 1)
	requireListening(t, client, prefix, 1)
	began := time.Now()
	acquire(t, l, name(true))
	const renewedAfter = 10 * time.Second / 3
	require.NoError(t, after(t.Context(), renewedAfter-time.Second/2))
	one, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: cluster.Addrs()[:1], ForceSingleClient: true, DisableCache: true})
	require.NoError(t, err)
	defer one.Close()
	require.NoError(t, one.Do(t.Context(), one.B().Arbitrary("CLIENT", "PAUSE", "5000", "ALL").Build()).Error())
	require.NoError(t, after(t.Context(), time.Until(began.Add(renewedAfter+time.Second/4))))
	require.NoError(t, there.Unlock(t.Context()))
	next := <-got
	require.NoError(t, next.err)
	require.NoError(t, after(t.Context(), 2*time.Second))
	require.NoError(t, next.Err())
	require.NoError(t, next.Unlock(t.Context()))
}
