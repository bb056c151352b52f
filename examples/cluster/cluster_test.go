package main

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/redispatterns/redispatterns/timeseries"
)

func TestParseNodes_KnowsWhoHasWhichSlots(t *testing.T) {
	slots, err := parseNodes(`ae10 127.0.0.1:7001@17001 myself,master - 0 0 2 connected 5461 5463-5465 [5466->-9911]
0af6 127.0.0.1:7004@17004,host slave ae10 0 1795277924141 2 connected
8f55 127.0.0.1:7002@17002 master - 0 1795277924561 3 connected 0-2
1348 127.0.0.1:7007@17007 master - 0 1795277985603 0 connected
a1cb 127.0.0.1:7003@17003 master,fail - 1795277987845 1795277986517 1 disconnected 10922-16383
`)
	require.NoError(t, err)
	require.Equal(t, map[string][]int{"ae10": {5461, 5463, 5464, 5465}, "8f55": {0, 1, 2}, "1348": {}}, slots)
	_, err = parseNodes("ae10 127.0.0.1:7001@17001 master - 0 0 2 connected all")
	require.Error(t, err)
}

func TestFreePorts_LeavesRoomForTheBus(t *testing.T) {
	ports, err := freePorts(7)
	require.NoError(t, err)
	require.Len(t, ports, 7)
	for _, port := range ports {
		require.Less(t, port+10_000, 1<<16)
	}
}

func TestCounting_KnowsWhatItDoesNotKnow(t *testing.T) {
	c := newCounting(nil, 2)
	c.note(1, nil)
	c.note(1, nil)
	c.note(0, fmt.Errorf("timeseries: incr: %w", timeseries.ErrUnknown))
	c.note(0, errors.New("refused"))
	require.Equal(t, int64(2), c.total())
	require.Equal(t, int64(1), c.unknown.Load())
	require.Equal(t, int64(1), c.refused.Load())
}

func TestRun_RefusesNonsense(t *testing.T) {
	for _, o := range []options{{}, {series: 20_001, workers: 1, each: 1}, {series: 1, each: 1}, {series: 1, workers: 1}} {
		require.ErrorContains(t, run(t.Context(), o, &bytes.Buffer{}), "-series")
	}
}

func TestRun_DoesNotTellThePassword(t *testing.T) {
	t.Setenv("REDIS_URL", "redis://me:secret@127.0.0.1:1/0")
	err := run(t.Context(), options{series: 1, workers: 1, each: 1}, &bytes.Buffer{})
	require.ErrorContains(t, err, "REDIS_URL")
	require.NotContains(t, err.Error(), "secret")
}
