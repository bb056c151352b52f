package cache

import (
	"bytes"
	"errors"
	"math"
	"strings"
	"testing"
	"testing/quick"
	"testing/synctest"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"
)

// fakeClient is enough of a client for New, which does no I/O.
type fakeClient struct {
	rueidis.Client
	mode rueidis.ClientMode
}

func (c fakeClient) Mode() rueidis.ClientMode { return c.mode }

var fake = fakeClient{mode: rueidis.ClientModeStandalone}

func TestNew_NamesWhatIsWrong(t *testing.T) {
	t.Parallel()
	type options = Options[string, int]
	second := time.Second
	for _, test := range []struct {
		name   string
		client rueidis.Client
		prefix string
		opts   options
		want   string
	}{
		{"no client", nil, "p", options{TTL: second}, "cache: client is nil"},
		{"no prefix", fake, "", options{TTL: second}, `cache: prefix must not be empty or contain braces, got ""`},
		{"braces", fake, "a{b}", options{TTL: second}, `cache: prefix must not be empty or contain braces, got "a{b}"`},
		{"no TTL", fake, "p", options{}, "cache: TTL must be at least 1ms and whole milliseconds, got 0s"},
		{"negative TTL", fake, "p", options{TTL: -second}, "cache: TTL must be at least 1ms and whole milliseconds, got -1s"},
		{"short TTL", fake, "p", options{TTL: 999 * time.Microsecond}, "cache: TTL must be at least 1ms and whole milliseconds, got 999µs"},
		{"odd TTL", fake, "p", options{TTL: 1500 * time.Microsecond}, "cache: TTL must be at least 1ms and whole milliseconds, got 1.5ms"},
		{"endless TTL", fake, "p", options{TTL: math.MaxInt64 - math.MaxInt64%time.Millisecond}, "cache: TTL must be at most 438000h0m0s, got 2562047h47m16.854s"},
		{"StaleTTL", fake, "p", options{TTL: second, StaleTTL: -second}, "cache: StaleTTL must be at least 0s and whole milliseconds, got -1s"},
		{"NegativeTTL", fake, "p", options{TTL: second, NegativeTTL: 1}, "cache: NegativeTTL must be at least 0s and whole milliseconds, got 1ns"},
		{"LeaseTTL", fake, "p", options{TTL: second, LeaseTTL: time.Millisecond}, "cache: LeaseTTL must be at least 10ms and whole milliseconds, got 1ms"},
		{"LoadTimeout", fake, "p", options{TTL: second, LoadTimeout: -1}, "cache: LoadTimeout must be at least 1ms and whole milliseconds, got -1ns"},
		{"OpTimeout", fake, "p", options{TTL: second, OpTimeout: -1}, "cache: OpTimeout must be at least 1ms and whole milliseconds, got -1ns"},
		{"ClientTTL", fake, "p", options{TTL: second, ClientTTL: -1}, "cache: ClientTTL must be at least 0s and whole milliseconds, got -1ns"},
		{"Jitter", fake, "p", options{TTL: second, Jitter: 1}, "cache: Jitter must be below 1, got 1"},
		{"Jitter NaN", fake, "p", options{TTL: second, Jitter: math.NaN()}, "cache: Jitter must be below 1, got NaN"},
		{"EarlyBeta", fake, "p", options{TTL: second, EarlyBeta: -1}, "cache: EarlyBeta must be at least 0 and finite, got -1"},
		{"EarlyBeta Inf", fake, "p", options{TTL: second, EarlyBeta: math.Inf(1)}, "cache: EarlyBeta must be at least 0 and finite, got +Inf"},
		{"MaxBytes", fake, "p", options{TTL: second, MaxBytes: -1}, "cache: MaxBytes must be at least 0, got -1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			_, err := New(test.client, test.prefix, test.opts)
			require.EqualError(t, err, test.want)
		})
	}
	_, err := New(fake, "p", Options[struct{ a int }, int]{TTL: second})
	require.EqualError(t, err, "cache: Key is required: keys of type struct { a int } are neither strings nor integers")
}

func TestDefaultKey(t *testing.T) {
	t.Parallel()
	type name string
	type id int16
	type bits uint8
	require.Equal(t, "x", id1(t, "x"))
	require.Equal(t, "x", id1(t, name("x")))
	require.Equal(t, "-7", id1(t, -7))
	require.Equal(t, "-7", id1(t, int64(-7)))
	require.Equal(t, "-7", id1(t, int32(-7)))
	require.Equal(t, "-7", id1(t, int8(-7)))
	require.Equal(t, "-7", id1(t, id(-7)))
	require.Equal(t, "18446744073709551615", id1(t, uint64(math.MaxUint64)))
	require.Equal(t, "7", id1(t, uint32(7)))
	require.Equal(t, "7", id1(t, bits(7)))
	_, err := defaultKey[bool]()
	require.Error(t, err)
	_, err = defaultKey[uintptr]()
	require.Error(t, err)
}

func id1[K comparable](t *testing.T, k K) string {
	t.Helper()
	f, err := defaultKey[K]()
	require.NoError(t, err)
	return f(k)
}

// hashed is what Redis hashes of a key.
func hashed(key string) string {
	_, rest, ok := strings.Cut(key, "{")
	tag, _, closed := strings.Cut(rest, "}")
	if !ok || !closed || tag == "" {
		return key
	}
	return tag
}

func TestKeys_DifferForDifferentPartsAndShareASlot(t *testing.T) {
	t.Parallel()
	odd := []string{"", "a", "b", "a:b", ":", "::", "%", "%3A", "{", "}", "{}", "a{b}c", "%}", "}%", "a}:l", ":s", "0", "\x00"}
	prefixes := []string{"p", "p:", "p:a", "p:a:b", "p:%", ":"}
	seen := map[string][]string{}
	add := func(key string, from ...string) {
		require.Nil(t, seen[key], "%q has the key of %q", from, seen[key]) // NotContains walks through the map
		seen[key] = from
	}
	for _, prefix := range prefixes {
		for _, segment := range odd {
			for _, version := range odd {
				k := newKeyspace(prefix, version, segment)
				for _, id := range odd {
					e := k.entry(id)
					add(e, "entry", prefix, version, segment, id)
					add(leaseKey(e), "lease", prefix, version, segment, id)
					require.Equal(t, hashed(e), hashed(leaseKey(e)))
					require.NotEqual(t, e, hashed(e), "an id that is not hashed alone would separate entry and lease")
				}
			}
			k := newKeyspace(prefix, "", segment)
			for _, tag := range []string{"0", "17"} {
				add(k.stamp(tag), "stamp", prefix, segment, tag)
			}
		}
	}
}

func TestKeys_AnyTwoPartsDiffer(t *testing.T) {
	t.Parallel()
	require.NoError(t, quick.Check(func(s1, v1, i1, s2, v2, i2 string) bool {
		a := newKeyspace("p", v1, s1).entry(i1)
		b := newKeyspace("p", v2, s2).entry(i2)
		return (a == b) == (s1 == s2 && v1 == v2 && i1 == i2) && hashed(a) == hashed(leaseKey(a)) && hashed(a) != a
	}, &quick.Config{MaxCount: 20_000}))
}

func TestEntry_RoundTrips(t *testing.T) {
	t.Parallel()
	const stamp = "12345678"
	for _, h := range []header{
		{stamp: stamp},
		{stamp: stamp, notFound: true, nonce: 7},
		{stamp: stamp, cost: 1500 * time.Microsecond, stale: time.Hour, nonce: math.MaxUint32},
		{stamp: stamp, cost: math.MaxInt64, stale: maxTTL},
	} {
		b := append(make([]byte, headerSize), "payload"...)
		seal(b, h)
		e, ok := parse(b)
		require.True(t, ok)
		require.Equal(t, h.notFound, e.notFound())
		require.Equal(t, min(h.cost, math.MaxUint32*time.Microsecond), e.cost())
		require.Equal(t, h.stale, e.stale())
		require.Equal(t, "payload", string(e.payload()))
		require.True(t, e.under(stamp))
		require.False(t, e.under(""))
		require.False(t, e.under("12345679"))
		for i := range b {
			for bit := range 8 {
				damaged := bytes.Clone(b)
				damaged[i] ^= 1 << bit
				_, ok := parse(damaged)
				require.False(t, ok, "byte %d, bit %d", i, bit)
			}
		}
		for n := range b {
			_, ok := parse(b[:n])
			require.False(t, ok, "cut to %d bytes", n)
		}
	}
}

// FuzzParse: whatever is under a key, parse neither panics nor reads an entry into it that seal would not have written.
func FuzzParse(f *testing.F) {
	whole := append(make([]byte, headerSize), "payload"...)
	seal(whole, header{stamp: "12345678", cost: time.Second, stale: time.Minute})
	f.Add(whole)
	f.Add(whole[:headerSize])
	f.Add([]byte("rueidisid:1"))
	f.Add([]byte{entryMagic, entryFormat})
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		require.LessOrEqual(t, len(headerOf(b)), headerSize)
		if e, ok := parse(b); ok {
			again := append(make([]byte, headerSize), e.payload()...)
			seal(again, header{notFound: e.notFound(), stamp: string(b[8:16]), cost: e.cost(), stale: e.stale()})
			copy(again[16:20], b[16:20]) // the nonce
			copy(again[4:8], b[4:8])
			require.Equal(t, b, again)
			require.GreaterOrEqual(t, e.stale(), time.Duration(0))
		}
		require.Equal(t, before, b)
	})
}

func TestCodecs_RoundTrip(t *testing.T) {
	t.Parallel()
	type point struct{ X, Y int }
	roundTrip(t, JSON[point](), point{1, -2}, point{})
	roundTrip(t, JSON[map[string][]int](), map[string][]int{"a": {1}}, nil)
	roundTrip(t, String(), "", "*", "\x00\xff", strings.Repeat("x", 1000))
	roundTrip(t, Bytes(), []byte{}, []byte("x\x00"))
	roundTrip(t, Func(func(s string) ([]byte, error) { return []byte(s), nil }, func(b []byte) (string, error) { return string(b), nil }), "", "abc")
	for _, least := range []int{0, 10, 1 << 20} {
		roundTrip(t, Compress(String(), least), "", "a", strings.Repeat("ab", 5), strings.Repeat("ab", 5000), "\x00\x01")
		roundTrip(t, Compress(Compress(JSON[point](), least), least), point{1, 2})
	}
	v, err := Bytes().Append(nil, nil)
	require.NoError(t, err)
	back, err := Bytes().Decode(v)
	require.NoError(t, err)
	require.NotNil(t, back)
	require.Empty(t, back)
}

func roundTrip[V any](t *testing.T, c Codec[V], values ...V) {
	t.Helper()
	for _, v := range values {
		head := []byte("head")
		b, err := c.Append(head, v)
		require.NoError(t, err)
		require.Equal(t, "head", string(b[:4]), "it appends")
		back, err := c.Decode(b[4:])
		require.NoError(t, err)
		require.Equal(t, v, back)
		// The value does not share memory with what it was decoded from.
		for i := range b {
			b[i] ^= 0xff
		}
		require.Equal(t, v, back)
	}
}

func TestCodecs_PassErrorsOn(t *testing.T) {
	t.Parallel()
	failure := errors.New("cannot")
	bad := Func(func(int) ([]byte, error) { return nil, failure }, func([]byte) (int, error) { return 0, failure })
	for _, c := range []Codec[int]{bad, Compress(bad, 0)} {
		_, err := c.Append(nil, 1)
		require.ErrorIs(t, err, failure)
	}
	_, err := bad.Decode(nil)
	require.ErrorIs(t, err, failure)
	_, err = JSON[int]().Decode([]byte("{"))
	require.Error(t, err)
}

func TestCompress_ShrinksWhatIsLargeEnough(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("the same ", 1000)
	b, err := Compress(String(), 100).Append(nil, long)
	require.NoError(t, err)
	require.Less(t, len(b), len(long)/20)
	b, err = Compress(String(), len(long)+1).Append(nil, long)
	require.NoError(t, err)
	require.Len(t, b, len(long)+1)
}

// FuzzCompressDecode: no input makes Decode panic, hang or allocate more than a stream really holds.
func FuzzCompressDecode(f *testing.F) {
	c := Compress(Bytes(), 0)
	for _, s := range []string{"", "a", strings.Repeat("ab", 500)} {
		b, err := c.Append(nil, []byte(s))
		require.NoError(f, err)
		f.Add(b)
	}
	f.Add([]byte{encodedDeflate, 0xff, 0xff, 0xff, 0xff, 0x0f, 1, 2, 3})
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := c.Decode(b)
		if err != nil {
			return
		}
		again, err := c.Append(nil, v)
		require.NoError(t, err)
		back, err := c.Decode(again)
		require.NoError(t, err)
		require.Equal(t, v, back)
	})
}

func TestBreaker_OpensAfterFailuresInARowAndProbes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var b breaker
		open := func() bool { ok, _ := b.allow(); return !ok }
		for range breakerFailures - 1 {
			b.failed()
		}
		require.False(t, open())
		b.succeeded()
		for range breakerFailures - 1 {
			b.failed()
		}
		require.False(t, open(), "a success in between starts the count anew")
		b.failed()
		require.True(t, open())
		b.failed() // of a call that had begun before
		probes := 0
		for range 10 {
			time.Sleep(probeInterval / 2) //nolint:forbidigo // synctest: a fake clock, which takes no time and cannot flake
			for range 5 {
				ok, probe := b.allow()
				require.False(t, ok)
				if probe {
					probes++
				}
			}
		}
		require.InDelta(t, 5, probes, 1, "one at a time, one per interval")
		b.succeeded()
		require.False(t, open())
	})
}

func TestBreakers_ProbeAtOnceWhatHasNotFailedItself(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBreakers(64, time.Second)
		b.failed(5)
		time.Sleep(time.Second) //nolint:forbidigo // synctest: a fake clock, which takes no time and cannot flake
		b.failed(6)
		for range 2 {
			for _, part := range []int{60, 61} {
				ok, probe := b.ranges[part].allow()
				require.False(t, ok, "nothing has succeeded anywhere for as long as patience")
				require.True(t, probe, "it is seen at once whether this one is well")
				_, probe = b.ranges[part].allow()
				require.False(t, probe)
			}
			time.Sleep(probeInterval) //nolint:forbidigo // synctest: a fake clock, which takes no time and cannot flake
		}
		b.succeeded(60)
		ok, _ := b.ranges[60].allow()
		require.True(t, ok)
		ok, _ = b.ranges[61].allow()
		require.False(t, ok)
	})
}

func TestLifetime_IsNeverLongerThanPromised(t *testing.T) {
	t.Parallel()
	for _, jitter := range []float64{-1, 0.1, 0.999999} {
		s := &shared[string, int]{opts: Options[string, int]{TTL: time.Millisecond, StaleTTL: time.Second, Jitter: jitter}}
		for range 1000 {
			require.Equal(t, 1001*time.Millisecond, s.lifetime(), "at least a millisecond is left of a TTL")
		}
		s.opts.TTL = time.Minute
		for range 1000 {
			require.LessOrEqual(t, s.lifetime(), time.Minute+time.Second)
			require.GreaterOrEqual(t, s.lifetime(), time.Minute-time.Duration(max(jitter, 0)*float64(time.Minute))+time.Second)
		}
	}
}
