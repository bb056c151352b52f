package timeseries

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/internal/deadline"
	"github.com/redispatterns/redispatterns/internal/key"
)

var (
	// ErrTooLate means that no resolution keeps the event's time any more, or that it is older than Options.MaxLate.
	// Nothing was written.
	ErrTooLate = errors.New("timeseries: too late")

	// ErrFuture means that the event's time is further ahead than Options.MaxFuture. Nothing was written.
	ErrFuture = errors.New("timeseries: too far in the future")

	// ErrOverflow means that a sum would leave its range. What was to be added was added nowhere; a Sum that is read fails
	// alone, and smaller intervals can still be read.
	ErrOverflow = errors.New("timeseries: overflow")

	// ErrUnknown means that Redis has not answered, so that the event may have been counted or not. It is not sent again.
	ErrUnknown = errors.New("timeseries: unknown whether it was counted")

	// ErrFull means that Options.MaxPending events wait to be written. This one was not counted.
	ErrFull = errors.New("timeseries: too much is pending")

	// ErrClosed means that Close has been called.
	ErrClosed = errors.New("timeseries: closed")

	// ErrResolution means that no resolution that is kept for that long has a bucket border where one is asked for.
	ErrResolution = errors.New("timeseries: no resolution can express this")

	// ErrTooMany means that an answer would have more than Range.MaxPoints points, or would be made of more than 20,000
	// keys. Nothing was read.
	ErrTooMany = errors.New("timeseries: too many points")
)

const (
	maxLevels     = 8
	maxStep       = 24 * time.Hour
	maxKeep       = 100 * 366 * 24 * time.Hour
	maxSeriesName = 1024    // bytes
	maxMember     = 1024    // bytes
	maxExact      = 1 << 53 // what a float64 counts to
	maxKeys       = 20_000  // of one read

	defaultPrefix     = "ts"
	defaultMaxFuture  = time.Minute
	defaultMaxPending = 100_000
	defaultTopSize    = 100
	defaultTimeout    = time.Second
)

// Resolution is one of the widths of buckets that a store has.
type Resolution struct {
	// Step is the width: whole seconds, at most 24h. Each divides the next larger one. Buckets begin at multiples of it since
	// 1970-01-01 UTC.
	Step time.Duration
	// Keep is for how long its buckets can be read, counted from their end: whole seconds, at least the next larger Step, and
	// no less than what smaller ones have.
	Keep time.Duration
}

// Options configures a [Store]; the zero value works. All processes that use a store should have the same.
type Options struct {
	// Prefix is what all keys begin with. Not empty, no braces. Defaults to "ts".
	Prefix string

	// Resolutions are the widths of buckets that each event is counted in, from the smallest to the largest, at most 8. One
	// that is added later begins empty, and what is read from it before then is not known to be missing. Defaults to
	// 10s for 6h, 1m for 7 days, 1h for 400 days.
	Resolutions []Resolution

	// FlushEvery is 0 if each call shall return when Redis has what it adds. Else calls return at once, and what they add is
	// gathered in this process and written this often, by one goroutine per part of the series that has any; what was
	// not written when the process ends is lost, up to the last FlushEvery and what Redis did not take: use Flush and Close.
	// At least 1ms, at most 1h.
	FlushEvery time.Duration

	// MaxPending bounds the events of different buckets, and members, that wait in this process: the call that reaches it
	// may go beyond. At least 1000. Defaults to 100,000.
	MaxPending int

	// MaxLate is how old an event may be. 0 is as old as a resolution keeps it. Whole seconds.
	MaxLate time.Duration

	// MaxFuture is how far ahead of Clock an event may be. Whole seconds, at most 24h. Defaults to 1m.
	MaxFuture time.Duration

	// TopSize is how many members the list of a bucket has: for good bounds ten times what is asked for. All processes must
	// have the same; after a change lists begin anew. 1 to 10,000. Defaults to 100.
	TopSize int

	// Timeout bounds each round trip; a call waits for two at most, the first ones for three, more if thousands of buckets
	// are written at once. With FlushEvery, a Flush may take as many as there are parts to write: 2000 buckets or members
	// each. The client's Dialer.Timeout should not be longer. At least 1ms, at most 1h. Defaults to 1s.
	Timeout time.Duration

	// Clock says what time it is, for events without a time of their own. nil is the Redis server's time, whatever this
	// machine's clock says: it is asked for once, compared with each write, and carried on by the monotonic clock in between.
	Clock func() time.Time

	// Hooks are told what the store does.
	Hooks Hooks
}

// Hooks are optional functions that a store calls, for metrics, from several goroutines at once. Keep them fast, and do not
// let them panic. Nil ones cost nothing.
type Hooks struct {
	// Drop is called with events that were not counted, or not known to be, and why. With FlushEvery nobody else is told.
	Drop func(ctx context.Context, events int64, err error)
	// Write is called after each round trip that writes.
	Write func(ctx context.Context, info WriteInfo)
}

// WriteInfo describes a round trip.
type WriteInfo struct {
	Buckets int   // of the smallest width, each 1000 members as one more
	Events  int64 // how many calls there were
	Took    time.Duration
	Err     error // of the round trip as a whole
}

func (o *Options) setDefaults() error {
	if o.Prefix == "" {
		o.Prefix = defaultPrefix
	}
	if err := key.CheckPrefix(o.Prefix); err != nil {
		return fmt.Errorf("Options.Prefix: %w", err)
	}
	if len(o.Resolutions) == 0 {
		o.Resolutions = []Resolution{
			{10 * time.Second, 6 * time.Hour}, {time.Minute, 7 * 24 * time.Hour}, {time.Hour, 400 * 24 * time.Hour},
		}
	}
	o.Resolutions = slices.Clone(o.Resolutions) // the caller may change theirs
	if err := checkResolutions(o.Resolutions); err != nil {
		return fmt.Errorf("Options.Resolutions: %w", err)
	}
	for _, n := range []struct {
		name                string
		value               *int
		fallback, low, high int
	}{
		{"MaxPending", &o.MaxPending, defaultMaxPending, 1000, 1e9},
		{"TopSize", &o.TopSize, defaultTopSize, 1, 10_000},
	} {
		if *n.value == 0 {
			*n.value = n.fallback
		}
		if *n.value < n.low || *n.value > n.high {
			return fmt.Errorf("%s must be %d to %d, got %d", "Options."+n.name, n.low, n.high, *n.value)
		}
	}
	if o.MaxFuture == 0 {
		o.MaxFuture = defaultMaxFuture
	}
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	switch {
	case o.FlushEvery != 0 && (o.FlushEvery < time.Millisecond || o.FlushEvery > time.Hour):
		return fmt.Errorf("Options.FlushEvery must be 0 or 1ms to 1h, got %v", o.FlushEvery)
	case o.MaxLate < 0 || o.MaxLate%time.Second != 0:
		return fmt.Errorf("Options.MaxLate must be whole seconds, got %v", o.MaxLate)
	case o.MaxFuture < time.Second || o.MaxFuture > 24*time.Hour || o.MaxFuture%time.Second != 0:
		return fmt.Errorf("Options.MaxFuture must be whole seconds up to 24h, got %v", o.MaxFuture)
	case o.Timeout < time.Millisecond || o.Timeout > time.Hour:
		return fmt.Errorf("Options.Timeout must be 1ms to 1h, got %v", o.Timeout)
	}
	return nil
}

func checkResolutions(rs []Resolution) error {
	if len(rs) > maxLevels {
		return fmt.Errorf("more than %d", maxLevels)
	}
	for i, r := range rs {
		switch {
		case r.Step < time.Second || r.Step > maxStep || r.Step%time.Second != 0:
			return fmt.Errorf("each Step must be whole seconds from 1s to 24h, got %v", r.Step)
		case r.Keep < r.Step || r.Keep > maxKeep || r.Keep%time.Second != 0:
			return fmt.Errorf("the Keep of %v must be whole seconds, at least that and at most 100 years, got %v", r.Step, r.Keep)
		case i == 0:
		case r.Step <= rs[i-1].Step || r.Step%rs[i-1].Step != 0:
			return fmt.Errorf("the Step %v must be a larger multiple of %v", r.Step, rs[i-1].Step)
		case r.Keep < rs[i-1].Keep:
			return fmt.Errorf("the Keep of %v must be no less than that of %v", r.Step, rs[i-1].Step)
		case rs[i-1].Keep < r.Step:
			return fmt.Errorf("the Keep of %v must be at least %v", rs[i-1].Step, r.Step)
		}
	}
	return nil
}

// Store has series of events. It is safe for concurrent use and never closes the client. Writing starts goroutines, which
// end when nothing is left to write; Close waits for them.
type Store struct {
	client  rueidis.Client
	opts    Options
	keys    keyspace
	levels  levels
	lanes   []lane
	cluster bool
	clock   clock
	bounds  *deadline.Shared
	noDump  atomic.Bool // the server's DUMP is not ours to read
	totals  totals

	pending atomic.Int64 // ops and their members
	closed  atomic.Bool
	senders sync.WaitGroup
}

// New returns a store. name is 1 to 64 printable bytes without colons and braces; stores with other names or prefixes share nothing.
func New(client rueidis.Client, name string, opts Options) (*Store, error) {
	if client == nil {
		return nil, errors.New("timeseries: client is required")
	}
	if name == "" || len(name) > 64 || !utf8.ValidString(name) || strings.ContainsAny(name, ":{}") || strings.ContainsFunc(name, unicode.IsControl) {
		return nil, fmt.Errorf("timeseries: name must be 1 to 64 printable bytes without colons and braces, got %q", name)
	}
	if err := opts.setDefaults(); err != nil {
		return nil, fmt.Errorf("timeseries: %w", err)
	}
	s := &Store{
		client: client, opts: opts, keys: keyspace{opts.Prefix, name, opts.TopSize},
		cluster: client.Mode() == rueidis.ClientModeCluster, bounds: deadline.New(opts.Timeout),
	}
	for _, r := range opts.Resolutions {
		s.levels = append(s.levels, level{int64(r.Step / time.Second), int64(r.Keep / time.Second)})
	}
	n := lanes
	if s.cluster {
		n = clusterLanes
	}
	s.lanes = make([]lane, n)
	for i := range s.lanes {
		s.lanes[i] = lane{s: s, wake: make(chan struct{}, 1)}
	}
	return s, nil
}

// Counter counts the events of a series. It is a cheap handle.
type Counter struct {
	s      *Store
	series string
}

// Stats keeps count, sum, least and greatest of the values of a series. It is a cheap handle.
type Stats struct {
	s      *Store
	series string
}

// Distinct estimates how many different members a series has, with a standard error of 0.81 %. It is a cheap handle.
type Distinct struct {
	s      *Store
	series string
}

// Top finds the members of a series that are counted most often. It is a cheap handle.
type Top struct {
	s      *Store
	series string
}

// Counter returns the counter of a series: any bytes, at most 1024. Counters, Stats, Distincts and Tops of the same series
// have nothing in common but Delete.
func (s *Store) Counter(series string) Counter { return Counter{s, series} }

// Stats returns the statistics of a series.
func (s *Store) Stats(series string) Stats { return Stats{s, series} }

// Distinct returns the distinct count of a series.
func (s *Store) Distinct(series string) Distinct { return Distinct{s, series} }

// Top returns the top list of a series.
func (s *Store) Top(series string) Top { return Top{s, series} }

// Totals are what a store has done since New.
type Totals struct {
	Written int64 // events that Redis has confirmed; where a part of many members was refused, divided as they are
	Late    int64 // events that were too late
	Future  int64 // events that were too far ahead
	Refused int64 // events that overflowed, that there was no room for, or that Redis refused
	Unknown int64 // events of which it is not known whether they were counted
}

type totals struct{ written, late, future, refused, unknown atomic.Int64 }

// Totals returns what the store has done since New, in this process.
func (s *Store) Totals() Totals {
	t := &s.totals
	return Totals{t.written.Load(), t.late.Load(), t.future.Load(), t.refused.Load(), t.unknown.Load()}
}

// drop counts events that were not counted in Redis, and tells the hook.
func (s *Store) drop(ctx context.Context, events int64, err error) {
	switch {
	case errors.Is(err, ErrTooLate):
		s.totals.late.Add(events)
	case errors.Is(err, ErrFuture):
		s.totals.future.Add(events)
	case errors.Is(err, ErrUnknown):
		s.totals.unknown.Add(events)
	default:
		s.totals.refused.Add(events)
	}
	if s.opts.Hooks.Drop != nil {
		s.opts.Hooks.Drop(ctx, events, err)
	}
}

// Resolutions returns the store's resolutions, the smallest Step first.
func (s *Store) Resolutions() []Resolution { return slices.Clone(s.opts.Resolutions) }

// Delay is how long after it happened an event may be missing from answers, as long as Redis answers: FlushEvery and two Timeouts,
// which is a round trip that others have under way and its own. It is that of all processes if they have the same Options.
func (s *Store) Delay() time.Duration { return s.opts.FlushEvery + 2*s.opts.Timeout }

// Now returns what time it is by Options.Clock. The first call asks Redis.
func (s *Store) Now(ctx context.Context) (time.Time, error) {
	now, _, err := s.ready(ctx)
	if err != nil {
		return time.Time{}, fmt.Errorf("timeseries: now: %w", err)
	}
	return now.UTC(), nil
}

// Today returns the day that it is in loc, from its first instant to that of the next: 23 or 25 hours long where clocks are
// changed. See Now.
func (s *Store) Today(ctx context.Context, loc *time.Location) (from, to time.Time, err error) {
	if loc == nil {
		return from, to, errors.New("timeseries: today: location is required")
	}
	now, _, err := s.ready(ctx)
	if err != nil {
		return from, to, fmt.Errorf("timeseries: today: %w", err)
	}
	from, to = period(now, Day, loc)
	return from, to, nil
}
