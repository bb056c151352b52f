package stream

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/rueidis"
)

// ID is the id of an entry, "milliseconds-sequence" as Redis makes it: milliseconds since 1970 by the server's clock.
type ID string

// Latest stands for the last entry that the stream has at the moment, or has had.
const Latest ID = "$"

// Time returns when the entry was made, by the server's clock, or the zero time if id is not of an entry.
func (id ID) Time() time.Time {
	ms, err := strconv.ParseInt(id.millis(), 10, 64)
	if err != nil {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}

func (id ID) millis() string {
	ms, _, _ := strings.Cut(string(id), "-")
	return ms
}

// valid reports whether Redis takes id for the id of an entry.
func (id ID) valid() bool {
	ms, seq, ok := strings.Cut(string(id), "-")
	if _, err := strconv.ParseUint(ms, 10, 64); err != nil {
		return false
	}
	_, err := strconv.ParseUint(seq, 10, 64)
	return !ok || err == nil
}

// Options configures a [Stream]; the zero value works.
type Options[T any] struct {
	// Codec turns values into the fields of entries and back. Defaults to [JSON].
	Codec Codec[T]

	// MaxLen makes Publish remove the oldest entries of more than about so many, whether or not anybody has handled them:
	// it is for streams that are read with Tail. Consumers' are trimmed with TrimAcked, or by GroupOptions.DeleteOnAck.
	// Not negative. 0, the default, removes nothing.
	MaxLen int64

	// IdempotencyTTL is how long Redis remembers the keys of [IdempotencyKey]. Whole milliseconds, at least 1ms. Defaults to 24h.
	IdempotencyTTL time.Duration
}

const defaultIdempotencyTTL = 24 * time.Hour

func (o *Options[T]) setDefaults() error {
	if o.Codec == nil {
		o.Codec = JSON[T]()
	}
	if c, ok := o.Codec.(interface{ check() error }); ok {
		if err := c.check(); err != nil {
			return fmt.Errorf("Options.Codec: %w", err)
		}
	}
	if o.MaxLen < 0 {
		return fmt.Errorf("Options.MaxLen must not be negative, got %d", o.MaxLen)
	}
	if o.IdempotencyTTL == 0 {
		o.IdempotencyTTL = defaultIdempotencyTTL
	}
	if o.IdempotencyTTL < time.Millisecond || o.IdempotencyTTL%time.Millisecond != 0 {
		return fmt.Errorf("Options.IdempotencyTTL must be whole milliseconds and at least 1ms, got %v", o.IdempotencyTTL)
	}
	return nil
}

// Stream publishes and reads values of one stream. It is safe for concurrent use, owns no goroutine and never closes the client.
type Stream[T any] struct {
	client rueidis.Client
	key    string
	opts   Options[T]
	maxLen string    // Options.MaxLen, "" if there is none
	fields sync.Pool // of *[]string
}

// New returns a stream. key is the key that the stream has in Redis: not empty, and either without braces or with a hash tag,
// since other keys must be in the same slot.
func New[T any](client rueidis.Client, key string, opts Options[T]) (*Stream[T], error) {
	if client == nil {
		return nil, errors.New("stream: client is required")
	}
	if key == "" {
		return nil, errors.New("stream: key must not be empty")
	}
	if strings.ContainsAny(key, "{}") && !isTagged(key) {
		return nil, fmt.Errorf("stream: key must have no braces, or a hash tag, got %q", key)
	}
	if err := opts.setDefaults(); err != nil {
		return nil, fmt.Errorf("stream: %w", err)
	}
	s := &Stream[T]{client: client, key: key, opts: opts}
	if opts.MaxLen > 0 {
		s.maxLen = strconv.FormatInt(opts.MaxLen, 10)
	}
	return s, nil
}

// isTagged reports whether Redis hashes a part of key only.
func isTagged(key string) bool {
	_, after, ok := strings.Cut(key, "{")
	return ok && strings.Index(after, "}") > 0
}

// keyOf names what belongs to a stream, in its slot; doc.go lists them.
func (s *Stream[T]) keyOf(part string) string {
	if isTagged(s.key) {
		return s.key + ":" + part
	}
	return "{" + s.key + "}:" + part
}

func (s *Stream[T]) delayedKey() string          { return s.keyOf("delayed") }
func (s *Stream[T]) dueKey() string              { return s.keyOf("due") }
func (s *Stream[T]) onceKey(id string) string    { return s.keyOf("once:" + id) }
func (s *Stream[T]) deadKey(group string) string { return s.keyOf("dead:" + group) }

// epoch is the origin of the package's monotonic clock.
var epoch = time.Now()

func sinceEpoch() time.Duration { return time.Since(epoch) }

func millis(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }
