package integration

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/redispatterns/redispatterns/internal/integration/redistest"
	"github.com/redispatterns/redispatterns/lock"
)

// newLocker returns a Locker that is closed at the end of the test, before its client.
func newLocker(t *testing.T, client rueidis.Client, opts lock.Options) *lock.Locker {
	t.Helper()
	l, err := lock.New(client, opts)
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
		defer cancel()
		require.NoError(t, l.Close(ctx))
	})
	return l
}

func acquire(t *testing.T, l *lock.Locker, name string) *lock.Lock {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	lk, err := l.Lock(ctx, name)
	require.NoError(t, err)
	require.NoError(t, lk.Err())
	return lk
}

// requireFree waits until nobody holds the lock or waits for it.
func requireFree(t *testing.T, l *lock.Locker, name string) {
	t.Helper()
	require.Eventually(t, func() bool {
		info, err := l.Inspect(t.Context(), name)
		return err == nil && !info.Held && info.Waiting == 0
	}, 5*time.Second, 5*time.Millisecond)
}

// requireWaiting waits until so many processes wait in Redis.
func requireWaiting(t *testing.T, l *lock.Locker, name string, n int) {
	t.Helper()
	require.Eventually(t, func() bool {
		info, err := l.Inspect(t.Context(), name)
		return err == nil && info.Waiting == n
	}, 10*time.Second, time.Millisecond)
}

// acquisition is what came of a Lock.
type acquisition struct {
	*lock.Lock
	err error
	at  time.Time
}

func lockInBackground(t *testing.T, l *lock.Locker, name string) <-chan acquisition {
	got := make(chan acquisition, 1)
	ctx := t.Context()
	go func() {
		lk, err := l.Lock(ctx, name)
		got <- acquisition{lk, err, time.Now()}
	}()
	return got
}

func lockKey(prefix, name string) string { return prefix + ":{" + name + "}" }

func TestLock_LocksAndUnlocks(t *testing.T) {
	t.Parallel()
	redistest.EachTarget(t, func(t *testing.T, client rueidis.Client) {
		ctx, prefix := t.Context(), redistest.Prefix(t)
		a := newLocker(t, client, lock.Options{Prefix: prefix, Meta: "host|a\x00"})
		b := newLocker(t, client, lock.Options{Prefix: prefix, Meta: "host b"})
		type key struct{}
		withValue, cancel := context.WithCancel(context.WithValue(ctx, key{}, "value"))
		before := time.Now()
		lk, err := a.Lock(withValue, "name")
		require.NoError(t, err)
		cancel()
		require.NoError(t, lk.Err())
		require.NoError(t, lk.Context().Err(), "the ctx of Lock bounds the wait alone")
		require.Equal(t, "value", lk.Context().Value(key{}))
		require.Greater(t, lk.Fence(), int64(1e15))
		require.WithinRange(t, lk.Deadline(), before.Add(9*time.Second), time.Now().Add(10*time.Second))

		info, err := b.Inspect(ctx, "name")
		require.NoError(t, err)
		require.True(t, info.Held)
		require.Equal(t, "host|a\x00", info.Meta)
		require.Equal(t, lk.Fence(), info.Fence)
		require.InDelta(t, 10*time.Second, info.TTL, float64(3*time.Second))
		_, err = b.TryLock(ctx, "name")
		var heldBy *lock.HeldError
		require.ErrorAs(t, err, &heldBy)
		require.Equal(t, lock.HeldError{Holder: info.Holder, Meta: info.Meta, TTL: heldBy.TTL}, *heldBy)
		require.InDelta(t, 10*time.Second, heldBy.TTL, float64(3*time.Second))
		require.NotContains(t, err.Error(), "name")
		_, err = a.TryLock(ctx, "name")
		require.ErrorAs(t, err, &heldBy)
		require.Equal(t, info.Holder, heldBy.Holder)
		info, err = b.Inspect(ctx, "name")
		require.NoError(t, err)
		require.Zero(t, info.Waiting, "a TryLock does not queue")

		short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
		_, err = b.Lock(short, "name")
		cancel()
		require.ErrorIs(t, err, context.DeadlineExceeded)

		got := lockInBackground(t, b, "name")
		requireWaiting(t, a, "name", 1)
		require.NoError(t, lk.Extend(ctx, 20*time.Second))
		require.NoError(t, lk.Unlock(ctx))
		next := <-got
		require.NoError(t, next.err)
		require.Greater(t, next.Fence(), lk.Fence())
		require.ErrorIs(t, lk.Err(), lock.ErrReleased)
		require.ErrorIs(t, lk.Context().Err(), context.Canceled)
		require.ErrorIs(t, context.Cause(lk.Context()), lock.ErrReleased)
		require.ErrorIs(t, lk.Extend(ctx, time.Second), lock.ErrReleased)
		require.NoError(t, lk.Unlock(ctx), "a second time")
		require.NoError(t, next.Err(), "it did not touch the next one's")

		// Unlock from another goroutine, and although ctx has ended.
		ended, cancel := context.WithCancel(ctx)
		cancel()
		done := make(chan error)
		go func() { done <- next.Unlock(ended) }()
		require.NoError(t, <-done)
		info, err = a.Inspect(ctx, "name")
		require.NoError(t, err)
		require.Equal(t, lock.Info{Fence: next.Fence()}, info)
		again, err := a.TryLock(ctx, "name")
		require.NoError(t, err)
		require.Greater(t, again.Fence(), next.Fence())
		require.NoError(t, again.Unlock(ctx))
	})
}

func TestLock_AnyNameIsLegal(t *testing.T) {
	t.Parallel()
	redistest.EachTarget(t, func(t *testing.T, client rueidis.Client) {
		ctx, prefix := t.Context(), redistest.Prefix(t)
		a := newLocker(t, client, lock.Options{Prefix: prefix})
		b := newLocker(t, client, lock.Options{Prefix: prefix})
		for _, name := range []string{
			"", "%", "}", "{", "{}", "}{", "%}", "a}b", "a{b}c", "%%", "a b", "a|b", "a.b", "\x00\xff\r\n", strings.Repeat("k", 1024),
		} {
			lk := acquire(t, a, name)
			_, err := b.TryLock(ctx, name)
			var heldBy *lock.HeldError
			require.ErrorAs(t, err, &heldBy, "%q", name)
			// And it can be waited for: the message names it.
			got := lockInBackground(t, b, name)
			requireWaiting(t, a, name, 1)
			require.NoError(t, lk.Unlock(ctx))
			next := <-got
			require.NoError(t, next.err)
			require.Greater(t, next.Fence(), lk.Fence(), "%q", name)
			defer func() { require.NoError(t, next.Unlock(context.Background())) }()
		}
	})
}

// section is a place where one at a time may be. It knows nothing of locks.
type section struct {
	inside  atomic.Int32
	entered atomic.Int64
	fence   atomic.Int64
}

func (s *section) enter(fence int64, work func()) error {
	if n := s.inside.Add(1); n != 1 {
		return fmt.Errorf("%d are inside", n)
	}
	s.entered.Add(1)
	last := s.fence.Swap(fence)
	work()
	if last >= fence {
		return fmt.Errorf("fence %d after %d", fence, last)
	}
	s.inside.Add(-1)
	return nil
}

func TestLock_ExcludesAndPassesOn(t *testing.T) {
	t.Parallel()
	redistest.EachTarget(t, func(t *testing.T, client rueidis.Client) {
		prefix := redistest.Prefix(t)
		var s section
		var wg sync.WaitGroup
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		counts := make([]atomic.Int64, 3)
		for i := range counts {
			l := newLocker(t, client, lock.Options{Prefix: prefix})
			for range 8 {
				wg.Go(func() {
					for {
						lk, err := l.Lock(ctx, "name")
						if errors.Is(err, context.DeadlineExceeded) {
							return
						}
						if !errors.Is(err, nil) || s.enter(lk.Fence(), func() {}) != nil {
							t.Error(err, "not alone, or a fence that is not above the last")
							return
						}
						counts[i].Add(1)
						if err := lk.Unlock(ctx); err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
		}
		wg.Wait()
		t.Log(s.entered.Load(), counts)
		for i := range counts {
			require.Positive(t, counts[i].Load())
		}
		requireFree(t, newLocker(t, client, lock.Options{Prefix: prefix}), "name")
	})
}

func TestLock_DoReleasesAndTellsOfLoss(t *testing.T) {
	t.Parallel()
	redistest.EachTarget(t, func(t *testing.T, client rueidis.Client) {
		ctx, prefix := t.Context(), redistest.Prefix(t)
		l := newLocker(t, client, lock.Options{Prefix: prefix})
		other := newLocker(t, client, lock.Options{Prefix: prefix})
		failed := errors.New("failed")
		require.ErrorIs(t, l.Do(ctx, "name", func(ctx context.Context, fence int64) error {
			require.Positive(t, fence)
			require.NoError(t, ctx.Err())
			return failed
		}), failed)
		require.PanicsWithValue(t, "oops", func() {
			_ = l.Do(ctx, "name", func(context.Context, int64) error { panic("oops") })
		})
		requireFree(t, l, "name")

		// fn's ctx ends with its parent,
		parent, cancel := context.WithCancel(ctx)
		require.NoError(t, l.Do(parent, "name", func(ctx context.Context, _ int64) error {
			cancel()
			<-ctx.Done()
			require.ErrorIs(t, context.Cause(ctx), context.Canceled)
			return nil
		}))
		requireFree(t, l, "name")
		// and when the lock is broken: at once if the holder listens, as one does that has waited.
		lk := acquire(t, other, "name")
		waiting := make(chan error, 1)
		inside := make(chan struct{})
		go func() {
			waiting <- l.Do(ctx, "name", func(ctx context.Context, _ int64) error {
				close(inside)
				<-ctx.Done()
				return context.Cause(ctx)
			})
		}()
		requireWaiting(t, l, "name", 1)
		require.Eventually(t, func() bool { // it listens
			for _, node := range client.Nodes() {
				channels, err := node.Do(ctx, node.B().PubsubChannels().Pattern(prefix+":inbox:*").Build()).AsStrSlice()
				if err == nil && len(channels) > 0 {
					return true
				}
			}
			return false
		}, 10*time.Second, time.Millisecond)
		require.NoError(t, lk.Unlock(ctx))
		<-inside
		began := time.Now()
		was, err := other.Break(ctx, "name")
		require.NoError(t, err)
		require.True(t, was)
		require.ErrorIs(t, <-waiting, lock.ErrLost)
		require.Less(t, time.Since(began), time.Second)
		was, err = other.Break(ctx, "name")
		require.NoError(t, err)
		require.False(t, was)
	})
}

func TestLock_BreakHandsOn(t *testing.T) {
	t.Parallel()
	redistest.EachTarget(t, func(t *testing.T, client rueidis.Client) {
		ctx, prefix := t.Context(), redistest.Prefix(t)
		a := newLocker(t, client, lock.Options{Prefix: prefix})
		b := newLocker(t, client, lock.Options{Prefix: prefix})
		lk := acquire(t, a, "name")
		got := lockInBackground(t, b, "name")
		requireWaiting(t, a, "name", 1)
		_, err := b.Break(ctx, "name")
		require.NoError(t, err)
		next := <-got
		require.NoError(t, next.err)
		require.Greater(t, next.Fence(), lk.Fence())
		require.ErrorIs(t, lk.Unlock(ctx), lock.ErrLost)
		require.ErrorIs(t, lk.Unlock(ctx), lock.ErrLost, "again")
		require.NoError(t, next.Unlock(ctx))
	})
}

func TestLock_LivesAsLongAsItIsRenewed(t *testing.T) {
	t.Parallel()
	redistest.EachTarget(t, func(t *testing.T, client rueidis.Client) {
		ctx, prefix := t.Context(), redistest.Prefix(t)
		const ttl = 600 * time.Millisecond
		renewed := newLocker(t, client, lock.Options{Prefix: prefix, TTL: ttl})
		once := newLocker(t, client, lock.Options{Prefix: prefix, TTL: ttl, NoRenewal: true})
		bounded := newLocker(t, client, lock.Options{Prefix: prefix, TTL: ttl, MaxHold: 2 * ttl})
		began := time.Now()
		a, b, c := acquire(t, renewed, "a"), acquire(t, once, "b"), acquire(t, bounded, "c")
		extended := acquire(t, once, "d")
		require.NoError(t, extended.Extend(ctx, 4*ttl))
		<-b.Context().Done()
		require.ErrorIs(t, context.Cause(b.Context()), lock.ErrLost)
		require.WithinRange(t, time.Now(), began.Add(ttl*9/10), began.Add(2*ttl))
		require.ErrorIs(t, b.Err(), lock.ErrLost)
		require.ErrorIs(t, b.Unlock(ctx), lock.ErrLost)
		require.ErrorIs(t, b.Extend(ctx, ttl), lock.ErrLost)
		<-c.Context().Done()
		require.ErrorIs(t, c.Err(), lock.ErrLost)
		require.WithinRange(t, time.Now(), began.Add(2*ttl), began.Add(3*ttl))
		requireFree(t, once, "b")
		requireFree(t, once, "c")
		require.NoError(t, extended.Err())
		require.NoError(t, a.Err())
		require.NoError(t, a.Context().Err())
		require.NoError(t, a.Unlock(ctx))
		require.NoError(t, extended.Unlock(ctx))
	})
}

// What waits in the process gets a lease of full length where leases are not renewed.
func TestLock_WithoutRenewalEachGetsTheTTL(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	prefix := redistest.Prefix(t)
	l := newLocker(t, client, lock.Options{Prefix: prefix, TTL: time.Second, NoRenewal: true})
	lk := acquire(t, l, "name")
	got := lockInBackground(t, l, "name")
	require.Eventually(t, func() bool { return time.Until(lk.Deadline()) < 500*time.Millisecond }, 5*time.Second, time.Millisecond)
	require.NoError(t, lk.Unlock(t.Context()))
	next := <-got
	require.NoError(t, next.err)
	require.Greater(t, time.Until(next.Deadline()), 700*time.Millisecond)
	require.NoError(t, next.Unlock(t.Context()))
}

func TestLock_Close(t *testing.T) {
	t.Parallel()
	redistest.EachTarget(t, func(t *testing.T, client rueidis.Client) {
		ctx, prefix := t.Context(), redistest.Prefix(t)
		other := newLocker(t, client, lock.Options{Prefix: prefix})
		l, err := lock.New(client, lock.Options{Prefix: prefix})
		require.NoError(t, err)
		mine, theirs := acquire(t, l, "mine"), acquire(t, other, "theirs")
		heldContext := mine.Context()
		remote, local := lockInBackground(t, l, "theirs"), lockInBackground(t, l, "mine")
		requireWaiting(t, other, "theirs", 1)
		// The subscription is there.
		channel := func() string {
			info, err := other.Inspect(ctx, "mine")
			require.NoError(t, err)
			id, _, _ := strings.Cut(info.Holder, ".")
			return prefix + ":inbox:" + id
		}()
		listeners := func() (n int64) {
			for _, node := range client.Nodes() {
				counts, err := node.Do(ctx, node.B().PubsubNumsub().Channel(channel).Build()).ToArray()
				require.NoError(t, err)
				count, err := counts[1].AsInt64()
				require.NoError(t, err)
				n += count
			}
			return n
		}
		require.Eventually(t, func() bool { return listeners() == 1 }, 5*time.Second, 5*time.Millisecond)

		require.NoError(t, l.Close(ctx))
		require.NoError(t, l.Close(ctx), "again")
		require.ErrorIs(t, (<-remote).err, lock.ErrClosed)
		require.ErrorIs(t, (<-local).err, lock.ErrClosed)
		require.ErrorIs(t, context.Cause(heldContext), lock.ErrClosed)
		require.ErrorIs(t, mine.Err(), lock.ErrClosed)
		require.ErrorIs(t, mine.Unlock(ctx), lock.ErrClosed)
		require.ErrorIs(t, mine.Extend(ctx, time.Second), lock.ErrClosed)
		_, err = l.Lock(ctx, "name")
		require.ErrorIs(t, err, lock.ErrClosed)
		_, err = l.TryLock(ctx, "name")
		require.ErrorIs(t, err, lock.ErrClosed)
		require.Eventually(t, func() bool { return listeners() == 0 }, 5*time.Second, 5*time.Millisecond)
		info, err := other.Inspect(ctx, "theirs")
		require.NoError(t, err)
		require.Zero(t, info.Waiting)
		again, err := other.TryLock(ctx, "mine")
		require.NoError(t, err, "Close released it")
		require.NoError(t, again.Unlock(ctx))
		require.NoError(t, theirs.Unlock(ctx))

		// All that is left are the memories of what was released, for 5s.
		for _, node := range client.Nodes() {
			keys, err := node.Do(ctx, node.B().Keys().Pattern(prefix+"*").Build()).AsStrSlice()
			require.NoError(t, err)
			for _, k := range keys {
				left, err := client.Do(ctx, client.B().Pttl().Key(k).Build()).AsInt64()
				require.NoError(t, err)
				require.InDelta(t, 2500, left, 2503, k)
				require.Contains(t, []string{lockKey(prefix, "mine"), lockKey(prefix, "theirs")}, k)
			}
		}
	})
}

func TestSetFenced_RefusesTheStale(t *testing.T) {
	t.Parallel()
	redistest.EachTarget(t, func(t *testing.T, client rueidis.Client) {
		ctx, key := t.Context(), redistest.Prefix(t)+":}resource{"
		value := func() string {
			v, err := client.Do(ctx, client.B().Hget().Key(key).Field("value").Build()).ToString()
			require.NoError(t, err)
			return v
		}
		const fence = 1_790_000_000_000_001
		require.NoError(t, lock.SetFenced(ctx, client, key, fence, "one"))
		require.NoError(t, lock.SetFenced(ctx, client, key, fence, "two"), "the same holder again")
		require.ErrorIs(t, lock.SetFenced(ctx, client, key, fence-1, "stale"), lock.ErrStale)
		require.Equal(t, "two", value())
		require.NoError(t, lock.SetFenced(ctx, client, key, fence+1, "three"))
		require.ErrorIs(t, lock.SetFenced(ctx, client, key, fence, "stale"), lock.ErrStale)
		require.Equal(t, "three", value())
		require.Error(t, lock.SetFenced(ctx, client, key, 0, "no fence"))
		require.NoError(t, client.Do(ctx, client.B().Del().Key(key).Build()).Error())
		require.NoError(t, client.Do(ctx, client.B().Set().Key(key).Value("other").Build()).Error())
		require.ErrorContains(t, lock.SetFenced(ctx, client, key, fence, "x"), "WRONGTYPE")
	})
}

func TestLock_RefusesForeignKeys(t *testing.T) {
	t.Parallel()
	redistest.EachTarget(t, func(t *testing.T, client rueidis.Client) {
		ctx, prefix := t.Context(), redistest.Prefix(t)
		l := newLocker(t, client, lock.Options{Prefix: prefix})
		require.NoError(t, client.Do(ctx, client.B().Set().Key(lockKey(prefix, "name")).Value("foreign").Build()).Error())
		_, err := l.Lock(ctx, "name")
		require.ErrorContains(t, err, "NOTALOCK")
		_, err = l.Inspect(ctx, "name")
		require.ErrorContains(t, err, "NOTALOCK")
		v, err := client.Do(ctx, client.B().Get().Key(lockKey(prefix, "name")).Build()).ToString()
		require.NoError(t, err)
		require.Equal(t, "foreign", v)
	})
}

// A pair costs two commands, and what they call: a look, the time, a write; a look, the queue, a write.
func TestLock_CostsTwoCommands(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	l := newLocker(t, server.Client(t), lock.Options{})
	for range 2 {
		require.NoError(t, acquire(t, l, "name").Unlock(t.Context()))
	}
	const pairs = 100
	calls := redistest.Commands(t, server, func() {
		for range pairs {
			require.NoError(t, acquire(t, l, "name").Unlock(t.Context()))
		}
	})
	require.Equal(t, map[string]int64{"evalsha": 2 * pairs, "get": 2 * pairs, "time": pairs, "exists": pairs, "set": 2 * pairs}, calls)
}

// Random histories of one after the other against a model of who holds what.
func TestLock_BehavesLikeItsModel(t *testing.T) {
	t.Parallel()
	redistest.EachTarget(t, func(t *testing.T, client rueidis.Client) {
		ctx, prefix := t.Context(), redistest.Prefix(t)
		lockers := make([]*lock.Locker, 3)
		for i := range lockers {
			lockers[i] = newLocker(t, client, lock.Options{Prefix: prefix})
		}
		type model struct {
			holder *lock.Lock // nil if it is free
			by     int
			fence  int64 // the highest so far
		}
		names := []string{"a", "b", "c}{"}
		models := make([]model, len(names))
		length := 300
		if soak() {
			length = 10_000
		}
		seed := uint64(time.Now().UnixNano())
		t.Log("seed", seed)
		random := rand.New(rand.NewPCG(seed, 0))
		for range length {
			which, by := random.IntN(len(names)), random.IntN(len(lockers))
			name, m, l := names[which], &models[which], lockers[by]
			lost := func() { // it does not know yet; it may believe for a while, but unlocking tells
				require.ErrorIs(t, m.holder.Unlock(ctx), lock.ErrLost)
				require.ErrorIs(t, m.holder.Err(), lock.ErrReleased)
				m.holder = nil
			}
			switch random.IntN(10) {
			case 0, 1, 2, 3:
				lk, err := l.TryLock(ctx, name)
				if m.holder != nil {
					var heldBy *lock.HeldError
					require.ErrorAs(t, err, &heldBy)
					continue
				}
				require.NoError(t, err)
				require.Greater(t, lk.Fence(), m.fence)
				*m = model{lk, by, lk.Fence()}
			case 4, 5, 6:
				if m.holder != nil {
					require.NoError(t, m.holder.Err())
					require.NoError(t, m.holder.Unlock(ctx))
					require.NoError(t, m.holder.Unlock(ctx))
					require.ErrorIs(t, m.holder.Err(), lock.ErrReleased)
					m.holder = nil
				}
			case 7:
				if m.holder != nil {
					before := m.holder.Deadline()
					require.NoError(t, m.holder.Extend(ctx, time.Minute))
					require.False(t, m.holder.Deadline().Before(before))
				}
			case 8:
				info, err := l.Inspect(ctx, name)
				require.NoError(t, err)
				require.Equal(t, m.holder != nil, info.Held)
				if m.holder != nil {
					require.Equal(t, m.holder.Fence(), info.Fence)
				}
			case 9:
				if m.holder == nil {
					was, err := l.Break(ctx, name)
					require.NoError(t, err)
					require.False(t, was)
					continue
				}
				if random.IntN(2) == 0 {
					require.NoError(t, client.Do(ctx, client.B().Del().Key(lockKey(prefix, name)).Build()).Error())
					lost()
					continue
				}
				was, err := l.Break(ctx, name)
				require.NoError(t, err)
				require.True(t, was)
				if by == m.by { // its own, which it knows of
					require.ErrorIs(t, m.holder.Err(), lock.ErrLost)
					require.ErrorIs(t, m.holder.Unlock(ctx), lock.ErrLost)
					m.holder = nil
					continue
				}
				lost()
			}
		}
	})
}
