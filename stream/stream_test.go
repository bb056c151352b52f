package stream

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"weak"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"
)

// noClient fails a test that needs a server.
type noClient struct{ rueidis.Client }

func TestNew_SaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		client rueidis.Client
		key    string
		opts   Options[int]
		want   string
	}{
		{nil, "k", Options[int]{}, "client"},
		{noClient{}, "", Options[int]{}, "key"},
		{noClient{}, "a{", Options[int]{}, "key"},
		{noClient{}, "}a{", Options[int]{}, "key"},
		{noClient{}, "a{}b{c}", Options[int]{}, "key"},
		{noClient{}, "k", Options[int]{MaxLen: -1}, "Options.MaxLen"},
		{noClient{}, "k", Options[int]{IdempotencyTTL: time.Microsecond}, "Options.IdempotencyTTL"},
		{noClient{}, "k", Options[int]{IdempotencyTTL: time.Second + 1}, "Options.IdempotencyTTL"},
		{noClient{}, "k", Options[int]{IdempotencyTTL: -time.Second}, "Options.IdempotencyTTL"},
		{noClient{}, "k", Options[int]{Codec: Fields[int]()}, "Options.Codec"},
	} {
		_, err := New(c.client, c.key, c.opts)
		require.ErrorContains(t, err, c.want)
		require.ErrorContains(t, err, "stream: ")
	}
	_, err := New(noClient{}, "any\x00key:\xff", Options[int]{})
	require.NoError(t, err)
}

func TestGroup_SaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	s, err := New(noClient{}, "k", Options[int]{})
	require.NoError(t, err)
	handler := func(context.Context, *Message[int]) error { return nil }
	all := func(t *testing.T, g *Group[int], want string) {
		t.Helper()
		ctx := t.Context()
		require.ErrorContains(t, g.Run(ctx, handler), want)
		require.ErrorContains(t, g.RunBatch(ctx, func(context.Context, []*Message[int]) error { return nil }), want)
		_, err := g.Info(ctx)
		require.ErrorContains(t, err, want)
		_, err = g.Redrive(ctx)
		require.ErrorContains(t, err, want)
		for _, err := range g.Dead(ctx) {
			require.ErrorContains(t, err, want)
		}
		for _, err := range g.Pending(ctx) {
			require.ErrorContains(t, err, want)
		}
		g.Pause()
		g.Resume()
		require.Zero(t, g.Stats())
	}
	all(t, s.Group("", GroupOptions[int]{}), "name")
	for want, opts := range map[string]GroupOptions[int]{
		"GroupOptions.Start":        {Start: "yesterday"},
		"GroupOptions.Workers":      {Workers: -1},
		"GroupOptions.Batch":        {Batch: 10_001},
		"GroupOptions.MaxInFlight":  {Workers: 10, MaxInFlight: 9},
		"GroupOptions.Lease":        {Lease: 99 * time.Millisecond},
		"GroupOptions.DrainTimeout": {DrainTimeout: time.Second + 1},
	} {
		all(t, s.Group("g", opts), want)
	}
	for _, start := range []ID{"", "0", "5-3", Latest} {
		require.NoError(t, s.Group("g", GroupOptions[int]{Start: start}).err)
	}
	require.ErrorContains(t, s.Group("g", GroupOptions[int]{}).Run(t.Context(), nil), "handler")
	require.ErrorContains(t, s.Group("g", GroupOptions[int]{}).RunBatch(t.Context(), nil), "handler")
	nothing := func(Handler[int]) Handler[int] { return nil }
	middle := s.Group("g", GroupOptions[int]{Middleware: []func(Handler[int]) Handler[int]{nothing}})
	require.ErrorContains(t, middle.Run(t.Context(), handler), "middleware")
	require.ErrorContains(t, middle.RunBatch(t.Context(), func(context.Context, []*Message[int]) error { return nil }), "Middleware")
	require.ErrorContains(t, s.Group("g", GroupOptions[int]{Middleware: []func(Handler[int]) Handler[int]{nil}}).err, "Middleware")
}

func TestPublish_SaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	s, err := New(noClient{}, "k", Options[any]{})
	require.NoError(t, err)
	_, err = s.Publish(t.Context(), math.NaN())
	require.ErrorContains(t, err, "stream: publish: ")
	for _, d := range []time.Duration{-time.Second, time.Microsecond} {
		_, err = s.Publish(t.Context(), 1, Delay(d))
		require.ErrorContains(t, err, "delay")
		_, err = s.PublishBatch(t.Context(), []any{1}, Delay(d))
		require.ErrorContains(t, err, "delay")
	}
	for codec, want := range map[fixedCodec]error{"": errNoFields, "a": errNoFields, "_a b": errOwnField, "a b _c d": errOwnField} {
		s, err := New(noClient{}, "k", Options[any]{Codec: codec})
		require.NoError(t, err)
		_, err = s.Publish(t.Context(), 1, Header("a", "b"))
		require.ErrorIs(t, err, want)
	}
	e := &BatchError{[]error{nil, errNoFields, errOwnField}}
	require.ErrorIs(t, e, errOwnField)
	require.Equal(t, "stream: publish: 2 of 3 values: codec made no fields", e.Error())
}

type fixedCodec string

func (c fixedCodec) Append(fields []string, _ any) ([]string, error) {
	return append(fields, strings.Fields(string(c))...), nil
}
func (fixedCodec) Decode([]string) (any, error) { return nil, nil }

func TestKeys_ShareTheStreamsSlot(t *testing.T) {
	t.Parallel()
	for key, want := range map[string]string{"a:b": "{a:b}:due", "{a}b": "{a}b:due", "x{a}{b}": "x{a}{b}:due"} {
		s, err := New(noClient{}, key, Options[int]{})
		require.NoError(t, err)
		require.Equal(t, want, s.dueKey())
	}
}

func TestID(t *testing.T) {
	t.Parallel()
	require.True(t, ID("1700000000000-3").Time().Equal(time.UnixMilli(1700000000000)))
	require.True(t, Latest.Time().IsZero())
	for _, id := range []ID{"", "-", "a-1", "1-", "1-a", "-1-1", "1-2-3", "$", "99999999999999999999-1"} {
		require.False(t, id.valid(), id)
	}
	ids := []ID{"1-1", "1-2", "1-10", "2-0", "10-0", "10-1", "18446744073709551615-18446744073709551615"}
	shuffled := slices.Clone(ids)
	rand.Shuffle(len(ids), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
	slices.SortFunc(shuffled, func(a, b ID) int {
		switch {
		case idLess(a, b):
			return -1
		case idLess(b, a):
			return 1
		}
		return 0
	})
	require.Equal(t, ids, shuffled)
}

func TestVerbs(t *testing.T) {
	t.Parallel()
	cause := errors.New("cause")
	for _, err := range []error{Drop(cause), DeadLetter(cause), RetryAfter(time.Second, cause)} {
		require.ErrorIs(t, err, cause)
		require.Equal(t, "cause", err.Error())
	}
	require.NotEmpty(t, Drop(nil).Error())
	require.Len(t, reasonOf(errors.New(strings.Repeat("x", 5000))), maxReason)
	require.NotEmpty(t, reasonOf(errors.New("")))
}

func TestDefaultBackoff(t *testing.T) {
	t.Parallel()
	for attempt := range 100 {
		most := min(time.Minute, time.Second<<min(max(attempt-1, 0), 10))
		d := defaultBackoff(attempt)
		require.LessOrEqual(t, d, most)
		require.Greater(t, d, most*3/4-1)
	}
}

type everyKind struct {
	S    string
	B    bool
	I    int16
	U    uint32
	F    float32
	Y    []byte
	T    time.Time
	Name string `stream:"other"`
	Skip int    `stream:"-"`
}

func TestFields(t *testing.T) {
	t.Parallel()
	c := Fields[everyKind]()
	v := everyKind{"s\x00", true, -5, 7, 0.1, []byte{0xff}, time.Unix(5, 6).UTC(), "n", 3}
	fields, err := c.Append([]string{"x", "y"}, v)
	require.NoError(t, err)
	require.Equal(t, []string{"x", "y", "S", "s\x00", "B", "true", "I", "-5", "U", "7", "F", "0.1", "Y", "\xff", "T", "1970-01-01T00:00:05.000000006Z", "other", "n"}, fields)
	v.Skip = 0
	got, err := c.Decode(fields)
	require.NoError(t, err)
	require.Equal(t, v, got)
	for _, bad := range [][]string{{"I", "40000"}, {"B", "yes!"}, {"U", "-1"}, {"F", "x"}, {"T", "now"}} {
		_, err := c.Decode(bad)
		require.ErrorContains(t, err, bad[0])
	}
	for _, c := range []any{
		Fields[struct{}](), Fields[string](), Fields[struct{ M map[string]int }](), Fields[struct{ P *int }](),
		Fields[struct {
			A int `stream:"_a"`
		}](), Fields[struct {
			A int
			B int `stream:"A"`
		}](),
	} {
		require.Error(t, c.(interface{ check() error }).check())
	}
}

func FuzzFields(f *testing.F) {
	c := Fields[everyKind]()
	f.Add("I", "5", "T", "1970-01-01T00:00:05Z")
	f.Fuzz(func(t *testing.T, n1, v1, n2, v2 string) {
		v, err := c.Decode([]string{n1, v1, n2, v2})
		if err != nil {
			return
		}
		fields, err := c.Append(nil, v)
		if err != nil { // a year that RFC 3339 has no place for
			return
		}
		again, err := c.Decode(fields)
		require.NoError(t, err)
		same, err := c.Append(nil, again)
		require.NoError(t, err)
		require.Equal(t, fields, same)
	})
}

func FuzzJSON(f *testing.F) {
	c := JSON[[]string]()
	f.Add(`["a"]`, "data")
	f.Fuzz(func(t *testing.T, value, name string) {
		v, err := c.Decode([]string{"x", "y", name, value})
		if name != jsonField {
			require.Error(t, err)
		}
		if err != nil {
			return
		}
		fields, err := c.Append(nil, v)
		require.NoError(t, err)
		again, err := c.Decode(fields)
		require.NoError(t, err)
		require.Equal(t, v, again)
	})
}

// pointerJSON is a type whose methods are its pointer's.
type pointerJSON struct{ n int }

func (p *pointerJSON) MarshalJSON() ([]byte, error) {
	return strconv.AppendInt(nil, int64(p.n), 10), nil
}

func (p *pointerJSON) UnmarshalJSON(text []byte) (err error) {
	p.n, err = strconv.Atoi(string(text))
	return err
}

// Encoders are used again, and texts that they have made stay as they are: a client may keep them.
func TestJSON_TextsStay(t *testing.T) {
	t.Parallel()
	c := JSON[string]()
	var fields, want []string
	for i := range 2000 {
		v := strings.Repeat(string(rune('a'+i%26)), rand.IntN(100))
		if i%100 == 0 {
			v = strings.Repeat("<long>", 1000)
		}
		text, err := json.Marshal(v)
		require.NoError(t, err)
		want = append(want, jsonField, string(text))
		fields, err = c.Append(fields, v)
		require.NoError(t, err)
	}
	require.Equal(t, want, fields)

	broken := JSON[any]()
	_, err := broken.Append(nil, func() {})
	require.Error(t, err)
	fields, err = broken.Append(nil, 7)
	require.NoError(t, err, "an error is of one value")
	require.Equal(t, []string{jsonField, "7"}, fields)

	p := JSON[pointerJSON]()
	fields, err = p.Append(nil, pointerJSON{5})
	require.NoError(t, err)
	require.Equal(t, []string{jsonField, "5"}, fields)
	got, err := p.Decode(fields)
	require.NoError(t, err)
	require.Equal(t, pointerJSON{5}, got)
}

// What is decoded in a shorter way is what encoding/json makes of it.
func FuzzJSONString(f *testing.F) {
	c := JSON[string]()
	for _, text := range []string{`"plain"`, `""`, `"`, `"a"b"`, `"\""`, `"é"`, "\"\x7f\"", "\"\x1f\"", "\"\xff\"", ` "a"`, `null`, `7`, ``, `"a" "b"`} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var want string
		wantErr := json.Unmarshal([]byte(text), &want)
		got, err := c.Decode([]string{jsonField, text})
		require.Equal(t, wantErr == nil, err == nil)
		require.Equal(t, want, got)
	})
}

// Each task is taken once, however many take at once, and close returns the others.
func TestQueue_EachTaskOnce(t *testing.T) {
	t.Parallel()
	for range 20 {
		q := newQueue[int](8, func(bool) {})
		var mu sync.Mutex
		seen := map[ID]int{}
		note := func(tasks []*task[int]) {
			mu.Lock()
			defer mu.Unlock()
			for _, x := range tasks {
				seen[x.id]++
			}
		}
		var wg sync.WaitGroup
		for n := range 8 {
			wg.Go(func() {
				for {
					tasks, _ := q.take(1 + n%3)
					if tasks == nil {
						return
					}
					note(tasks)
				}
			})
		}
		total := 0
		for range 100 {
			var tasks []*task[int]
			for range rand.IntN(20) {
				tasks = append(tasks, &task[int]{id: ID(strconv.Itoa(total))})
				total++
			}
			q.push(tasks...)
		}
		note(q.close())
		wg.Wait()
		require.Len(t, seen, total)
		for id, n := range seen {
			require.Equal(t, 1, n, id)
		}
	}
}

// Lanes against a model: of each key one goes on at a time, the oldest that waits; of those that are to be alone one in all.
func TestLanes_OneAtATime(t *testing.T) {
	t.Parallel()
	for seed := range uint64(50) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		l := &lanes[int]{keys: map[string][]*task[int]{}}
		var running []*task[int]
		parked := map[*task[int]]bool{}
		entered, finished := 0, 0
		admit := func(tasks ...*task[int]) {
			running = append(running, tasks...)
			keys, alone := map[string]int{}, 0
			for _, x := range running {
				if x.keyed {
					keys[x.key]++
					require.Equal(t, 1, keys[x.key])
				}
				if x.alone {
					alone++
					require.Equal(t, 1, alone)
				}
			}
		}
		for step := 0; step < 400 || finished < entered; step++ {
			switch {
			case step < 400 && rnd.IntN(2) == 0:
				x := &task[int]{id: ID(strconv.Itoa(step) + "-1"), keyed: rnd.IntN(3) > 0, key: strconv.Itoa(rnd.IntN(5)), alone: rnd.IntN(4) == 0}
				entered++
				if l.enter(x) {
					admit(x)
				}
			case len(parked) > 0 && rnd.IntN(2) == 0:
				for x := range parked {
					delete(parked, x)
					if l.enter(x) {
						admit(x)
					}
					break
				}
			case len(running) > 0:
				i := rnd.IntN(len(running))
				x := running[i]
				running = slices.Delete(running, i, i+1)
				done := rnd.IntN(4) > 0
				if next := l.leave(x, done); done {
					finished++
					admit(next...)
				} else {
					parked[x] = true
					admit(next...)
				}
			}
		}
		require.Empty(t, l.close())
	}
}

// Also where an int has 32 bits: GOARCH=386.
func TestQueue_NothingIsTakenTwiceAfterClose(t *testing.T) {
	t.Parallel()
	q := newQueue[int](1, func(bool) {})
	q.push(&task[int]{id: "1-0"}, &task[int]{id: "2-0"}, &task[int]{id: "3-0"})
	got, _ := q.take(1)
	require.Len(t, got, 1)
	require.Len(t, q.close(), 2)
	got, _ = q.take(1)
	require.Nil(t, got, "it was handled, or handed over")
}

func newTestConsumer(t *testing.T) *consumer[int] {
	t.Helper()
	s, err := New(noClient{}, "k", Options[int]{})
	require.NoError(t, err)
	g := s.Group("g", GroupOptions[int]{})
	require.NoError(t, g.err)
	return g.newConsumer(nil, nil)
}

// One message that waits for its next attempt keeps none of those that were read with it in memory.
func TestConsumer_AParkedTaskKeepsNoOther(t *testing.T) {
	t.Parallel()
	const n = 10
	entries, fields := make([]entry, n), make([]weak.Pointer[rueidis.RedisMessage], n)
	for i := range entries {
		entries[i] = entry{ID(strconv.Itoa(i+1) + "-0"), make([]rueidis.RedisMessage, 2)}
		fields[i] = weak.Make(&entries[i].fields[0])
	}
	kept := newTestConsumer(t).newTasks(entries, 0)[n/2]
	clear(entries)
	runtime.GC()
	for i := range fields {
		require.Equal(t, i == n/2, fields[i].Value() != nil, i)
	}
	runtime.KeepAlive(kept)
}

// A message that is lost while it is put aside for its next attempt gives its key free.
func TestConsumer_WhatIsLostHoldsNoKey(t *testing.T) {
	t.Parallel()
	c := newTestConsumer(t)
	for i := range 50_000 {
		x := &task[int]{id: ID(strconv.Itoa(i+1) + "-0"), key: "k", keyed: true}
		c.mu.Lock()
		c.tasks[x.id] = x
		entered := c.lanes.enter(x)
		c.mu.Unlock()
		require.True(t, entered, i)
		var wg sync.WaitGroup
		wg.Go(func() { c.lose(x) })
		c.park(x, time.Hour)
		wg.Wait()
	}
}
