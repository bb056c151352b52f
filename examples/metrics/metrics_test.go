package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func exported(t *testing.T) (text string, names map[string]string) {
	t.Helper()
	t.Setenv("REDIS_URL", "")
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), nil, &out))
	names = map[string]string{}
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (\S+) (\S+)$`).FindAllStringSubmatch(out.String(), -1) {
		names[m[1]] = m[2]
	}
	return out.String(), names
}

func TestRun_CountsWhatIsDone(t *testing.T) {
	text, _ := exported(t)
	for _, line := range []string{
		`redispatterns_lock_acquire_duration_seconds_count{name="jobs",result="acquired"} 20`,
		`redispatterns_lock_acquire_duration_seconds_count{name="jobs",result="not_acquired"} 20`,
		`redispatterns_lock_held_duration_seconds_count{name="jobs"} 20`,
		`redispatterns_buffer_flushed_rows_total{name="views"} 20`,
		`redispatterns_buffer_flush_duration_seconds_count{name="views",result="ok"} 20`,
		`redispatterns_buffer_pending{name="views"} 0`,
		`redispatterns_cache_unavailable_total{name="scores"} 0`,
		`redispatterns_ratelimit_decision_duration_seconds_count{name="api"} 20`,
		`redispatterns_timeseries_events_total{name="site"} 20`,
		`redispatterns_stream_dead_letters{name="packing"} 0`,
		`redispatterns_featurestore_rows_total{name="users",status="found"} 20`,
		`redispatterns_featurestore_writes_total{name="users",outcome="applied"} 20`,
	} {
		require.Contains(t, text, line+"\n")
	}
	require.Regexp(t, `redispatterns_ratelimit_decisions_total{name="api",result="denied"} \d+`, text)
	require.Regexp(t, `redispatterns_cache_requests_total{name="scores",result="hit"} \d+`, text)
	require.NotContains(t, text, "user-")
}

// The dashboard and the page ask for nothing that is not exported, and leave nothing out.
func TestDashboard(t *testing.T) {
	_, names := exported(t)
	has := map[string][]string{} // the labels of each metric
	for _, m := range newMetrics().metrics {
		switch m := m.(type) {
		case *counter:
			has[m.name] = m.labels
		case *gauge:
			has[m.name] = m.labels
		case *histogram:
			has[m.name+"_bucket"] = append(slices.Clone(m.labels), "le")
			has[m.name+"_count"], has[m.name+"_sum"] = m.labels, m.labels
		}
	}
	dashboard, err := os.ReadFile("../../docs/grafana/redispatterns.json")
	require.NoError(t, err)
	var parsed struct {
		Panels []struct {
			ID      int
			Title   string
			Targets []struct{ Expr string }
		}
	}
	require.NoError(t, json.Unmarshal(dashboard, &parsed))
	used := map[string]bool{}
	ids := map[int]bool{}
	for _, p := range parsed.Panels {
		require.False(t, ids[p.ID], p.Title)
		ids[p.ID] = true
		for _, target := range p.Targets {
			found := regexp.MustCompile(`redispatterns_\w+`).FindAllString(target.Expr, -1)
			require.NotEmpty(t, found, p.Title)
			for _, name := range found {
				base := name
				for _, suffix := range []string{"_bucket", "_count", "_sum"} {
					if short := strings.TrimSuffix(name, suffix); names[short] == "histogram" {
						base = short
					}
				}
				require.Contains(t, names, base, p.Title)
				require.Equal(t, names[base] == "histogram", base != name, "%s: %s", p.Title, name)
				used[base] = true
			}
			for _, label := range labelsOf(target.Expr) {
				for _, name := range found {
					require.Contains(t, has[name], label, "%s: %s", p.Title, target.Expr)
				}
			}
			require.Equal(t, strings.Count(target.Expr, "("), strings.Count(target.Expr, ")"), target.Expr)
		}
	}
	require.Equal(t, slices.Sorted(maps.Keys(names)), slices.Sorted(maps.Keys(used)))

	page, err := os.ReadFile("../../docs/metrics.md")
	require.NoError(t, err)
	for name, kind := range names {
		require.Contains(t, string(page), fmt.Sprintf("| `%s` | %s |", name, kind))
	}
	table, _, _ := strings.Cut(string(page), "\n## Alerts\n")
	require.Equal(t, len(names), strings.Count(table, "\n| `redispatterns_"))
}

// labelsOf returns the labels that an expression groups by or selects.
func labelsOf(expr string) (labels []string) {
	for _, by := range regexp.MustCompile(`by \(([^)]*)\)`).FindAllStringSubmatch(expr, -1) {
		labels = append(labels, strings.Split(by[1], ", ")...)
	}
	for _, selected := range regexp.MustCompile(`{([^}]*)}`).FindAllStringSubmatch(expr, -1) {
		for _, matcher := range regexp.MustCompile(`(\w+)\s*(?:=~|!~|!=|=)`).FindAllStringSubmatch(selected[1], -1) {
			labels = append(labels, matcher[1])
		}
	}
	return labels
}

func TestSurvived(t *testing.T) {
	m := newMetrics()
	m.survived("cache", "store", fmt.Errorf("cache: %w", context.DeadlineExceeded))
	var out bytes.Buffer
	require.NoError(t, m.writeTo(&out))
	require.Contains(t, out.String(), `redispatterns_errors_total{package="cache",op="store",code="other"} 1`)
}

func TestRun_Serves(t *testing.T) {
	t.Setenv("REDIS_URL", "")
	ctx, interrupt := context.WithCancel(t.Context())
	reader, writer, err := os.Pipe()
	require.NoError(t, err)
	defer reader.Close()
	done := make(chan error, 1)
	go func() {
		defer writer.Close()
		done <- run(ctx, []string{"-listen", "127.0.0.1:0"}, writer)
	}()
	url, err := bufio.NewReader(reader).ReadString('\n')
	require.NoError(t, err)
	response, err := http.Get(strings.TrimSpace(url))
	require.NoError(t, err)
	defer response.Body.Close()
	var body bytes.Buffer
	_, err = body.ReadFrom(response.Body)
	require.NoError(t, err)
	require.Contains(t, body.String(), "# TYPE redispatterns_buffer_pending gauge")
	interrupt()
	require.NoError(t, <-done)
}
