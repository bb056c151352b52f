package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestRun_DrawsADay(t *testing.T) {
	t.Setenv("REDIS_URL", "")
	file := filepath.Join(t.TempDir(), "chart.html")
	var out strings.Builder
	require.NoError(t, run(t.Context(), []string{"-out", file}, &out))
	require.Regexp(t, `(?s)^\d{4} hits in .*#####.*last 24 hours: \d{4} hits.*today since 00:00: \d+\nchart: `, out.String())
	chart, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Contains(t, string(chart), "<svg")
	require.Equal(t, 1445, strings.Count(string(chart), ",")-strings.Count(string(chart), ", "), "a point per minute")
}

func TestHandler_CountsAndRefuses(t *testing.T) {
	t.Setenv("REDIS_URL", "")
	client, disconnect, err := connect()
	require.NoError(t, err)
	defer disconnect()
	store, err := newStore(client)
	require.NoError(t, err)
	ctx := t.Context()
	defer store.Close(ctx)
	handler := newHandler(store)
	for query, want := range map[string]int{
		"": http.StatusNoContent, "?at=x": http.StatusBadRequest, "?at=1999-01-01T00:00:00Z": http.StatusBadRequest, "?at=2999-01-01T00:00:00Z": http.StatusBadRequest,
	} {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/hit"+query, nil))
		require.Equal(t, want, w.Code, query)
	}
	require.NoError(t, store.Flush(t.Context()))
	now, err := store.Now(t.Context())
	require.NoError(t, err)
	total, err := store.Counter("hits").Sum(t.Context(), now.Add(-time.Hour), now.Add(time.Minute))
	require.NoError(t, err)
	require.EqualValues(t, 1, total.Value)
}

func TestRun_RefusesBadArguments(t *testing.T) {
	t.Setenv("REDIS_URL", "")
	for _, args := range [][]string{{"serve"}, {"-what"}} {
		require.Error(t, run(t.Context(), args, io.Discard), "%v", args)
	}
}
