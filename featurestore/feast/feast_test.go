package feast

import (
	"encoding/hex"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func unhex(t *testing.T, s string) string {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	require.NoError(t, err)
	return string(b)
}

// The bytes are Python's: of Feast's own tests, of its key_encoding_utils.py, and D of a production system.
func TestKey_IsPythons(t *testing.T) {
	t.Parallel()
	myProject := "6d795f70726f6a656374"
	for name, c := range map[string]struct {
		version int
		project string
		joins   []Join
		want    string
	}{
		"A": {
			KeyV3, "test",
			[]Join{{"entity", Value{Type: Int32, Int: 1}}},
			"01000000 02000000 06000000 656e74697479 03000000 04000000 01000000 74657374",
		},
		"B": {
			KeyV3, "my_project",
			[]Join{{"driver_id", Value{Type: Int64, Int: 1001}}},
			"0100000002000000090000006472697665725f69640400000008000000e903000000000000" + myProject,
		},
		"B of version 2": {
			KeyV2, "my_project",
			[]Join{{"driver_id", Value{Type: Int64, Int: 1001}}},
			"020000006472697665725f69640400000008000000e903000000000000" + myProject,
		},
		"C": {
			KeyV3, "my_project",
			[]Join{{"user", Value{Type: String, Text: "abc"}}, {"customer_id", Value{Type: Int64, Int: 42}}},
			"02000000 02000000 0b000000 637573746f6d65725f6964 02000000 04000000 75736572" +
				"04000000 08000000 2a00000000000000 02000000 03000000 616263" + myProject,
		},
		"D": {
			KeyV2, "fraud_demo",
			[]Join{{"source", Value{Type: String, Text: "PAYU"}}, {"merchant_id", Value{Type: Int64, Int: 0x81f798}}},
			"02000000 6d65726368616e745f6964 02000000 736f75726365 04000000 08000000 98f7810000000000 02000000 04000000 50415955" +
				"66726175645f64656d6f",
		},
		"E": {
			KeyV3, "",
			[]Join{{"użytk", Value{Type: String, Text: "żółć"}}},
			"01000000 02000000 06000000 75c5bc79746b 02000000 08000000 c5bcc3b3c582c487",
		},
		"negative": {
			KeyV3, "",
			[]Join{{"e", Value{Type: Int32, Int: -1}}},
			"01000000 02000000 01000000 65 03000000 04000000 ffffffff",
		},
		"time":                    {KeyV3, "p", []Join{{"e", Value{Type: UnixTimestamp, Int: 1}}}, "01000000 02000000 01000000 65 08000000 08000000 0100000000000000 70"},
		"no entity":               {KeyV3, "p", []Join{{"__dummy_id", Value{Type: String}}}, "01000000 02000000 0a000000 5f5f64756d6d795f6964 02000000 00000000 70"},
		"nothing":                 {KeyV3, "p", nil, "00000000 70"},
		"nothing of version 2":    {KeyV2, "p", nil, "70"},
		"bytes that are no UTF-8": {KeyV3, "", []Join{{"e", Value{Type: Bytes, Text: "\xff\x00"}}}, "01000000 02000000 01000000 65 01000000 02000000 ff00"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			key, err := AppendKey(nil, c.version, c.project, c.joins...)
			require.NoError(t, err)
			require.Equal(t, unhex(t, c.want), string(key))
			names := []string{}
			for _, j := range c.joins {
				names = append(names, j.Name)
			}
			project, joins, err := ParseKey(c.version, string(key), names...)
			require.NoError(t, err)
			require.Equal(t, c.project, project)
			require.ElementsMatch(t, c.joins, joins)
		})
	}
}

func TestKey_RefusesWhatFeastCannotHave(t *testing.T) {
	t.Parallel()
	_, err := AppendKey(nil, 1, "p")
	require.Error(t, err)
	for _, joins := range [][]Join{
		{{"a", Value{Type: Int64}}, {"a", Value{Type: Int64}}},
		{{"a", Value{Type: Double}}},
		{{"a", Value{}}},
		{{"a", Value{Type: Int32, Int: 1 << 40}}},
	} {
		_, err := AppendKey(nil, KeyV3, "p", joins...)
		require.Error(t, err)
	}
}

func TestField_IsPythons(t *testing.T) {
	t.Parallel()
	for name, want := range map[[2]string]string{
		{"feature_view_1", "feature_10"}:               "266d5f39",
		{"feature_view_1", "feature_11"}:               "c3379abf",
		{"feature_view_1", "feature_12"}:               "7772b564",
		{"feature_view_1", "my-feature-view:feature1"}: "5369864a",
		{"driver_hourly_stats", "conv_rate"}:           "6160e3da",
		{"driver_hourly_stats", "acc_rate"}:            "fa5e58ad",
		{"driver_hourly_stats", "avg_daily_trips"}:     "18a5e5a3",
		{"driver_stats_v2", "trips_today"}:             "e8339fa4",
	} {
		require.Equal(t, want, hex.EncodeToString([]byte(Field(name[0], name[1]))), name)
	}
	require.Equal(t, "_ts:driver_hourly_stats", TimestampField("driver_hourly_stats"))
}

func TestValue_IsPythons(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		value Value
		bytes string
	}{
		{Value{}, ""},
		{Value{Type: String}, "1200"},
		{Value{Type: Int32, Int: -1}, "18ffffffffffffffffff01"},
		{Value{Type: Int64}, "2000"},
		{Value{Type: Int64, Int: 1001}, "20e907"},
		{Value{Type: Int64, Int: math.MaxInt64}, "20ffffffffffffffff7f"},
		{Value{Type: Double}, "290000000000000000"},
		{Value{Type: Double, Float: .5}, "29000000000000e03f"},
		{Value{Type: Float, Float: float64(float32(.92739803))}, "35f5696d3f"},
		{Value{Type: Float, Float: .5}, "350000003f"},
		{Value{Type: Float, Float: math.Inf(1)}, "350000807f"},
		{Value{Type: Bool}, "3800"},
		{Value{Type: Bool, Int: 1}, "3801"},
		{Value{Type: UnixTimestamp, Int: 1700000000}, "4080e2cfaa06"},
		{Value{Type: FloatList, Floats: []float64{1, .5}}, "82010a0a080000803f0000003f"},
		{Value{Type: FloatList}, "820100"},
		{Value{Type: Int64List, Ints: []int64{1, -1, 300}}, "720f0a0d01ffffffffffffffffff01ac02"},
		{Value{Type: StringList, Texts: []string{"a", "bc"}}, "62070a01610a026263"},
		{Value{Type: Map, Map: map[string]Value{"k": {Type: Int64, Int: 1}}}, "a201090a070a016b12022001"},
		{Value{Type: JSON, Text: "{}"}, "8202027b7d"},
		{Value{Type: 60, Raw: "\xe0\x03\x05"}, "e00305"}, // of a Feast to come
	} {
		require.Equal(t, c.bytes, hex.EncodeToString(AppendValue(nil, c.value)), "%+v", c.value)
		back, err := ParseValue(unhex(t, c.bytes))
		require.NoError(t, err, c.bytes)
		require.Equal(t, c.value, back, c.bytes)
	}
	null, err := ParseValue(unhex(t, "980100"))
	require.NoError(t, err)
	require.Equal(t, Value{}, null)
	nan, err := ParseValue(string(AppendValue(nil, Value{Type: Double, Float: math.NaN()})))
	require.NoError(t, err)
	require.True(t, math.IsNaN(nan.Float))
	unpacked, err := ParseValue(unhex(t, "7204 08010802"))
	require.NoError(t, err)
	require.Equal(t, Value{Type: Int64List, Ints: []int64{1, 2}}, unpacked)
	last, err := ParseValue(unhex(t, "2001 1200"))
	require.NoError(t, err)
	require.Equal(t, Value{Type: String}, last)
}

func TestValue_RefusesWhatIsNone(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{
		"20", "2080", "20ffffffffffffffffff7f", "1205", "12ffffffffffffffffff01", "29", "3500", "1800ff", "0000", "2200",
		"27", "720408", "820103 0a0100", "a201030a0120", "62020801",
	} {
		_, err := ParseValue(unhex(t, bad))
		require.Error(t, err, bad)
	}
	deep := Value{Type: Int64}
	for range maxDepth + 2 {
		deep = Value{Type: Map, Map: map[string]Value{"": deep}}
	}
	_, err := ParseValue(string(AppendValue(nil, deep)))
	require.Error(t, err)
}

func TestTimestamp_IsPythons(t *testing.T) {
	t.Parallel()
	at := time.Unix(1700000000, 123e6).UTC()
	require.Equal(t, "0880e2cfaa0610c0a9d33a", hex.EncodeToString(AppendTimestamp(nil, at)))
	back, err := ParseTimestamp(unhex(t, "0880e2cfaa0610c0a9d33a"))
	require.NoError(t, err)
	require.Equal(t, at, back)
	whole, err := ParseTimestamp(unhex(t, "0880e2cfaa06")) // as before 2026
	require.NoError(t, err)
	require.Equal(t, at.Truncate(time.Second), whole)
	none, err := ParseTimestamp("")
	require.NoError(t, err)
	require.True(t, none.IsZero())
	require.Empty(t, AppendTimestamp(nil, time.Time{}))
	require.Empty(t, AppendTimestamp(nil, time.Unix(0, 0)))
	for _, bad := range []string{"08", "0a00", "10ffffffffffffffffff01", "08ffffffffffffffff7f", "1080ca9eae0f"} {
		_, err := ParseTimestamp(unhex(t, bad))
		require.Error(t, err, bad)
	}
}

// randomValue is any value that AppendValue writes.
func randomValue(rnd *rand.Rand, depth int) Value {
	types := []Type{
		Null, Bytes, String, Int32, Int64, Double, Float, Bool, UnixTimestamp, BytesList, StringList, Int32List, Int64List, DoubleList,
		FloatList, BoolList, UnixTimestampList, Map, BytesSet, StringSet, Int32Set, Int64Set, DoubleSet, FloatSet, BoolSet,
		UnixTimestampSet, JSON, JSONList, UUID, TimeUUID, Decimal,
	}
	v := Value{Type: types[rnd.IntN(len(types))]}
	integer := func() int64 { return intOf(v.Type, rnd.Uint64()>>rnd.IntN(64)) }
	float := func() float64 {
		f := math.Ldexp(rnd.Float64()-.5, rnd.IntN(100)-50)
		if s, _ := shapeOf(v.Type); s == shapeFloat {
			return float64(float32(f))
		}
		return f
	}
	text := func() string { return strings.Repeat("\xffa", rnd.IntN(100)) }
	s, list := shapeOf(v.Type)
	n := 1 + rnd.IntN(5)
	switch {
	case s == shapeMap && depth > 0:
		v.Map = map[string]Value{}
		for range n {
			v.Map[text()] = randomValue(rnd, depth-1)
		}
	case s == shapeMap || s == shapeRaw:
		v = Value{}
	case !list && s == shapeInt:
		v.Int = integer()
	case !list && s == shapeText:
		v.Text = text()
	case !list:
		v.Float = float()
	default:
		for range n {
			switch s {
			case shapeInt:
				v.Ints = append(v.Ints, integer())
			case shapeText:
				v.Texts = append(v.Texts, text())
			default:
				v.Floats = append(v.Floats, float())
			}
		}
	}
	return v
}

func FuzzValue_RoundTrip(f *testing.F) {
	for seed := range uint64(200) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		v := randomValue(rand.New(rand.NewPCG(seed, 0)), 3)
		back, err := ParseValue(string(AppendValue(nil, v)))
		require.NoError(t, err)
		require.Equal(t, v, back)
	})
}

// What can be read can be written, and says the same.
func FuzzParseValue(f *testing.F) {
	for _, s := range []string{"", "2001", "820100", "a201090a070a016b12022001", "e00305", "62070a01610a026263", "1205"} {
		b, _ := hex.DecodeString(s)
		f.Add(string(b))
	}
	f.Fuzz(func(t *testing.T, s string) {
		v, err := ParseValue(s)
		if err != nil {
			return
		}
		wire := string(AppendValue(nil, v))
		again, err := ParseValue(wire)
		require.NoError(t, err)
		require.Equal(t, wire, string(AppendValue(nil, again)))
	})
}

func FuzzParseKey(f *testing.F) {
	key, _ := AppendKey(nil, KeyV3, "p", Join{"a", Value{Type: Int64, Int: 1}}, Join{"b", Value{Type: String, Text: "x"}})
	f.Add(KeyV3, string(key))
	key, _ = AppendKey(nil, KeyV2, "p", Join{"a", Value{Type: Int64, Int: 1}}, Join{"b", Value{Type: String, Text: "x"}})
	f.Add(KeyV2, string(key))
	f.Fuzz(func(t *testing.T, version int, s string) {
		var names []string
		if version == KeyV2 {
			names = []string{"b", "a"}
		}
		project, joins, err := ParseKey(version, s, names...)
		if err != nil {
			return
		}
		back, err := AppendKey(nil, version, project, joins...)
		require.NoError(t, err)
		require.Equal(t, s, string(back))
	})
}

func FuzzParseTimestamp(f *testing.F) {
	f.Add("\x08\x80\xe2\xcf\xaa\x06")
	f.Fuzz(func(t *testing.T, s string) {
		at, err := ParseTimestamp(s)
		if err != nil {
			return
		}
		back, err := ParseTimestamp(string(AppendTimestamp(nil, at)))
		require.NoError(t, err)
		require.True(t, at.Equal(back))
	})
}
