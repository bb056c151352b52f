package integration

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
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

	"github.com/redispatterns/redispatterns/buffer"
	"github.com/redispatterns/redispatterns/buffer/sqlsink"
	"github.com/redispatterns/redispatterns/internal/integration/redistest"
)

// addInBackground is addMany in a goroutine, which closes done at its end.
func addInBackground(t *testing.T, b *buffer.Buffer, goroutines, each int) (done chan struct{}, total int64) {
	t.Helper()
	done = make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(done)
		addMany(t, b, goroutines, each)
	})
	t.Cleanup(wg.Wait)
	return done, int64(goroutines * each)
}

// addMany lets goroutines add 1 to one entity, and others, many times, and requires that each is confirmed.
func addMany(t *testing.T, b *buffer.Buffer, goroutines, each int) (total int64) {
	t.Helper()
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			for i := range each {
				entity := "hot"
				if (g+i)%4 == 0 {
					entity = strconv.Itoa(i)
				}
				require.NoError(t, b.Add(t.Context(), entity, buffer.Int("views", 1)))
			}
		})
	}
	wg.Wait()
	return int64(goroutines * each)
}

func TestBuffer_100kIncrementsOfOneFieldWhileItIsFlushed(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	prefix := redistest.Prefix(t)
	opts := buffer.Options{Prefix: prefix, Shards: 1, MaxBatch: 2, FlushEvery: time.Millisecond}
	sink := newMemorySink()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var flushers sync.WaitGroup
	for range 2 {
		b := newBuffer(t, client, allColumns, opts)
		flushers.Go(func() { require.NoError(t, b.Run(ctx, sink)) })
	}
	b := newBuffer(t, client, allColumns, opts)
	var producers sync.WaitGroup
	for range 50 {
		producers.Go(func() {
			for i := range 2000 {
				require.NoError(t, b.Add(t.Context(), "hot", buffer.Int("views", 1)))
				if i%100 == 0 {
					require.NoError(t, b.Add(t.Context(), strconv.Itoa(i), buffer.Int("best", 1))) // so that there are slices
				}
			}
		})
	}
	producers.Wait()
	stop()
	flushers.Wait()
	drainTo(t, b, sink)
	require.Equal(t, int64(100_000), sink.rows["hot"][0].Int)
	require.Greater(t, len(sink.seqs), 20, "it was flushed all the while")
}

// Replies to adds get lost for longer than a round trip may take, again and again: each is sent until it is confirmed.
func TestBuffer_LostRepliesOfAdd(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	proxy := redistest.NewProxy(t, server.Addr())
	prefix := redistest.Prefix(t)
	var lost atomic.Int64
	b := newBuffer(t, server.Client(t, proxy.Through, redistest.OneConnection), allColumns, buffer.Options{
		Prefix: prefix, Shards: 2, OpTimeout: 50 * time.Millisecond,
		Hooks: buffer.Hooks{Error: func(context.Context, string, error) { lost.Add(1) }},
	})
	require.NoError(t, b.Add(t.Context(), "hot", buffer.Int("views", 0)))
	done, total := addInBackground(t, b, 16, 2000)
	faults := []func(testing.TB){proxy.DropReplies, proxy.BlackHole, proxy.Cut}
	rounds := 3
	if soak() {
		rounds = 30
	}
	for i := range rounds {
		begun := lost.Load()
		faults[i%3](t)
		running := true
		require.Eventually(t, func() bool {
			select {
			case <-done:
				running = false
			default:
			}
			return !running || lost.Load() >= begun+2
		}, 10*time.Second, time.Millisecond)
		proxy.Restore(t)
		require.NoError(t, b.Add(t.Context(), "hot", buffer.Int("views", 1))) // else an Add might see nothing but faults, until AddTimeout
		total++
	}
	<-done
	require.Positive(t, lost.Load())
	sink := newMemorySink()
	drainTo(t, newBuffer(t, server.Client(t), allColumns, buffer.Options{Prefix: prefix, Shards: 2}), sink)
	require.Equal(t, total, sink.total())
}

// losingClient executes commands, of which each fourth then has its reply lost.
type losingClient struct{ redistest.PassThrough }

func (losingClient) Do(client rueidis.Client, ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	r := client.Do(ctx, cmd)
	if rand.IntN(4) > 0 {
		return r
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	return client.Do(ended, client.B().Ping().Build())
}

func TestBuffer_LostRepliesOfAddClaimReadAckAndCommit(t *testing.T) {
	t.Parallel()
	eachDatabase(t, func(t *testing.T, dialect sqlsink.Dialect, d redistest.Database) {
		spied := &dbSpy{loseCommits: true}
		db := openDatabase(t, dialect, d, spied)
		sink, err := newTableSink(dialect, db, sqlsink.Table{Name: "hits", Key: "id"})
		require.NoError(t, err)
		client := rueidishook.WithHook(redistest.Shared(t).Client(t), losingClient{})
		b := newBuffer(t, client, allColumns, buffer.Options{Shards: 2, MaxBatch: 20, Lease: 20 * time.Millisecond})
		counted := map[string]int64{}
		failed := 0
		for range 15 {
			for range 30 {
				e := strconv.Itoa(rand.IntN(50))
				require.NoError(t, b.Add(t.Context(), e, buffer.Int("views", 3)))
				counted[e] += 3
			}
			if _, err := b.Flush(t.Context(), sink); err != nil {
				failed++
			}
		}
		require.Greater(t, failed, 5)
		require.Positive(t, spied.lost.Load())
		require.Eventually(t, func() bool {
			_, err := b.Flush(t.Context(), sink)
			if err != nil {
				return false
			}
			stats, err := b.Stats(t.Context())
			return err == nil && stats.Pending == 0
		}, 20*time.Second, time.Millisecond)
		requireCounts(t, db, counted)
	})
}

func TestBuffer_RedisFull(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, "--maxmemory", "20mb", "--maxmemory-policy", "noeviction")
	client := server.Client(t)
	ctx := t.Context()
	b := newBuffer(t, client, allColumns, buffer.Options{MaxBatch: 100})
	sink := newMemorySink()
	for i := range 1000 {
		require.NoError(t, b.Add(ctx, strconv.Itoa(i), buffer.Int("views", 1)))
	}
	refusing(sink, func(e string) bool { return e == "500" })
	setMemory := func(limit string) {
		t.Helper()
		require.NoError(t, client.Do(ctx, client.B().ConfigSet().ParameterValue().ParameterValue("maxmemory", limit).Build()).Error())
	}
	setMemory("1mb")
	for i := range 100 {
		err := b.Add(ctx, strconv.Itoa(i), buffer.Int("views", 1))
		require.ErrorContains(t, err, "OOM")
		require.NotErrorIs(t, err, buffer.ErrUnconfirmed)
	}
	require.NoError(t, b.Post("posted", buffer.Int("views", 1)), "it is kept and sent later")
	// What is there can be flushed, and so make room: excluding rows, dead letters and Replay included.
	require.Eventually(t, func() bool {
		_, err := b.Flush(ctx, sink)
		return err == nil
	}, 10*time.Second, time.Millisecond)
	for range 3 {
		_, err := b.Flush(ctx, sink)
		require.NoError(t, err)
	}
	require.Equal(t, int64(999), sink.total())
	sink.before = nil
	n, err := b.Replay(ctx)
	require.NoError(t, err)
	require.Equal(t, 1, n)
	_, err = b.Flush(ctx, sink)
	require.NoError(t, err)
	require.Equal(t, int64(1000), sink.total())
	setMemory("100mb")
	require.NoError(t, b.Close(ctx))
	drainTo(t, b, sink)
	require.Equal(t, int64(1001), sink.total())
	require.Equal(t, int64(1), sink.rows["posted"][0].Int)
}

// It is told once, and flushed all the same, when Redis may evict; and where it does not say whether it does, all goes on, the
// notice of each loss included.
func TestBuffer_RedisEvicts(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
	raw := server.Client(t)
	ctx := t.Context()
	var told atomic.Int64
	opts := buffer.Options{
		Prefix: redistest.Prefix(t), FlushEvery: time.Millisecond,
		Hooks: buffer.Hooks{Error: func(_ context.Context, op string, err error) {
			if op == buffer.OpCheck {
				require.ErrorIs(t, err, buffer.ErrEvicting)
				told.Add(1)
			}
		}},
	}
	sink := newMemorySink()
	b := newBuffer(t, raw, allColumns, opts)
	for range 2 {
		require.NoError(t, b.Add(ctx, "e", buffer.Int("views", 1)))
		_, err := b.Flush(ctx, sink)
		require.NoError(t, err)
	}
	require.Equal(t, int64(2), sink.total())
	require.Equal(t, int64(1), told.Load())

	do := func(args ...string) {
		t.Helper()
		require.NoError(t, raw.Do(ctx, raw.B().Arbitrary(args...).Build()).Error())
	}
	evicts := func(b *buffer.Buffer) bool {
		t.Helper()
		stats, err := b.Stats(ctx)
		require.NoError(t, err)
		return stats.Evicts
	}
	require.True(t, evicts(b))
	do("ACL", "SETUSER", "app", "on", ">secret", "~*", "+@all", "-info")
	limited := newBuffer(t, server.Client(t, func(o *rueidis.ClientOption) { o.Username, o.Password = "app", "secret" }), allColumns, opts)
	require.False(t, evicts(limited))
	require.NoError(t, limited.Add(ctx, "e", buffer.Int("views", 1)))
	do("FLUSHALL")
	require.NoError(t, limited.Add(ctx, "e", buffer.Int("views", 1)))
	drainTo(t, limited, sink)
	stats, err := limited.Stats(ctx)
	require.NoError(t, err)
	require.Equal(t, int64(1), stats.Regressions)
	require.Equal(t, int64(3), sink.total())
	for loss := range 2 {
		state := dump(t, raw, opts.Prefix)
		require.NoError(t, limited.Add(ctx, "e", buffer.Int("views", 1)))
		restore(t, raw, opts.Prefix, state)
		require.NoError(t, limited.Add(ctx, "e", buffer.Int("views", 1)))
		drainTo(t, limited, sink)
		stats, err := limited.Stats(ctx)
		require.NoError(t, err)
		require.Equal(t, int64(2+loss), stats.Regressions)
		require.Equal(t, int64(4+loss), sink.total())
	}

	for policy, want := range map[string]bool{"volatile-ttl": true, "noeviction": false} {
		do("CONFIG", "SET", "maxmemory-policy", policy)
		require.Equal(t, want, evicts(b), policy)
	}
	do("CONFIG", "SET", "maxmemory", "0", "maxmemory-policy", "allkeys-lru")
	require.False(t, evicts(b), "there is no limit")
	require.Equal(t, int64(1), told.Load())
}

func TestBuffer_ScriptFlushAndClientKill(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t)
	admin := server.Client(t)
	b := newBuffer(t, client, allColumns, buffer.Options{FlushEvery: time.Millisecond, Lease: 100 * time.Millisecond})
	sink := newMemorySink()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var flusher sync.WaitGroup
	flusher.Go(func() { require.NoError(t, b.Run(ctx, sink)) })
	done, total := addInBackground(t, b, 16, 500)
	for running := true; running; {
		_ = admin.Do(t.Context(), admin.B().ScriptFlush().Build())
		_ = admin.Do(t.Context(), admin.B().ClientKill().TypeNormal().SkipmeYes().Build())
		select {
		case <-done:
			running = false
		case <-time.After(20 * time.Millisecond):
		}
	}
	stop()
	flusher.Wait()
	drainTo(t, b, sink)
	require.Equal(t, total, sink.total())
}

// With a server that writes each command to disk before it confirms, restarts lose and double nothing.
func TestBuffer_RestartsOfADurableServer(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	b := newBuffer(t, server.Client(t), allColumns, buffer.Options{FlushEvery: time.Millisecond, Backoff: 10 * time.Millisecond, OpTimeout: time.Second})
	sink := newMemorySink()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var flusher sync.WaitGroup
	flusher.Go(func() { require.NoError(t, b.Run(ctx, sink)) })
	require.NoError(t, b.Add(t.Context(), "hot", buffer.Int("views", 0)))
	done, total := addInBackground(t, b, 8, 300)
	for range 2 {
		server.Kill(t)
		server.Restart(t)
		seen := sink.calls.Load()
		require.Eventually(t, func() bool { // it goes on
			select {
			case <-done:
				return true
			default:
				return sink.calls.Load() > seen
			}
		}, 10*time.Second, time.Millisecond)
	}
	<-done
	stop()
	flusher.Wait()
	drainTo(t, b, sink)
	require.Equal(t, total, sink.total())
	stats, err := b.Stats(t.Context())
	require.NoError(t, err)
	require.Zero(t, stats.Regressions)
}

func TestBuffer_ClusterFailover(t *testing.T) {
	t.Parallel()
	cluster := redistest.StartCluster(t, 1)
	client := cluster.Client(t)
	prefix := redistest.Prefix(t)
	b := newBuffer(t, client, allColumns, buffer.Options{Prefix: prefix, OpTimeout: time.Second})
	sink := newMemorySink()
	total := addMany(t, b, 4, 200)
	for _, node := range client.Nodes() { // or the replica may lack the last of them
		_ = node.Do(t.Context(), node.B().Wait().Numreplicas(1).Timeout(2000).Build())
	}
	cluster.Failover(t, prefix+":{counts:0}:cur")
	total += addMany(t, b, 4, 200)
	require.Eventually(t, func() bool {
		_, err := b.Flush(t.Context(), sink)
		return err == nil
	}, 20*time.Second, time.Millisecond)
	drainTo(t, b, sink)
	require.Equal(t, total, sink.total())
}

// Redis loses all it has, again and again. It is reported once per loss and shard, whoever is the first to come after it and
// however many flushers there are; a first start, other numbers of shards and new processes are not. Nothing is parked: nothing
// can count twice.
func TestBuffer_AllKeysLost(t *testing.T) {
	t.Parallel()
	raw := redistest.Shared(t).Client(t)
	for _, c := range []struct {
		name    string
		flushed bool // before the loss, so that the ledger knows of it
		old     int  // when a process that was there before comes: first, second or last
		told    int  // until the last comes
	}{
		{"the ledger knows", true, 0, 1},
		{"the ledger and a process know", true, 1, 1},
		{"a process knows", false, 1, 1},
		{"a process knows and comes second", false, 2, 1},
		{"nobody knows", false, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			var mu sync.Mutex
			told := map[int]int{}
			opts := buffer.Options{
				Prefix: redistest.Prefix(t), Shards: 2, OnRegress: buffer.RegressPark,
				Hooks: buffer.Hooks{Regress: func(_ context.Context, info buffer.RegressInfo) {
					mu.Lock()
					defer mu.Unlock()
					require.False(t, info.Behind || info.Parked)
					told[info.Shard]++
				}},
			}
			sink := newMemorySink()
			var total int64
			add := func(b *buffer.Buffer) {
				t.Helper()
				for i := range 20 { // of both shards
					require.NoError(t, b.Add(ctx, strconv.Itoa(i), buffer.Int("views", 1)))
				}
				total += 20
			}
			newcomer := func() *buffer.Buffer { return newBuffer(t, raw, allColumns, opts) }
			drain := func() {
				t.Helper()
				var flushers sync.WaitGroup
				for range 3 {
					b := newcomer()
					flushers.Go(func() { drainTo(t, b, sink) })
				}
				flushers.Wait()
				require.Equal(t, total, sink.total(), "the ledger drops nothing new")
			}
			for loss := range 3 {
				old := newcomer()
				add(old)
				if c.flushed {
					drain()
					moreShards := opts
					moreShards.Shards = 5
					add(newBuffer(t, raw, allColumns, moreShards))
					drain()
					require.Equal(t, loss, told[0], "not for what is no loss")
				} else {
					total -= 20
					clear(sink.ledger)
				}
				require.NoError(t, raw.Do(ctx, raw.B().Del().Key(keysOf(t, raw, opts.Prefix)...).Build()).Error())
				if c.old == 1 {
					add(old)
				}
				add(newcomer())
				if c.old == 2 {
					add(old)
				}
				drain()
				require.Equal(t, []int{loss + c.told, loss + c.told}, []int{told[0], told[1]})
				add(old)
				drain()
				require.Equal(t, []int{loss + 1, loss + 1}, []int{told[0], told[1]})
				stats, err := old.Stats(ctx)
				require.NoError(t, err)
				require.Equal(t, int64(2), stats.Regressions, "since they were lost too")
				require.Zero(t, stats.DeadLetters)
			}
		})
	}
}

// An older state of a shard comes back, as from a snapshot or a replica that lacked the last writes: whatever was the last
// thing that it knew of.
func TestBuffer_AnOlderStateComesBack(t *testing.T) {
	t.Parallel()
	for _, policy := range []buffer.OnRegress{buffer.RegressApply, buffer.RegressPark} {
		for _, point := range []string{"before claim", "after claim", "before ack"} {
			t.Run(point+strconv.Itoa(int(policy)), func(t *testing.T) {
				t.Parallel()
				ctx := t.Context()
				raw := redistest.Shared(t).Client(t)
				prefix := redistest.Prefix(t)
				var snapshot map[string]string
				spied := &dbSpy{}
				var regressed []buffer.RegressInfo
				b := newBuffer(t, rueidishook.WithHook(raw, spiedClient{dbSpy: spied}), allColumns, buffer.Options{
					Prefix: prefix, Shards: 1, OnRegress: policy, Lease: 10 * time.Millisecond,
					Hooks: buffer.Hooks{Regress: func(_ context.Context, info buffer.RegressInfo) { regressed = append(regressed, info) }},
				})
				sink := newMemorySink()
				for range 5 { // so that the ledger is well ahead
					require.NoError(t, b.Add(ctx, "old", buffer.Int("views", 1)))
					drainTo(t, b, sink)
				}
				require.NoError(t, b.Add(ctx, "old", buffer.Int("views", 10)))
				spied.at = func(p string) {
					if p == point && snapshot == nil {
						snapshot = dump(t, raw, prefix)
					}
				}
				drainTo(t, b, sink)
				require.Equal(t, int64(15), sink.total())
				for range 3 {
					require.NoError(t, b.Add(ctx, "old", buffer.Int("views", 1)))
					drainTo(t, b, sink)
				}
				restore(t, raw, prefix, snapshot)

				require.NoError(t, b.Add(ctx, "new", buffer.Int("views", 100)))
				drainTo(t, b, sink)
				stats, err := b.Stats(ctx)
				require.NoError(t, err)
				require.Equal(t, int64(len(regressed)), stats.Regressions)
				require.NotEmpty(t, regressed)
				if policy == buffer.RegressPark {
					// What is new may be among what was parked: nothing of it is lost.
					require.Positive(t, stats.DeadLetters)
					require.Equal(t, int64(18), sink.rows["old"][0].Int, "nothing old is counted again by itself")
					_, err := b.Replay(ctx)
					require.NoError(t, err)
					drainTo(t, b, sink)
				}
				require.Equal(t, int64(100), sink.rows["new"][0].Int, "what is new counts once")
				want := int64(18)
				if point == "before claim" {
					want += 10 // it was pending in the state that came back
				}
				if policy == buffer.RegressApply || point == "before claim" {
					require.LessOrEqual(t, sink.rows["old"][0].Int, want+10)
					require.GreaterOrEqual(t, sink.rows["old"][0].Int, int64(18))
				}
				// And all goes on as usual.
				before := sink.total()
				require.NoError(t, b.Add(ctx, "new", buffer.Int("views", 1)))
				drainTo(t, b, sink)
				require.Equal(t, before+1, sink.total())
				after, err := b.Stats(ctx)
				require.NoError(t, err)
				require.Equal(t, stats.Regressions, after.Regressions)
			})
		}
	}
}

// An acknowledgement alone is lost: the batch comes back, the ledger knows it, and nothing is counted again.
func TestBuffer_ALostAcknowledgementComesBack(t *testing.T) {
	t.Parallel()
	raw := redistest.Shared(t).Client(t)
	prefix := redistest.Prefix(t)
	var snapshot map[string]string
	spied := &dbSpy{}
	b := newBuffer(t, rueidishook.WithHook(raw, spiedClient{dbSpy: spied}), allColumns, buffer.Options{Prefix: prefix, Shards: 1, Lease: 10 * time.Millisecond})
	sink := newMemorySink()
	require.NoError(t, b.Add(t.Context(), "e", buffer.Int("views", 1)))
	spied.at = func(p string) {
		if p == "before ack" && snapshot == nil {
			snapshot = dump(t, raw, prefix)
		}
	}
	drainTo(t, b, sink)
	restore(t, raw, prefix, snapshot)
	require.NoError(t, b.Add(t.Context(), "e", buffer.Int("views", 1)))
	drainTo(t, b, sink)
	require.Equal(t, int64(2), sink.total())
	stats, err := b.Stats(t.Context())
	require.NoError(t, err)
	require.Zero(t, stats.Regressions)
}

// An acknowledgement is lost with what the sink had refused before: the ledger has a version that Redis does not know of. Which
// value is missing nobody knows, but that is told, once.
func TestBuffer_WhatWasRefusedIsForgotten(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	raw := redistest.Shared(t).Client(t)
	prefix := redistest.Prefix(t)
	var told []buffer.RegressInfo
	b := newBuffer(t, raw, allColumns, buffer.Options{
		Prefix: prefix, Shards: 1, Lease: 10 * time.Millisecond,
		Hooks: buffer.Hooks{Regress: func(_ context.Context, info buffer.RegressInfo) { told = append(told, info) }},
	})
	sink := newMemorySink()
	require.NoError(t, b.Add(ctx, "good", buffer.Int("views", 1)))
	require.NoError(t, b.Add(ctx, "bad", buffer.Int("views", 1)))
	var snapshot map[string]string
	refusing(sink, func(e string) bool {
		if snapshot == nil {
			snapshot = dump(t, raw, prefix)
		}
		return e == "bad"
	})
	drainTo(t, b, sink)
	require.Empty(t, told)
	require.NoError(t, b.Add(ctx, "good", buffer.Int("views", 1)))
	restore(t, raw, prefix, snapshot)
	sink.before = nil // or it would be refused again
	for total := int64(1); total < 4; total++ {
		drainTo(t, b, sink)
		require.Equal(t, total, sink.total())
		require.Equal(t, []buffer.RegressInfo{{Rows: 2}}, told)
		require.NoError(t, b.Add(ctx, "good", buffer.Int("views", 1)))
	}
	stats, err := b.Stats(ctx)
	require.NoError(t, err)
	require.Equal(t, int64(1), stats.Regressions)
	require.Zero(t, stats.DeadLetters)
}

// A snapshot that was written to disk, and is loaded by a server that was killed since. What was lost is told once, also if a
// process that knows of it comes long after the others, when the server was restarted without a loss.
func TestBuffer_ASnapshotOnDiskComesBack(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t)
	ctx := t.Context()
	opts := buffer.Options{Prefix: redistest.Prefix(t), Shards: 1}
	b, idle := newBuffer(t, client, allColumns, opts), newBuffer(t, client, allColumns, opts)
	sink := newMemorySink()
	require.NoError(t, b.Add(ctx, "e", buffer.Int("views", 1)))
	drainTo(t, b, sink)
	require.NoError(t, client.Do(ctx, client.B().Save().Build()).Error())
	for range 3 {
		require.NoError(t, b.Add(ctx, "e", buffer.Int("views", 1)))
		drainTo(t, b, sink)
	}
	server.Kill(t)
	server.Restart(t)
	for range 5 {
		require.NoError(t, b.Add(ctx, "e", buffer.Int("views", 1)))
		drainTo(t, b, sink)
	}
	require.Equal(t, int64(9), sink.total())
	stats, err := b.Stats(ctx)
	require.NoError(t, err)
	require.Equal(t, int64(1), stats.Regressions)

	// And once more, without what was added last and not flushed: the ledger has nothing to say.
	require.NoError(t, client.Do(ctx, client.B().Save().Build()).Error())
	require.NoError(t, b.Add(ctx, "e", buffer.Int("views", 1)))
	require.NoError(t, idle.Add(ctx, "e", buffer.Int("views", 1)))
	server.Kill(t)
	server.Restart(t)
	for range 2 {
		require.NoError(t, b.Add(ctx, "e", buffer.Int("views", 1)))
		drainTo(t, b, sink)
	}
	require.Equal(t, int64(11), sink.total())
	stats, err = b.Stats(ctx)
	require.NoError(t, err)
	require.Equal(t, int64(2), stats.Regressions)

	require.NoError(t, client.Do(ctx, client.B().Save().Build()).Error())
	server.Kill(t)
	server.Restart(t)
	require.NoError(t, idle.Add(ctx, "e", buffer.Int("views", 1)))
	drainTo(t, b, sink)
	require.Equal(t, int64(12), sink.total())
	stats, err = b.Stats(ctx)
	require.NoError(t, err)
	require.Equal(t, int64(2), stats.Regressions)
}

func dump(t *testing.T, client rueidis.Client, prefix string) map[string]string {
	t.Helper()
	keys := map[string]string{}
	for _, key := range keysOf(t, client, prefix) {
		value, err := client.Do(t.Context(), client.B().Dump().Key(key).Build()).ToString()
		require.NoError(t, err)
		keys[key] = value
	}
	return keys
}

func restore(t *testing.T, client rueidis.Client, prefix string, keys map[string]string) {
	t.Helper()
	require.NotNil(t, keys)
	for _, key := range keysOf(t, client, prefix) {
		require.NoError(t, client.Do(t.Context(), client.B().Del().Key(key).Build()).Error())
	}
	for key, value := range keys {
		require.NoError(t, client.Do(t.Context(), client.B().Restore().Key(key).Ttl(0).SerializedValue(value).Build()).Error())
	}
}

// With RegressPark nothing that was pending in the state that came back is counted again by itself, also what was not in the
// batch that met the ledger.
func TestBuffer_RegressParkTakesAllThatWasPending(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	raw := redistest.Shared(t).Client(t)
	prefix := redistest.Prefix(t)
	var snapshot map[string]string
	spied := &dbSpy{}
	b := newBuffer(t, rueidishook.WithHook(raw, spiedClient{dbSpy: spied}), allColumns, buffer.Options{
		Prefix: prefix, Shards: 1, MaxBatch: 2, OnRegress: buffer.RegressPark, Lease: 10 * time.Millisecond,
	})
	sink := newMemorySink()
	for i := range 9 {
		require.NoError(t, b.Add(ctx, strconv.Itoa(i), buffer.Int("views", 1)))
	}
	spied.at = func(p string) {
		if p == "after claim" && snapshot == nil {
			snapshot = dump(t, raw, prefix)
		}
	}
	drainTo(t, b, sink)
	restore(t, raw, prefix, snapshot) // a batch, and more in its generation
	require.NoError(t, b.Add(ctx, "new", buffer.Int("views", 100)))
	drainTo(t, b, sink)
	require.Equal(t, int64(9), sink.total())
	stats, err := b.Stats(ctx)
	require.NoError(t, err)
	require.Equal(t, int64(10), stats.DeadLetters)
	require.Equal(t, int64(1), stats.Regressions)
	require.NoError(t, b.Add(ctx, "newer", buffer.Int("views", 1000)))
	drainTo(t, b, sink)
	require.Equal(t, int64(1009), sink.total(), "what came later is not suspect")
	_, err = b.Replay(ctx, "new")
	require.NoError(t, err)
	drainTo(t, b, sink)
	require.Equal(t, int64(1109), sink.total())
}

// A failover to a replica that lacks the last writes: of one shard a batch that was applied, of another what was added only.
// Both are reported once, whoever notices it; nothing is counted twice, and nothing new is dropped.
func TestBuffer_AFailoverThatLosesWrites(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	servers := redistest.StartSentinel(t)
	client := servers.Client(t)
	var told []buffer.RegressInfo
	opts := buffer.Options{
		Prefix: redistest.Prefix(t), Shards: 2, Workers: 1, AddTimeout: 30 * time.Second,
		Hooks: buffer.Hooks{Regress: func(_ context.Context, info buffer.RegressInfo) { told = append(told, info) }},
	}
	b, other := newBuffer(t, client, allColumns, opts), newBuffer(t, client, allColumns, opts)
	sink := newMemorySink()
	flushed, pending := "a", "b" // of different shards
	add := func(entity string, n int64) {
		t.Helper()
		for _, b := range []*buffer.Buffer{b, other} {
			require.NoError(t, b.Add(ctx, entity, buffer.Int("views", n)))
		}
	}
	add(flushed, 1)
	add(pending, 1)
	drainTo(t, b, sink)
	require.NotEqual(t, sink.shards[flushed], sink.shards[pending])
	servers.CutReplicaOff(t)
	add(flushed, 10)
	drainTo(t, b, sink)
	require.Equal(t, int64(24), sink.total())
	add(pending, 100) // these are lost
	servers.KillPrimary(t)

	add(flushed, 1000)
	add(pending, 10_000)
	for range 2 {
		drainTo(t, other, sink)
		require.Equal(t, int64(2022), sink.rows[flushed][0].Int)
		require.Equal(t, int64(20_002), sink.rows[pending][0].Int)
		require.Len(t, told, 2)
		add(flushed, 0)
		add(pending, 0)
	}
	for _, info := range told {
		require.Equal(t, info.Shard == sink.shards[flushed], info.Behind, "%+v", told)
	}
	stats, err := b.Stats(ctx)
	require.NoError(t, err)
	require.Equal(t, int64(2), stats.Regressions)
}

// goneNode fails the commands with keys of some hash tags, as if their node were gone: with io.EOF or, if it has been given up,
// as rueidis does then, all of a pipeline.
type goneNode struct {
	redistest.PassThrough
	givenUp bool
	tags    atomic.Pointer[[]string]
	refused atomic.Int64
}

func (g *goneNode) isGone(cmd rueidis.Completed) bool {
	tags := g.tags.Load()
	if tags == nil {
		return false
	}
	for _, arg := range cmd.Commands() {
		for _, tag := range *tags {
			if strings.Contains(arg, "{"+tag+"}") {
				g.refused.Add(1)
				return true
			}
		}
	}
	return false
}

func (g *goneNode) Do(client rueidis.Client, ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	switch {
	case !g.isGone(cmd):
		return client.Do(ctx, cmd)
	case g.givenUp:
		return rueidishook.NewErrorResult(rueidis.ErrNoSlot)
	}
	return rueidishook.NewErrorResult(io.EOF)
}

func (g *goneNode) DoMulti(client rueidis.Client, ctx context.Context, multi ...rueidis.Completed) []rueidis.RedisResult {
	results := make([]rueidis.RedisResult, len(multi))
	if g.givenUp && slices.ContainsFunc(multi, g.isGone) {
		for i := range results {
			results[i] = rueidishook.NewErrorResult(rueidis.ErrNoSlot)
		}
		return results
	}
	for i, cmd := range multi {
		results[i] = g.Do(client, ctx, cmd)
	}
	return results
}

// A node of a Cluster that is out of reach holds up its own shards, and that alone: also if it is the one that has the number of
// shards.
func TestBuffer_ANodeOutOfReach(t *testing.T) {
	t.Parallel()
	client := redistest.SharedCluster(t).Client(t)
	for _, givenUp := range []bool{false, true} {
		for name, c := range map[string]struct {
			gone   []string
			failed int // shards
		}{
			"a shard":               {[]string{"counts:0"}, 1},
			"the number of shards":  {[]string{"counts"}, 0},
			"shards and the number": {[]string{"counts:0", "counts:2", "counts"}, 2},
			"all":                   {[]string{"counts:0", "counts:1", "counts:2", "counts:3", "counts"}, 4},
		} {
			t.Run(fmt.Sprintf("%s, given up: %v", name, givenUp), func(t *testing.T) {
				t.Parallel()
				ctx := t.Context()
				node := &goneNode{givenUp: givenUp}
				var told atomic.Int64
				opts := buffer.Options{
					Prefix: redistest.Prefix(t), Shards: 4, FlushEvery: time.Millisecond, Backoff: 10 * time.Millisecond,
					Hooks: buffer.Hooks{Error: func(_ context.Context, op string, _ error) {
						if op == buffer.OpFlush {
							told.Add(1)
						}
					}},
				}
				b := newBuffer(t, rueidishook.WithHook(client, node), allColumns, opts)
				const entities = 40
				add := func() {
					for i := range entities {
						require.NoError(t, b.Add(ctx, strconv.Itoa(i), buffer.Int("views", 1)))
					}
				}
				add()
				sink := newMemorySink()
				drainTo(t, b, sink)
				held := int64(0)
				for _, shard := range sink.shards {
					if slices.Contains(c.gone, "counts:"+strconv.Itoa(shard)) {
						held++
					}
				}
				told.Store(0)
				for _, run := range []bool{false, true} {
					before := sink.total()
					add()
					node.tags.Store(&c.gone)
					if run {
						running, stop := context.WithCancel(ctx)
						var flusher sync.WaitGroup
						flusher.Go(func() { require.NoError(t, b.Run(running, sink)) })
						refused := node.refused.Load()
						require.Eventually(t, func() bool {
							return sink.total() == before+entities-held && node.refused.Load() > refused+10
						}, 10*time.Second, time.Millisecond)
						stop()
						flusher.Wait()
					} else {
						report, err := b.Flush(ctx, sink)
						require.Error(t, err)
						require.Equal(t, int(entities-held), report.Rows)
						require.LessOrEqual(t, int64(c.failed%4), told.Load())
					}
					require.Equal(t, before+entities-held, sink.total())
					node.tags.Store(nil)
					drainTo(t, b, sink)
					require.Equal(t, before+entities, sink.total())
				}
			})
		}
	}
}

// Redis' clock is set back while a flusher has a lease. It may be dead, and its lease holds nobody up for longer than it was to
// last; one that is as it should be is respected also by those whose own are shorter.
func TestBuffer_TheClockIsSetBack(t *testing.T) {
	t.Parallel()
	raw := redistest.Shared(t).Client(t)
	for _, lease := range []time.Duration{time.Minute, 10 * time.Second, 10 * time.Millisecond} {
		t.Run(lease.String(), func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			prefix := redistest.Prefix(t)
			b := newBuffer(t, raw, allColumns, buffer.Options{Prefix: prefix, Shards: 1, Lease: time.Minute})
			other := newBuffer(t, raw, allColumns, buffer.Options{
				Prefix: prefix, Shards: 1, Lease: lease,
				Hooks: buffer.Hooks{Flush: func(_ context.Context, info buffer.FlushInfo) { require.Zero(t, info.Age) }},
			})
			require.NoError(t, b.Add(ctx, "e", buffer.Int("views", 1)))
			sink, slow := newMemorySink(), newMemorySink()
			slow.before = func(batch *buffer.Batch) error {
				report, err := other.Flush(ctx, sink)
				require.NoError(t, err)
				require.Equal(t, buffer.Report{Busy: 1}, report)
				meta := prefix + ":{counts:0}:meta"
				for _, at := range []string{"expires", "batchSince"} {
					require.NoError(t, raw.Do(ctx, raw.B().Hincrby().Key(meta).Field(at).Increment(3_600_000).Build()).Error())
				}
				report, err = other.Flush(ctx, sink)
				require.NoError(t, err)
				require.Equal(t, buffer.Report{Batches: 1, Rows: 1}, report)
				return sink.Apply(ctx, batch)
			}
			_, err := b.Flush(ctx, slow)
			require.NoError(t, err)
			require.Equal(t, int64(1), sink.total())
			require.Empty(t, slow.rows)
		})
	}
}
