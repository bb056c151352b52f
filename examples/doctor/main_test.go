package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/alicebob/miniredis/v2"
	"github.com/stretchr/testify/require"

	"github.com/redispatterns/redispatterns/examples/doctor/doctor"
)

// alone runs the program where there is no server to start.
func alone(t *testing.T, args ...string) (string, int, error) {
	t.Helper()
	t.Setenv("REDIS_URL", "")
	t.Setenv("PATH", t.TempDir())
	var out bytes.Buffer
	code, err := run(t.Context(), args, &out)
	return out.String(), code, err
}

func TestRun_WithoutAnything(t *testing.T) {
	out, code, err := alone(t)
	require.NoError(t, err)
	require.Equal(t, exitOK, code)
	require.Contains(t, out, "What follows is a recording")
	require.Regexp(t, `(?s)allkeys-lru +OK +FAIL.*FAIL +POL01 lock +127.0.0.1:6379.*FAIL +POL02.*more +https://.*/docs/runbooks/POL02.md`, out)
	require.NotContains(t, out, "OK      MEM01")
	require.Regexp(t, `\n\d failed, \d warnings, 0 unknown, \d notes, \d+ fine\n$`, out)

	out, _, err = alone(t, "-v")
	require.NoError(t, err)
	require.Contains(t, out, "OK      MEM01  maxmemory leaves the machine room\n")
}

// With a redis-server in PATH the program starts it, and where there is none, as on machines with containers alone, it does
// as above.
func TestRun_WithWhatIsThere(t *testing.T) {
	t.Setenv("REDIS_URL", "")
	what := "What follows is a recording"
	for _, name := range []string{"redis-server", "valkey-server"} {
		if _, err := exec.LookPath(name); err == nil {
			what = "A Redis was started for this"
		}
	}
	var out bytes.Buffer
	code, err := run(t.Context(), []string{"-interval", "10ms"}, &out)
	require.NoError(t, err)
	require.Equal(t, exitOK, code)
	require.Contains(t, out.String(), what)
	require.Regexp(t, `FAIL +POL01 lock`, out.String())
}

func TestRun_Formats(t *testing.T) {
	out, _, err := alone(t, "-format", "json")
	require.NoError(t, err)
	var report doctor.Report
	require.NoError(t, json.Unmarshal([]byte(out), &report))
	require.Equal(t, doctor.Fail, report.Worst())
	require.Equal(t, "POL01", report.Findings[0].ID)

	out, _, err = alone(t, "-format", "snapshot")
	require.NoError(t, err)
	var snapshot doctor.Snapshot
	require.NoError(t, json.Unmarshal([]byte(out), &snapshot))
	require.Len(t, snapshot.Nodes, 1)

	out, _, err = alone(t, "-format", "markdown")
	require.NoError(t, err)
	require.Contains(t, out, "| FAIL | [POL01](https://")
	tables := 0
	for block := range strings.SplitSeq(out, "\n\n") {
		lines := strings.Split(strings.TrimSpace(block), "\n")
		if !strings.HasPrefix(lines[0], "|") {
			continue
		}
		tables++
		for _, line := range lines {
			cells := func(s string) int { return strings.Count(strings.ReplaceAll(s, `\|`, ""), "|") }
			require.Equal(t, cells(lines[0]), cells(line), line)
		}
	}
	require.Equal(t, 3, tables)
}

func TestRun_BadArguments(t *testing.T) {
	for _, args := range [][]string{
		{"-format", "xml"}, {"redis://a:1", "redis://b:1"}, {"-pattern", "queue=x:"}, {"-interval", "1ms"}, {"-skip", "MEM99"},
	} {
		_, _, err := alone(t, args...) // main ends with 3 if there is an error
		require.Error(t, err, args)
	}
	_, code, err := alone(t, "-h")
	require.NoError(t, err)
	require.Equal(t, exitOK, code)
}

func TestRun_NoServer(t *testing.T) {
	_, code, err := alone(t, "redis://me:secret@127.0.0.1:1/0")
	require.ErrorContains(t, err, "connect")
	require.NotContains(t, err.Error(), "secret")
	require.Equal(t, exitUnchecked, code)
	_, _, err = alone(t, "redis://me:secret@%zz")
	require.Error(t, err)
	require.NotContains(t, err.Error(), "secret")
}

// A server that tells little, as miniredis: nothing is OK that was not seen.
func TestRun_AServerThatTellsLittle(t *testing.T) {
	server := miniredis.RunT(t)
	require.NoError(t, server.Set("lock:{job}", "x"))
	t.Setenv("REDIS_URL", "redis://"+server.Addr())
	var out bytes.Buffer
	code, err := run(t.Context(), []string{"-interval", "10ms"}, &out)
	require.NoError(t, err, out.String())
	require.Equal(t, exitFail, code, "a lock without a TTL")
	require.Contains(t, out.String(), "TTL01 lock")
	require.Regexp(t, `UNKNOWN .*POL01`, out.String())
	require.NotContains(t, out.String(), "OK      POL01")
	require.NotContains(t, out.String(), "no limit", "what it does not tell is not zero")
	require.NotContains(t, out.String(), "0.0 MB")
}

func TestParse(t *testing.T) {
	t.Setenv("REDIS_URL", "redis://here:1")
	c, err := parse([]string{"-pattern", "cache=scores:*,lock,stream=orders", "-skip", "SEC01,LAT01"})
	require.NoError(t, err)
	require.Equal(t, "redis://here:1", c.address)
	require.Equal(t, []doctor.Pattern{doctor.Cache, doctor.Lock, doctor.Stream}, c.expect.Uses)
	require.Equal(t, map[string]doctor.Pattern{"scores:": doctor.Cache, "orders": doctor.Stream}, c.expect.Prefixes)
	require.Equal(t, []string{"SEC01", "LAT01"}, c.expect.Skip)
	c, err = parse([]string{"redis://there:1"})
	require.NoError(t, err)
	require.Equal(t, "redis://there:1", c.address)
}

func TestCode(t *testing.T) {
	seen := []doctor.NodeSummary{{Server: "Redis 8.0.2"}}
	for _, c := range []struct {
		severity      doctor.Severity
		lax, stricter int
	}{
		{doctor.OK, exitOK, exitOK},
		{doctor.Info, exitOK, exitOK},
		{doctor.Unknown, exitOK, exitWarn},
		{doctor.Warn, exitOK, exitWarn},
		{doctor.Fail, exitFail, exitFail},
	} {
		report := doctor.Report{Nodes: seen, Findings: []doctor.Finding{{Severity: c.severity}}}
		require.Equal(t, c.lax, code(report, false), c.severity)
		require.Equal(t, c.stricter, code(report, true), c.severity)
	}
	require.Equal(t, exitUnchecked, code(doctor.Report{Nodes: []doctor.NodeSummary{{}}}, false))
}

// The folder is to be copied: nothing but rueidis.
func TestDoctorNeedsRueidisAlone(t *testing.T) {
	files, err := filepath.Glob("doctor/*.go")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		source, err := os.ReadFile(file)
		require.NoError(t, err)
		_, imports, _ := strings.Cut(string(source), "import (")
		imports, _, _ = strings.Cut(imports, ")")
		for line := range strings.Lines(imports) {
			path := strings.Trim(strings.TrimSpace(line), `"`)
			if strings.Contains(path, ".") {
				require.Equal(t, "github.com/redis/rueidis", path, file)
			}
		}
	}
}
