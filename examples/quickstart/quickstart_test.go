package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/stretchr/testify/require"
)

func TestModel_TellsApartWhatItHasNotSeen(t *testing.T) {
	t.Parallel()
	model, err := NewModel(training, 1)
	require.NoError(t, err)
	heldOut, err := os.ReadFile("testdata/heldout.txt")
	require.NoError(t, err)
	var right, all int
	for line := range strings.Lines(string(heldOut)) {
		label, text, ok := strings.Cut(strings.TrimSpace(line), "\t")
		require.True(t, ok, line)
		require.NotContains(t, training, text)
		all++
		if model.Predict(text).Label == label {
			right++
		}
	}
	require.GreaterOrEqual(t, all, 50)
	require.GreaterOrEqual(t, float64(right)/float64(all), 0.8, "%d of %d", right, all)
}

func TestModel_IsDeterministic(t *testing.T) {
	t.Parallel()
	one, err := NewModel(training, 1)
	require.NoError(t, err)
	same, err := NewModel(training, 1)
	require.NoError(t, err)
	other, err := NewModel(training, 0.5)
	require.NoError(t, err)
	for text := range strings.Lines(sampleText) {
		p := one.Predict(text)
		require.Equal(t, p, same.Predict(text))
		require.NotEqual(t, p, other.Predict(text))
		require.Equal(t, p.Label == "pos", p.Score >= 0.5)
		require.True(t, 0 <= p.Low && p.Low <= p.High && p.High <= 1, "%+v", p)
	}
}

func TestModel_DoubtsWhatItCannotRead(t *testing.T) {
	t.Parallel()
	model, err := NewModel(training, 1)
	require.NoError(t, err)
	for _, text := range []string{"", "!?", "xyzzy", "\xff\x00", strings.Repeat("xyzzy ", 100_000)} {
		require.InDelta(t, 0.5, model.Predict(text).Score, 0.1)
	}
}

func TestNewModel_RefusesBadTraining(t *testing.T) {
	t.Parallel()
	for _, training := range []string{"", "pos", "pos\t", "good\tfine", "pos\tfine\n\nneg\tbad"} {
		_, err := NewModel(training, 1)
		require.Error(t, err, "%q", training)
	}
}

// tourOf runs the tour on the embedded Redis and returns what it prints.
func tourOf(t *testing.T, stdin io.Reader, args ...string) (string, error) {
	t.Helper()
	t.Setenv("REDIS_URL", "")
	var out bytes.Buffer
	err := run(t.Context(), args, stdin, &out)
	return out.String(), err
}

func TestRun_PrintsWhatTheCacheDoes(t *testing.T) {
	out, err := tourOf(t, nil)
	require.NoError(t, err)
	seen := map[string]bool{}
	var hits, lines int
	for text := range strings.Lines(sampleText) {
		lines++
		how := "MISS"
		if seen[text] {
			how = "HIT"
			hits++
		}
		seen[text] = true
		require.Regexp(t, `(?m)^ *`+regexp.QuoteMeta(strconv.Itoa(lines))+`  `+how+` +(pos|neg) .*ms  `+regexp.QuoteMeta(text[:20]), out)
	}
	require.Positive(t, hits)
	require.Contains(t, out, strconv.Itoa(lines+hits)+" of "+strconv.Itoa(2*lines)+" calls of the model saved")
	require.Regexp(t, `(?s)model-1 .*HIT +model-1 .*MISS +model-2 .*HIT +model-2 .*HIT +model-1 `,
		"model-1 "+out[strings.Index(out, "a new model"):])
	require.Regexp(t, `(?s)MISS +acme.*MISS +globex.*HIT +acme.*HIT +globex.*MISS +acme .*after Invalidate.*HIT +globex .*not touched`,
		out[strings.Index(out, "two tenants"):])
}

func TestRun_PrintsWhatTheLimiterDoes(t *testing.T) {
	out, err := tourOf(t, nil)
	require.NoError(t, err)
	require.Regexp(t, `(?s)PASS .*alice .*PASS .*bob .*WAIT +\d+ms.*alice .*PASS +0 left +alice.*PASS +7 left +bob.*PASS .*alice .*after that time\n`,
		out[strings.Index(out, "ratelimit:"):])
}

func TestRun_PrintsWhatTheLockDoes(t *testing.T) {
	out, err := tourOf(t, nil)
	require.NoError(t, err)
	require.Contains(t, out, "the count is 20, and each fence was above the last")
	require.Contains(t, out, "is refused: lock: stale fence")
}

func TestRun_PrintsWhatTheBufferDoes(t *testing.T) {
	out, err := tourOf(t, strings.NewReader("I love it.\nI hate it.\nI love it.\n"), "-")
	require.NoError(t, err)
	require.Regexp(t, `flush 1 +3 pending before, +3 in SQL after: the connection broke`, out)
	require.Regexp(t, `flush 2 +3 pending before, +3 in SQL after: flushed`, out)
}

func TestRun_PrintsWhatTheTimeseriesDoes(t *testing.T) {
	out, err := tourOf(t, strings.NewReader("I love it.\nI hate it.\nI love it.\n"), "-")
	require.NoError(t, err)
	require.Regexp(t, `(?s)timeseries: 3 texts.*  #.*  running\n      3 in all, in one round trip of .*ms; 10 to 10 bytes, mean 10\n`, out)
}

func TestRun_PrintsWhatTheStreamDoes(t *testing.T) {
	out, err := tourOf(t, strings.NewReader("I love it.\nI hate it.\nI love it.\n"), "-")
	require.NoError(t, err)
	require.Regexp(t, `(?s)3 handled and acknowledged, 1 is a dead letter:\n +DEAD +after 3 attempts: "no text"\n +redriven.*handled\n`, out)
}

func TestRun_PrintsWhatTheFeaturestoreDoes(t *testing.T) {
	out, err := tourOf(t, strings.NewReader("I love it.\nI hate it.\n"), "-")
	require.NoError(t, err)
	require.Regexp(t, `2 rows loaded.*\n +partial +score 0\.\d+ .*was older\n +stale +score 0\.500.*\n +missing +score 0\.000`, out)
}

func TestRun_PrintsTheSameScoresEachTime(t *testing.T) {
	durations := regexp.MustCompile(`[ \d]+\.\d\dms|\d+\.\d times`)
	scores := func() string {
		out, err := tourOf(t, nil)
		require.NoError(t, err)
		cache, _, _ := strings.Cut(out, "ratelimit:") // what comes then depends on the time
		return durations.ReplaceAllString(cache, "")
	}
	first := scores()
	require.Equal(t, first, scores())
}

func TestRun_ReadsAFileOrTheStandardInput(t *testing.T) {
	file := filepath.Join(t.TempDir(), "reviews.txt")
	long := strings.Repeat("a very good and terrible kettle ", 10_000)
	for _, texts := range []string{
		"I love it.",
		"I love it.\r\n\r\n  I hate it.\r\nI love it.",
		"\xff\xfe bytes that are no text \x1b[31m\x00 and {braces}:",
		long + "\n" + long,
	} {
		require.NoError(t, os.WriteFile(file, []byte(texts), 0o600))
		fromFile, err := tourOf(t, nil, file)
		require.NoError(t, err)
		fromStdin, err := tourOf(t, strings.NewReader(texts), "-")
		require.NoError(t, err)
		for _, out := range []string{fromFile, fromStdin} {
			require.Regexp(t, `   1  MISS  `, out)
			require.Contains(t, out, "not touched")
			require.NotContains(t, out, "\x1b")
		}
	}
}

func TestRun_RefusesBadInput(t *testing.T) {
	dir := t.TempDir()
	_, err := tourOf(t, nil, filepath.Join(dir, "none.txt"))
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = tourOf(t, nil, dir)
	require.ErrorContains(t, err, "read the input")
	_, err = tourOf(t, strings.NewReader(" \n\n"), "-")
	require.ErrorContains(t, err, "no text")
	_, err = tourOf(t, strings.NewReader(strings.Repeat("x", maxInput+1)), "-")
	require.ErrorContains(t, err, "larger than")
	_, err = tourOf(t, nil, "-help")
	require.ErrorContains(t, err, "usage")
	_, err = tourOf(t, nil, "a", "b")
	require.ErrorContains(t, err, "usage")
}

func TestRun_EndsWhenInterrupted(t *testing.T) {
	t.Setenv("REDIS_URL", "")
	ctx, interrupt := context.WithCancel(t.Context())
	silent, keyboard := io.Pipe()
	defer keyboard.Close()
	ended := make(chan error)
	go func() { ended <- run(ctx, []string{"-"}, silent, io.Discard) }()
	interrupt()
	require.ErrorIs(t, <-ended, context.Canceled)
	require.ErrorIs(t, run(ctx, nil, nil, io.Discard), context.Canceled)
}

func TestRun_DoesNotTellThePassword(t *testing.T) {
	for _, url := range []string{"redis://me:secret@[::1", "redis://me:secret@127.0.0.1:1/0"} {
		t.Setenv("REDIS_URL", url)
		err := run(t.Context(), nil, nil, io.Discard)
		require.ErrorContains(t, err, "REDIS_URL")
		require.NotContains(t, err.Error(), "secret")
	}
}

func TestClock_LetsKeysExpire(t *testing.T) {
	t.Parallel()
	server := miniredis.RunT(t)
	stop := runClock(server)
	defer stop()
	require.NoError(t, server.Set("key", "value"))
	server.SetTTL("key", 30*time.Millisecond)
	require.Eventually(t, func() bool { return !server.Exists("key") }, 5*time.Second, time.Millisecond)
}
