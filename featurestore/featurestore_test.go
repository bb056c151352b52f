package featurestore

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"

	"github.com/redispatterns/redispatterns/internal/key"
)

func TestNewView_NamesWhatIsWrong(t *testing.T) {
	t.Parallel()
	type good struct {
		A int `feature:"a"`
	}
	for field, o := range map[string]Options{
		"Options.Prefix":           {Prefix: "a{"},
		"Options.Prefix must not":  {Prefix: "a@b"},
		"Options.Share":            {Share: true, Key: "user:%v"},
		"Options.Codec":            {Codec: 3},
		"Options.Key must have":    {Key: "user"},
		"Options.Key must begin":   {Key: "features:%v"},
		"one %v":                   {Key: "a%v%v"},
		"otherwise than":           {Key: "%v"},
		"Options.MaxAge":           {MaxAge: -1},
		"Options.TTL":              {TTL: time.Microsecond},
		"Options.TTLJitter needs":  {TTLJitter: time.Second},
		"Options.Hot":              {Hot: -time.Second},
		"Options.OpTimeout":        {OpTimeout: time.Microsecond},
		"Options.Stale":            {Stale: 3},
		"Options.NaN":              {NaN: 3},
		"Options.Feast needs":      {Feast: FeastOptions{Project: "p"}},
		"Options.Feast.Project":    {Codec: Feast},
		"Options.Feast.JoinKey":    {Codec: Feast, Feast: FeastOptions{Project: "p"}},
		"Options.Feast.KeyVersion": {Codec: Feast, Feast: FeastOptions{Project: "p", JoinKey: "k", KeyVersion: 1}},
		"Options.Key cannot":       {Codec: Feast, Key: "a%v", Feast: FeastOptions{Project: "p", JoinKey: "k"}},
	} {
		_, err := NewView[string, good](noClient{}, "view", o)
		require.ErrorContains(t, err, field)
	}
	_, err := NewView[string, good](nil, "view", Options{})
	require.ErrorContains(t, err, "client")
	for _, name := range []string{"", "a b", "a:b", "a@b", "ż", strings.Repeat("a", 65)} {
		_, err := NewView[string, good](noClient{}, name, Options{})
		require.ErrorContains(t, err, "name")
	}
	for want, err := range map[string]error{
		"not a struct": newErr[string, int](), "1 to 1000": newErr[string, struct{ A int }](),
		"another field": newErr[string, struct {
			A int `feature:"a"`
			B int `feature:"a"`
		}](),
		"must be exported": newErr[string, struct {
			a int `feature:"a"`
		}](),
		"cannot be a feature": newErr[string, struct {
			A map[string]int `feature:"a"`
		}](),
		"unknown option": newErr[string, struct {
			A float32 `feature:"a,f32"`
		}](),
		`default "x"`: newErr[string, struct {
			A int `feature:"a,default=x"`
		}](),
		`default "300"`: newErr[string, struct {
			A uint8 `feature:"a,default=300"`
		}](),
		"a vector cannot": newErr[string, struct {
			A []float32 `feature:"a,default=1"`
		}](),
		"a name must be": newErr[string, struct {
			B int `feature:""`
		}](),
		"cannot be a key":   newErr[float64, good](),
		"has no entity tag": newErr[struct{ A int }, good](),
		"cannot be part of a key": newErr[struct {
			A float64 `entity:"a"`
		}, good](),
	} {
		require.ErrorContains(t, err, want)
	}
	_, err = NewView[uint64, good](noClient{}, "view", Options{Codec: Feast, Feast: FeastOptions{Project: "p", JoinKey: "k"}})
	require.ErrorContains(t, err, "Feast")
}

func newErr[K comparable, T any]() error {
	_, err := NewView[K, T](noClient{}, "view", Options{})
	return err
}

type pair struct {
	A string `entity:"a"`
	N int16  `entity:"n"`
	B string `entity:"b"`
}

func testKeys(tb testing.TB, o Options) *keys {
	tb.Helper()
	require.NoError(tb, o.setDefaults())
	v, err := NewView[pair, wide](noClient{}, "view", o)
	require.NoError(tb, err)
	return &v.v.keys
}

// Two entities, or one in two versions, never have the same key, and a key tells which entity it is of.
func FuzzKeys_AreDistinct(f *testing.F) {
	f.Add("", "", int16(0), ":", "", int16(0), "", "1")
	f.Add("a:", "b", int16(1), "a", ":b", int16(1), "v", "v")
	f.Add("%", "%3A", int16(1), "%25", ":", int16(1), "", "")
	var all []*keys
	for _, o := range []Options{{}, {Share: true}, {Key: "user:%v"}, {Key: "u%v:x"}, {Codec: Feast, Feast: FeastOptions{Project: "p"}}} {
		all = append(all, testKeys(f, o))
	}
	f.Fuzz(func(t *testing.T, a1, b1 string, n1 int16, a2, b2 string, n2 int16, v1, v2 string) {
		if v1 != "" && checkName(v1) != nil || v2 != "" && checkName(v2) != nil {
			return
		}
		for _, k := range all {
			if k.feast != nil {
				v1, v2 = "", ""
			}
			one, two := pair{a1, n1, b1}, pair{a2, n2, b2}
			x, err := k.appendRow(nil, v1, unsafe.Pointer(&one))
			require.NoError(t, err)
			y, err := k.appendRow(nil, v2, unsafe.Pointer(&two))
			require.NoError(t, err)
			require.Equal(t, one == two && v1 == v2, string(x) == string(y), "%q", x)
			require.NotEqual(t, k.control(), string(x))
			var back pair
			require.NoError(t, k.parseRow(string(x), v1, unsafe.Pointer(&back)))
			require.Equal(t, one, back)
		}
	})
}

func TestKeys_AreAsDocumented(t *testing.T) {
	t.Parallel()
	k := testKeys(t, Options{})
	for _, id := range []string{"", "a", "}a", "%", "{"} {
		single, err := NewView[string, wide](noClient{}, "view", Options{})
		require.NoError(t, err)
		got, err := single.v.keys.appendRow(nil, "", unsafe.Pointer(&id))
		require.NoError(t, err)
		require.Equal(t, key.Tagged("features:view:", id, ""), string(got))
		got, err = single.v.keys.appendRow(nil, "v1", unsafe.Pointer(&id))
		require.NoError(t, err)
		require.Equal(t, key.Tagged("features:view@v1:", id, ""), string(got))
	}
	got, err := k.appendRow(nil, "", unsafe.Pointer(&pair{"a:b", 7, ""}))
	require.NoError(t, err)
	require.Equal(t, "features:view:{a%3Ab:7:}", string(got))
	require.Equal(t, "features:@{view}", k.control())
	got, err = testKeys(t, Options{Share: true}).appendRow(nil, "", unsafe.Pointer(&pair{"a:b", 7, ""}))
	require.NoError(t, err)
	require.Equal(t, "features:{a%3Ab:7:}", string(got))
	require.Error(t, k.parseRow("features:view:{a:07:}", "", unsafe.Pointer(&pair{})), "a number is written in one way")
}

func TestRequire_NamesEachDifference(t *testing.T) {
	t.Parallel()
	type served struct {
		Same    int64   `feature:"same"`
		Moved   int64   `feature:"moved"`
		Retyped int32   `feature:"retyped"`
		Preset  float64 `feature:"preset,default=1"`
		Added   bool    `feature:"added"`
	}
	type trained struct {
		Moved   int64   `feature:"moved"`
		Same    int64   `feature:"same"`
		Retyped int64   `feature:"retyped"`
		Preset  float64 `feature:"preset,default=2"`
		Removed bool    `feature:"removed"`
	}
	v := testView[served](t, Fields, "view")
	b, err := json.Marshal(testView[trained](t, Fields, "other").Manifest())
	require.NoError(t, err)
	var m Manifest
	require.NoError(t, json.Unmarshal(b, &m))
	err = v.Require(m)
	var skew *SkewError
	require.ErrorAs(t, err, &skew)
	require.ErrorIs(t, err, ErrSkew)
	require.Equal(t, []string{
		"view: view, required is other", "feature retyped: int32, required is int64", `feature preset: default "1", required is default "2"`,
		"feature removed: missing", "feature added: not required", "the features are in another order",
	}, skew.Differences)
	require.NoError(t, v.Require(v.Manifest()))
	one, err := v.Select("same")
	require.NoError(t, err)
	require.Error(t, one.Require(v.Manifest()))
	_, err = v.Select("none")
	require.Error(t, err)
}

func TestNaN_Policies(t *testing.T) {
	t.Parallel()
	type row struct {
		F Opt[float64] `feature:"f"`
		V [2]float32   `feature:"v"`
	}
	nan := row{F: Some(math.NaN())}
	inVector := row{V: [2]float32{0, float32(math.NaN())}}
	for policy, want := range map[NaNPolicy]State{NaNKeeps: Set, NaNNull: Null} {
		v, err := NewView[string, row](noClient{}, "view", Options{NaN: policy})
		require.NoError(t, err)
		for i, value := range []row{nan, inVector} {
			s, err := v.v.stateOf(&v.v.schema.features[i], unsafe.Pointer(&value))
			require.NoError(t, err)
			require.Equal(t, want, s)
		}
	}
	v, err := NewView[string, row](noClient{}, "view", Options{NaN: NaNFails})
	require.NoError(t, err)
	for _, value := range []row{nan, inVector} {
		_, err = v.v.encode(unsafe.Pointer(&value), time.Now(), false)
		require.ErrorIs(t, err, ErrInvalid)
	}
	for _, at := range []time.Time{{}, time.Unix(0, 0), time.Unix(-1, 0), time.Unix(1<<34, 0)} {
		_, err = v.v.encode(unsafe.Pointer(&row{}), at, false)
		require.ErrorIs(t, err, ErrInvalid)
	}
}
