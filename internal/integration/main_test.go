// Package integration holds every test that talks to a server.
package integration

import (
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/redispatterns/redispatterns/internal/integration/redistest"
)

func TestMain(m *testing.M) {
	if name := os.Getenv("REDISTEST_CHILD"); name != "" {
		if err := children[name](); err != nil {
			fmt.Fprintln(os.Stderr, name+":", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code := redistest.Run(m)
	if loadtestDir != "" {
		_ = os.RemoveAll(loadtestDir) // a temporary folder
	}
	os.Exit(code)
}

// children are what this test binary can do as another process, which tests may kill and stop.
var children = map[string]func() error{
	"buffer":       bufferChild,
	"cache":        cacheChild,
	"featurestore": featurestoreChild,
	"lock":         lockChild,
	"stream":       streamChild,
	"timeseries":   timeseriesChild,
}

// child returns a process that runs one of children, killed at the end of the test if it still runs by then.
func child(t *testing.T, name string, env ...string) *exec.Cmd {
	t.Helper()
	require.Contains(t, children, name)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), append(env, "REDISTEST_CHILD="+name)...)
	cmd.Stderr = os.Stderr
	t.Cleanup(func() {
		if cmd.Process != nil && cmd.ProcessState == nil {
			_ = cmd.Process.Kill() // it may have ended by itself
			_ = cmd.Wait()
		}
	})
	return cmd
}

// soak reports whether to run suites in full length.
func soak() bool { return os.Getenv("SOAK") != "" }
