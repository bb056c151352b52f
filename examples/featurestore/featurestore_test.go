package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRun_LoadEndsWithNothingMixed(t *testing.T) {
	t.Setenv("REDIS_URL", "")
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), []string{"-users", "2000", "-load", "600ms"}, &out))
	require.Contains(t, out.String(), "] 2000 of 2000")
	require.Regexp(t, `v1: [1-9]\d*  v2: [1-9]`, out.String())
	require.Regexp(t, `mixed +0\nmissing +0\n`, out.String())
	require.Contains(t, out.String(), "conv_rate 0.927, acc_rate 0.500, avg_daily_trips 1001, at 2023-11-14T22:13:20Z")
}

func TestServe_Predicts(t *testing.T) {
	t.Setenv("REDIS_URL", "")
	client, disconnect, err := connect()
	require.NoError(t, err)
	defer disconnect()
	s, err := newService(client, "test")
	require.NoError(t, err)
	require.NoError(t, s.release(t.Context(), "v1", 10, 1, io.Discard))
	require.Len(t, weights, len(s.users.Columns()))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.serve(ctx, listener) }()
	base := "http://" + listener.Addr().String()
	lines, missing, err := get(t.Context(), base+"/predict?user=1&user=9&user=10")
	require.NoError(t, err)
	require.Equal(t, [2]int{3, 1}, [2]int{lines, missing})
	reply, err := http.Get(base + "/predict?user=x")
	require.NoError(t, err)
	require.NoError(t, reply.Body.Close())
	require.Equal(t, http.StatusBadRequest, reply.StatusCode)
	stop()
	require.NoError(t, <-served)
}

func TestRun_RefusesBadArguments(t *testing.T) {
	for _, args := range [][]string{{"-load", "-1s"}, {"-users", "0"}, {"x"}} {
		require.ErrorContains(t, run(t.Context(), args, io.Discard), "usage")
	}
	t.Setenv("REDIS_URL", "redis://me:secret@[::1")
	err := run(t.Context(), nil, io.Discard)
	require.Error(t, err)
	require.NotContains(t, err.Error(), "secret")
}
