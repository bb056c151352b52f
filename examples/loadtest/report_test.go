package main

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redispatterns/redispatterns/examples/doctor/doctor"
)

// example is a report with the given requests.
func example(t *testing.T, all []time.Duration) *report {
	t.Helper()
	c := newCounts()
	for i, d := range all {
		c.requests++
		c.response.record(d)
		c.service.record(d / 2)
		switch {
		case i%10 == 0:
			c.errors["OOM"]++
		case i%3 == 0:
			c.misses++
		default:
			c.hits++
		}
		c.in += 100
	}
	r := &report{
		Schema: schemaVersion, Started: time.Unix(1_700_000_000, 0).UTC(), Seconds: 10, Arguments: []string{"run", "--rate", "100"}, Scenario: "django-cache",
		Target: targetInfo{Address: "redis://127.0.0.1:6379", Version: "Redis 8.0.2", Mode: "standalone", Policy: "noeviction", Primaries: 1},
		Load:   load{Loop: "open", Planned: 1000, Rate: 100, Achieved: 100}, Warnings: []string{},
		Data: data{Prefix: "lt:x:", Keys: 1000, TTL: 3600, Classes: []class{{"<claims>", 1536, 1}}},
	}
	r.Rows = []row{rowOf(operation{name: "get(<claims>)", command: "get"}, c)}
	require.NoError(t, r.Rows[0].encode(c))
	r.Total = rowOf(operation{name: "Aggregated"}, c)
	require.NoError(t, r.Total.encode(c))
	for i := range 10 {
		p := point{T: float64(i + 1), RPS: 100, P50: known(1000), P95: known(2000), P99: known(3000), P999: known(4000), Hit: known(66), Used: known(1e6 * float64(i)), Max: known(2e7)}
		if i == 5 {
			p.Used, p.P50 = nil, nil
		}
		r.Series = append(r.Series, p)
	}
	return r
}

func durations(n int) []time.Duration {
	all := make([]time.Duration, n)
	for i := range all {
		all[i] = time.Duration(rand.ExpFloat64() * float64(time.Millisecond))
	}
	return all
}

func throughJSON(t *testing.T, r *report) *report {
	t.Helper()
	file := filepath.Join(t.TempDir(), "r.json")
	require.NoError(t, writeFile(file, r.writeJSON))
	again, err := readReport(file)
	require.NoError(t, err)
	return again
}

func TestMerge_SamePercentilesAsOfAllRequestsTogether(t *testing.T) {
	t.Parallel()
	all := durations(9000)
	whole := example(t, all)
	a, b, c := example(t, all[:1000]), example(t, all[1000:4000]), example(t, all[4000:])
	b.Rows[0].Errors["READONLY"] = 5
	b.Started, c.Started, c.Interrupted = a.Started.Add(10*time.Millisecond), a.Started.Add(20*time.Millisecond), true
	merged, err := merge([]*report{throughJSON(t, a), throughJSON(t, b), throughJSON(t, c)})
	require.NoError(t, err)
	merged.Rows[0].Response.Mean, merged.Rows[0].Service.Mean = whole.Rows[0].Response.Mean, whole.Rows[0].Service.Mean // but for rounding
	require.Equal(t, whole.Rows[0].Response, merged.Rows[0].Response)
	require.Equal(t, whole.Rows[0].Service, merged.Rows[0].Service)
	require.EqualValues(t, 9000, merged.Total.Requests)
	require.EqualValues(t, 5, merged.Rows[0].Errors["READONLY"])
	require.EqualValues(t, 900, merged.Rows[0].Errors["OOM"])
	require.InDelta(t, 300, merged.Load.Achieved, 1e-9)
	require.InDelta(t, 300, merged.Series[0].RPS, 1e-9)
	require.Len(t, merged.Series, 10)
	require.True(t, merged.Interrupted)
	more := example(t, all[:1000])
	more.Started = a.Started.Add(30 * time.Millisecond)
	again, err := merge([]*report{merged, throughJSON(t, more)})
	require.NoError(t, err)
	require.EqualValues(t, 10_000, again.Total.Requests)
	_, err = merge([]*report{throughJSON(t, a), throughJSON(t, a)})
	require.ErrorContains(t, err, "of the same run")

	_, err = merge([]*report{a})
	require.Error(t, err)
	b.Load.Loop = "closed"
	_, err = merge([]*report{a, b})
	require.Error(t, err)
	c.Rows[0].Response.HDR = "AAAA"
	_, err = merge([]*report{a, c})
	require.Error(t, err)
}

func TestReport_ReadsNothingElse(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "r.json")
	for text, expected := range map[string]string{`{}`: "schema is 0", `{"schema":99}`: "schema is 99", `x`: "invalid"} {
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		_, err := readReport(file)
		require.ErrorContains(t, err, expected)
	}
}

func TestReport_UnknownIsNull(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	require.NoError(t, (&report{Series: []point{{T: 1}}}).writeJSON(&b))
	var fields map[string]any
	require.NoError(t, json.Unmarshal(b.Bytes(), &fields))
	for _, name := range []string{"used_memory", "evicted", "server_cpu", "clients"} {
		require.Contains(t, fields, name)
		require.Nil(t, fields[name], name)
	}
	require.Nil(t, fields["series"].([]any)[0].(map[string]any)["evicted"])
}

func TestReport_Judges(t *testing.T) {
	t.Parallel()
	r := example(t, durations(1000))
	r.Evicted = known(0)
	conditions, err := parseConditions("p99>1h,errors>10%,evicted>0,hit<50%,rps<100")
	require.NoError(t, err)
	require.False(t, r.judge(conditions))
	for text, failed := range map[string]bool{
		"errors>9.9%": true, "errors>=10%": true, "p50>1us": true, "hit<90%": true, "rps<=100": true, "memory>1%": true, "cpu>1%": true, "lag>0s": false,
	} { // memory and cpu are unknown
		conditions, err = parseConditions(text)
		require.NoError(t, err)
		require.Equal(t, failed, r.judge(conditions), text)
	}
	for name := range metrics {
		r.Memory, r.MaxMemory, r.CPU, r.Expired = known(1), known(2), known(3), known(4)
		require.NotNil(t, r.figureOf(name), name)
	}
	conditions, err = parseConditions("p99>1h")
	require.NoError(t, err)
	require.True(t, (&report{}).judge(conditions), "nothing ran: unknown")
}

func TestReport_CSV(t *testing.T) {
	t.Parallel()
	prefix := filepath.Join(t.TempDir(), "x")
	r := example(t, durations(1000))
	require.NoError(t, r.writeCSV(prefix))
	require.NoError(t, r.writeHGRM(prefix))
	for name, lines := range map[string]int{"_stats": 3, "_stats_history": 11, "_failures": 2} {
		f, err := os.Open(prefix + name + ".csv")
		require.NoError(t, err)
		records, err := csv.NewReader(f).ReadAll() // which wants equally many fields
		require.NoError(t, err)
		require.NoError(t, f.Close())
		require.Len(t, records, lines, name)
	}
	text, err := os.ReadFile(prefix + "_stats_history.csv")
	require.NoError(t, err)
	require.Contains(t, string(text), "N/A", "what is unknown is not 0")
	text, err = os.ReadFile(prefix + "_response.hgrm")
	require.NoError(t, err)
	require.Contains(t, string(text), "Percentile")
}

var (
	scripts  = regexp.MustCompile(`(?s)<script.*?</script>|<style>.*?</style>|<!doctype html>`)
	plots    = regexp.MustCompile(`(?s)<svg.*?</svg>`)
	elements = regexp.MustCompile(`(?i)(src|href|action|data)=|url\(|@import|https?://[^<]`)
)

func page1(t *testing.T, r *report) string {
	t.Helper()
	var b bytes.Buffer
	o := sizeOptions{utilisation: 80, reserve: 25, nodes: generic()}
	require.NoError(t, r.writeHTML(&b, o))
	return b.String()
}

func TestHTML_NeedsNothingElse(t *testing.T) {
	t.Parallel()
	r := example(t, durations(5000))
	r.Scenario, r.Warnings = `</script><script>alert(1)</script>`, []string{"a & b < c"}
	r.Gates, r.Knee = []gate{{"p99>1ms", known(3), true}}, &knee{Condition: "p99<1ms", Rate: 5, Steps: []kneeStep{{Rate: 5, Held: true}}}
	r.Overheads = []overhead{{"Fetch", "raw GET", 1, 2, 3}}
	text := page1(t, r)
	require.Less(t, len(text), 1<<20)
	require.NotContains(t, text, "<script>alert(1)")
	require.Contains(t, text, "default-src 'none'")
	body := scripts.ReplaceAllString(text, "")
	require.Empty(t, elements.FindAllString(strings.ReplaceAll(body, "data-", ""), -1), "nothing is loaded")
	require.NotRegexp(t, `fetch\(|import\(|XMLHttpRequest|EventSource`, text)
	require.NotContains(t, text, "<link")

	d := xml.NewDecoder(strings.NewReader(body)) // well-formed
	d.Strict, d.AutoClose, d.Entity = false, xml.HTMLAutoClose, xml.HTMLEntity
	for {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else {
			require.NoError(t, err)
		}
	}
	var embedded report
	_, raw, ok := strings.Cut(text, `<script type="application/json" id="report">`)
	require.True(t, ok)
	raw, _, _ = strings.Cut(raw, "</script>")
	require.NoError(t, json.Unmarshal([]byte(raw), &embedded))
	require.Equal(t, r.Total.Response, embedded.Total.Response)
	for _, column := range []string{"# Requests", "# Fails", "Median", "95%ile", "99%ile", "Average", "Min", "Max", "Average size (bytes)", "Current RPS", "Current Failures/s"} {
		require.Contains(t, text, "<th>"+column+"</th>", "Locust's columns")
	}
}

type drawn struct {
	Paths []struct {
		Class string `xml:"class,attr"`
		Key   string `xml:"data-key,attr"`
		D     string `xml:"d,attr"`
	} `xml:"path"`
}

func TestHTML_ChartsHaveTheData(t *testing.T) {
	t.Parallel()
	all := plots.FindAllString(page1(t, example(t, durations(5000))), -1)
	lines := map[string]string{}
	for _, text := range all {
		var p drawn
		require.NoError(t, xml.Unmarshal([]byte(text), &p))
		for _, path := range p.Paths {
			if path.Key != "" {
				lines[path.Key] = path.D
			}
		}
	}
	require.Equal(t, 10, strings.Count(lines["rps"], "M")+strings.Count(lines["rps"], "L"), "a point for each second")
	require.Equal(t, 1, strings.Count(lines["rps"], "M"))
	require.Equal(t, 2, strings.Count(lines["used_memory"], "M"), "a gap where it is unknown")
	require.Equal(t, 9, strings.Count(lines["used_memory"], "M")+strings.Count(lines["used_memory"], "L"))
	require.True(t, strings.HasPrefix(lines["used_memory"], "M100 100h0L200 95L300 90"), lines["used_memory"]) // 1 of 20 MB is 5%
	require.True(t, strings.HasPrefix(lines["maxmemory"], "M100 0h0L200 0"), lines["maxmemory"])
	// The axis of times is from 1ms to 10ms; 2ms is at lg 2.
	require.True(t, strings.HasPrefix(lines["p95"], "M100 69.9h0"), lines["p95"])
	require.Contains(t, lines["p50"], "100h0")
	require.Len(t, all, 6, "five that are known, and the spectrum") // nothing is known of the processor and the network
}

func TestHTML_UnknownIsSaid(t *testing.T) {
	t.Parallel()
	r := example(t, durations(100))
	for i := range r.Series {
		r.Series[i].Used, r.Series[i].Max = nil, nil
	}
	require.Contains(t, page1(t, r), "Memory of the servers")
	require.Equal(t, 2, strings.Count(page1(t, r), "unknown: the server does not tell"))
}

func TestHTML_OfALongRunIsSmall(t *testing.T) {
	t.Parallel()
	r := example(t, durations(100_000))
	r.Series = nil
	for i := range 24 * 3600 {
		v := rand.Float64() * 1e6
		r.Series = append(r.Series, point{
			T: float64(i), RPS: v, P50: &v, P95: &v, P99: &v, P999: &v, Used: &v, Max: &v, Hit: known(50), Evicted: &v, Expired: &v, OOM: &v, CPU: &v, NetIn: &v, NetOut: &v, Clients: &v, Frag: &v, Own: &v, GCPause: &v,
		})
	}
	r.Series[40_000].P99, r.Series[40_000].Hit = known(5e6), known(1)
	require.Less(t, len(page1(t, r)), 1<<20)
	thinned := thin(r.Series, maxPoints)
	require.Len(t, thinned, maxPoints)
	worst, least := 0.0, 100.0
	for _, p := range thinned {
		worst, least = max(worst, *p.P99), min(least, *p.Hit)
	}
	require.InDelta(t, 5e6, worst, 0, "a spike is not lost")
	require.InDelta(t, 1, least, 0)
}

func TestKnee_IsFound(t *testing.T) {
	t.Parallel()
	for _, capacity := range []float64{0.5, 3, 999, 1000, 20_000, 77_777} {
		k := &knee{}
		require.NoError(t, k.find(1000, func(rate float64) (kneeStep, error) { return kneeStep{Rate: rate, Held: rate <= capacity}, nil }))
		require.LessOrEqual(t, k.Rate, capacity)
		require.GreaterOrEqual(t, k.Rate, capacity*0.9-1, capacity)
		require.True(t, k.Bounded)
		require.Less(t, len(k.Steps), 30)
	}
	k := &knee{}
	require.NoError(t, k.find(1000, func(rate float64) (kneeStep, error) { return kneeStep{Rate: rate, Held: true}, nil }))
	require.False(t, k.Bounded)
}

func TestGate_HasTheUnitOfItsMetric(t *testing.T) {
	t.Parallel()
	r := example(t, durations(1000))
	conditions, err := parseConditions("p99>1ns,errors>50%,evicted>0,rps<1")
	require.NoError(t, err)
	require.True(t, r.judge(conditions))
	texts := make([]string, len(r.Gates))
	for i, g := range r.Gates {
		texts[i] = g.String()
	}
	require.Regexp(t, `^FAILED  p99>1ns: it is \d\.\d\d ms$`, texts[0])
	require.Equal(t, []string{"passed  errors>50%: it is 10%", "FAILED  evicted>0: unknown", "passed  rps<1: it is 100"}, texts[1:])
}

func TestCount_SmallIsNotNone(t *testing.T) {
	t.Parallel()
	for v, text := range map[float64]string{0: "0", 0.5: "0.5", 0.042: "0.042", 1: "1", 1.26: "1.3", 9.6: "10", 123.4: "123", -0.5: "-0.5"} {
		require.Equal(t, text, count(v))
	}
}

// What a run cannot do at its end it says at its begin.
func TestRun_RefusesWhatItCouldNotEnd(t *testing.T) {
	t.Setenv("REDIS_URL", "")
	missing := filepath.Join(t.TempDir(), "missing", "r")
	for _, args := range [][]string{
		{"run", "--json", missing},
		{"run", "--html", missing},
		{"run", "--csv", missing},
		{"run", "--pressure", "1s", "--keys", "1k"},
		{"preload"},
		{"clean", "--prefix", "lt:x:"},
		{"clean", "--redis", "redis://127.0.0.1:1"},
		{"merge"},
		{"run", "--multiplex", "9"},
	} {
		var out bytes.Buffer
		code, err := run(t.Context(), args, &out, io.Discard)
		require.Error(t, err, args)
		require.Equal(t, exitUsage, code, args)
		require.Empty(t, out.String(), args)
	}
}

// What the doctor says is on the page, with the way to its runbook.
func TestReport_ShowsWhatTheDoctorSays(t *testing.T) {
	t.Parallel()
	r := example(t, durations(100))
	r.Doctor = &diagnosis{Fine: 27, Findings: []doctor.Group{{
		Finding: doctor.Finding{ID: "POL01", Severity: doctor.Fail, Pattern: doctor.Cache, Observed: "maxmemory <0>", Runbook: "https://example.com/POL01.md"},
		Nodes:   []string{"a:1", "b:1"},
	}, {Finding: doctor.Finding{ID: "LAT01 SEC01", Severity: doctor.Unknown, Observed: "NOPERM"}}}}
	r = throughJSON(t, r)
	var b bytes.Buffer
	require.NoError(t, r.writeHTML(&b, sizeOptions{nodes: generic(), utilisation: 80}))
	text := b.String()
	require.Contains(t, text, `<td class="bad">FAIL</td><td><a href="https://example.com/POL01.md">POL01</a> cache</td><td>maxmemory &lt;0&gt; (2 nodes)</td>`)
	require.Contains(t, text, "<td>UNKNOWN</td><td>LAT01 SEC01 </td>")
	require.Contains(t, text, "27 checks found nothing")
	b.Reset()
	r.print(&b, sizeOptions{nodes: generic(), utilisation: 80})
	require.Contains(t, b.String(), "DOCTOR\n  FAIL POL01 cache: maxmemory <0>\n")
}
