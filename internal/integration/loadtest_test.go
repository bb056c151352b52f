package integration

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/redispatterns/redispatterns/internal/integration/redistest"
)

var loadtestDir string // removed at the end of the run

// loadtestBinary builds examples/loadtest once.
var loadtestBinary = sync.OnceValues(func() (string, error) {
	var err error
	if loadtestDir, err = os.MkdirTemp("", "redispatterns-loadtest-"); err != nil {
		return "", err
	}
	file := filepath.Join(loadtestDir, "loadtest.exe")
	build := exec.Command("go", "build", "-o", file, "./loadtest")
	build.Dir = filepath.Join("..", "..", "examples")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build: %w: %s", err, out)
	}
	return file, nil
})

// loadtestReport is what these tests read of the JSON.
type loadtestReport struct {
	Seconds     float64
	Interrupted bool
	Arguments   []string
	Target      struct {
		Mode, Version string
		Primaries     int
	}
	Load struct {
		Achieved  float64
		Saturated string
	}
	Preload *struct {
		After *float64 `json:"used_memory_after"`
		Model *struct{ R2 float64 }
	}
	Rows  []loadtestRow
	Total loadtestRow
	Knee  *struct {
		Rate  float64
		Steps []struct{ Rate float64 }
	}
	Overheads []struct{ Name string }
	Doctor    *struct {
		Fine     int
		Findings []struct{ ID, Severity string }
	}
	Memory  *float64 `json:"used_memory"`
	CPU     *float64 `json:"server_cpu"`
	Evicted *float64
	Wire    struct{ In, Out float64 }
	Series  []struct {
		RPS    float64
		Used   *float64 `json:"used_memory"`
		OOM    *float64
		NetOut *float64 `json:"net_out"`
	}
}

type loadtestRow struct {
	Name               string
	Requests, Failures int64
	Errors             map[string]int64
	Hits, Misses       int64
	Response, Service  struct{ P50, P95, P99, Max float64 }
	ServerP99          *float64 `json:"server_p99"`
}

type loadtestRun struct {
	cmd    *exec.Cmd
	out    *loadtestOutput
	result string // the JSON's file
}

// loadtestOutput may be read while it is written.
type loadtestOutput struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *loadtestOutput) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(b)
}

func (o *loadtestOutput) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// startLoadtest runs the program as a user would.
func startLoadtest(t *testing.T, url string, args ...string) *loadtestRun {
	t.Helper()
	binary, err := loadtestBinary()
	require.NoError(t, err)
	r := &loadtestRun{out: &loadtestOutput{}, result: filepath.Join(t.TempDir(), "result.json")}
	r.cmd = exec.Command(binary, args...)
	if url != "" {
		r.cmd.Args = append(r.cmd.Args, "--redis", url, "--yes")
	}
	if args[0] == "run" || args[0] == "preload" {
		r.cmd.Args = append(r.cmd.Args, "--json", r.result)
	}
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "REDIS_URL=") && !strings.HasPrefix(e, "LOADTEST_") {
			r.cmd.Env = append(r.cmd.Env, e)
		}
	}
	r.cmd.Stdout, r.cmd.Stderr = r.out, r.out
	require.NoError(t, r.cmd.Start())
	t.Cleanup(func() {
		if r.cmd.ProcessState == nil {
			_ = r.cmd.Process.Kill() // it may have ended by itself
			_ = r.cmd.Wait()
		}
	})
	return r
}

// end waits for the program's end and returns its code.
func (r *loadtestRun) end(t *testing.T) int {
	t.Helper()
	err := r.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		require.NoError(t, err)
	}
	return r.cmd.ProcessState.ExitCode()
}

func (r *loadtestRun) report(t *testing.T) (report loadtestReport) {
	t.Helper()
	b, err := os.ReadFile(r.result)
	require.NoError(t, err, r.out)
	require.NoError(t, json.Unmarshal(b, &report))
	return report
}

func runLoadtest(t *testing.T, code int, url string, args ...string) (loadtestReport, string) {
	t.Helper()
	r := startLoadtest(t, url, args...)
	require.Equal(t, code, r.end(t), r.out)
	if _, err := os.Stat(r.result); err != nil {
		return loadtestReport{}, r.out.String()
	}
	return r.report(t), r.out.String()
}

// loadtestKeys returns what is there under a pattern.
func loadtestKeys(t *testing.T, client rueidis.Client, pattern string) (keys []string) {
	t.Helper()
	for _, node := range client.Nodes() {
		for cursor := uint64(0); ; {
			entry, err := node.Do(t.Context(), node.B().Scan().Cursor(cursor).Match(pattern).Count(10_000).Build()).AsScanEntry()
			require.NoError(t, err)
			keys = append(keys, entry.Elements...)
			if cursor = entry.Cursor; cursor == 0 {
				break
			}
		}
	}
	return keys
}

// A prediction for five times the keys is within 5% of really loading them.
func TestLoadtest_PredictsFiveTimesTheKeys(t *testing.T) {
	t.Parallel()
	var replicated rueidis.Client
	sentinelURL := func() (url string) {
		replicated = redistest.StartSentinel(t).Client(t, func(o *rueidis.ClientOption) { url = loadtestSentinelURL(o) })
		return url
	}
	for name, target := range map[string]struct {
		few int
		url func() string
	}{
		"default":   {12_000, func() string { return "redis://" + redistest.Start(t).Addr() }},
		"valkey-8":  {12_000, func() string { return "redis://" + redistest.StartKind(t, redistest.Valkey8).Addr() }},
		"redis-7.0": {12_000, func() string { return "redis://" + redistest.StartKind(t, redistest.Redis70).Addr() }},
		"cluster":   {12_000, func() string { return "redis://" + redistest.StartCluster(t, 0).Addrs()[0] }},
		// So few that what is buffered for the replica would count for much.
		"with a replica": {2000, sentinelURL},
	} {
		url := target.url()
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			many := 5 * target.few
			mix := []string{"preload", "--prefix", "lt:size:", "--value", "claims=300@50,token=700@50", "--live", "off"}
			small := startLoadtest(t, url, append(mix, "--keys", strconv.Itoa(target.few))...)
			require.Zero(t, small.end(t), small.out)
			require.Greater(t, small.report(t).Preload.Model.R2, 0.99)
			_, text := runLoadtest(t, 0, "", "size", small.result, "--keys", strconv.Itoa(many))
			found := regexp.MustCompile(`dataset of [0-9,]+ keys +([0-9.]+) MiB`).FindStringSubmatch(text)
			require.NotNil(t, found, text)
			predicted, err := strconv.ParseFloat(found[1], 64)
			require.NoError(t, err)

			_, text = runLoadtest(t, 0, url, "clean", "--prefix", "lt:size:")
			require.Regexp(t, `removed: 1?2,000 keys`, text)
			loaded, _ := runLoadtest(t, 0, url, append(mix, "--keys", strconv.Itoa(many))...)
			really := *loaded.Preload.After / (1 << 20)
			if name == "with a replica" { // a sizing has them on a line of their own
				really -= float64(doctorInfo(t, replicated, "mem_total_replication_buffers")) / (1 << 20)
			}
			t.Logf("predicted %.2f MiB, really %.2f MiB: %+.1f%%", predicted, really, 100*(predicted/really-1))
			require.InEpsilon(t, really, predicted, 0.05)
		})
	}
}

func loadtestSentinelURL(o *rueidis.ClientOption) string {
	return "redis://" + o.InitAddress[0] + "?addr=" + o.InitAddress[1] + "&master_set=" + o.Sentinel.MasterSet
}

// loadtestProxy accepts connections and passes them on to addr.
func loadtestProxy(t *testing.T, l net.Listener, addr string) {
	t.Helper()
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() {
		cancel()
		_ = l.Close() // it has ended its part
		wg.Wait()
	})
	wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer in.Close()
				out, err := net.Dial("tcp", addr)
				if err != nil {
					return
				}
				defer out.Close()
				stop := context.AfterFunc(ctx, func() { _, _ = in.Close(), out.Close() })
				defer stop()
				wg.Go(func() {
					_, _ = io.Copy(out, in) // ends when one side does
					_ = out.Close()
				})
				_, _ = io.Copy(in, out)
			})
		}
	})
}

// loadtestCertificate returns a certificate for 127.0.0.1 that signs itself, and the files of it and of its key.
func loadtestCertificate(t *testing.T) (pair tls.Certificate, certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	require.NoError(t, os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	require.NoError(t, os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600))
	pair, err = tls.LoadX509KeyPair(certFile, keyFile)
	require.NoError(t, err)
	return pair, certFile, keyFile
}

// loadtestShort is a closed loop, which a busy machine makes slower and not saturated.
var loadtestShort = []string{"--keys", "1000", "--users", "3", "--think", "10ms", "--duration", "1500ms", "--sample", "500ms", "--live", "off"}

func TestLoadtest_ReachesServersByURL(t *testing.T) {
	t.Parallel()
	// check runs a short load and looks at what all of them must have.
	check := func(t *testing.T, client rueidis.Client, mode string, primaries int, url string, args ...string) {
		t.Helper()
		r, text := runLoadtest(t, 0, url, append(append([]string{"run", "--scenario", "django-cache"}, loadtestShort...), args...)...)
		require.Equal(t, mode, r.Target.Mode)
		require.Equal(t, primaries, r.Target.Primaries)
		require.Greater(t, r.Total.Requests, int64(20))
		require.Zero(t, r.Total.Failures, r.Rows)
		require.Zero(t, r.Total.Misses, text)
		require.Positive(t, r.Total.Hits)
		require.NotNil(t, r.Memory)
		require.NotNil(t, r.CPU)
		require.NotNil(t, r.Rows[0].ServerP99, "LATENCY HISTOGRAM")
		require.NotNil(t, r.Doctor)
		require.Greater(t, r.Doctor.Fine, 15*primaries) // other tests use the server too
		require.Contains(t, text, "FAIL POL01 cache: maxmemory 0")
		require.Greater(t, r.Wire.In, 300.0*float64(r.Total.Hits), "bytes on the wire")
		seen := false
		for _, p := range r.Series {
			seen = seen || p.Used != nil && p.NetOut != nil
		}
		require.True(t, seen, r.Series)
		prefix := regexp.MustCompile(`keys (lt:\w+:)\*`).FindStringSubmatch(text)
		require.NotNil(t, prefix, text)
		require.Empty(t, loadtestKeys(t, client, prefix[1]+"*"))
	}
	server := redistest.Start(t) // the shared one may have millions of keys, which the doctor samples and cleaning up passes over
	t.Run("unix", func(t *testing.T) {
		t.Parallel()
		dir, err := os.MkdirTemp("", "lt") //nolint:usetesting // short: the path of a socket has a bound
		require.NoError(t, err)
		defer os.RemoveAll(dir) //nolint:errcheck // a temporary folder
		l, err := net.Listen("unix", filepath.Join(dir, "s"))
		require.NoError(t, err)
		loadtestProxy(t, l, server.Addr())
		check(t, server.Client(t), "standalone", 1, "unix://"+filepath.Join(dir, "s"))
	})
	t.Run("TLS", func(t *testing.T) {
		t.Parallel()
		pair, cert, key := loadtestCertificate(t)
		pool := x509.NewCertPool()
		leaf, err := x509.ParseCertificate(pair.Certificate[0])
		require.NoError(t, err)
		pool.AddCert(leaf)
		l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
			Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12,
		})
		require.NoError(t, err)
		loadtestProxy(t, l, server.Addr())
		url := "rediss://" + l.Addr().String()
		check(t, server.Client(t), "standalone", 1, url, "--ca", cert, "--cert", cert, "--key", key)
		check(t, server.Client(t), "standalone", 1, url, "--insecure", "--cert", cert, "--key", key, "--pool")
		_, text := runLoadtest(t, 1, url, "run", "--cert", cert, "--key", key)
		require.Contains(t, text, "certificate")
	})
	t.Run("cluster", func(t *testing.T) {
		t.Parallel()
		cluster := redistest.SharedCluster(t)
		addrs := cluster.Addrs()
		check(t, cluster.Client(t), "cluster", 3, "redis://"+addrs[0]+"?addr="+addrs[1])
	})
	t.Run("Sentinel", func(t *testing.T) {
		t.Parallel()
		sentinel := redistest.StartSentinel(t)
		var url string
		client := sentinel.Client(t, func(o *rueidis.ClientOption) {
			url = loadtestSentinelURL(o)
		})
		check(t, client, "sentinel", 1, url)
	})
	t.Run("ACL", func(t *testing.T) {
		t.Parallel()
		server := redistest.Start(t)
		client := server.Client(t)
		user := []string{"SETUSER", "loader", "on", ">secret-word", "~lt:*", "&*", "+@all"}
		require.NoError(t, client.Do(t.Context(), client.B().Arbitrary("ACL").Args(user...).Build()).Error())
		url := "redis://loader:secret-word@" + server.Addr()
		check(t, client, "standalone", 1, url)
		// Without INFO the load goes on, and what is not known is not zero.
		require.NoError(t, client.Do(t.Context(), client.B().Arbitrary("ACL").Args("SETUSER", "loader", "-info", "-latency").Build()).Error())
		r, text := runLoadtest(t, 0, url, append([]string{"run"}, loadtestShort...)...)
		require.Zero(t, r.Total.Failures)
		require.Nil(t, r.Memory)
		require.Nil(t, r.CPU)
		require.Nil(t, r.Evicted)
		require.Contains(t, text, "ACL SETUSER loader +info")
		require.Contains(t, text, "used unknown")
		require.NotContains(t, text+fmt.Sprint(r.Arguments), "secret-word")
		require.Empty(t, loadtestKeys(t, client, "lt:*"))
		_, text = runLoadtest(t, 1, "redis://loader:wrong-word@"+server.Addr(), "run")
		require.Contains(t, text, "WRONGPASS")
		require.NotContains(t, text, "wrong-word")
	})
}

func TestLoadtest_ScenariosOfThePackages(t *testing.T) {
	t.Parallel()
	addrs := redistest.SharedCluster(t).Addrs()
	for _, scenario := range []string{"cache", "lock", "ratelimit", "buffer", "timeseries", "stream", "featurestore"} {
		for name, url := range map[string]string{"single": "redis://" + redistest.Shared(t).Addr(), "cluster": "redis://" + addrs[0]} {
			t.Run(scenario+"/"+name, func(t *testing.T) {
				t.Parallel()
				r, text := runLoadtest(t, 0, url, append([]string{"run", "--scenario", scenario, "--raw"}, loadtestShort...)...)
				require.Zero(t, r.Total.Failures, text)
				require.Greater(t, r.Total.Requests, int64(20))
				require.NotEmpty(t, r.Overheads)
				require.Contains(t, text, "OVERHEAD")
				require.Regexp(t, `removed: [1-9]`, text)
			})
		}
	}
}

// After Ctrl-C there is a report, our keys are gone, and nobody else's are.
func TestLoadtest_CleansUpWhenInterrupted(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		t.Skip("there is no interrupting a process")
	}
	server := redistest.Shared(t)
	client, prefix := server.Client(t), redistest.Prefix(t)
	others := []string{prefix + ":k", "lt:" + prefix + "-2:k", "lt:" + prefix}
	for _, key := range others {
		require.NoError(t, client.Do(t.Context(), client.B().Set().Key(key).Value("v").ExSeconds(600).Build()).Error())
	}
	defer func() { _ = client.Do(context.Background(), client.B().Del().Key(others...).Build()).Error() }()
	r := startLoadtest(t, "redis://"+server.Addr(), "run", "--prefix", "lt:"+prefix+":", "--keys", "5000", "--rate", "500", "--duration", "1h", "--live", "plain")
	require.Eventually(t, func() bool { return strings.Contains(r.out.String(), "run 00:02/1:00:00") }, 30*time.Second, 20*time.Millisecond, r.out)
	require.Greater(t, len(loadtestKeys(t, client, "lt:"+prefix+":*")), 5000)
	require.NoError(t, r.cmd.Process.Signal(os.Interrupt))
	_ = r.cmd.Process.Signal(os.Interrupt) // some send it to the process and to its group; only a later one ends it at once
	require.Equal(t, 130, r.end(t), r.out)
	require.Contains(t, r.out.String(), "(interrupted)")
	report := r.report(t)
	require.True(t, report.Interrupted)
	require.Greater(t, report.Total.Requests, int64(500))
	require.Greater(t, report.Load.Achieved, 250.0)
	require.Empty(t, loadtestKeys(t, client, "lt:"+prefix+":*"))
	require.ElementsMatch(t, others, append(loadtestKeys(t, client, "lt:"+prefix+"*"), loadtestKeys(t, client, prefix+":*")...))
	for _, key := range others {
		require.NoError(t, client.Do(t.Context(), client.B().Get().Key(key).Build()).Error())
	}
}

// What was under way when it was interrupted is removed too.
func TestLoadtest_CleansUpWhenInterruptedWhileLoading(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		t.Skip("there is no interrupting a process")
	}
	server := redistest.Shared(t)
	client := server.Client(t)
	for _, scenario := range []string{"django-cache", "featurestore"} {
		t.Run(scenario, func(t *testing.T) {
			t.Parallel()
			prefix := "lt:" + redistest.Prefix(t) + ":"
			for i := range 3 {
				r := startLoadtest(t, "redis://"+server.Addr(), "run", "--scenario", scenario, "--prefix", prefix, "--keys", "2M", "--preload-batch", "2000")
				require.Eventually(t, func() bool { return len(loadtestKeys(t, client, prefix+"*")) > i*5000 }, 30*time.Second, time.Millisecond, r.out)
				require.NoError(t, r.cmd.Process.Signal(os.Interrupt))
				require.Equal(t, 130, r.end(t), r.out)
				require.Empty(t, loadtestKeys(t, client, prefix+"*"))
			}
		})
	}
}

// A server that is gone for good keeps the program neither from its report nor from its end.
func TestLoadtest_EndsWhenTheServerIsGone(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	r := startLoadtest(t, "redis://"+server.Addr(), "run", "--op", "get", "--keys", "500", "--rate", "100", "--duration", "4s", "--live", "plain")
	require.Eventually(t, func() bool { return strings.Contains(r.out.String(), "run 00:01/00:04") }, 30*time.Second, 10*time.Millisecond, r.out)
	server.Kill(t)
	begin := time.Now()
	require.Equal(t, 1, r.end(t), r.out)
	require.Less(t, time.Since(begin), 30*time.Second)
	require.Contains(t, r.out.String(), "were not all removed")
	require.Regexp(t, `NOTE: \d+% of the requests failed`, r.out.String())
	require.Positive(t, r.report(t).Rows[0].Errors["network"])
}

// Who may not remove keys writes none.
func TestLoadtest_RefusesToLeaveKeysBehind(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client, url := server.Client(t), "redis://loader:word@"+server.Addr()
	grant := func(rights ...string) {
		args := append([]string{"SETUSER", "loader", "on", ">word", "~lt:*"}, rights...)
		require.NoError(t, client.Do(t.Context(), client.B().Arbitrary("ACL").Args(args...).Build()).Error())
	}
	for _, missing := range []string{"scan", "unlink"} {
		grant("+get", "+set", "+mget", "+scan", "+unlink", "-"+missing)
		_, text := runLoadtest(t, 1, url, append([]string{"run"}, loadtestShort...)...)
		require.Contains(t, text, "could not be removed at the end")
		require.Contains(t, text, "NOPERM")
		require.Empty(t, loadtestKeys(t, client, "*"))
	}
	// These are those that the README asks for.
	grant("+get", "+set", "+mget", "+scan", "+unlink", "+info", "+memory|usage", "+latency|histogram")
	r, _ := runLoadtest(t, 0, url, append([]string{"run"}, loadtestShort...)...)
	require.Zero(t, r.Total.Failures)
	require.NotNil(t, r.CPU)
	require.Empty(t, loadtestKeys(t, client, "*"))
}

// A replica can be read, and its figures are its own.
func TestLoadtest_SaysThatItIsAReplica(t *testing.T) {
	t.Parallel()
	primary, replica := redistest.Start(t), redistest.Start(t)
	host, port, err := net.SplitHostPort(primary.Addr())
	require.NoError(t, err)
	client := replica.Client(t)
	require.NoError(t, client.Do(t.Context(), client.B().Replicaof().Host(host).Port(portNumber(t, port)).Build()).Error())
	url := "redis://" + replica.Addr()
	require.Eventually(t, func() bool {
		_, text := runLoadtest(t, 1, url, "preload", "--keys", "100", "--live", "off")
		return strings.Contains(text, "READONLY")
	}, 30*time.Second, 100*time.Millisecond)
	r, text := runLoadtest(t, 0, url, append([]string{"run", "--op", "get", "--no-preload", "--prefix", "lt:none:"}, loadtestShort...)...)
	require.Zero(t, r.Total.Failures)
	require.NotNil(t, r.Memory)
	require.Contains(t, text, "NOTE: it is a replica, of "+primary.Addr())
}

func portNumber(t *testing.T, port string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(port, 10, 64)
	require.NoError(t, err)
	return n
}

// Hits, misses and failures are those that the server counts.
func TestLoadtest_CountsAsTheServerDoes(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, "--maxmemory", "20mb")
	client := server.Client(t)
	r, text := runLoadtest(t, 0, "redis://"+server.Addr(), "run", "--op", "get:3", "--op", "mget[7]:1", "--op", "set:1", "--keys", "2000", "--users", "3", "--think", "5ms", "--duration", "3s", "--ttl", "2s", "--live", "off", "--doctor=false") // which looks at keys too
	info, err := client.Do(t.Context(), client.B().Info().Section("stats", "errorstats").Build()).ToString()
	require.NoError(t, err)
	require.Contains(t, info, fmt.Sprintf("keyspace_hits:%d\r", r.Total.Hits), text)
	require.Contains(t, info, fmt.Sprintf("keyspace_misses:%d\r", r.Total.Misses))
	require.Positive(t, r.Total.Misses, "some have expired")

	r, text = runLoadtest(t, 0, "redis://"+server.Addr(), "run", "--op", "set(ttl=1m)", "--keys", "2000", "--users", "3", "--think", "1ms", "--duration", "3s", "--pressure", "1s", "--live", "off")
	oom := int64(0)
	for _, row := range r.Rows {
		oom += row.Errors["OOM"]
	}
	require.Positive(t, oom, text)
	stats, err := client.Do(t.Context(), client.B().Info().Section("commandstats").Build()).ToString()
	require.NoError(t, err)
	found := regexp.MustCompile(`cmdstat_set:calls=(\d+).*rejected_calls=(\d+)`).FindStringSubmatch(stats)
	require.NotNil(t, found, stats)
	rejected, err := strconv.ParseInt(found[2], 10, 64)
	require.NoError(t, err)
	require.GreaterOrEqual(t, rejected, oom, "the rest are those of --pressure")
}

// What does not fit is refused before anything is written; with --pressure the servers are filled to see what happens.
func TestLoadtest_RefusesWhatDoesNotFit(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, "--maxmemory", "8mb")
	client, url := server.Client(t), "redis://"+server.Addr()
	_, text := runLoadtest(t, 2, url, "run", "--keys", "400k")
	require.Contains(t, text, "refused: it would take about")
	require.Empty(t, loadtestKeys(t, client, "*"))

	r, text := runLoadtest(t, 4, url, "run", "--keys", "1000", "--users", "5", "--think", "5ms", "--duration", "3s", "--pressure", "1s", "--sample", "300ms", "--fail-on", "errors>0%,hit<99%")
	oom := int64(0)
	for _, row := range r.Rows {
		oom += row.Errors["OOM"]
	}
	require.Positive(t, oom, text)
	require.Equal(t, r.Total.Failures, oom)
	require.Contains(t, text, "GATE FAILED  errors>0%")
	require.Contains(t, text, "GATE passed  hit<99%")
	seen := false
	for _, p := range r.Series {
		seen = seen || p.OOM != nil && *p.OOM > 0
	}
	require.True(t, seen, "the server counts them too")
	require.Empty(t, loadtestKeys(t, client, "*"))
}

// While the server hangs for a second, requests are due: their wait is in the percentiles, the server's own figures show
// nothing, and a closed loop hardly notices.
func TestLoadtest_ShowsAStall(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	url, common := "redis://"+server.Addr(), []string{"--op", "get", "--keys", "1000", "--duration", "6s", "--live", "plain"}
	runs := []*loadtestRun{
		startLoadtest(t, url, append([]string{"run", "--rate", "200"}, common...)...),
		startLoadtest(t, url, append([]string{"run", "--users", "4", "--think", "10ms"}, common...)...),
	}
	for _, r := range runs {
		require.Eventually(t, func() bool { return strings.Contains(r.out.String(), "run 00:01/00:06") }, 30*time.Second, 10*time.Millisecond, r.out)
	}
	server.Pause(t)
	require.NoError(t, after(t.Context(), time.Second))
	server.Resume(t)
	for _, r := range runs {
		require.Contains(t, []int{0, 3}, r.end(t), r.out) // a busy machine
	}
	open, closed := runs[0].report(t), runs[1].report(t)
	require.Greater(t, open.Total.Response.P95, 400e3)
	require.Greater(t, open.Total.Response.P99, 700e3)
	require.Greater(t, open.Total.Response.Max, 900e3)
	require.EqualValues(t, 1200, open.Total.Requests)
	require.Greater(t, closed.Total.Response.Max, 900e3)
	require.Less(t, closed.Total.Response.P95, 400e3)
	require.Less(t, *open.Rows[0].ServerP99, 100e3)
}

func TestLoadtest_SaysThatItIsSaturated(t *testing.T) {
	t.Parallel()
	proxy := redistest.NewProxy(t, redistest.Shared(t).Addr())
	proxy.Latency(t, 50*time.Millisecond)
	r, text := runLoadtest(t, 3, "redis://"+proxy.Addr(), "run", "--op", "ping", "--rate", "1000", "--max-inflight", "10", "--duration", "2s", "--fail-on", "errors>50%")
	require.NotEmpty(t, r.Load.Saturated)
	require.Less(t, r.Load.Achieved, 210.0)
	require.Regexp(t, `SATURATED \(achieved [12]?\d\d of 1,000 per second\)`, text)
}

func TestLoadtest_TellsErrorsApart(t *testing.T) {
	t.Parallel()
	proxy := redistest.NewProxy(t, redistest.Shared(t).Addr())
	r := startLoadtest(t, "redis://"+proxy.Addr(), "run", "--op", "get", "--keys", "500", "--rate", "100", "--timeout", "300ms", "--duration", "6s", "--live", "plain")
	require.Eventually(t, func() bool { return strings.Contains(r.out.String(), "run 00:01/00:06") }, 30*time.Second, 10*time.Millisecond, r.out)
	proxy.BlackHole(t)
	require.NoError(t, after(t.Context(), time.Second))
	proxy.Cut(t)
	require.NoError(t, after(t.Context(), time.Second))
	proxy.Restore(t)
	require.Contains(t, []int{0, 3}, r.end(t), r.out) // a busy machine
	all := r.report(t).Total
	errs := r.report(t).Rows[0].Errors
	require.Greater(t, errs["timeout"], int64(20), errs)
	require.Greater(t, errs["network"], int64(20), errs)
	require.Greater(t, all.Requests-all.Failures, int64(100), "it recovers")
	require.Contains(t, r.out.String(), "removed: 500 keys")
}

func TestLoadtest_FindsTheKnee(t *testing.T) {
	t.Parallel()
	proxy := redistest.NewProxy(t, redistest.Shared(t).Addr())
	proxy.Latency(t, 20*time.Millisecond)
	// 10 under way, 20ms each: about 500 a second.
	r, text := runLoadtest(t, 0, "redis://"+proxy.Addr(), "run", "--op", "ping", "--find-knee", "p50<1s", "--knee-step", "1s", "--knee-from", "400", "--max-inflight", "10", "--live", "off")
	require.NotNil(t, r.Knee, text)
	require.GreaterOrEqual(t, len(r.Knee.Steps), 2)
	require.LessOrEqual(t, r.Knee.Rate, 520.0, text)
	require.Contains(t, text, "KNEE")
}
