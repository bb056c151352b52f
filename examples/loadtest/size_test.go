package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// memory is a server's, as measured: per key, and per slot of tables that double.
func memory(keys int, perKey, perSlot, perBucket float64) float64 {
	return 1.2e6 + perKey*float64(keys) + perSlot*slots(float64(keys), perBucket)
}

func TestFit_TellsTablesFromKeys(t *testing.T) {
	t.Parallel()
	for name, server := range map[string]struct{ perKey, perSlot, perBucket float64 }{
		"Redis": {176, 16, 1}, "Valkey": {120, 64. / 7 * 2, 7}, "no steps": {500, 0, 0}, "without TTL": {100, 8, 1},
	} {
		for _, keys := range []int{2000, 20_000, 33_000, 100_000, 131_072} {
			var points []checkpoint
			for _, n := range checkpointsOf(keys, 1) {
				p := max(server.perBucket, 1)
				points = append(points, checkpoint{Numbers: n, Keys: []float64{float64(n)}, Used: memory(n, server.perKey, server.perSlot, p), Calm: true})
			}
			m, err := fit(points, 1, false)
			require.NoError(t, err)
			require.Greater(t, m.R2, 0.9999)
			for _, times := range []int{1, 2, 5, 25} {
				require.InEpsilon(t, memory(keys*times, server.perKey, server.perSlot, max(server.perBucket, 1)), m.predict(float64(keys*times), 1), 0.001, "%s %d×%d", name, keys, times)
			}
		}
	}
}

// Redis 7.0 does not tell what old tables take while keys are moved: checkpoints at such times must not count.
func TestFit_LeavesOutTablesInMotion(t *testing.T) {
	t.Parallel()
	var points []checkpoint
	for _, n := range checkpointsOf(40_000, 1) {
		used := memory(n, 176, 16, 1)
		if s := slots(float64(n), 1); s/float64(n) > 1.25 {
			used += 16 * s / 2
		}
		points = append(points, checkpoint{Numbers: n, Keys: []float64{float64(n)}, Used: used})
	}
	m, err := fit(points, 1, false)
	require.NoError(t, err)
	require.InEpsilon(t, memory(200_000, 176, 16, 1), m.predict(200_000, 1), 0.001)
}

func TestFit_RefusesNonsense(t *testing.T) {
	t.Parallel()
	_, err := fit(nil, 1, false)
	require.Error(t, err)
	var falling []checkpoint
	for i := range 10 {
		falling = append(falling, checkpoint{Numbers: 1000 * i, Keys: []float64{1000}, Used: float64(100 - i), Calm: true})
	}
	_, err = fit(falling, 1, false)
	require.Error(t, err)
}

func TestAllocated_IsTheAllocatorsSizeClasses(t *testing.T) {
	t.Parallel()
	for size, class := range map[int]int{1: 8, 8: 8, 9: 16, 17: 32, 128: 128, 129: 160, 257: 320, 513: 640, 1025: 1280, 1506: 1536, 1542: 1792, 4097: 5120} {
		require.Equal(t, class, allocated(size), size)
	}
	// 1536 bytes and a header do not fit into 1536.
	require.Equal(t, 1536, allocatedString(1530))
	require.Equal(t, 1792, allocatedString(1536))
}

func TestSize_ShowsItsTerms(t *testing.T) {
	t.Parallel()
	r := example(t, durations(1000))
	r.Preload = &preloaded{Model: &model{Base: 1e6, PerKey: 1000, PerSlot: 16, PerBucket: 1, Copies: 1, R2: 1, Points: 10}}
	r.Rows[0].TTL, r.Rows[0].BytesPerKey = 5, 400
	r.CPU, r.Clients, r.Wire = known(50), known(10), wire{10, 1e6, 2e6}
	text := func(o sizeOptions) string {
		var b strings.Builder
		sizeOf(r, o).print(&b)
		return b.String()
	}
	o := sizeOptions{keys: 10e6, replicas: 1, utilisation: 80, reserve: 25, nodes: generic()}
	s := text(o)
	require.Contains(t, s, "100/s × 5s", "Little's law")
	require.Regexp(t, `short-lived keys +500 `, s)
	require.Regexp(t, `dataset of 10,000,000 keys +9\.56 GiB`, s) // 10^10 bytes, and 2^24 slots
	require.Contains(t, s, "1 primary + 1 replica, each 32 GiB")
	require.Contains(t, s, "1536 bytes take 1792")
	o.rate = 1000 // of which one core does 140
	require.Contains(t, text(o), "8 primaries + 8 replicas")
	o.rate, o.keys = 0, 1e9
	require.Regexp(t, `1\d primaries \+ 1\d replicas, each 128 GiB`, text(o))
	r.Preload, r.CPU, r.Clients = nil, nil, nil
	s = text(o)
	require.Regexp(t, `bytes per key +unknown`, s)
	require.Regexp(t, `CPU +unknown`, s)
	require.Regexp(t, `clients +unknown`, s)
	require.Contains(t, s, "=> unknown")
}

func TestSize_ReadsMachines(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "nodes.csv")
	require.NoError(t, os.WriteFile(file, []byte("name,GiB,Gbit/s\nbig, 26.32, 1.5\nsmall,6.38\n"), 0o600))
	nodes, err := readNodes(file)
	require.NoError(t, err)
	require.Equal(t, []node{{"small", 6.38 * gib, 0}, {"big", 26.32 * gib, 1.5}}, nodes)
	for _, bad := range []string{"", "x\n", "a,b\nc,d\n", "a,1,x\n", "a,-1\nb,-1\n"} {
		require.NoError(t, os.WriteFile(file, []byte(bad), 0o600))
		_, err := readNodes(file)
		require.Error(t, err, bad)
	}
}

func TestFits(t *testing.T) {
	t.Parallel()
	server := func(used, most, system string) info {
		return info{"used_memory": used, "maxmemory": most, "total_system_memory": system}
	}
	var large *tooLargeError
	require.NoError(t, fits(100, infos{server("0", "100", "1")}))
	require.ErrorAs(t, fits(101, infos{server("0", "100", "1")}), &large)
	require.ErrorAs(t, fits(100, infos{server("1", "100", "1")}), &large)
	require.NoError(t, fits(200, infos{server("0", "100", "1"), server("0", "100", "1")}))
	require.ErrorAs(t, fits(90, infos{server("0", "0", "100")}), &large, "80% of the machine")
	require.NoError(t, fits(70, infos{server("0", "0", "100")}))
	err := fits(1, infos{{}})
	require.Error(t, err)
	require.NotErrorAs(t, err, &large)
}
