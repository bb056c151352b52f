package main

import (
	"bytes"
	"context"
	"os"
	"regexp"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
)

// The test binary is what the play starts as workers.
func TestMain(m *testing.M) {
	if os.Getenv(workerEnv) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

func TestRun_HandsTheJobOn(t *testing.T) {
	t.Setenv("REDIS_URL", "")
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), &out), out.String())
	require.Regexp(t, `(?s)ann +has the lock.*kill ann.*bob +has the lock.*stop bob.*eve +has the lock.*eve +finished.*bob +(refused|gives up): .*none twice`, out.String())
	last := 0
	for _, fence := range regexp.MustCompile(`fence (\d+)`).FindAllStringSubmatch(out.String(), -1) {
		n, err := strconv.Atoi(fence[1])
		require.NoError(t, err)
		require.Greater(t, n, last)
		last = n
	}
}

func TestRun_EndsWhenInterrupted(t *testing.T) {
	t.Setenv("REDIS_URL", "")
	ctx, interrupt := context.WithCancel(t.Context())
	interrupt()
	require.ErrorIs(t, run(ctx, &bytes.Buffer{}), context.Canceled)
}

func TestRun_DoesNotTellThePassword(t *testing.T) {
	t.Setenv("REDIS_URL", "redis://me:secret@127.0.0.1:1/0")
	err := run(t.Context(), &bytes.Buffer{})
	require.ErrorContains(t, err, "REDIS_URL")
	require.NotContains(t, err.Error(), "secret")
}
