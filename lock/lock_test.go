package lock

import (
	"context"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"
)

// noRedis is a client that must not be asked.
type noRedis struct{ rueidis.Client }

func (noRedis) Mode() rueidis.ClientMode { return rueidis.ClientModeStandalone }

func newLocker(t *testing.T, opts Options) *Locker {
	t.Helper()
	l, err := New(noRedis{}, opts)
	require.NoError(t, err)
	return l
}

func TestNew_ChecksOptions(t *testing.T) {
	t.Parallel()
	_, err := New(nil, Options{})
	require.ErrorContains(t, err, "client")
	for field, opts := range map[string]Options{
		"Prefix":   {Prefix: "a{b"},
		"TTL":      {TTL: -time.Second},
		"TTL ":     {TTL: minTTL - time.Millisecond},
		"TTL must": {TTL: time.Second + time.Microsecond},
		" TTL":     {TTL: maxTTL + time.Millisecond},
		"MaxHold":  {MaxHold: time.Second},
		"MaxHold ": {MaxHold: math.MaxInt64},
		"Replicas": {Replicas: -1},
		"Meta":     {Meta: strings.Repeat("x", maxMeta+1)},
	} {
		_, err := New(noRedis{}, opts)
		require.ErrorContains(t, err, field)
		require.True(t, strings.HasPrefix(err.Error(), "lock: "))
	}
	l := newLocker(t, Options{TTL: minTTL, MaxHold: minTTL, Meta: strings.Repeat("x", maxMeta)})
	require.NoError(t, l.Close(t.Context()), "without I/O")
	_, err = l.Lock(t.Context(), "name")
	require.ErrorIs(t, err, ErrClosed)
	_, err = l.Inspect(t.Context(), "name")
	require.ErrorIs(t, err, ErrClosed)
	_, err = l.Break(t.Context(), "name")
	require.ErrorIs(t, err, ErrClosed)
}

func TestGuard_LeavesALease(t *testing.T) {
	t.Parallel()
	for _, ttl := range []time.Duration{minTTL, 50 * time.Millisecond, time.Second, defaultTTL, maxTTL} {
		require.Greater(t, guard(ttl), ttl/100)
		require.Less(t, guard(ttl), ttl/8)
	}
}

func FuzzNameOf(f *testing.F) {
	for _, name := range []string{"", "%", "}", "{}", "a}b", "%a", "%%", "a:q", "}:w"} {
		f.Add(name)
	}
	l, err := New(noRedis{}, Options{})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, name string) {
		keys := l.keysOf(name)
		if got := l.nameOf(keys[0]); got != name {
			t.Errorf("%q became %q", name, got)
		}
	})
}

// Anyone may publish to an inbox.
func FuzzHeard(f *testing.F) {
	for _, message := range []string{
		"", "hello 1 lock:{name}", "grant 1 5 5 600 0 lock:{name}", "grant 1 5 5 600 lock:{name}", "next 1 600 lock:{name}",
		"break 1 lock:{name}", "grant 1 x 5 600 0 lock:{name}", "grant  5 5 600 0 lock:{%}", "next 1 99999999999999999999 lock:{name}",
	} {
		f.Add(message)
	}
	f.Fuzz(func(t *testing.T, message string) {
		l, err := New(noRedis{}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		e := &entry{name: "name", keys: l.keysOf("name"), token: l.id + ".1", place: -1}
		l.names["name"] = e
		l.heard(message)
		if e.early != nil && !strings.HasPrefix(message, "grant 1 ") || e.early != nil && !strings.HasSuffix(message, " lock:{name}") {
			t.Errorf("%q was taken for a grant", message)
		}
	})
}

// calls and agenda against plain slices.
func TestCalls_AreAList(t *testing.T) {
	t.Parallel()
	for seed := range uint64(8) {
		random := rand.New(rand.NewPCG(seed, 0))
		var cs calls
		var model []*call
		for range 200 {
			switch c := (&call{try: random.IntN(2) == 0}); random.IntN(4) {
			case 0:
				cs.add(c)
				model = append(model, c)
			case 1:
				cs.addFirst(c)
				model = slices.Insert(model, 0, c)
			default:
				if len(model) > 0 {
					i := random.IntN(len(model))
					cs.remove(model[i])
					require.False(t, model[i].waits)
					model = slices.Delete(model, i, i+1)
				}
			}
			var got []*call
			for c := cs.first; c != nil; c = c.next {
				got = append(got, c)
				require.True(t, c.waits)
			}
			require.Len(t, got, len(model))
			for i := range got {
				require.Same(t, model[i], got[i])
			}
			require.Equal(t, slices.ContainsFunc(model, func(c *call) bool { return !c.try }), cs.patient())
		}
	}
}

func TestAgenda_HasTheEarliestFirst(t *testing.T) {
	t.Parallel()
	for seed := range uint64(8) {
		random := rand.New(rand.NewPCG(seed, 1))
		l := newLocker(t, Options{})
		far := sinceEpoch() + time.Hour
		entries := make([]*entry, 30)
		for i := range entries {
			entries[i] = &entry{place: -1}
		}
		for range 100 {
			if e := entries[random.IntN(len(entries))]; random.IntN(3) == 0 {
				l.agenda.remove(e)
				require.Equal(t, -1, e.place)
			} else {
				l.schedule(e, far+time.Duration(random.IntN(1000))*time.Second)
			}
			for i, e := range l.agenda {
				require.Equal(t, i, e.place)
				require.LessOrEqual(t, l.agenda[0].due, e.due)
			}
			if len(l.agenda) > 0 {
				require.LessOrEqual(t, l.wake, l.agenda[0].due)
			}
		}
		require.NoError(t, l.Close(t.Context()))
	}
}

// lease gives a Locker the lock "name", as if Redis had granted it at this moment.
func lease(l *Locker, fence int64) (*entry, *Lock) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := &entry{name: "name", keys: l.keysOf("name"), token: l.newToken(), place: -1}
	l.names["name"] = e
	l.hold(e, answer{granted: true, fence: fence, sent: sinceEpoch()})
	return e, l.admit(context.Background(), e)
}

// Err and the Context's Err do not wait for the timer.
func TestLock_IsOverByTheClock(t *testing.T) {
	t.Parallel()
	l := newLocker(t, Options{TTL: time.Second})
	e, lk := lease(l, 1)
	l.mu.Lock()
	l.timer.Stop() // as if the process had not been let to run
	l.mu.Unlock()
	held := lk.Context()
	child, cancel := context.WithCancel(held)
	defer cancel()
	require.NoError(t, lk.Err())
	require.NoError(t, held.Err())
	lk.until.Store(int64(sinceEpoch()))
	require.ErrorIs(t, lk.Err(), ErrLost)
	l.mu.Lock()
	l.closed = true // so that nothing is asked of Redis
	l.stopNow()
	l.mu.Unlock()
	require.ErrorIs(t, held.Err(), context.Canceled)
	<-held.Done()
	require.ErrorIs(t, context.Cause(held), ErrLost)
	<-child.Done()
	require.ErrorIs(t, context.Cause(child), ErrLost)
	require.ErrorIs(t, lk.Unlock(t.Context()), ErrLost)
	require.Nil(t, e.tenant)
}

// Within a process a lock is passed on without a command as long as there are fences that nobody else can have, and no
// longer. The client panics if it is asked.
func TestLock_IsPassedOnWithinTheFencesThatAreKnown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLocker(t, Options{})
		e, lk := lease(l, 1000)
		l.mu.Lock()
		e.renewing = true // as if one were under way
		l.renewed(renewal{e: e, token: e.token, ttl: l.opts.TTL}, sinceEpoch(), renewalState{renewalDone, 1004})
		l.mu.Unlock()
		type result struct {
			lk  *Lock
			err error
		}
		results := make(chan result)
		for range 5 {
			go func() {
				lk, err := l.Lock(t.Context(), "name")
				results <- result{lk, err}
			}()
			synctest.Wait()
		}
		for want := int64(1001); want <= 1003; want++ {
			require.NoError(t, lk.Unlock(t.Context()))
			r := <-results
			require.NoError(t, r.err)
			require.Equal(t, want, r.lk.Fence())
			require.NoError(t, lk.Unlock(t.Context()), "again, which is not the next one's")
			require.ErrorIs(t, lk.Err(), ErrReleased)
			lk = r.lk
		}
		// 1004 is when the server said that the lease is ours: from then on Redis might have granted it to another.
		require.NoError(t, lk.Unlock(t.Context()))
		synctest.Wait()
		select {
		case <-results:
			t.Fatal("a fence that is not known to be free")
		default:
		}
		l.mu.Lock()
		require.Nil(t, e.tenant)
		require.Equal(t, held, e.state)
		l.renewed(renewal{e: e, token: e.token, ttl: l.opts.TTL}, sinceEpoch(), renewalState{renewalDone, 2000})
		l.mu.Unlock()
		r := <-results
		require.NoError(t, r.err)
		require.Equal(t, int64(1004), r.lk.Fence())
		// Clean up without a command.
		l.mu.Lock()
		l.failAll(e, ErrClosed)
		l.forget(e)
		l.timer.Stop()
		l.mu.Unlock()
		require.ErrorIs(t, (<-results).err, ErrClosed)
	})
}

func TestHeldError(t *testing.T) {
	t.Parallel()
	var err error = &HeldError{Holder: "a.1", Meta: "secret", TTL: time.Second}
	require.Contains(t, err.Error(), "1s")
	require.NotContains(t, err.Error(), "secret")
	var heldBy *HeldError
	require.ErrorAs(t, err, &heldBy)
}
