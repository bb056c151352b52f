package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestMain(m *testing.M) {
	if os.Getenv(flusherEnv) != "" { // the load test starts this program, which is the tests
		if err := flusher(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestRun_LoadEndsWithEqualTotals(t *testing.T) {
	t.Setenv("REDIS_URL", "")
	t.Setenv("DATABASE_URL", "")
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), []string{"-load", "700ms"}, &out))
	require.Regexp(t, `difference +0\n`, out.String())
}

func TestServe_CountsAndFlushesWhatIsLeft(t *testing.T) {
	t.Setenv("REDIS_URL", "")
	client, _, disconnect, err := connect()
	require.NoError(t, err)
	defer disconnect()
	db, err := openDatabase(t.Context(), "", filepath.Join(t.TempDir(), "views?.db"))
	require.NoError(t, err)
	defer db.Close()
	s, err := newService(client, "test", db)
	require.NoError(t, err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.serve(ctx, listener) }()
	base := "http://" + listener.Addr().String()
	for range 10 {
		require.NoError(t, view(t.Context(), base, "/home"))
	}
	reply, err := http.Get(base + "/views?page=/home")
	require.NoError(t, err)
	text, err := io.ReadAll(reply.Body)
	require.NoError(t, err)
	require.NoError(t, reply.Body.Close())
	require.Contains(t, string(text), "views in SQL")
	stop()
	require.NoError(t, <-served)
	total, err := viewsOf(t.Context(), db, "/home")
	require.NoError(t, err)
	require.Equal(t, int64(10), total)
}

func TestRun_RefusesBadArguments(t *testing.T) {
	for _, args := range [][]string{{"-load", "-1s"}, {"x"}} {
		require.ErrorContains(t, run(t.Context(), args, io.Discard), "usage")
	}
	t.Setenv("REDIS_URL", "redis://me:secret@[::1")
	err := run(t.Context(), nil, io.Discard)
	require.Error(t, err)
	require.NotContains(t, err.Error(), "secret")
}
