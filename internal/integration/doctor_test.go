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
	doctorEach = 12      // keys, or things, of each pattern
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
		counts, err := buffer.New(client, id, []buffer.Column{{Name: "views", Op: buffer.Sum}}, buffer.Options{Shards: 1, AddTimeout: 10 * time.Second})
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
	page := make([]byte, 16_000)
	const pages = 4 * doctorRoom / 16_384
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

func TestDoctor_HasNothingToSayOfHealthyServers(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t, func(o *rueidis.ClientOption) { o.Password = "secret" })
	// What is open to all is a finding, and rightly so.
	require.NoError(t, doctorDo(t, client, "ACL", "SETUSER", "default", ">secret").Error())

	fresh := doctorCheck(t, client, doctor.Expect{})
	require.Empty(t, doctorFindings(fresh, doctor.Warn, doctor.Fail, doctor.Unknown))
	require.Len(t, fresh.Verdicts, len(doctor.Patterns()), "what it would be good for")

	require.NoError(t, doctorDo(t, client, "CONFIG", "SET", "maxmemory", "8mb", "maxmemory-policy", "allkeys-lru").Error())
	pages, err := cache.New(client, "cache", cache.Options[string, []byte]{TTL: time.Hour, OpTimeout: 10 * time.Second})
	require.NoError(t, err)
	ctx := t.Context()
	defer pages.Close(ctx)
	next := 0
	write := func(ctx context.Context) {
		if pages.Set(ctx, strconv.Itoa(next), make([]byte, 4000)) == nil {
			next++
		}
		for i := range 30 {
			_, _, _ = pages.Get(ctx, strconv.Itoa(max(0, next-1-i))) // ctx may end
		}
	}
	for doctorInfo(t, client, "evicted_keys") == 0 {
		for range 200 {
			require.NoError(t, pages.Set(t.Context(), strconv.Itoa(next), make([]byte, 4000)))
			next++
		}
	}
	idle := doctorCheck(t, client, doctor.Expect{})
	require.Empty(t, doctorFindings(idle, doctor.Warn, doctor.Fail, doctor.Unknown), "full")

	// How long commands take while many tests share the machine is not the cache's fault.
	doctorWhile(t, write, func() {
		doctorUntil(t, client, doctor.Expect{Skip: []string{"LAT01"}}, func(busy doctor.Report) bool {
			require.Empty(t, doctorFindings(busy, doctor.Warn, doctor.Fail, doctor.Unknown), "full, and in use")
			return doctorOf(busy, "MEM03", doctor.Info) != "" // it did evict
		})
	})
}

// doctorWhile does something again and again while fn runs.
func doctorWhile(t *testing.T, something func(ctx context.Context), fn func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		for ctx.Err() == nil {
			something(ctx)
		}
	})
	fn()
	cancel()
	running.Wait()
}

// doctorUntil checks until it finds what is looked for: on a busy machine little happens between two samples.
func doctorUntil(t *testing.T, client rueidis.Client, expect doctor.Expect, found func(doctor.Report) bool) doctor.Report {
	t.Helper()
	expect.Interval = 200 * time.Millisecond
	for end := time.Now().Add(60 * time.Second); ; {
		report := doctorCheck(t, client, expect)
		if found(report) {
			return report
		}
		require.True(t, time.Now().Before(end), "not found: %v", report.Findings)
	}
}

// doctorFound is for doctorUntil.
func doctorFound(id string, severity doctor.Severity, text string) func(doctor.Report) bool {
	return func(report doctor.Report) bool {
		found := doctorOf(report, id, severity)
		return found != "" && strings.Contains(found, text)
	}
}

// doctorOf returns what a check found of a severity, one a line.
func doctorOf(report doctor.Report, id string, severity doctor.Severity) string {
	var found []string
	for _, f := range report.Findings {
		if f.ID == id && f.Severity == severity {
			found = append(found, f.String())
		}
	}
	return strings.Join(found, "\n")
}

func TestDoctor_FindsWhatIsWrong(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t)
	ctx := t.Context()
	set := func(args ...string) {
		require.NoError(t, doctorDo(t, client, args...).Error(), args[0])
	}
	room := func(bytes int) {
		set("CONFIG", "SET", "maxmemory", strconv.Itoa(doctorInfo(t, client, "used_memory")+bytes))
	}
	n := 0
	write := func(ctx context.Context) { // refused or not
		n++
		_ = client.Do(ctx, client.B().Set().Key("cache:"+strconv.Itoa(n)).Value(strings.Repeat("x", 10_000)).ExSeconds(100).Build()).Error()
	}
	t.Log("a cache that is full and may not evict")
	room(1 << 20)
	var report doctor.Report
	doctorWhile(t, write, func() {
		report = doctorUntil(t, client, doctor.Expect{}, func(report doctor.Report) bool { // in one: how much is used goes up and down a little
			return strings.Contains(doctorOf(report, "MEM04", doctor.Fail), "SET (") && doctorOf(report, "MEM02", doctor.Fail) != ""
		})
	})
	require.NotEmpty(t, doctorOf(report, "POL01", doctor.Fail))

	t.Log("a cache that evicts")
	set("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
	doctorWhile(t, write, func() {
		report = doctorUntil(t, client, doctor.Expect{}, doctorFound("MEM03", doctor.Info, "makes room"))
	})
	require.Empty(t, doctorOf(report, "POL01", doctor.Fail))
	require.NotEmpty(t, doctorOf(report, "MEM04", doctor.Info), "what was before the interval")
	doctorWhile(t, write, func() {
		expect := doctor.Expect{Uses: []doctor.Pattern{doctor.Stream}}
		report = doctorUntil(t, client, expect, doctorFound("MEM03", doctor.Fail, "some may be of stream"))
	})
	require.NotEmpty(t, doctorOf(report, "POL02", doctor.Warn), "for which volatile-lru is a compromise")
	report = doctorCheck(t, client, doctor.Expect{Uses: []doctor.Pattern{doctor.Lock}})
	require.NotEmpty(t, doctorOf(report, "POL02", doctor.Fail), "for which there is no policy")

	t.Log("keys without a TTL, which volatile-lru cannot evict")
	doctorClean(t, client)
	set("CONFIG", "SET", "maxmemory-policy", "volatile-lru")
	set("SET", "scores:1", "x")
	require.Contains(t, doctorOf(doctorCheck(t, client, doctor.Expect{}), "KEY01", doctor.Info), "scores: (1)")
	report = doctorCheck(t, client, doctor.Expect{Prefixes: map[string]doctor.Pattern{"scores:": doctor.Cache}})
	require.NotEmpty(t, doctorOf(report, "POL01", doctor.Fail))
	require.NotEmpty(t, doctorOf(report, "TTL01", doctor.Warn))
	require.Empty(t, doctorOf(report, "KEY01", doctor.Info))
	room(100 << 10)
	require.Eventually(t, func() bool {
		n++
		return doctorDo(t, client, "SET", "scores:"+strconv.Itoa(n), strings.Repeat("x", 10_000)).Error() != nil
	}, 10*time.Second, time.Millisecond, "and so it is refused")
	set("CONFIG", "SET", "maxmemory", "0")
	doctorClean(t, client)

	t.Log("TTLs where they must not be, and none where they must")
	set("SET", "lock:{job}", "x")
	set("XADD", "orders", "*", "order", "1")
	set("EXPIRE", "orders", "100")
	set("HSET", "buffer:{views:0}:cur", "+views:post", "1")
	set("SET", "buffer:{views:0}:w:1", "1", "EX", "100")
	set("SET", "{orders}:once:1", "1-1", "EX", "100")
	report = doctorCheck(t, client, doctor.Expect{})
	require.Contains(t, doctorOf(report, "TTL01", doctor.Fail), "1 of 1")
	require.Contains(t, doctorOf(report, "TTL02", doctor.Warn), "stream")
	for _, f := range report.Findings {
		require.False(t, f.ID == "TTL02" && f.Pattern == doctor.Buffer, f)
	}
	doctorClean(t, client)

	t.Log("a stream whose consumer has died, and whose other group is too slow")
	set("XADD", "orders", "*", "order", "1")
	set("XGROUP", "CREATE", "orders", "billing", "0")
	set("XGROUP", "CREATE", "orders", "mail", "0")
	set("XREADGROUP", "GROUP", "billing", "dead", "STREAMS", "orders", ">")
	set("XADD", "{orders}:dead:billing", "*", "_reason", "x")
	doctorWhile(t, func(ctx context.Context) {
		cmds := make([]rueidis.Completed, 0, 200)
		for range cap(cmds) {
			cmds = append(cmds, client.B().Xadd().Key("orders").Id("*").FieldValue().FieldValue("order", "1").Build())
		}
		client.DoMulti(ctx, cmds...)
	}, func() {
		report = doctorUntil(t, client, doctor.Expect{}, doctorFound("STR01", doctor.Warn, "orders, group "))
	})
	require.Empty(t, doctorOf(report, "STR01", doctor.Fail), "it has not been ten leases")
	require.Contains(t, doctorOf(report, "STR01", doctor.Info), "1 dead letters of group billing")
	report = doctorUntil(t, client, doctor.Expect{Lease: time.Millisecond}, doctorFound("STR01", doctor.Fail, "")) // ten leases pass
	require.Contains(t, doctorOf(report, "STR01", doctor.Fail), "orders, group billing")
	set("XGROUP", "SETID", "orders", "mail", "1-1", "ENTRIESREAD", "-1")
	set("XDEL", "orders", doctorLastID(t, client))
	require.Contains(t, doctorOf(doctorCheck(t, client, doctor.Expect{}), "STR01", doctor.Info), "orders, group mail: Redis does not know")

	t.Log("persistence")
	require.NotEmpty(t, doctorOf(report, "PER01", doctor.Fail))
	set("CONFIG", "SET", "save", "3600 1")
	require.Contains(t, doctorOf(doctorCheck(t, client, doctor.Expect{}), "PER01", doctor.Warn), "snapshots only: save 3600 1")
	set("CONFIG", "SET", "appendonly", "yes")
	require.Contains(t, doctorOf(doctorCheck(t, client, doctor.Expect{}), "PER01", doctor.Info), "everysec")
	set("CONFIG", "SET", "appendfsync", "no", "no-appendfsync-on-rewrite", "yes")
	report = doctorCheck(t, client, doctor.Expect{})
	require.NotEmpty(t, doctorOf(report, "PER01", doctor.Fail))
	require.NotEmpty(t, doctorOf(report, "PER03", doctor.Warn))
	set("CONFIG", "SET", "appendfsync", "always", "no-appendfsync-on-rewrite", "no")
	report = doctorCheck(t, client, doctor.Expect{})
	require.NotEmpty(t, doctorOf(report, "PER01", doctor.OK))
	require.NotEmpty(t, doctorOf(report, "REP02", doctor.Warn), "no replica")
	set("CONFIG", "SET", "appendonly", "no", "save", "")
	doctorClean(t, client)

	t.Log("misses")
	set("SET", "cache:1", "x", "EX", "100")
	doctorWhile(t, func(ctx context.Context) {
		cmds := make([]rueidis.Completed, 0, 500)
		for i := range 500 {
			cmds = append(cmds, client.B().Get().Key("cache:missing-"+strconv.Itoa(i)).Build())
		}
		client.DoMulti(ctx, cmds...)
	}, func() { doctorUntil(t, client, doctor.Expect{}, doctorFound("HIT01", doctor.Warn, "")) })

	t.Log("slow commands")
	doctorWhile(t, func(ctx context.Context) {
		cmds := make([]rueidis.Completed, 0, 150)
		for range 150 {
			cmds = append(cmds, client.B().Eval().Script("for i = 1, 150000 do local x = i * i end return 1").Numkeys(0).Build())
		}
		client.DoMulti(ctx, cmds...)
	}, func() {
		doctorUntil(t, client, doctor.Expect{}, func(report doctor.Report) bool {
			return strings.Contains(doctorOf(report, "LAT01", doctor.Warn)+doctorOf(report, "LAT01", doctor.Fail), "EVAL: p99")
		})
	})

	t.Log("client-side caches, scripts, and access")
	set("CONFIG", "SET", "tracking-table-max-keys", "10")
	for i := range 10 {
		require.ErrorIs(t, client.DoCache(ctx, client.B().Get().Key("cache:missing-"+strconv.Itoa(i)).Cache(), time.Minute).Error(), rueidis.Nil)
	}
	loads := make([]rueidis.Completed, 0, 1001)
	for i := range 1001 {
		loads = append(loads, client.B().ScriptLoad().Script("return "+strconv.Itoa(i)).Build())
	}
	client.DoMulti(ctx, loads...)
	report = doctorCheck(t, client, doctor.Expect{})
	require.NotEmpty(t, doctorOf(report, "CSC01", doctor.Warn))
	require.NotEmpty(t, doctorOf(report, "MEM06", doctor.Warn))
	bind, err := doctorDo(t, client, "CONFIG", "GET", "bind").AsStrMap()
	require.NoError(t, err)
	isLocal := strings.HasPrefix(bind["bind"], "127.")
	require.Equal(t, isLocal, doctorOf(report, "SEC01", doctor.Warn) == "")
	report = doctorCheck(t, client, doctor.Expect{Skip: []string{"SEC01", "MEM06"}})
	require.Empty(t, doctorOf(report, "MEM06", doctor.Warn)+doctorOf(report, "SEC01", doctor.Warn))
}

func doctorLastID(t *testing.T, client rueidis.Client) string {
	t.Helper()
	last, err := client.Do(t.Context(), client.B().Xrevrange().Key("orders").End("+").Start("-").Count(2).Build()).AsXRange()
	require.NoError(t, err)
	require.Len(t, last, 2)
	return last[1].ID // not the last: that would not be from the middle
}

// TestDoctor_KnowsNotWhatItMayNotRead runs the commands that the doctor proposes, until it knows.
func TestDoctor_KnowsNotWhatItMayNotRead(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	admin := server.Client(t, func(o *rueidis.ClientOption) { o.Password = "secret" })
	for _, args := range [][]string{
		{"ACL", "SETUSER", "default", ">secret"},
		{"ACL", "SETUSER", "me", "on", ">secret", "+@connection"},
		{"SET", "lock:{job}", "x", "EX", "100"},
		{"XADD", "orders", "*", "order", "1"},
		{"XGROUP", "CREATE", "orders", "billing", "0"},
	} {
		require.NoError(t, doctorDo(t, admin, args...).Error())
	}
	client := server.Client(t, func(o *rueidis.ClientOption) {
		o.Username, o.Password, o.DisableCache, o.ForceSingleClient = "me", "secret", true, true
	})
	report, err := doctor.Check(t.Context(), client, doctor.Expect{Interval: 10 * time.Millisecond})
	require.NoError(t, err)
	require.False(t, report.Checked())
	require.Empty(t, doctorFindings(report, doctor.Warn, doctor.Fail))
	for _, id := range []string{"POL01", "MEM02", "TTL01", "VER01", "LAT01", "SEC01"} {
		require.Contains(t, doctorOf(report, id, doctor.Unknown), "NOPERM", id)
		require.Empty(t, doctorOf(report, id, doctor.OK), id)
	}
	for range 10 {
		granted := map[string]bool{}
		for _, f := range report.Findings {
			if f.Severity == doctor.Unknown && !granted[f.Fix] {
				require.Regexp(t, `^ACL SETUSER (me|<user>) `, f.Fix, f)
				grant := strings.Replace(f.Fix, "<user>", "me", 1) // Redis 7.0 does not say who asked
				require.NoError(t, doctorDo(t, admin, strings.Fields(grant)...).Error(), grant)
				granted[f.Fix] = true
			}
		}
		if len(granted) == 0 {
			break
		}
		report = doctorCheck(t, client, doctor.Expect{})
	}
	require.Empty(t, doctorFindings(report, doctor.Unknown))
	require.NotEmpty(t, doctorOf(report, "PER01", doctor.Fail), "a stream without persistence")

	t.Log("among many keys it finds the few of another prefix, and streams by their type")
	many := make([]rueidis.Completed, 0, 5000)
	for i := range cap(many) {
		many = append(many, admin.B().Set().Key("scores:"+strconv.Itoa(i)).Value("x").Build())
	}
	for _, reply := range admin.DoMulti(t.Context(), many...) {
		require.NoError(t, reply.Error())
	}
	report = doctorCheck(t, client, doctor.Expect{SampleKeys: 1})
	seen := map[string]doctor.KeySummary{}
	for _, k := range report.Keys {
		seen[k.Prefix] = k
	}
	require.Equal(t, doctor.KeySummary{Prefix: "lock:", Pattern: doctor.Lock, Sampled: 1}, seen["lock:"])
	require.Equal(t, doctor.KeySummary{Prefix: "(streams)", Pattern: doctor.Stream, Sampled: 1, NoTTL: 1}, seen["(streams)"])
	require.Less(t, seen["scores:"].Sampled, 2000)

	t.Log("and with all rights it only reads")
	require.NoError(t, doctorDo(t, admin, "ACL", "SETUSER", "default", "nopass").Error()) // for Commands
	ran := redistest.Commands(t, server, func() { doctorCheck(t, client, doctor.Expect{SampleKeys: 1}) })
	for _, name := range []string{
		"acl|getuser", "config|get", "latency|histogram", "scan", "type", "pttl", "xlen", "xinfo|groups", "xpending",
	} {
		require.Positive(t, ran[name], name)
		delete(ran, name)
	}
	delete(ran, "acl|whoami") // which was not granted, as the refusals said who asked
	require.Empty(t, ran)
}

func TestDoctor_LooksAtAllNodes(t *testing.T) {
	t.Parallel()
	t.Run("targets", func(t *testing.T) {
		t.Parallel()
		redistest.EachTarget(t, func(t *testing.T, client rueidis.Client) {
			report := doctorCheck(t, client, doctor.Expect{Uses: doctor.Patterns()})
			require.Empty(t, doctorFindings(report, doctor.Unknown))
			nodes := 1
			if client.Mode() == rueidis.ClientModeCluster {
				nodes = 3
				require.NotEmpty(t, doctorOf(report, "CLU01", doctor.OK), report.Findings)
			}
			require.Len(t, report.Nodes, nodes)
			for _, n := range report.Nodes {
				require.Regexp(t, `^(Redis|Valkey) [78]\.\d`, n.Server)
				require.Equal(t, "master", n.Role)
			}
			require.NotEmpty(t, doctorOf(report, "VER01", doctor.OK))
			require.Empty(t, doctorOf(report, "VER01", doctor.Fail))
		})
	})
	t.Run("a node of a cluster by itself", func(t *testing.T) {
		t.Parallel()
		client := redistest.SharedCluster(t).Client(t, func(o *rueidis.ClientOption) {
			o.InitAddress, o.ForceSingleClient = o.InitAddress[:1], true
		})
		require.Contains(t, doctorOf(doctorCheck(t, client, doctor.Expect{}), "CLU01", doctor.Warn), "a client for one server")
	})
	t.Run("cluster with replicas", func(t *testing.T) {
		t.Parallel()
		report := doctorCheck(t, redistest.StartCluster(t, 1).Client(t), doctor.Expect{Uses: []doctor.Pattern{doctor.Buffer}, Dial: doctorDial})
		require.Len(t, report.Nodes, 6)
		require.Len(t, report.Verdicts, 6*len(doctor.Patterns()))
		require.Empty(t, doctorFindings(report, doctor.Unknown))
		require.NotEmpty(t, doctorOf(report, "PER04", doctor.Fail), "no persistence")
		require.Contains(t, doctorOf(report, "REP02", doctor.Warn), "min-replicas-to-write 0")
	})
	t.Run("sentinel", func(t *testing.T) {
		t.Parallel()
		sentinel := redistest.StartSentinel(t)
		client := sentinel.Client(t)
		require.NoError(t, doctorDo(t, client, "SET", "lock:{job}", "x", "EX", "100").Error())
		report := doctorCheck(t, client, doctor.Expect{})
		require.Len(t, report.Nodes, 1)
		require.Contains(t, doctorOf(report, "REP01", doctor.Info), "were not looked at")

		var address string
		report = doctorUntil(t, client, doctor.Expect{Dial: func(addr string) (rueidis.Client, error) {
			address = addr
			return doctorDial(addr)
		}}, func(report doctor.Report) bool {
			return len(report.Nodes) == 2 && report.Nodes[0].Keys+report.Nodes[1].Keys == 2 // each has it
		})
		require.Equal(t, []doctor.KeySummary{{Prefix: "lock:", Pattern: doctor.Lock, Sampled: 1, All: true}}, report.Keys, "and it was looked at once")
		require.NotEmpty(t, doctorOf(report, "REP01", doctor.OK))
		require.Empty(t, doctorOf(report, "REP01", doctor.Fail), "it is known to be a replica")

		replica, err := doctorDial(address)
		require.NoError(t, err)
		defer replica.Close()
		report = doctorCheck(t, replica, doctor.Expect{})
		require.Contains(t, doctorOf(report, "REP01", doctor.Fail), "READONLY")
		require.Len(t, report.Keys, 1, "there is nothing else to look at")
	})
}

func doctorDial(addr string) (rueidis.Client, error) {
	return rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{addr}, ForceSingleClient: true})
}
