package integration

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redispatterns/redispatterns/internal/integration/redistest"
)

// TestReadme runs README's program as it stands, but for the address.
func TestReadme(t *testing.T) {
	t.Parallel()
	const root = "../.."
	readme, err := os.ReadFile(filepath.Join(root, "README.md"))
	require.NoError(t, err)
	_, program, ok := strings.Cut(string(readme), "\n```go\n")
	require.True(t, ok)
	program, _, ok = strings.Cut(program, "\n```\n")
	require.True(t, ok)
	const addr = `"127.0.0.1:6379"`
	require.Equal(t, 1, strings.Count(program, addr))
	program = strings.Replace(program, addr, `"`+redistest.Shared(t).Addr()+`"`, 1)
	file := filepath.Join(t.TempDir(), "main.go")
	require.NoError(t, os.WriteFile(file, []byte(program), 0o600))
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	run := exec.CommandContext(ctx, "go", "run", file)
	run.Dir = root
	out, err := run.CombinedOutput()
	require.NoError(t, err, string(out))
	require.Equal(t, "0.93 <nil>\n<nil>\n", string(out))
}
