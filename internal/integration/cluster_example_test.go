package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redispatterns/redispatterns/internal/integration/redistest"
)

// examples/cluster leaves nothing on a cluster that is not its own, also when it is interrupted.
func TestClusterExample_RemovesWhatItCounted(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		t.Skip("there is no interrupting a process")
	}
	cluster := redistest.StartCluster(t, 0)
	client := cluster.Client(t)
	binary := filepath.Join(t.TempDir(), "cluster.exe")
	build := exec.Command("go", "build", "-o", binary, "./cluster")
	build.Dir = filepath.Join("..", "..", "examples")
	text, err := build.CombinedOutput()
	require.NoError(t, err, string(text))
	start := func(each string) (*exec.Cmd, *loadtestOutput) {
		cmd, out := exec.Command(binary, "-each", each), &loadtestOutput{}
		cmd.Env = append(os.Environ(), "REDIS_URL=redis://"+cluster.Addrs()[0])
		cmd.Stdout, cmd.Stderr = out, out
		require.NoError(t, cmd.Start())
		return cmd, out
	}
	cmd, out := start("500ms")
	require.NoError(t, cmd.Wait(), out)
	require.Regexp(t, `acknowledged [1-9]\d*, read .*: 0 are missing`, out.String())
	require.Empty(t, loadtestKeys(t, client, "*"))

	cmd, out = start("1h")
	require.Eventually(t, func() bool { return len(loadtestKeys(t, client, "*")) > 1000 }, 30*time.Second, 10*time.Millisecond, out)
	require.NoError(t, cmd.Process.Signal(os.Interrupt))
	require.Error(t, cmd.Wait())
	require.Contains(t, out.String(), "interrupted")
	require.Empty(t, loadtestKeys(t, client, "*"))
}
