package main

import (
	"bytes"
	"context"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

// The test binary is what the pipeline starts as workers.
func TestMain(m *testing.M) {
	if os.Getenv(workerEnv) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

func TestRun_LosesNothing(t *testing.T) {
	t.Setenv("REDIS_URL", "")
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), []string{"-orders", "200"}, &out), out.String())
	require.Regexp(t, `(?s)lag.*bob is killed.*200 orders published, 199 billed, \d+ of them twice.*no such customer.*after 3 attempts\nnone is lost`, out.String())
}

func TestRun_EndsWhenInterrupted(t *testing.T) {
	t.Setenv("REDIS_URL", "")
	ctx, interrupt := context.WithCancel(t.Context())
	interrupt()
	require.ErrorIs(t, run(ctx, nil, &bytes.Buffer{}), context.Canceled)
}

func TestRun_SaysHowToUseIt(t *testing.T) {
	for _, args := range [][]string{{"-orders", "1"}, {"x"}, {"-x"}} {
		require.Error(t, run(t.Context(), args, &bytes.Buffer{}))
	}
}

func TestRun_DoesNotTellThePassword(t *testing.T) {
	t.Setenv("REDIS_URL", "redis://me:secret@127.0.0.1:1/0")
	err := run(t.Context(), nil, &bytes.Buffer{})
	require.ErrorContains(t, err, "REDIS_URL")
	require.NotContains(t, err.Error(), "secret")
}
