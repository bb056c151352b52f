package featurestore

import (
	"encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"
)

type tier string

// everything has a feature of each type.
type everything struct {
	Bool    bool           `feature:"bool"`
	Int     int            `feature:"int"`
	Int8    int8           `feature:"int8"`
	Int16   int16          `feature:"int16"`
	Int32   int32          `feature:"int32"`
	Int64   int64          `feature:"int64"`
	Uint8   uint8          `feature:"uint8"`
	Uint16  uint16         `feature:"uint16"`
	Uint32  uint32         `feature:"uint32"`
	ignored int            //nolint:unused // what is between features is left alone
	Float32 float32        `feature:"float32"`
	Float64 float64        `feature:"float64"`
	Narrow  float64        `feature:"narrow,f32"`
	Text    tier           `feature:"text"`
	Bytes   []byte         `feature:"bytes"`
	Time    time.Time      `feature:"time"`
	Vec32   []float32      `feature:"vec32"`
	Vec64   []float64      `feature:"vec64"`
	Arr32   [3]float32     `feature:"arr32"`
	Arr64   [2]float64     `feature:"arr64"`
	OptBool Opt[bool]      `feature:"opt_bool"`
	OptInt  Opt[int64]     `feature:"opt_int"`
	OptF    Opt[float64]   `feature:"opt_float"`
	OptText Opt[string]    `feature:"opt_text"`
	OptTime Opt[time.Time] `feature:"opt_time"`
	OptVec  Opt[[]float32] `feature:"opt_vec"`
	With    Opt[int32]     `feature:"with,default=-7"`
	Plain   string         `feature:"plain,default=a,b=c"`
}

func testView[T any](tb testing.TB, c Codec, view string) *View[string, T] {
	tb.Helper()
	opts := Options{Codec: c}
	if c == Feast {
		opts.Feast = FeastOptions{Project: "p", JoinKey: "k"}
	}
	v, err := NewView[string, T](noClient{}, view, opts)
	require.NoError(tb, err)
	return v
}

// noClient is there to be not nil.
type noClient struct{ rueidis.Client }

func (noClient) Mode() rueidis.ClientMode { return rueidis.ClientModeStandalone }

// hash is a hash in Redis, as far as it goes.
type hash map[string]string

func (h hash) write(set, drop []string) {
	for i := 0; i < len(set); i += 2 {
		h[set[i]] = strings.Clone(set[i+1])
	}
	for _, name := range drop {
		delete(h, name)
	}
}

// read returns what HMGET does.
func (h hash) read(fields []string) []value {
	values := make([]value, len(fields))
	for i, name := range fields {
		values[i].text, values[i].ok = h[name]
	}
	return values
}

// writeTo encodes a row as Put does.
func writeTo[T any](tb testing.TB, h hash, v *View[string, T], value T, at int64) {
	tb.Helper()
	e, err := v.v.encode(unsafe.Pointer(&value), time.UnixMicro(at), false)
	require.NoError(tb, err)
	h.write(e.set, e.drop)
}

// readFrom decodes a row as Get does, but for defaults.
func readFrom[T any](tb testing.TB, h hash, p *Projection[string, T]) (value T, r *row, err error) {
	tb.Helper()
	r = p.v.row(unsafe.Pointer(&value))
	err = p.v.codec.decode(p.plan.features, h.read(p.plan.fields), r)
	for _, i := range p.plan.features {
		if err == nil {
			p.v.schema.features[i].setState(r.p, r.states[i])
		}
	}
	return value, r, err
}

var codecs = []Codec{Fields, Packed, Feast}

func eachCodec(t *testing.T, fn func(t *testing.T, c Codec)) {
	t.Helper()
	for _, c := range codecs {
		t.Run(c.String(), func(t *testing.T) {
			t.Parallel()
			fn(t, c)
		})
	}
}

// randomRow has extremes more often than not.
func randomRow(rnd *rand.Rand, c Codec) (e everything) {
	integer := func() int64 {
		edges := []int64{0, 1, -1, math.MaxInt64, math.MinInt64, 1<<53 + 1, 1 << 31, 300}
		if rnd.IntN(2) == 0 {
			return edges[rnd.IntN(len(edges))]
		}
		return int64(rnd.Uint64() >> rnd.IntN(64))
	}
	float := func() float64 {
		edges := []float64{
			0, math.Copysign(0, -1), math.Inf(1), math.Inf(-1), math.NaN(), math.SmallestNonzeroFloat64, math.MaxFloat64,
			1<<53 + 1, .1, 1e21,
		}
		if rnd.IntN(2) == 0 {
			return edges[rnd.IntN(len(edges))]
		}
		return rnd.NormFloat64()
	}
	float32s := func() float32 {
		if rnd.IntN(4) == 0 {
			return math.SmallestNonzeroFloat32
		}
		return float32(float())
	}
	text := func() string {
		edges := []string{"", "0", "null", "\x00\xff", "żółć", strings.Repeat("long ", rnd.IntN(200)), "a,b [1]"}
		return edges[rnd.IntN(len(edges))]
	}
	moment := func() time.Time {
		if c == Feast {
			return time.Unix(rnd.Int64N(1<<36)-1<<35, 0).UTC()
		}
		return time.Unix(rnd.Int64N(1<<36)-1<<35, rnd.Int64N(1e9)).UTC()
	}
	state := func() State { return []State{Absent, Null, Set, Set}[rnd.IntN(4)] }
	e = everything{
		Bool: rnd.IntN(2) == 0, Int: int(integer()), Int8: int8(integer()), Int16: int16(integer()), Int32: int32(integer()), Int64: integer(),
		Uint8: uint8(integer()), Uint16: uint16(integer()), Uint32: uint32(integer()), Float32: float32s(), Float64: float(),
		Narrow: float64(float32s()), Text: tier(text()), Bytes: []byte(text()), Time: moment(), Vec32: make([]float32, rnd.IntN(40)),
		Vec64: make([]float64, rnd.IntN(40)), Arr32: [3]float32{float32s(), 1, 2}, Arr64: [2]float64{float(), float()}, Plain: text(),
	}
	for i := range e.Vec32 {
		e.Vec32[i] = float32s()
	}
	for i := range e.Vec64 {
		e.Vec64[i] = float()
	}
	if s := state(); s == Set {
		e.OptBool, e.OptInt, e.OptF = Some(rnd.IntN(2) == 0), Some(integer()), Some(float())
		e.OptText, e.OptTime, e.With = Some(text()), Some(moment()), Some(int32(integer()))
	} else {
		e.OptBool.State, e.OptInt.State, e.OptF.State, e.OptText.State, e.OptTime.State, e.With.State = s, s, s, s, s, s
	}
	if e.OptVec.State = state(); e.OptVec.State == Set {
		e.OptVec.V = []float32{float32s(), 1}
	}
	return e
}

// sameRow compares rows to the bit, but for which NaN one is.
func sameRow(tb testing.TB, want, got any) {
	tb.Helper()
	require.True(tb, same(reflect.ValueOf(want), reflect.ValueOf(got)), "want %+v\ngot  %+v", want, got)
}

func same(a, b reflect.Value) bool {
	switch a.Kind() {
	case reflect.Float32, reflect.Float64:
		x, y := a.Float(), b.Float()
		return x != x && y != y || math.Float64bits(x) == math.Float64bits(y)
	case reflect.Struct:
		if a.Type() == timeType {
			return a.Interface().(time.Time).Equal(b.Interface().(time.Time))
		}
		for i := range a.NumField() {
			if !same(a.Field(i), b.Field(i)) {
				return false
			}
		}
		return true
	case reflect.Slice, reflect.Array:
		if a.Len() != b.Len() {
			return false
		}
		for i := range a.Len() {
			if !same(a.Index(i), b.Index(i)) {
				return false
			}
		}
		return true
	}
	return a.Equal(b)
}

func FuzzCodecs_RoundTrip(f *testing.F) {
	for seed := range uint64(300) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		for _, c := range codecs {
			rnd := rand.New(rand.NewPCG(seed, uint64(c)))
			v := testView[everything](t, c, "view")
			h := hash{}
			writeTo(t, h, v, randomRow(rnd, c), 1) // of which nothing is to be left
			want := randomRow(rnd, c)
			at := 1 + rnd.Int64N(maxMicros)
			writeTo(t, h, v, want, at)
			got, r, err := readFrom(t, h, &v.Projection)
			require.NoError(t, err)
			require.True(t, r.found)
			require.Equal(t, at, r.at)
			sameRow(t, want, got)

			some, err := v.Select("text", "opt_float", "bool", "arr64")
			require.NoError(t, err)
			part, _, err := readFrom(t, h, some)
			require.NoError(t, err)
			sameRow(t, everything{Text: want.Text, OptF: want.OptF, Bool: want.Bool, Arr64: want.Arr64}, part)
		}
	})
}

func TestCodecs_TellStatesApart(t *testing.T) {
	t.Parallel()
	eachCodec(t, func(t *testing.T, c Codec) {
		v := testView[struct {
			I Opt[int64]   `feature:"i"`
			F Opt[float64] `feature:"f"`
			S Opt[string]  `feature:"s"`
			B Opt[bool]    `feature:"b"`
		}](t, c, "view")
		value, r, err := readFrom(t, hash{}, &v.Projection)
		require.NoError(t, err)
		require.False(t, r.found)
		require.Equal(t, Absent, value.I.State)
		h := hash{}
		for _, s := range []State{Null, Absent, Null, Set, Absent} {
			value.I.State, value.F.State, value.S.State, value.B.State = s, s, s, s
			writeTo(t, h, v, value, 5)
			got, r, err := readFrom(t, h, &v.Projection)
			require.NoError(t, err)
			require.True(t, r.found)
			require.Equal(t, value, got) // Set: 0, 0, "" and false
		}
	})
}

// What other languages write.
func TestFields_ReadsWhatOthersWrite(t *testing.T) {
	t.Parallel()
	v := testView[everything](t, Fields, "view")
	h := hash{
		"bool": "1", "int": "-5", "uint8": "255", "float64": "1e-3", "float32": "nan", "narrow": "Infinity", "text": "gold", "bytes": "\xff",
		"time": "2026-01-02T03:04:05.000000006+01:00", "vec32": "[]", "arr32": "[1, 2.5, -0]", "opt_bool": "True",
	}
	got, r, err := readFrom(t, h, &v.Projection)
	require.NoError(t, err)
	require.True(t, r.found)
	require.Zero(t, r.at)
	require.Equal(t, tier("gold"), got.Text)
	require.Equal(t, [3]float32{1, 2.5, 0}, got.Arr32)
	require.Equal(t, time.Date(2026, 1, 2, 2, 4, 5, 6, time.UTC), got.Time)
	require.Equal(t, -5, got.Int)
	require.True(t, got.Bool)
	require.Equal(t, Some(true), got.OptBool)
	h["_ts:view"] = "1700000000000000"
	_, r, err = readFrom(t, h, &v.Projection)
	require.NoError(t, err)
	require.Equal(t, int64(1700000000000000), r.at)
}

func TestCodecs_RefusePoison(t *testing.T) {
	t.Parallel()
	type row struct {
		I int8       `feature:"i"`
		U uint8      `feature:"u"`
		F float32    `feature:"f"`
		B bool       `feature:"b"`
		T time.Time  `feature:"t"`
		V [2]float32 `feature:"v"`
	}
	v := testView[row](t, Fields, "view")
	for name, bad := range map[string][]string{
		"i": {"", "x", "128", "1.0", "0x1", " 1"}, "u": {"-1", "256"}, "f": {"", "1e39", "0,1"}, "b": {"", "2", "yes"},
		"t": {"", "1700000000", "2026-01-02"}, "v": {"", "[]", "[1]", "[1,2,3]", "[1,x]", "1,2", "[1,2"},
		"_ts:view": {"", "x", "-1", "1e3", "99999999999999999999", "1.5"},
	} {
		for _, s := range bad {
			_, _, err := readFrom(t, hash{name: s}, &v.Projection)
			require.ErrorIs(t, err, ErrCorrupt, "%s: %q", name, s)
		}
	}
	p := testView[row](t, Packed, "view")
	good := hash{}
	writeTo(t, good, p, row{I: -128, F: 1}, 7)
	for i := range good["view"] { // cut off, wherever
		_, _, err := readFrom(t, hash{"view": good["view"][:i]}, &p.Projection)
		require.ErrorIs(t, err, ErrCorrupt, "%d", i)
	}
	huge := []byte(good["view"][:packedHeader] + "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")
	huge[3] |= packedMore >> 24
	for _, bad := range []string{good["view"] + "x", string(huge), string(huge[:packedHeader]) + "\xff\xff\xff\x0f"} {
		_, _, err := readFrom(t, hash{"view": bad}, &p.Projection)
		require.ErrorIs(t, err, ErrCorrupt, "%q", bad)
	}
	_, _, err := readFrom(t, hash{"view": strings.Repeat("\xff", 80)}, &p.Projection)
	require.ErrorIs(t, err, ErrSkew)
	f := testView[row](t, Feast, "view")
	field := f.v.codec.(*feastCodec).hashes
	for _, bad := range []hash{{field[0]: "\x18"}, {field[1]: "\xff"}, {"_ts:view": "x"}, {"_ts:view": "\x08"}} {
		_, _, err := readFrom(t, bad, &f.Projection)
		require.ErrorIs(t, err, ErrCorrupt)
	}
	for _, bad := range []hash{ // of another type, out of range, of a type to come
		{field[0]: "\x12\x01a"},
		{field[0]: "\x18\x80\x01"},
		{field[1]: "\x18\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"},
		{field[2]: "\x38\x01"},
		{field[0]: "\xe0\x03\x05"},
		{field[5]: "\x82\x01\x00"},
	} {
		_, _, err := readFrom(t, bad, &f.Projection)
		require.ErrorIs(t, err, ErrSkew)
	}
}

type schemaOne struct {
	Kept    int64          `feature:"kept"`
	Dropped string         `feature:"dropped"`
	Old     float64        `feature:"old_name"`
	Retyped float64        `feature:"retyped"`
	Nulled  Opt[int64]     `feature:"nulled"`
	Vector  Opt[[]float32] `feature:"vector"`
}

type schemaTwo struct {
	Kept    int64          `feature:"kept"`
	New     float64        `feature:"new_name"`
	Retyped bool           `feature:"retyped"`
	Nulled  Opt[int64]     `feature:"nulled"`
	Vector  Opt[[]float64] `feature:"vector"`
}

// A reader of another schema gets an error, or the same number, or nothing.
func TestCodecs_SkewIsNoWrongNumber(t *testing.T) {
	t.Parallel()
	eachCodec(t, func(t *testing.T, c Codec) {
		old, now := testView[schemaOne](t, c, "view"), testView[schemaTwo](t, c, "view")
		h := hash{}
		writeTo(t, h, now, schemaTwo{Kept: 1, New: 2, Retyped: true, Vector: Some([]float64{1, 2})}, 5)
		_, _, err := readFrom(t, h, &old.Projection)
		require.ErrorIs(t, err, ErrSkew)
		h = hash{}
		writeTo(t, h, old, schemaOne{Kept: 1, Retyped: 7}, 5)
		_, _, err = readFrom(t, h, &now.Projection)
		require.ErrorIs(t, err, ErrSkew)
		if c == Packed {
			return
		}
		kept, err := now.Select("kept", "new_name")
		require.NoError(t, err)
		value, r, err := readFrom(t, h, kept)
		require.NoError(t, err)
		require.Equal(t, schemaTwo{Kept: 1}, value)
		require.Equal(t, Absent, r.states[1])
	})
}

// Any two types of a feature: what one wrote, the other reads as the same value, or not at all.
func TestFields_RetypedIsTheSameOrAnError(t *testing.T) {
	t.Parallel()
	type ints struct {
		X int64 `feature:"x"`
	}
	type floats struct {
		X float64 `feature:"x"`
	}
	type bools struct {
		X bool `feature:"x"`
	}
	type times struct {
		X time.Time `feature:"x"`
	}
	type vectors struct {
		X []float64 `feature:"x"`
	}
	number := testView[ints](t, Fields, "view")
	for _, write := range []func(h hash){
		func(h hash) { writeTo(t, h, testView[bools](t, Fields, "view"), bools{true}, 1) },
		func(h hash) { writeTo(t, h, testView[times](t, Fields, "view"), times{time.Unix(5, 0)}, 1) },
		func(h hash) { writeTo(t, h, testView[vectors](t, Fields, "view"), vectors{[]float64{1}}, 1) },
		func(h hash) { writeTo(t, h, testView[floats](t, Fields, "view"), floats{1.5}, 1) },
	} {
		h := hash{}
		write(h)
		_, _, err := readFrom(t, h, &number.Projection)
		require.ErrorIs(t, err, ErrSkew)
	}
	h := hash{}
	writeTo(t, h, testView[floats](t, Fields, "view"), floats{3}, 1)
	value, _, err := readFrom(t, h, &number.Projection)
	require.NoError(t, err)
	require.Equal(t, int64(3), value.X)

	// Nor is a number that a float cannot hold rounded.
	type narrow struct {
		X float32 `feature:"x"`
	}
	type narrows struct {
		X []float32 `feature:"x"`
	}
	wide, float := testView[floats](t, Fields, "view"), testView[narrow](t, Fields, "view")
	for n, ok := range map[int64]bool{0: true, -1: true, 1_000_000: true, 1<<53 + 1: false, math.MaxInt64: false, math.MinInt64: true} {
		h := hash{}
		writeTo(t, h, number, ints{n}, 1)
		value, _, err := readFrom(t, h, &wide.Projection)
		if !ok {
			require.ErrorIs(t, err, ErrSkew, n)
			continue
		}
		require.NoError(t, err, n)
		require.InDelta(t, float64(n), value.X, 0)
	}
	for x, ok := range map[float64]bool{0.5: true, 0.1: true, math.Inf(-1): true, 1e20: true, 0.12345678901234567: false, 1e300: false} {
		h, vector := hash{}, hash{}
		writeTo(t, h, wide, floats{x}, 1)
		writeTo(t, vector, testView[vectors](t, Fields, "view"), vectors{[]float64{1, x}}, 1)
		value, _, err := readFrom(t, h, &float.Projection)
		several, _, errs := readFrom(t, vector, &testView[narrows](t, Fields, "view").Projection)
		if !ok {
			require.ErrorIs(t, err, ErrSkew, x)
			require.ErrorIs(t, errs, ErrSkew, x)
			continue
		}
		require.NoError(t, errors.Join(err, errs), x)
		require.InDelta(t, float32(x), value.X, 0)
		require.InDelta(t, float32(x), several.X[1], 0)
	}
}

func FuzzPacked_NoPanic(f *testing.F) {
	v := testView[everything](f, Packed, "view")
	h := hash{}
	writeTo(f, h, v, randomRow(rand.New(rand.NewPCG(1, 1)), Packed), 3)
	whole := ""
	for _, name := range v.v.codec.fields(nil) {
		whole += h[name]
	}
	f.Add(whole, 7)
	f.Add(h["view"], 0)
	f.Fuzz(func(t *testing.T, body string, flip int) {
		b := []byte(body)
		if len(b) > 0 && flip > 0 {
			b[flip%len(b)] ^= byte(flip)
		}
		if len(b) >= packedHeader { // so that it is not refused for its schema
			head := binary.LittleEndian.Uint32(b)&^packedPrint | v.v.schema.fingerprint&packedPrint
			binary.LittleEndian.PutUint32(b, head)
		}
		_, _, _ = readFrom(t, hash{"view": string(b)}, &v.Projection)
		cut := len(b) / 2
		_, _, _ = readFrom(t, hash{"view": string(b[:cut]), "view:1": string(b[cut:])}, &v.Projection)
	})
}

func FuzzFields_NoPanic(f *testing.F) {
	v := testView[everything](f, Fields, "view")
	f.Add("1", "1700000000000000 12345678 text,plain")
	f.Fuzz(func(t *testing.T, s, stamp string) {
		for _, name := range v.v.codec.all() {
			_, _, _ = readFrom(t, hash{name: s, "_ts:view": stamp}, &v.Projection)
		}
	})
}

func FuzzFeast_NoPanic(f *testing.F) {
	v := testView[everything](f, Feast, "view")
	f.Add("\x20\x01", "\x08\x01")
	f.Fuzz(func(t *testing.T, s, stamp string) {
		for _, name := range v.v.codec.all() {
			_, _, _ = readFrom(t, hash{name: s, "_ts:view": stamp}, &v.Projection)
		}
	})
}

func TestPacked_ChunksKeepHashesCompact(t *testing.T) {
	t.Parallel()
	type row struct {
		F [30]float64 `feature:"f"`
		S string      `feature:"s"`
	}
	v := testView[row](t, Packed, "view")
	h := hash{}
	writeTo(t, h, v, row{S: "short"}, 1)
	require.Len(t, h, 5)
	for name, chunk := range h {
		require.LessOrEqual(t, len(chunk), chunkSize, name)
	}
	writeTo(t, h, v, row{S: strings.Repeat("long", 1000)}, 1)
	require.Len(t, h, 5)
	got, _, err := readFrom(t, h, &v.Projection)
	require.NoError(t, err)
	require.Len(t, got.S, 4000)
	short := testView[struct {
		B Opt[bool] `feature:"b"`
	}](t, Packed, "view")
	writeTo(t, h, short, struct {
		B Opt[bool] `feature:"b"`
	}{}, 1)
	require.Len(t, h, 1, "an old byte is left")
}

func TestRetired_IsWhatOthersHave(t *testing.T) {
	t.Parallel()
	require.Equal(t, []string{"dropped", "old_name"}, retired([]string{"kept", "new"}, "kept dropped  old_name"))
}
