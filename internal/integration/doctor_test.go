package integration

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/redispatterns/redispatterns/buffer"
	"github.com/redispatterns/redispatterns/cache"
	"github.com/redispatterns/redispatterns/examples/doctor/doctor"
	"github.com/redispatterns/redispatterns/internal/integration/redistest"
	"github.com/redispatterns/redispatterns/lock"
	"github.com/redispatterns/redispatterns/ratelimit"
)

const (
	doctorEach = 20      // keys, or things, of each pattern
	doctorRoom = 2 << 20 // bytes that are free when filling begins
)

// TestDoctor_TellsTheTruth fills a server under each policy. What the doctor calls OK must lose nothing, and what it calls FAIL must
// lose something or be refused.
func TestDoctor_TellsTheTruth(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t)
	for _, policy := range doctor.Policies() {
		name := policy
		if policy == doctor.NoLimit {
			name = "allkeys-lru" // which does not matter then
		}
		if err := doctorDo(t, client, "CONFIG", "SET", "maxmemory-policy", name).Error(); err != nil {
			require.Contains(t, policy, "lrm", "%s: %v", policy, err) // Redis 8.6
			continue
		}
		doctorClean(t, client)
		tried := newDoctorTrial(t, client)
		if policy != doctor.NoLimit {
			limit := doctorInfo(t, client, "used_memory") + doctorRoom
			require.NoError(t, doctorDo(t, client, "CONFIG", "SET", "maxmemory", strconv.Itoa(limit)).Error())
		}
		report, err := doctor.Check(t.Context(), client, doctor.Expect{Interval: 10 * time.Millisecond})
		require.NoError(t, err)
		require.Len(t, report.Verdicts, len(doctor.Patterns()))
		if strings.HasSuffix(policy, "-lfu") {
			doctorIdle(t, client)
		}
		before := doctorInfo(t, client, "used_memory")
		lost := tried.fill(t)
		line := fmt.Sprintf("%-16s", policy)
		for _, v := range report.Verdicts {
			require.Equal(t, policy, v.Policy)
			require.True(t, v.Used, v)
			line += fmt.Sprintf(" %s %s:%d", v.Pattern, v.Severity, lost[v.Pattern])
			switch {
			case v.Severity == doctor.Fail && policy == doctor.NoLimit:
				require.Greater(t, doctorInfo(t, client, "used_memory"), before+doctorRoom, "%v: what a limit would have kept out", v)
			case v.Severity == doctor.Fail:
				require.Positive(t, lost[v.Pattern], "%v: nothing was lost or refused", v)
			case v.Severity == doctor.OK, v.Pattern == doctor.Cache:
				require.Zero(t, lost[v.Pattern], "%v: lost or refused", v)
			case v.Severity == doctor.Warn && (v.Pattern == doctor.Buffer || v.Pattern == doctor.Stream):
				require.Zero(t, lost[v.Pattern], "%v: what has no TTL", v)
			}
		}
		t.Log(line)
		require.NoError(t, doctorDo(t, client, "CONFIG", "SET", "maxmemory", "0").Error())
		tried.end()
	}
}

// doctorTrial is a server with some of everything.
type doctorTrial struct {
	client  rueidis.Client
	pages   *cache.Cache[string, []byte]
	holder  *lock.Locker
	other   *lock.Locker
	held    []*lock.Lock
	limiter *ratelimit.Limiter
	counts  []*buffer.Buffer
	end     func()
}

func newDoctorTrial(t *testing.T, client rueidis.Client) *doctorTrial {
	t.Helper()
	ctx := t.Context()
	d := &doctorTrial{client: client}
	var err error
	// No TTL is as long as the cache's but the time series', as is usual.
	d.pages, err = cache.New(client, "cache", cache.Options[string, []byte]{TTL: 2 * time.Hour, OpTimeout: 10 * time.Second})
	require.NoError(t, err)
	d.holder, err = lock.New(client, lock.Options{TTL: time.Minute})
	require.NoError(t, err)
	d.other, err = lock.New(client, lock.Options{TTL: time.Minute})
	require.NoError(t, err)
	d.limiter, err = ratelimit.NewSlidingWindow(client, ratelimit.PerHour(5), ratelimit.Options{Timeout: 10 * time.Second, DenyCacheSize: -1})
	require.NoError(t, err)
	d.end = func() {
		require.NoError(t, d.pages.Close(ctx))
		for _, counts := range d.counts {
			require.NoError(t, counts.Close(ctx))
		}
		require.NoError(t, errors.Join(d.other.Close(ctx), d.holder.Close(ctx)))
	}

	require.NoError(t, d.pages.Set(ctx, "first", []byte("page")))
	expires := strconv.FormatInt(time.Now().Add(6*time.Hour).Unix(), 10)
	for i := range doctorEach {
		id := strconv.Itoa(i)
		held, err := d.holder.TryLock(ctx, id)
		require.NoError(t, err)
		d.held = append(d.held, held)
		result, err := d.limiter.AllowN(ctx, id, 5)
		require.NoError(t, err)
		require.True(t, result.Allowed)
		// Each with keys of its own, and one call: keys that are busy might stay under lfu.
		counts, err := buffer.New(client, id, []buffer.Column{{Name: "views", Op: buffer.Sum}}, buffer.Options{AddTimeout: 10 * time.Second})
		require.NoError(t, err)
		require.NoError(t, counts.Add(ctx, "home", buffer.Int("views", 7)))
		d.counts = append(d.counts, counts)

		// The shapes of these packages' keys.
		for _, args := range [][]string{
			{"XADD", "orders-" + id, "1-1", "order", "1"},
			{"XGROUP", "CREATE", "orders-" + id, "billing", "0"},
			{"HSET", "ts:{hits:" + id + "}:c10x120:1", "1", "7"},
			{"EXPIREAT", "ts:{hits:" + id + "}:c10x120:1", expires},
			{"HSET", "features:{" + id + "}", "tier", "gold"},
		} {
			require.NoError(t, doctorDo(t, client, args...).Error())
		}
	}
	return d
}

// fill writes more to the cache than there is room for, and returns what each pattern has lost then, or was refused.
func (d *doctorTrial) fill(t *testing.T) map[doctor.Pattern]int {
	t.Helper()
	ctx := t.Context()
	lost := map[doctor.Pattern]int{}
	page := make([]byte, 4000)
	const pages = 4 * doctorRoom / 4096
	var filling sync.WaitGroup
	var mu sync.Mutex
	for worker := range 8 {
		filling.Go(func() {
			for i := worker; i < pages; i += 8 {
				if err := d.pages.Set(ctx, strconv.Itoa(i), page); err != nil {
					mu.Lock()
					lost[doctor.Cache]++
					mu.Unlock()
				}
			}
		})
	}
	filling.Wait()

	for i := range doctorEach {
		id := strconv.Itoa(i)
		require.NoError(t, d.held[i].Err(), "the holder believes that it holds the lock")
		if second, err := d.other.TryLock(ctx, id); err == nil {
			lost[doctor.Lock]++
			require.NoError(t, second.Unlock(ctx))
		}
		if result, err := d.limiter.Allow(ctx, id); err == nil && result.Allowed {
			lost[doctor.RateLimit]++
		}
		if length, err := doctorDo(t, d.client, "XLEN", "orders-"+id).AsInt64(); err != nil || length != 1 {
			lost[doctor.Stream]++
		}
		if hits, err := doctorDo(t, d.client, "HGET", "ts:{hits:"+id+"}:c10x120:1", "1").ToString(); err != nil || hits != "7" {
			lost[doctor.TimeSeries]++
		}
		if tier, err := doctorDo(t, d.client, "HGET", "features:{"+id+"}", "tier").ToString(); err != nil || tier != "gold" {
			lost[doctor.FeatureStore]++
		}
		sink := newMemorySink()
		if _, err := d.counts[i].Flush(ctx, sink); err != nil || sink.total() != 7 {
			lost[doctor.Buffer]++
		}
	}
	return lost
}

func doctorDo(t *testing.T, client rueidis.Client, args ...string) rueidis.RedisResult {
	t.Helper()
	return client.Do(t.Context(), client.B().Arbitrary(args...).Build())
}

func doctorInfo(t *testing.T, client rueidis.Client, field string) int {
	t.Helper()
	text, err := doctorDo(t, client, "INFO", "all").ToString()
	require.NoError(t, err)
	_, rest, ok := strings.Cut(text, "\n"+field+":")
	require.True(t, ok, field)
	value, _, _ := strings.Cut(rest, "\r")
	n, err := strconv.Atoi(value)
	require.NoError(t, err)
	return n
}

// doctorClean deletes all keys of a server that is the test's own.
func doctorClean(t *testing.T, client rueidis.Client) {
	t.Helper()
	for cursor := uint64(0); ; {
		page, err := client.Do(t.Context(), client.B().Scan().Cursor(cursor).Count(1000).Build()).AsScanEntry()
		require.NoError(t, err)
		if len(page.Elements) > 0 {
			require.NoError(t, doctorDo(t, client, append([]string{"UNLINK"}, page.Elements...)...).Error())
		}
		if cursor = page.Cursor; cursor == 0 {
			return
		}
	}
}

// doctorIdle has keys that are not the cache's look as if nobody had used them for a while: lfu forgets in minutes.
func doctorIdle(t *testing.T, client rueidis.Client) {
	t.Helper()
	keys, err := client.Do(t.Context(), client.B().Scan().Cursor(0).Count(10_000).Build()).AsScanEntry()
	require.NoError(t, err)
	require.Zero(t, keys.Cursor)
	for _, key := range keys.Elements {
		if strings.HasPrefix(key, "cache:") {
			continue
		}
		expires, err := doctorDo(t, client, "PEXPIRETIME", key).AsInt64()
		require.NoError(t, err)
		value, err := doctorDo(t, client, "DUMP", key).ToString()
		require.NoError(t, err)
		require.NoError(t, doctorDo(t, client, "RESTORE", key, strconv.FormatInt(max(0, expires), 10), value, "REPLACE", "ABSTTL", "FREQ", "1").Error())
	}
}

// doctorFindings returns what was found of a severity, or worse.
func doctorFindings(report doctor.Report, severities ...doctor.Severity) []string {
	found := []string{}
	for _, f := range report.Findings {
		for _, s := range severities {
			if f.Severity == s {
				found = append(found, f.String())
			}
		}
	}
	return found
}

func doctorCheck(t *testing.T, client rueidis.Client, expect doctor.Expect) doctor.Report {
	t.Helper()
	if expect.Interval == 0 {
		expect.Interval = 10 * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	report, err := doctor.Check(ctx, client, expect)
	require.NoError(t, err)
	require.True(t, report.Checked())
	return report
}
