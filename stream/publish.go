package stream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/internal/script"
)

// PublishOption is an option of [Stream.Publish] and [Stream.PublishBatch].
type PublishOption func(*publication)

type publication struct {
	once    string
	hasOnce bool
	delay   time.Duration
	headers []string
	err     error
}

// byScript reports whether it takes more than XADD.
func (p *publication) byScript() bool { return p.hasOnce || p.delay > 0 }

var plain publication // without options; nobody changes it

func publicationOf(opts []PublishOption) *publication {
	if len(opts) == 0 {
		return &plain
	}
	p := &publication{}
	for _, o := range opts {
		o(p)
	}
	return p
}

// IdempotencyKey makes publishing twice with the same key, within Options.IdempotencyTTL of the first, publish once and
// return the same id; what the second would publish is ignored. It is then sent again if its reply is lost. In a batch, the
// key of value i (from 0) is key, a slash and i, which must not be that of another message.
func IdempotencyKey(key string) PublishOption {
	return func(p *publication) { p.once, p.hasOnce = key, true }
}

// Header adds a header, which consumers find in Message.Headers.
func Header(name, value string) PublishOption {
	return func(p *publication) { p.headers = append(p.headers, headerPrefix+name, value) }
}

// Delay publishes after d, give or take a second, while a group of the stream runs: its consumers move what is due to the
// end of the stream. Until then it has no id, and Publish returns an empty one. Options.MaxLen does not apply to it. Whole
// milliseconds; not negative.
func Delay(d time.Duration) PublishOption {
	return func(p *publication) {
		if d < 0 || d%time.Millisecond != 0 {
			p.err = fmt.Errorf("delay must be whole milliseconds and not negative, got %v", d)
		}
		p.delay = d
	}
}

const (
	ownPrefix     = "_" // of the names of fields that are the package's own
	headerPrefix  = "_h:"
	redriveField  = "_redrive" // first in an entry that is for one group
	moreField     = "_more"    // last in a dead letter that had too many fields for a script
	publishChunk  = 512        // below rueidis' BlockingPipeline, beyond which it opens another connection
	trimEvery     = 64         // of the commands of a batch, one trims the stream
	scriptUnpacks = 7000       // what Lua can pass to a command, about; dead.lua has it too
)

var (
	errNoFields = errors.New("codec made no fields")
	errOwnField = errors.New("codec made a field whose name begins with an underscore")
	errTooMany  = errors.New("too many fields")
)

// Publish appends v and returns its id. With headers it has at most 3,500 fields. An error that is not Redis' own leaves
// open whether it did: publish again if twice is better than not at all, or use [IdempotencyKey]. One round trip.
func (s *Stream[T]) Publish(ctx context.Context, v T, opts ...PublishOption) (ID, error) {
	id, err := s.publish(ctx, v, publicationOf(opts))
	if err != nil {
		return "", fmt.Errorf("stream: publish: %w", err)
	}
	return id, nil
}

func (s *Stream[T]) publish(ctx context.Context, v T, p *publication) (ID, error) {
	if p.err != nil {
		return "", p.err
	}
	scratch := s.scratch()
	defer s.reuse(scratch)
	fields, err := s.encode((*scratch)[:0], v, p)
	*scratch = fields
	if err != nil {
		return "", err
	}
	var r rueidis.RedisResult
	if p.byScript() {
		r = script.Do(ctx, s.client, s.publishCall(fields, p, p.once))
	} else {
		r = s.client.Do(ctx, s.xadd(fields, true))
	}
	id, err := r.ToString()
	return ID(id), err
}

// scratch returns a slice for an entry's fields.
func (s *Stream[T]) scratch() *[]string {
	if f, ok := s.fields.Get().(*[]string); ok {
		return f
	}
	return new([]string)
}

// reuse takes a slice back from which commands were built.
func (s *Stream[T]) reuse(scratch *[]string) {
	clear(*scratch)
	s.fields.Put(scratch)
}

// BatchError says which values of a [Stream.PublishBatch] were not published, or may not have been.
type BatchError struct {
	// Errs has the error of each value, nil for those that were published.
	Errs []error
}

func (e *BatchError) Error() string {
	n := 0
	var first error
	for _, err := range e.Errs {
		if err != nil {
			n++
			first = cmpErr(first, err)
		}
	}
	return fmt.Sprintf("stream: publish: %d of %d values: %v", n, len(e.Errs), first)
}

func cmpErr(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

// Unwrap returns the errors of all values that have one.
func (e *BatchError) Unwrap() []error {
	return slices.DeleteFunc(slices.Clone(e.Errs), func(err error) bool { return err == nil })
}

// PublishBatch appends values in their order and returns their ids. If some fail the error is a [*BatchError], and the others
// are published. One round trip for each 512.
func (s *Stream[T]) PublishBatch(ctx context.Context, values []T, opts ...PublishOption) ([]ID, error) {
	p := publicationOf(opts)
	if p.err != nil {
		return nil, fmt.Errorf("stream: publish: %w", p.err)
	}
	ids := make([]ID, len(values))
	var errs []error
	fail := func(i int, err error) {
		if errs == nil {
			errs = make([]error, len(values))
		}
		errs[i] = err
	}
	for begin := 0; begin < len(values); begin += publishChunk {
		s.publishSome(ctx, values[begin:min(begin+publishChunk, len(values))], p, begin, ids, fail)
	}
	if errs != nil {
		return ids, &BatchError{errs}
	}
	return ids, nil
}

// publishSome publishes values, the first of which is the one at begin of the batch, in one round trip.
func (s *Stream[T]) publishSome(ctx context.Context, values []T, p *publication, begin int, ids []ID, fail func(int, error)) {
	scratch := s.scratch()
	defer s.reuse(scratch)
	index := make([]int, 0, len(values)) // of the values that could be encoded
	var cmds []rueidis.Completed
	var calls []script.Call
	if p.byScript() {
		calls = make([]script.Call, 0, len(values))
	} else {
		cmds = make([]rueidis.Completed, 0, len(values))
	}
	for i, v := range values {
		fields, err := s.encode((*scratch)[:0], v, p)
		*scratch = fields
		if err != nil {
			fail(begin+i, err)
			continue
		}
		if p.byScript() {
			calls = append(calls, s.publishCall(fields, p, p.once+"/"+strconv.Itoa(begin+i)))
		} else {
			cmds = append(cmds, s.xadd(fields, len(cmds)%trimEvery == 0))
		}
		index = append(index, begin+i)
	}
	var results []rueidis.RedisResult
	if p.byScript() {
		results = script.DoMulti(ctx, s.client, calls)
	} else {
		results = s.client.DoMulti(ctx, cmds...)
	}
	for i, r := range results {
		id, err := r.ToString()
		if err != nil {
			fail(index[i], err)
			continue
		}
		ids[index[i]] = ID(id)
	}
}

// encode appends the fields of an entry.
func (s *Stream[T]) encode(fields []string, v T, p *publication) ([]string, error) {
	fields = append(fields, p.headers...)
	own := len(fields)
	fields, err := s.opts.Codec.Append(fields, v)
	if err != nil {
		return fields, err
	}
	if len(fields) == own || (len(fields)-own)%2 != 0 {
		return fields, errNoFields
	}
	if len(fields) > scriptUnpacks {
		return fields, errTooMany
	}
	for i := own; i < len(fields); i += 2 {
		if fields[i] != "" && fields[i][:1] == ownPrefix {
			return fields, errOwnField
		}
	}
	return fields, nil
}

func (s *Stream[T]) xadd(fields []string, trim bool) rueidis.Completed {
	cmd := s.client.B().Arbitrary("XADD").Keys(s.key)
	if trim && s.maxLen != "" {
		cmd = cmd.Args("MAXLEN", "~", s.maxLen)
	}
	return cmd.Args("*").Args(fields...).Build()
}

func (s *Stream[T]) publishCall(fields []string, p *publication, once string) script.Call {
	keys, sc, first := []string{s.key}, publishScript, "0"
	if p.hasOnce {
		keys, sc, first = append(keys, s.onceKey(once)), onceScript, "1"
	}
	if p.delay > 0 {
		keys = append(keys, s.delayedKey(), s.dueKey())
	}
	args := append([]string{first, millis(s.opts.IdempotencyTTL), millis(p.delay), strconv.FormatInt(s.opts.MaxLen, 10)}, fields...)
	return sc.Call(keys, args...)
}

// trimChunk bounds how long one round trip of TrimAcked occupies Redis.
const trimChunk = 10_000

// TrimAcked removes the entries that every group of the stream has acknowledged, or had deleted, before the first that one has
// not, and returns how many. The last entry that was delivered stays. Without groups it removes nothing.
func (s *Stream[T]) TrimAcked(ctx context.Context) (int64, error) {
	var total int64
	for {
		r, err := script.Do(ctx, s.client, trimScript.Call([]string{s.key}, strconv.Itoa(trimChunk))).AsIntSlice()
		if err != nil {
			return total, fmt.Errorf("stream: trim: %w", err)
		}
		if len(r) != 2 {
			return total, errors.New("stream: trim: unexpected reply")
		}
		total += r[0]
		if r[1] == 0 {
			return total, nil
		}
	}
}
