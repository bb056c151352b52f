package integration

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/redispatterns/redispatterns/internal/integration/redistest"
	"github.com/redispatterns/redispatterns/timeseries"
)

const timeseriesTimeout = time.Second // of the stores of these tests

// timeseriesLoad is several goroutines that count in one series, and what they were told.
type timeseriesLoad struct {
	s                     *timeseries.Store
	series                string
	acknowledged, unknown atomic.Int64
	longest               atomic.Int64 // call
	end                   context.CancelFunc
	wg                    sync.WaitGroup
}

func startTimeseriesLoad(t *testing.T, s *timeseries.Store, series string) *timeseriesLoad {
	t.Helper()
	l := &timeseriesLoad{s: s, series: series}
	var ctx context.Context
	ctx, l.end = context.WithCancel(t.Context())
	for range 8 {
		l.wg.Go(func() {
			for ctx.Err() == nil {
				began := time.Now()
				err := s.Counter(series).Incr(context.Background(), 1)
				if took := int64(time.Since(began)); took > l.longest.Load() {
					l.longest.Store(took)
				}
				switch {
				case err == nil:
					l.acknowledged.Add(1)
				case errors.Is(err, timeseries.ErrUnknown):
					l.unknown.Add(1)
				default:
					_ = after(ctx, time.Millisecond) // refused: it goes on
				}
			}
		})
	}
	t.Cleanup(l.stop)
	l.progress(t)
	return l
}

// progress waits until more is acknowledged.
func (l *timeseriesLoad) progress(t *testing.T) {
	t.Helper()
	before := l.acknowledged.Load()
	require.Eventually(t, func() bool { return l.acknowledged.Load() >= before+100 }, soon, tick)
}

// stop ends the load.
func (l *timeseriesLoad) stop() {
	l.end()
	l.wg.Wait()
}

// requireCounted requires that all that was acknowledged is there, unless some may be lost, and no more than what was
// tried; and that no call took longer than two round trips, and what a busy machine adds.
func (l *timeseriesLoad) requireCounted(t *testing.T, mayLose bool) {
	t.Helper()
	counted := timeseriesSum(t, l.s, l.series)
	t.Logf("%s: %d acknowledged, %d unknown, %d counted, longest call %v", l.series, l.acknowledged.Load(), l.unknown.Load(), counted, time.Duration(l.longest.Load()))
	if !mayLose {
		require.GreaterOrEqual(t, counted, l.acknowledged.Load(), l.series)
	}
	require.LessOrEqual(t, counted, l.acknowledged.Load()+l.unknown.Load(), l.series)
	require.Less(t, time.Duration(l.longest.Load()), 2*timeseriesTimeout+2*time.Second)
}

// requireReplicated waits until a replica has all that the primary, of a slot if there are, has taken so far. A primary that is
// none any more has no replica.
func requireReplicated(t *testing.T, client rueidis.Client, key string) {
	t.Helper()
	require.Eventually(t, func() bool {
		replicas := int64(0)
		err := client.Dedicated(func(c rueidis.DedicatedClient) error {
			// WAIT is about what its own connection has written, and so about all that was written before.
			if err := c.Do(t.Context(), c.B().Set().Key(key).Value("x").PxMilliseconds(60_000).Build()).Error(); err != nil {
				return err
			}
			var err error
			replicas, err = c.Do(t.Context(), c.B().Arbitrary("WAIT", "1", "2000").Keys().Build()).AsInt64()
			return err
		})
		return err == nil && replicas >= 1
	}, 20*time.Second, 10*time.Millisecond)
}

func TestTimeseries_SentinelFailover(t *testing.T) {
	t.Parallel()
	sentinel := redistest.StartSentinel(t)
	client, prefix := sentinel.Client(t), redistest.Prefix(t)
	s := newTimeseries(t, client, timeseries.Options{Prefix: prefix, Timeout: timeseriesTimeout})
	gathering := newTimeseries(t, client, timeseries.Options{Prefix: prefix, Timeout: timeseriesTimeout, FlushEvery: 5 * time.Millisecond})
	for _, fail := range []struct {
		name string
		over func(testing.TB)
	}{{"planned", sentinel.Failover}, {"killed", sentinel.KillPrimary}} {
		before := startTimeseriesLoad(t, s, fail.name+" before")
		before.stop()
		for range 1000 {
			require.NoError(t, gathering.Counter(fail.name+" gathered").Incr(t.Context(), 1))
		}
		require.NoError(t, gathering.Flush(t.Context()))
		requireReplicated(t, client, prefix)
		written := gathering.Totals().Written

		during, gathered := startTimeseriesLoad(t, s, fail.name+" during"), startTimeseriesLoad(t, gathering, fail.name+" gathered during")
		fail.over(t)
		during.progress(t)
		during.stop()
		gathered.stop()
		require.Eventually(t, func() bool { return gathering.Flush(t.Context()) == nil }, soon, tick)
		if fail.name == "planned" { // the killed one does not come back
			requireReplicated(t, client, prefix)
		}
		later := startTimeseriesLoad(t, s, fail.name+" later")
		later.stop()

		before.requireCounted(t, false)
		during.requireCounted(t, true)
		later.requireCounted(t, false)
		require.EqualValues(t, 1000, timeseriesSum(t, s, fail.name+" gathered"))
		totals := gathering.Totals()
		require.LessOrEqual(t, timeseriesSum(t, s, fail.name+" gathered during"), totals.Written-written+totals.Unknown, "what may have been counted is not sent again")
	}
	timeseriesKeys(t, client, prefix, func(_ rueidis.Client, key string, ttl int64) { require.Positive(t, ttl, key) })
}

// TestTimeseries_ClusterFailover has a failover that loses nothing, as the primary stops and waits for its replica, and one
// after a kill. What other primaries have does not notice.
func TestTimeseries_ClusterFailover(t *testing.T) {
	t.Parallel()
	cluster := redistest.StartCluster(t, 1)
	client, prefix := cluster.Client(t), redistest.Prefix(t)
	s := newTimeseries(t, client, timeseries.Options{Prefix: prefix, Timeout: timeseriesTimeout})
	primary := func(key string) int { return int(slotOf(client, key)) * 3 / 16384 }
	load := func(name string, of int) *timeseriesLoad {
		for primary(prefix+":{test:"+name+"}") != of {
			name += "'"
		}
		return startTimeseriesLoad(t, s, name)
	}
	key := prefix + ":x"
	for primary(key) != 0 {
		key += "'"
	}

	far, agreed := load("far", 1), load("agreed", 0)
	replica := cluster.Client(t, func(o *rueidis.ClientOption) { // of the first primary
		o.InitAddress, o.ForceSingleClient = cluster.Addrs()[3:4], true
	})
	require.Eventually(t, func() bool {
		_ = replica.Do(t.Context(), replica.B().Arbitrary("CLUSTER", "FAILOVER").Build()).Error() // it has begun, or is not ready for it
		role, err := replica.Do(t.Context(), replica.B().Role().Build()).ToArray()
		if err != nil {
			return false
		}
		name, err := role[0].ToString()
		return err == nil && name == "master"
	}, 20*time.Second, 100*time.Millisecond)
	agreed.progress(t)
	agreed.stop()
	agreed.requireCounted(t, false)

	before := load("before", 0)
	before.stop()
	requireReplicated(t, client, key)
	during := load("during", 0)
	cluster.Failover(t, key)
	during.progress(t)
	during.stop()
	later := load("later", 0)
	later.stop()
	far.stop()
	before.requireCounted(t, false)
	during.requireCounted(t, true)
	later.requireCounted(t, false)
	far.requireCounted(t, false)
	require.Zero(t, far.unknown.Load())
	timeseriesKeys(t, cluster.Client(t), prefix, func(_ rueidis.Client, key string, ttl int64) { require.Positive(t, ttl, key) })
}

// TestTimeseries_ConnectionsAreKilled kills all connections again and again under load, and has scripts forgotten.
func TestTimeseries_ConnectionsAreKilled(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(t *testing.T) (client rueidis.Client, nodes []rueidis.Client){
		"single": func(t *testing.T) (rueidis.Client, []rueidis.Client) {
			t.Helper()
			server := redistest.Start(t)
			return server.Client(t), []rueidis.Client{server.Client(t)}
		},
		"cluster": func(t *testing.T) (client rueidis.Client, nodes []rueidis.Client) {
			t.Helper()
			cluster := redistest.StartCluster(t, 0)
			for _, node := range cluster.Client(t).Nodes() {
				nodes = append(nodes, node)
			}
			return cluster.Client(t), nodes
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client, nodes := start(t)
			prefix := redistest.Prefix(t)
			s := newTimeseries(t, client, timeseries.Options{Prefix: prefix, Timeout: timeseriesTimeout})
			gathering := newTimeseries(t, client, timeseries.Options{Prefix: prefix, Timeout: timeseriesTimeout, FlushEvery: time.Millisecond})
			loads := []*timeseriesLoad{startTimeseriesLoad(t, s, "a"), startTimeseriesLoad(t, s, "b"), startTimeseriesLoad(t, s, "c")}
			gathered := startTimeseriesLoad(t, gathering, "gathered")
			rounds := 4
			if soak() {
				rounds = 60
			}
			for range rounds {
				for _, node := range nodes {
					_ = node.Do(t.Context(), node.B().ScriptFlush().Build()).Error()                                                  // its connection may have been killed
					_ = node.Do(t.Context(), node.B().Arbitrary("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes").Build()).Error() // likewise
				}
				for _, l := range loads {
					l.progress(t)
				}
			}
			gathered.stop()
			_ = gathering.Close(t.Context()) // what it could not write is in its totals
			for _, l := range loads {
				l.stop()
				l.requireCounted(t, false)
			}
			totals := gathering.Totals()
			require.Equal(t, gathered.acknowledged.Load(), totals.Written+totals.Unknown+totals.Refused, "each gathered event has an outcome")
			counted := timeseriesSum(t, s, "gathered")
			require.GreaterOrEqual(t, counted, totals.Written)
			require.LessOrEqual(t, counted, totals.Written+totals.Unknown)
			timeseriesKeys(t, client, prefix, func(_ rueidis.Client, key string, ttl int64) { require.Positive(t, ttl, key) })
		})
	}
}
