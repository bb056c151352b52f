package main

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestParse_Conditions(t *testing.T) {
	t.Parallel()
	all, err := parseConditions("p99>5ms, errors>0.1%,hit<95%,evicted>0,rps<20k")
	require.NoError(t, err)
	require.Equal(t, []condition{
		{"p99", ">", 5000, "p99>5ms"},
		{"errors", ">", 0.1, "errors>0.1%"},
		{"hit", "<", 95, "hit<95%"},
		{"evicted", ">", 0, "evicted>0"},
		{"rps", "<", 20_000, "rps<20k"},
	}, all)
	require.True(t, all[0].holds(5001))
	require.False(t, all[0].holds(5000))
	for _, bad := range []string{"", "p99", "p99>", "p98>1ms", "p99>5", "p99>-5ms", "errors>1", "errors>x%", "p99=5ms", "p99>5ms,", "p99>>5ms", "rps<-1", "hit<NaN%"} {
		_, err := parseConditions(bad)
		require.Error(t, err, bad)
	}
}

func TestParse_Operations(t *testing.T) {
	t.Parallel()
	for s, expected := range map[string]operationSpec{
		"get":                        {kind: "get", weight: 1},
		"get:60":                     {kind: "get", weight: 60},
		"mget[10]:1.5":               {kind: "mget", width: 10, weight: 1.5},
		"set(ttl=2s,val=claims):10":  {kind: "set", ttl: 2 * time.Second, class: "claims", weight: 10},
		"get(val=token)":             {kind: "get", class: "token", weight: 1},
		"incr(ttl=1m):2":             {kind: "incr", ttl: time.Minute, weight: 2},
		"ping":                       {kind: "ping", weight: 1},
		"mget[3](val=claims):1":      {kind: "mget", width: 3, class: "claims", weight: 1},
		"set( ttl=5ms , val=x_1 ):1": {kind: "set", ttl: 5 * time.Millisecond, class: "x_1", weight: 1},
	} {
		o, err := parseOperation(s)
		require.NoError(t, err, s)
		require.Equal(t, expected, o, s)
	}
	for _, bad := range []string{"", "keys", "flushall", "get[3]", "mget", "mget[0]", "mget[1000000]", "get:0", "get:-1", "get(ttl=1s)", "set(ttl=1us)", "set(x=1)", "get:", "get:1:2", "ping(val=a)"} {
		_, err := parseOperation(bad)
		require.Error(t, err, bad)
	}
}

func TestParse_Others(t *testing.T) {
	t.Parallel()
	stages, err := parseStages("5k:30s, 20k:1m")
	require.NoError(t, err)
	require.Equal(t, []stage{{5000, 30 * time.Second}, {20_000, time.Minute}}, stages)
	for _, bad := range []string{"", "5k", "5k:", "5k:0s", ":5s", "x:5s", "5k:1s,", "9G:1s"} {
		_, err := parseStages(bad)
		require.Error(t, err, bad)
	}
	classes, err := parseClasses("claims=300@50,token=1500")
	require.NoError(t, err)
	require.Equal(t, []class{{"claims", 300, 50}, {"token", 1500, 1}}, classes)
	for _, bad := range []string{"", "a", "a=", "a=0", "a=1@0", "a=1@1001", "=5", "a=1,a=2", "a{}=1", "a:b=1", "a=999999999999"} {
		_, err := parseClasses(bad)
		require.Error(t, err, bad)
	}
	for s, n := range map[string]float64{"400000": 4e5, "400k": 4e5, "1.5M": 1.5e6, "2G": 2e9, "0": 0} {
		v, err := parseCount(s)
		require.NoError(t, err)
		require.InDelta(t, n, v, 0)
	}
	for _, bad := range []string{"", "k", "-1", "NaN", "Inf", "1e300", "1kk", "1 k"} {
		_, err := parseCount(bad)
		require.Error(t, err, bad)
	}
	r, err := parseRamp("5/s")
	require.NoError(t, err)
	require.InDelta(t, 5, r, 0)
	for _, good := range []string{"uniform", "seq", "zipf:1.1", "hot:1%/90%"} {
		_, err := parseDistribution(good)
		require.NoError(t, err)
	}
	for _, bad := range []string{"", "x", "uniform:1", "zipf", "zipf:1", "zipf:NaN", "hot:0%/90%", "hot:1%", "hot:1%/101%", "hot:100%/5%"} {
		_, err := parseDistribution(bad)
		require.Error(t, err, bad)
	}
}

func FuzzParseConditions(f *testing.F) {
	f.Add("p99>5ms,errors>0.1%")
	f.Add("p99.9<=1us,hit>=95%,rps<1k")
	f.Fuzz(func(t *testing.T, s string) {
		all, err := parseConditions(s)
		if err != nil {
			return
		}
		texts := make([]string, len(all))
		for i, c := range all {
			require.GreaterOrEqual(t, c.bound, 0.0)
			require.Equal(t, strings.HasPrefix(c.op, "<"), c.holds(c.bound-1))
			require.Equal(t, strings.HasPrefix(c.op, ">"), c.holds(c.bound*2+1))
			require.Equal(t, len(c.op) == 2, c.holds(c.bound))
			texts[i] = c.text
		}
		again, err := parseConditions(strings.Join(texts, ","))
		require.NoError(t, err)
		require.Equal(t, all, again)
	})
}

func FuzzParseOperation(f *testing.F) {
	f.Add("set(ttl=2s,val=claims):10")
	f.Add("mget[10]:15")
	f.Fuzz(func(t *testing.T, s string) {
		o, err := parseOperation(s)
		if err != nil {
			return
		}
		require.Positive(t, o.weight)
		require.Equal(t, o.kind == "mget", o.width > 0)
		require.LessOrEqual(t, o.width, maxWidth)
	})
}
