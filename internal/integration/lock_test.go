package integration

import (
	"context"
	"errors"
	"fmt"
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

		got := make(chan *lock.Lock)
		go func() {
			next, err := b.Lock(ctx, "name")
			if err != nil {
				t.Error(err)
			}
			got <- next
		}()
		require.Eventually(t, func() bool {
			info, err := a.Inspect(ctx, "name")
			return err == nil && info.Waiting == 1
		}, 5*time.Second, time.Millisecond)
		require.NoError(t, lk.Extend(ctx, 20*time.Second))
		require.NoError(t, lk.Unlock(ctx))
		next := <-got
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
			got := make(chan *lock.Lock)
			go func() {
				next, err := b.Lock(ctx, name)
				if err != nil {
					t.Error(err)
				}
				got <- next
			}()
			require.Eventually(t, func() bool {
				info, err := a.Inspect(ctx, name)
				return err == nil && info.Waiting == 1
			}, 5*time.Second, time.Millisecond)
			require.NoError(t, lk.Unlock(ctx))
			next := <-got
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
		info, err := newLocker(t, client, lock.Options{Prefix: prefix}).Inspect(t.Context(), "name")
		require.NoError(t, err)
		require.Zero(t, info.Waiting)
	})
}
