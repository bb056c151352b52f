package gather

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redispatterns/redispatterns/internal/deadline"
)

const patience = 10 * time.Millisecond

var errFailed = errors.New("failed")

// trips makes squares, in a second each.
type trips struct {
	Trips[square]
	mu    sync.Mutex
	sizes []int
	left  []int
	make  func() // before it is made
}

type square struct {
	n, result int
	err       error
}

func newTrips(most int) *trips {
	t := &trips{make: func() { time.Sleep(time.Second) }} //nolint:forbidigo // synctest: a fake clock, which takes no time and cannot flake
	t.Trips = Trips[square]{
		Most:     most,
		Patience: deadline.New(patience),
		Make: func(rs []*Request[square]) {
			t.mu.Lock()
			t.sizes = append(t.sizes, len(rs))
			t.mu.Unlock()
			t.make()
			for _, r := range rs {
				r.Value.result = r.Value.n * r.Value.n
			}
		},
		Fail: func(r *square, _ any) { r.err = errFailed },
		Left: func(r *square) { t.left = append(t.left, r.result) },
		Go:   func(f func()) { go f() },
	}
	return t
}

// takeAll begins as many round trips as may be under way.
func (t *trips) takeAll(tb testing.TB) {
	tb.Helper()
	for range maxTrips {
		require.True(tb, t.Begin())
	}
	require.False(tb, t.Begin())
}

func TestTrips_ManyGoTogether(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newTrips(64)
		s.takeAll(t)
		var all sync.WaitGroup
		for n := range 63 {
			all.Go(func() {
				r := square{n: n}
				made, err := s.Do(t.Context(), &r)
				require.NoError(t, err)
				require.True(t, made)
				require.Equal(t, n*n, r.result)
			})
		}
		synctest.Wait()
		require.Empty(t, s.sizes)
		s.End()
		all.Wait()
		require.Equal(t, []int{63}, s.sizes)
		require.True(t, s.Begin(), "the trip has ended")
		require.False(t, s.Begin())
	})
}

func TestTrips_WhatIsFullGoes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newTrips(8)
		s.takeAll(t)
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				r := square{n: 3}
				made, _ := s.Do(t.Context(), &r)
				require.Equal(t, made, r.result == 9)
			})
		}
		synctest.Wait()
		require.Equal(t, []int{8, 8}, s.sizes)
		all.Wait() // four go alone
		require.Equal(t, []int{8, 8}, s.sizes)
		for range maxTrips {
			s.End()
		}
		require.Zero(t, s.underWay)
		require.Empty(t, s.waiting)
	})
}

func TestTrips_WhoWaitsTooLongGoesAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newTrips(8)
		s.takeAll(t)
		began := time.Now()
		made, err := s.Do(t.Context(), &square{})
		require.NoError(t, err)
		require.False(t, made)
		require.LessOrEqual(t, time.Since(began), patience)
		s.End()
		require.Empty(t, s.sizes, "one that went alone is made by nobody else")
		require.True(t, s.Begin())
	})
}

func TestTrips_WhoIsUnderWayWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newTrips(1)
		s.takeAll(t)
		r := square{n: 5}
		made, err := s.Do(t.Context(), &r)
		require.NoError(t, err)
		require.True(t, made)
		require.Equal(t, 25, r.result)
	})
}

func TestTrips_ACancelledCallerLeaves(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for _, most := range []int{1, 2} { // under way, and not
			s := newTrips(most)
			s.takeAll(t)
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(patience/2, cancel)
			began := time.Now()
			r := square{n: 5}
			made, err := s.Do(ctx, &r)
			require.ErrorIs(t, err, context.Canceled)
			require.False(t, made)
			require.Zero(t, r.result)
			require.Equal(t, patience/2, time.Since(began))
			s.End()
			time.Sleep(2 * time.Second) //nolint:forbidigo // synctest: a fake clock, which takes no time and cannot flake
			synctest.Wait()
			if most == 1 {
				require.Equal(t, []int{25}, s.left)
			} else {
				require.Empty(t, s.sizes)
			}
		}
	})
}

func TestTrips_SurviveTheClient(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for _, end := range []func(){func() { panic("client") }, runtime.Goexit} {
			s := newTrips(2)
			s.make = func() {
				time.Sleep(patience / 2) //nolint:forbidigo // synctest: a fake clock, which takes no time and cannot flake
				end()
			}
			s.takeAll(t)
			var all sync.WaitGroup
			for range 3 {
				all.Go(func() {
					r := square{}
					made, err := s.Do(t.Context(), &r)
					require.NoError(t, err)
					require.True(t, made)
					require.ErrorIs(t, r.err, errFailed)
				})
			}
			all.Wait()
			synctest.Wait()
			require.Equal(t, []int{2, 1}, s.sizes, "who waits gets the next one")
			for range maxTrips {
				s.End()
			}
			require.Zero(t, s.underWay)
		}
	})
}

func TestTrips_NilLetsEachGoAlone(t *testing.T) {
	t.Parallel()
	var s *Trips[square]
	for range 10 {
		require.True(t, s.Begin())
	}
	s.End()
}
