package integration

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/redis/rueidis"
	"github.com/redis/rueidis/rueidishook"
	"github.com/stretchr/testify/require"

	"github.com/redispatterns/redispatterns/featurestore"
	"github.com/redispatterns/redispatterns/internal/integration/redistest"
)

// featureDumps counts commands that load rows, and may change what is restored, by scripts too.
type featureDumps struct {
	redistest.PassThrough
	mu     sync.Mutex
	sent   map[string]int
	change func(payload string) string
}

func (d *featureDumps) DoMulti(client rueidis.Client, ctx context.Context, multi ...rueidis.Completed) []rueidis.RedisResult {
	multi = slices.Clone(multi)
	d.mu.Lock()
	for i := range multi {
		args := slices.Clone(multi[i].Commands())
		d.sent[args[0]]++
		for j := range args {
			if d.change != nil && len(args[j]) > 12 && args[j][:2] == "\x10\x80" {
				args[j] = d.change(args[j])
				multi[i] = client.B().Arbitrary(args[0]).Args(args[1:]...).Build()
			}
		}
	}
	d.mu.Unlock()
	return client.DoMulti(ctx, multi...)
}

// featureMany has as many features as rows that are restored may have fields, less one for the time. Some have names that a
// listpack of Redis' own has as integers.
type featureMany struct {
	F000 featurestore.Opt[string] `feature:"0"`
	F001 featurestore.Opt[string] `feature:"-0"`
	F002 featurestore.Opt[string] `feature:"-1"`
	F003 featurestore.Opt[string] `feature:"127"`
	F004 featurestore.Opt[string] `feature:"-128"`
	F005 featurestore.Opt[string] `feature:"00"`
	F006 featurestore.Opt[string] `feature:"007"`
	F007 featurestore.Opt[string] `feature:"32767"`
	F008 featurestore.Opt[string] `feature:"-32768"`
	F009 featurestore.Opt[string] `feature:"32768"`
	F010 featurestore.Opt[string] `feature:"2147483648"`
	F011 featurestore.Opt[string] `feature:"9223372036854775807"`
	F012 featurestore.Opt[string] `feature:"x0"`
	F013 featurestore.Opt[string] `feature:"x1"`
	F014 featurestore.Opt[string] `feature:"x2"`
	F015 featurestore.Opt[string] `feature:"x3"`
	F016 featurestore.Opt[string] `feature:"x4"`
	F017 featurestore.Opt[string] `feature:"x5"`
	F018 featurestore.Opt[string] `feature:"x6"`
	F019 featurestore.Opt[string] `feature:"x7"`
	F020 featurestore.Opt[string] `feature:"x8"`
	F021 featurestore.Opt[string] `feature:"x9"`
	F022 featurestore.Opt[string] `feature:"x10"`
	F023 featurestore.Opt[string] `feature:"x11"`
	F024 featurestore.Opt[string] `feature:"x12"`
	F025 featurestore.Opt[string] `feature:"x13"`
	F026 featurestore.Opt[string] `feature:"x14"`
	F027 featurestore.Opt[string] `feature:"x15"`
	F028 featurestore.Opt[string] `feature:"x16"`
	F029 featurestore.Opt[string] `feature:"x17"`
	F030 featurestore.Opt[string] `feature:"x18"`
	F031 featurestore.Opt[string] `feature:"x19"`
	F032 featurestore.Opt[string] `feature:"x20"`
	F033 featurestore.Opt[string] `feature:"x21"`
	F034 featurestore.Opt[string] `feature:"x22"`
	F035 featurestore.Opt[string] `feature:"x23"`
	F036 featurestore.Opt[string] `feature:"x24"`
	F037 featurestore.Opt[string] `feature:"x25"`
	F038 featurestore.Opt[string] `feature:"x26"`
	F039 featurestore.Opt[string] `feature:"x27"`
	F040 featurestore.Opt[string] `feature:"x28"`
	F041 featurestore.Opt[string] `feature:"x29"`
	F042 featurestore.Opt[string] `feature:"x30"`
	F043 featurestore.Opt[string] `feature:"x31"`
	F044 featurestore.Opt[string] `feature:"x32"`
	F045 featurestore.Opt[string] `feature:"x33"`
	F046 featurestore.Opt[string] `feature:"x34"`
	F047 featurestore.Opt[string] `feature:"x35"`
	F048 featurestore.Opt[string] `feature:"x36"`
	F049 featurestore.Opt[string] `feature:"x37"`
	F050 featurestore.Opt[string] `feature:"x38"`
	F051 featurestore.Opt[string] `feature:"x39"`
	F052 featurestore.Opt[string] `feature:"x40"`
	F053 featurestore.Opt[string] `feature:"x41"`
	F054 featurestore.Opt[string] `feature:"x42"`
	F055 featurestore.Opt[string] `feature:"x43"`
	F056 featurestore.Opt[string] `feature:"x44"`
	F057 featurestore.Opt[string] `feature:"x45"`
	F058 featurestore.Opt[string] `feature:"x46"`
	F059 featurestore.Opt[string] `feature:"x47"`
	F060 featurestore.Opt[string] `feature:"x48"`
	F061 featurestore.Opt[string] `feature:"x49"`
	F062 featurestore.Opt[string] `feature:"x50"`
	F063 featurestore.Opt[string] `feature:"x51"`
	F064 featurestore.Opt[string] `feature:"x52"`
	F065 featurestore.Opt[string] `feature:"x53"`
	F066 featurestore.Opt[string] `feature:"x54"`
	F067 featurestore.Opt[string] `feature:"x55"`
	F068 featurestore.Opt[string] `feature:"x56"`
	F069 featurestore.Opt[string] `feature:"x57"`
	F070 featurestore.Opt[string] `feature:"x58"`
	F071 featurestore.Opt[string] `feature:"x59"`
	F072 featurestore.Opt[string] `feature:"x60"`
	F073 featurestore.Opt[string] `feature:"x61"`
	F074 featurestore.Opt[string] `feature:"x62"`
	F075 featurestore.Opt[string] `feature:"x63"`
	F076 featurestore.Opt[string] `feature:"x64"`
	F077 featurestore.Opt[string] `feature:"x65"`
	F078 featurestore.Opt[string] `feature:"x66"`
	F079 featurestore.Opt[string] `feature:"x67"`
	F080 featurestore.Opt[string] `feature:"x68"`
	F081 featurestore.Opt[string] `feature:"x69"`
	F082 featurestore.Opt[string] `feature:"x70"`
	F083 featurestore.Opt[string] `feature:"x71"`
	F084 featurestore.Opt[string] `feature:"x72"`
	F085 featurestore.Opt[string] `feature:"x73"`
	F086 featurestore.Opt[string] `feature:"x74"`
	F087 featurestore.Opt[string] `feature:"x75"`
	F088 featurestore.Opt[string] `feature:"x76"`
	F089 featurestore.Opt[string] `feature:"x77"`
	F090 featurestore.Opt[string] `feature:"x78"`
	F091 featurestore.Opt[string] `feature:"x79"`
	F092 featurestore.Opt[string] `feature:"x80"`
	F093 featurestore.Opt[string] `feature:"x81"`
	F094 featurestore.Opt[string] `feature:"x82"`
	F095 featurestore.Opt[string] `feature:"x83"`
	F096 featurestore.Opt[string] `feature:"x84"`
	F097 featurestore.Opt[string] `feature:"x85"`
	F098 featurestore.Opt[string] `feature:"x86"`
	F099 featurestore.Opt[string] `feature:"x87"`
	F100 featurestore.Opt[string] `feature:"x88"`
	F101 featurestore.Opt[string] `feature:"x89"`
	F102 featurestore.Opt[string] `feature:"x90"`
	F103 featurestore.Opt[string] `feature:"x91"`
	F104 featurestore.Opt[string] `feature:"x92"`
	F105 featurestore.Opt[string] `feature:"x93"`
	F106 featurestore.Opt[string] `feature:"x94"`
	F107 featurestore.Opt[string] `feature:"x95"`
	F108 featurestore.Opt[string] `feature:"x96"`
	F109 featurestore.Opt[string] `feature:"x97"`
	F110 featurestore.Opt[string] `feature:"x98"`
	F111 featurestore.Opt[string] `feature:"x99"`
	F112 featurestore.Opt[string] `feature:"x100"`
	F113 featurestore.Opt[string] `feature:"x101"`
	F114 featurestore.Opt[string] `feature:"x102"`
	F115 featurestore.Opt[string] `feature:"x103"`
	F116 featurestore.Opt[string] `feature:"x104"`
	F117 featurestore.Opt[string] `feature:"x105"`
	F118 featurestore.Opt[string] `feature:"x106"`
	F119 featurestore.Opt[string] `feature:"x107"`
	F120 featurestore.Opt[string] `feature:"x108"`
	F121 featurestore.Opt[string] `feature:"x109"`
	F122 featurestore.Opt[string] `feature:"x110"`
	F123 featurestore.Opt[string] `feature:"x111"`
	F124 featurestore.Opt[string] `feature:"x112"`
	F125 featurestore.Opt[string] `feature:"x113"`
	F126 featurestore.Opt[string] `feature:"x114"`
	F127 featurestore.Opt[string] `feature:"yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy"`
}

// all returns all features of a row.
func (m *featureMany) all() *[128]featurestore.Opt[string] {
	return (*[128]featurestore.Opt[string])(unsafe.Pointer(m)) //nolint:gosec // all its fields are alike
}

// featureDumpText returns a value that Redis may keep in one way or another.
func featureDumpText() string {
	texts := []string{
		"", "0", "-0", "+1", "1", "-1", "007", "00", " 1", "1 ", "1e5", "0x10", "-", "\x00", "a\x00b", "\xff\xfe", "\r\n",
		"12", "13", "127", "128", "-128", "4095", "4096", "-4096", "-4097", "32767", "32768", "-32768", "-32769", "8388607", "8388608", "-8388608", "-8388609",
		"2147483647", "2147483648", "-2147483648", "-2147483649", "9223372036854775807", "9223372036854775808", "-9223372036854775808", "-9223372036854775809",
	}
	switch rand.N(4) {
	case 0:
		b := make([]byte, rand.N(65))
		for i := range b {
			b[i] = byte(rand.N(256))
		}
		return string(b)
	case 1:
		return strings.Repeat(strconv.Itoa(rand.N(10)), 63+rand.N(2))
	}
	return texts[rand.N(len(texts))]
}

// What RESTORE makes of a row is what HSET does, on each server.
func TestFeaturestoreDump_RestoreIsHset(t *testing.T) {
	t.Parallel()
	for name, connect := range map[string]func(t *testing.T) rueidis.Client{
		"redis-7.0": func(t *testing.T) rueidis.Client {
			t.Helper()
			return redistest.SharedKind(t, redistest.Redis70).Client(t)
		},
		"redis-8": func(t *testing.T) rueidis.Client {
			t.Helper()
			return redistest.SharedKind(t, redistest.Redis8).Client(t)
		},
		"valkey-8": func(t *testing.T) rueidis.Client {
			t.Helper()
			return redistest.SharedKind(t, redistest.Valkey8).Client(t)
		},
		"cluster": func(t *testing.T) rueidis.Client { t.Helper(); return redistest.SharedCluster(t).Client(t) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client := connect(t)
			dumps := &featureDumps{sent: map[string]int{}}
			prefix := redistest.Prefix(t)
			const n = 30
			for round, ttl := range []time.Duration{time.Hour, 0} { // the second time over what is there
				v := newFeatures[int, featureMany](t, rueidishook.WithHook(client, dumps), "many", featurestore.Options{Prefix: prefix, TTL: ttl})
				rows := make([]featureMany, n)
				const batch = 5
				wide := 0
				for k := range rows {
					all, set := rows[k].all(), rand.N(128)
					if k >= n-4 {
						set = []int{125, 126, 127, 128}[k-n+4] // and one more for the time
					}
					for _, i := range rand.Perm(128)[:set] {
						all[i] = featurestore.Some(featureDumpText())
					}
					if k%10 == 3 { // what a listpack does not take
						all[rand.N(128)] = featurestore.Some(strings.Repeat("z", 65))
					}
					if k%10 == 3 || set == 128 {
						wide++
					}
				}
				clear(dumps.sent)
				load := func(load func(context.Context, iter.Seq2[int, featurestore.Event[featureMany]], featurestore.LoadOptions) (featurestore.LoadStats, error), skip bool) {
					stats, err := load(t.Context(), featureSeq(featureRange(0, n), func(k int) (featureMany, time.Time) { return rows[k], featureTime(round) }),
						featurestore.LoadOptions{SkipOrderCheck: skip, Batch: batch})
					require.NoError(t, err)
					require.Equal(t, int64(n), stats.Applied)
				}
				r, err := v.Begin(t.Context(), "v1")
				require.NoError(t, err)
				load(r.Load, true)
				load(v.Load, false)
				x := newFeatures[int, featureMany](t, client, "many", featurestore.Options{Prefix: prefix + "x", TTL: ttl, Share: true})
				load(x.Load, false)
				require.Equal(t, n-wide, dumps.sent["RESTORE"])
				require.Equal(t, wide, dumps.sent["DEL"])
				for k := range rows {
					var got [3]map[string]string
					var encoding [3]string
					for i, key := range []string{":many@v1:", ":many:", "x:"} { // by RESTORE, by RESTORE in a script, and by HSET
						key = prefix + key + "{" + strconv.Itoa(k) + "}"
						var err error
						got[i], err = do(t, client, key, "HGETALL").AsStrMap()
						require.NoError(t, err)
						encoding[i], err = client.Do(t.Context(), client.B().ObjectEncoding().Key(key).Build()).ToString()
						require.NoError(t, err)
						left, err := do(t, client, key, "PTTL").AsInt64()
						require.NoError(t, err)
						if ttl == 0 {
							require.Equal(t, int64(-1), left)
						} else {
							require.InDelta(t, ttl.Milliseconds(), left, 60_000)
						}
						for field, want := range got[i] { // found by its name, be it an integer
							text, err := do(t, client, key, "HGET", field).ToString()
							require.NoError(t, err)
							require.Equal(t, want, text)
							if rand.N(4) > 0 {
								break
							}
						}
					}
					for i, v := range []*featurestore.Projection[int, featureMany]{v.Pin("v1"), v.Pin(""), x.Pin("")} {
						require.Equal(t, got[2], got[i])
						require.Equal(t, encoding[2], encoding[i], "%d fields", len(got[0]))
						row, err := v.Get(t.Context(), k)
						require.NoError(t, err)
						require.Equal(t, rows[k], row.Value)
					}
				}
				// It is a hash as any other, and of what was written over nothing is left.
				key := prefix + ":many@v1:{0}"
				before, err := do(t, client, key, "HLEN").AsInt64()
				require.NoError(t, err)
				added, err := do(t, client, key, "HSET", "another", "1", "0", "2", "_ts:many", "3").AsInt64()
				require.NoError(t, err)
				after, err := do(t, client, key, "HLEN").AsInt64()
				require.NoError(t, err)
				require.Equal(t, before+added, after)
				require.LessOrEqual(t, added, int64(2))
			}
		})
	}
}

// loadFeatures loads 300 rows, of which the one of number 7 is invalid and the last is of the first one's entity, and
// checks that each is there as it was last.
func loadFeatures(t *testing.T, v *featurestore.View[int, featureItem], version string, progress func(featurestore.LoadStats)) {
	t.Helper()
	const n = 300
	r, err := v.Begin(t.Context(), version)
	require.NoError(t, err)
	invalid := 0
	var done int64
	stats, err := r.Load(t.Context(), func(yield func(int, featurestore.Event[featureItem]) bool) {
		for i := range n {
			at := featureTime(i)
			if i == 7 {
				at = time.Time{}
			}
			if !yield(i%(n-1), featurestore.Event[featureItem]{Value: featureItem{Price: float64(i)}, At: at}) {
				return
			}
		}
	}, featurestore.LoadOptions{
		SkipOrderCheck: true, Batch: 50, Invalid: func(int64, error) { invalid++ },
		Progress: func(s featurestore.LoadStats) {
			require.Equal(t, done+50, s.Done)
			done = s.Done
			if progress != nil {
				progress(s)
			}
		},
	})
	require.NoError(t, err)
	stats.Took = 0
	require.Equal(t, featurestore.LoadStats{Done: n, Applied: n - 1, Invalid: 1}, stats)
	require.Equal(t, 1, invalid)
	rows, err := v.Pin(version).GetMany(t.Context(), featureRange(0, n-1), nil)
	require.NoError(t, err)
	for k, row := range rows {
		want := k
		if k == 0 {
			want = n - 1
		}
		if k == 7 {
			require.Equal(t, featurestore.Missing, row.Status)
		} else {
			require.InDelta(t, float64(want), row.Value.Price, 0)
		}
	}
}

// A server that refuses RESTORE, to this user or of this version, for all rows or some, is loaded with HSET.
func TestFeaturestoreDump_RestoreIsRefused(t *testing.T) { //nolint:tparallel // the server's memory is limited for one of them
	t.Parallel()
	server := redistest.Start(t, "--maxmemory-policy", "noeviction")
	admin := server.Client(t)
	send(t, admin, "ACL", "SETUSER", "u", "on", ">p", "+@all", "-restore", "&*", "~*")
	user := server.Client(t, func(o *rueidis.ClientOption) { o.Username, o.Password = "u", "p" })
	other := func(payload string) string {
		b := []byte(payload)
		b[len(b)-10] = 0xff
		return string(b)
	}
	seen := 0
	for name, c := range map[string]struct {
		client rueidis.Client
		change func(payload string) string
	}{
		"user": {user, nil}, "version": {admin, other}, "some": {admin, func(payload string) string {
			if seen++; seen == 120 || seen == 320 {
				return other(payload)
			}
			return payload
		}},
	} {
		t.Run(name, func(t *testing.T) { //nolint:paralleltest // one server, which is full in the end
			dumps := &featureDumps{sent: map[string]int{}, change: c.change}
			var applied, invalid atomic.Int64
			v := newFeatures[int, featureItem](t, rueidishook.WithHook(c.client, dumps), "items", featurestore.Options{
				TTL: time.Hour, Hooks: featurestore.Hooks{Write: func(_ context.Context, info featurestore.WriteInfo) {
					applied.Add(int64(info.Applied))
					invalid.Add(int64(info.Invalid))
				}},
			})
			loadFeatures(t, v, "v1", nil)
			require.Equal(t, [2]int64{299, 1}, [2]int64{applied.Load(), invalid.Load()})
			batches := map[string]int{"user": 1, "version": 1, "some": 3}[name]
			require.Equal(t, 50*batches-1, dumps.sent["RESTORE"], "it is not tried again and again")
			require.Equal(t, 300-50*(batches-1)-map[bool]int{true: 1}[batches == 1], dumps.sent["DEL"])

			// And where event times are looked at, by scripts.
			for range 2 {
				stats, err := v.Load(t.Context(), featureSeq(featureRange(0, 100), func(k int) (featureItem, time.Time) {
					return featureItem{Price: float64(k)}, featureTime(1 + k%2)
				}), featurestore.LoadOptions{Batch: 50})
				require.NoError(t, err)
				require.Equal(t, int64(100), stats.Applied+stats.Same)
				rows, err := v.GetMany(t.Context(), featureRange(0, 100), nil)
				require.NoError(t, err)
				for k, row := range rows {
					require.InDelta(t, float64(k), row.Value.Price, 0)
					require.Equal(t, featureTime(1+k%2), row.EventTime)
				}
			}
		})
	}
	// Full: it says so, and goes on where it was.
	v := newFeatures[int, featureItem](t, admin, "items", featurestore.Options{})
	r, err := v.Begin(t.Context(), "v1")
	require.NoError(t, err)
	rows := featureSeq(featureRange(0, 300), func(k int) (featureItem, time.Time) { return featureItem{Price: float64(k)}, featureTime(k) })
	opts := featurestore.LoadOptions{SkipOrderCheck: true, Batch: 50, Progress: func(s featurestore.LoadStats) {
		if s.Done == 100 {
			send(t, admin, "CONFIG", "SET", "maxmemory", "1")
		}
	}}
	first, err := r.Load(t.Context(), rows, opts)
	require.ErrorContains(t, err, "OOM")
	require.GreaterOrEqual(t, first.Done, int64(100))
	require.Less(t, first.Done, int64(300))
	require.Equal(t, first.Done, first.Applied)
	send(t, admin, "CONFIG", "SET", "maxmemory", "0")
	opts.Skip, opts.Progress = first.Done, nil
	rest, err := r.Load(t.Context(), rows, opts)
	require.NoError(t, err)
	require.Equal(t, [2]int64{300, 300 - first.Done}, [2]int64{rest.Done, rest.Applied})
	all, err := v.Pin("v1").GetMany(t.Context(), featureRange(0, 300), nil)
	require.NoError(t, err)
	for k, row := range all {
		require.Equal(t, featurestore.Partial, row.Status)
		require.InDelta(t, float64(k), row.Value.Price, 0)
	}
}

// Rows of many features are read with DUMP, and with HMGET where Redis does not keep the hash compact, or refuses DUMP, or
// the key is none of ours: then, and for the next time.
func TestFeaturestoreDump_WideRowsAreDumped(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	admin := server.Client(t)
	user := redistest.Prefix(t)
	send(t, admin, "ACL", "SETUSER", user, "on", ">p", "+@all", "-dump", "&*", "~*")
	t.Cleanup(func() {
		require.NoError(t, admin.Do(context.WithoutCancel(t.Context()), admin.B().AclDeluser().Username(user).Build()).Error())
	})
	refused := server.Client(t, func(o *rueidis.ClientOption) { o.Username, o.Password = user, "p" })
	long := featurestore.Some(strings.Repeat("z", 65))
	for name, c := range map[string]struct {
		client rueidis.Client
		opts   featurestore.Options
		spoil  func(t *testing.T, key string)
		dumps  int // of three reads
		hmgets int
	}{
		"compact": {client: admin, dumps: 3},
		"refused": {client: refused, dumps: 1, hmgets: 3},
		"wide": {client: admin, dumps: 1, hmgets: 3, spoil: func(t *testing.T, key string) {
			t.Helper()
			require.NoError(t, do(t, admin, key, "HSET", "x", long.V).Error())
		}},
		"template": {client: admin, opts: featurestore.Options{Key: "t" + redistest.Prefix(t) + ":%v"}, hmgets: 3},
		"hot":      {client: admin, opts: featurestore.Options{Hot: time.Minute}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			hook := &featureTrip{sent: map[string]int{}}
			c.opts.Prefix = redistest.Prefix(t)
			v := newFeatures[int, featureMany](t, rueidishook.WithHook(c.client, hook), "many", c.opts)
			var row featureMany
			for i := range row.all()[:100] {
				row.all()[i] = featurestore.Some(featureDumpText())
			}
			putFeatures(t, v, 1, row, featureTime(1))
			if c.spoil != nil {
				c.spoil(t, c.opts.Prefix+":many:{1}")
			}
			hook.reset()
			for range 3 {
				got, err := v.Get(t.Context(), 1)
				require.NoError(t, err)
				require.Equal(t, row, got.Value)
				require.Equal(t, featureTime(1), got.EventTime)
			}
			require.Equal(t, [2]int{c.dumps, c.hmgets}, [2]int{hook.count("DUMP"), hook.count("HMGET")})
		})
	}
	t.Run("poison", func(t *testing.T) {
		t.Parallel()
		prefix := redistest.Prefix(t)
		v := newFeatures[int, featureMany](t, admin, "many", featurestore.Options{Prefix: prefix})
		putFeatures(t, v, 1, featureMany{F000: long}, featureTime(1))
		putFeatures(t, v, 2, featureMany{F001: long}, featureTime(1))
		require.NoError(t, do(t, admin, prefix+":many:{3}", "SET", "x").Error())
		rows, err := v.GetMany(t.Context(), []int{1, 2, 3, 4}, nil)
		require.NoError(t, err)
		require.Equal(t, []string{"partial", "partial", "broken", "missing"}, []string{rows[0].Status.String(), rows[1].Status.String(), rows[2].Status.String(), rows[3].Status.String()})
		require.ErrorIs(t, rows[2].Err, featurestore.ErrCorrupt)
	})
}

// featureTrip counts what is sent, by name.
type featureTrip struct {
	redistest.PassThrough
	mu   sync.Mutex
	sent map[string]int
}

func (h *featureTrip) Do(client rueidis.Client, ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	h.add(cmd)
	return client.Do(ctx, cmd)
}

func (h *featureTrip) DoMulti(client rueidis.Client, ctx context.Context, multi ...rueidis.Completed) []rueidis.RedisResult {
	h.add(multi...)
	return client.DoMulti(ctx, multi...)
}

func (h *featureTrip) add(commands ...rueidis.Completed) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range commands {
		h.sent[commands[i].Commands()[0]]++
	}
}

func (h *featureTrip) count(name string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.sent[name]
}

func (h *featureTrip) reset() {
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.sent)
}

// What Load makes of rows in whatever order, with RESTORE, is what Put does with HSET: the outcomes, the row and its TTL.
func TestFeaturestoreDump_LoadIsPut(t *testing.T) {
	t.Parallel()
	redistest.EachTarget(t, func(t *testing.T, client rueidis.Client) {
		t.Helper()
		for _, codec := range []featurestore.Codec{featurestore.Fields, featurestore.Packed} {
			prefix := [2]string{redistest.Prefix(t), redistest.Prefix(t)}
			for range 8 {
				ttl := []time.Duration{0, time.Minute, time.Hour}[rand.N(3)]
				var views [2]*featurestore.View[int, featureItem]
				for i := range views {
					views[i] = newFeatures[int, featureItem](t, client, "items", featurestore.Options{Prefix: prefix[i], Codec: codec, TTL: ttl})
				}
				n := 1 + rand.N(80) // more than one script, and some of an entity
				ks, at := make([]int, n), make([]int, n)
				var want featurestore.LoadStats
				for i := range ks {
					ks[i], at[i] = rand.N(10), rand.N(1000)
				}
				item := func(i int) featureItem {
					if i%3 == 0 {
						return featureItem{Price: float64(i)}
					}
					return featureItem{Price: float64(i), Stock: featurestore.Some(int32(i))}
				}
				poisoned := rand.N(3) == 0
				if poisoned { // another type
					for i := range prefix {
						require.NoError(t, do(t, client, prefix[i]+":items:{3}", "SET", "x").Error())
					}
				}
				for i, k := range ks {
					out, err := views[0].Put(t.Context(), k, item(i), featureTime(at[i]))
					switch {
					case err != nil:
						require.ErrorContains(t, err, "WRONGTYPE")
						want.Invalid++
					case out == featurestore.Applied:
						want.Applied++
					case out == featurestore.Older:
						want.Older++
					default:
						want.Same++
					}
				}
				want.Done = int64(n)
				i := -1
				got, err := views[1].Load(t.Context(), featureSeq(ks, func(int) (featureItem, time.Time) { i++; return item(i), featureTime(at[i]) }), featurestore.LoadOptions{
					Invalid: func(_ int64, err error) { require.ErrorIs(t, err, featurestore.ErrCorrupt) },
				})
				require.NoError(t, err)
				got.Took = 0
				require.Equal(t, want, got)
				for k := range 10 {
					if poisoned && k == 3 {
						for i := range prefix {
							require.NoError(t, do(t, client, prefix[i]+":items:{3}", "DEL").Error())
						}
						continue
					}
					var hashes [2]map[string]string
					var left [2]int64
					for i := range views {
						key := prefix[i] + ":items:{" + strconv.Itoa(k) + "}"
						hashes[i], err = do(t, client, key, "HGETALL").AsStrMap()
						require.NoError(t, err)
						left[i], err = do(t, client, key, "PTTL").AsInt64()
						require.NoError(t, err)
					}
					require.Equal(t, hashes[0], hashes[1])
					require.InDelta(t, left[0], left[1], 20_000)
				}
			}
		}
	})
}

// Rows that are replaced while they are read are the one or the other.
func TestFeaturestoreDump_ReplacesWhatIsRead(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	v := newFeatures[int, featureItem](t, client, "items", featurestore.Options{})
	r, err := v.Begin(t.Context(), "v1")
	require.NoError(t, err)
	ks := featureRange(0, 30)
	fill := func(n int) {
		_, err := r.Load(t.Context(), featureSeq(ks, func(int) (featureItem, time.Time) {
			return featureItem{Price: float64(n), Stock: featurestore.Some(int32(n))}, featureTime(n)
		}), featurestore.LoadOptions{SkipOrderCheck: true})
		require.NoError(t, err)
	}
	fill(0)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var wg sync.WaitGroup
	var reads atomic.Int64
	for range 4 {
		p := v.Pin("v1")
		wg.Go(func() {
			last := make([]float64, len(ks))
			for ctx.Err() == nil {
				rows, err := p.GetMany(t.Context(), ks, nil)
				for k, row := range rows {
					n := row.Value.Price
					if err == nil && (row.Status != featurestore.Found || row.Value.Stock.V != int32(n) || !row.EventTime.Equal(featureTime(int(n))) || n < last[k]) {
						err = fmt.Errorf("%+v after %v", row, last[k])
					}
					last[k] = n
				}
				if !errors.Is(err, nil) {
					t.Error(err)
					return
				}
				reads.Add(1)
			}
		})
	}
	for n := 1; n <= 20; n++ {
		want := reads.Load() + 2
		fill(n)
		require.Eventually(t, func() bool { return reads.Load() >= want || t.Failed() }, 20*time.Second, time.Millisecond)
	}
	stop()
	wg.Wait()
}
