package stream

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/redis/rueidis"
)

// Message is an entry of a stream.
type Message[T any] struct {
	ID    ID
	Value T
	// Headers are those of [Header]; nil if there are none.
	Headers map[string]string
	// Attempt is 1 when a group handles the message for the first time; 0 if it was read without a group.
	Attempt int
	// Redriven says that the message was a dead letter of a group, to which alone it is delivered again.
	Redriven bool
}

const (
	readBlock = time.Second     // how long a read waits for entries: what bounds everything else that ends it
	opTimeout = 3 * time.Second // of other round trips, if a lease is not shorter
	pageSize  = 100
	firstWait = 50 * time.Millisecond
	maxWait   = time.Second
)

var errReply = errors.New("unexpected reply")

// entry is an entry as Redis sends it.
type entry struct {
	id     ID
	fields []rueidis.RedisMessage // names and values in turn; none if it was deleted
}

func parseEntry(m rueidis.RedisMessage) (e entry, err error) {
	parts, err := m.ToArray()
	if err != nil || len(parts) < 2 {
		return e, errReply
	}
	id, err := parts[0].ToString()
	if err != nil {
		return e, errReply
	}
	e.id = ID(id)
	if !parts[1].IsNil() {
		if e.fields, err = parts[1].ToArray(); err != nil {
			return e, errReply
		}
	}
	return e, nil
}

func parseEntries(m rueidis.RedisMessage) ([]entry, error) {
	list, err := m.ToArray()
	if err != nil {
		return nil, errReply
	}
	entries := make([]entry, len(list))
	for i, m := range list {
		if entries[i], err = parseEntry(m); err != nil {
			return nil, err
		}
	}
	return entries, nil
}

// parseRead returns the entries of a reply to XREAD or XREADGROUP for one stream, none if it waited in vain.
func parseRead(r rueidis.RedisResult) ([]entry, error) {
	m, err := r.ToMessage()
	if rueidis.IsRedisNil(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if m.IsMap() { // RESP3: of streams
		streams, err := m.ToMap()
		if err != nil {
			return nil, errReply
		}
		for _, list := range streams {
			return parseEntries(list)
		}
		return nil, nil
	}
	streams, err := m.ToArray() // RESP2: of pairs
	if err != nil || len(streams) == 0 {
		return nil, errReply
	}
	pair, err := streams[0].ToArray()
	if err != nil || len(pair) != 2 {
		return nil, errReply
	}
	return parseEntries(pair[1])
}

// stringsOf returns the names and values of an entry, appended to scratch. What dead.lua has put into one field is taken out of it.
func stringsOf(fields []rueidis.RedisMessage, scratch []string) ([]string, error) {
	for i := range fields {
		s, err := fields[i].ToString()
		if err != nil {
			return scratch, errReply
		}
		scratch = append(scratch, s)
	}
	if n := len(scratch); n >= 2 && scratch[n-2] == moreField {
		if more, ok := unpackMore(scratch[:n-2:n-2], scratch[n-1]); ok {
			return more, nil
		}
	}
	return scratch, nil
}

// unpackMore appends strings that are each after their length and a colon, and returns false if packed is not that.
func unpackMore(fields []string, packed string) ([]string, bool) {
	for packed != "" {
		length, rest, _ := strings.Cut(packed, ":")
		n, err := strconv.Atoi(length)
		if err != nil || n < 0 || n > len(rest) {
			return nil, false
		}
		fields, packed = append(fields, rest[:n]), rest[n:]
	}
	return fields, len(fields)%2 == 0
}

// decode makes a message of an entry. scratch is for reuse. group is whose redriven entry it is, if it is one.
func decode[T any](codec Codec[T], e entry, scratch []string) (m *Message[T], group string, _ []string, err error) {
	m = &Message[T]{ID: e.id}
	all, err := stringsOf(e.fields, scratch[:0])
	if err != nil {
		return m, "", all, err
	}
	fields := all[:0]
	for i := 0; i+1 < len(all); i += 2 {
		name, value := all[i], all[i+1]
		if len(name) > 0 && name[0] == ownPrefix[0] {
			if h, ok := strings.CutPrefix(name, headerPrefix); ok {
				if m.Headers == nil {
					m.Headers = map[string]string{}
				}
				m.Headers[h] = value
				continue
			}
			if i == 0 && name == redriveField {
				m.Redriven, group = true, value
				continue
			}
		}
		fields = append(fields, name, value)
	}
	err = call(func() (err error) {
		m.Value, err = codec.Decode(fields)
		return err
	})
	return m, group, fields, err
}

// DecodeError means that the fields of an entry are not of a value.
type DecodeError struct{ Err error }

func (e *DecodeError) Error() string { return "stream: decode: " + e.Err.Error() }

// Unwrap returns the codec's error.
func (e *DecodeError) Unwrap() error { return e.Err }

// Tail yields the entries after the one of the id from, of which "" is before the first and [Latest] the last at the moment
// when the loop begins. It waits for more until ctx ends, which ends the loop. Nothing that is still in the stream is left
// out or comes twice, whatever happens to connections; to go on later, begin with the last id.
//
// An entry that cannot be decoded comes with a [*DecodeError] and its id, and the next ones follow. While Redis cannot be
// reached, Tail tries again, with pauses of a second at most. An error that Redis replies, such as that the key is no
// stream, is the last.
func (s *Stream[T]) Tail(ctx context.Context, from ID) iter.Seq2[*Message[T], error] {
	return func(yield func(*Message[T], error) bool) {
		fail := func(err error) { yield(&Message[T]{}, fmt.Errorf("stream: tail: %w", err)) }
		var wait backoff
		last := from
		if last == "" {
			last = "0-0"
		}
		if last != Latest && !last.valid() {
			fail(errors.New("from is not an id"))
			return
		}
		var scratch []string
		for ctx.Err() == nil {
			var entries []entry
			var err error
			if last == Latest {
				var id ID
				if id, err = s.lastID(ctx); err == nil {
					last = id
				}
			} else {
				entries, err = s.read(ctx, last)
			}
			if err != nil {
				if ctx.Err() != nil {
					return
				}
				if isFatal(err) {
					fail(err)
					return
				}
				wait.sleep(ctx)
				continue
			}
			wait = backoff{}
			for _, e := range entries {
				last = e.id
				if e.fields == nil {
					continue
				}
				var m *Message[T]
				m, _, scratch, err = decode(s.opts.Codec, e, scratch)
				if err != nil {
					err = &DecodeError{err}
				}
				if ctx.Err() != nil || !yield(m, err) {
					return
				}
			}
		}
	}
}

// ofPrimary finishes a command that reads what replicas may not have yet: the client does not know that it only reads, and
// sends it to none of them, whatever its SendToReplicas says.
func (*Stream[T]) ofPrimary(cmd unbuilt) rueidis.Completed {
	// Pinned: rueidis sends it again if its reply is lost, and uses its memory again when it has one, while the writer of a
	// connection that was killed may not have let go of it.
	return cmd.Build().ToRetryable().Pin()
}

// lastID is what an entry that is added now comes after.
func (s *Stream[T]) lastID(ctx context.Context) (ID, error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	info, err := s.client.Do(ctx, s.ofPrimary(s.client.B().Arbitrary("XINFO", "STREAM").Keys(s.key))).AsMap()
	if e, ok := rueidis.IsRedisErr(err); ok && strings.Contains(e.Error(), "no such key") {
		return "0-0", nil
	}
	if err != nil {
		return "", err
	}
	last := info["last-generated-id"]
	id, err := last.ToString()
	return ID(id), err
}

func (s *Stream[T]) read(ctx context.Context, last ID) ([]entry, error) {
	ctx, cancel := context.WithTimeout(ctx, readBlock+opTimeout)
	defer cancel()
	return parseRead(s.client.Do(ctx, s.client.B().Xread().Count(pageSize).Block(readBlock.Milliseconds()).Streams().Key(s.key).Id(string(last)).
		Build().Pin().ToPipe().UnblockOnCancel())) // pinned as in ofPrimary
}

// Range yields the entries from the id from to the id to, both included; "" is the first or the last. An entry that cannot
// be decoded comes with a [*DecodeError] and its id; any other error is the last. One round trip per 100 entries.
func (s *Stream[T]) Range(ctx context.Context, from, to ID) iter.Seq2[*Message[T], error] {
	return func(yield func(*Message[T], error) bool) {
		var scratch []string
		for e, err := range s.entries(ctx, s.key, from, to) {
			if err != nil {
				yield(&Message[T]{}, fmt.Errorf("stream: range: %w", err))
				return
			}
			var m *Message[T]
			m, _, scratch, err = decode(s.opts.Codec, e, scratch)
			if err != nil {
				err = &DecodeError{err}
			}
			if !yield(m, err) {
				return
			}
		}
	}
}

// entries yields the entries of a stream, page by page.
func (s *Stream[T]) entries(ctx context.Context, key string, from, to ID) iter.Seq2[entry, error] {
	return func(yield func(entry, error) bool) {
		start, end := "-", "+"
		if from != "" {
			start = string(from)
		}
		if to != "" {
			end = string(to)
		}
		for {
			cmd := s.client.B().Arbitrary("XRANGE").Keys(key).Args(start, end, "COUNT", strconv.Itoa(pageSize))
			m, err := s.client.Do(ctx, s.ofPrimary(cmd)).ToMessage()
			if err != nil {
				yield(entry{}, err)
				return
			}
			page, err := parseEntries(m)
			if err != nil {
				yield(entry{}, err)
				return
			}
			for _, e := range page {
				if !yield(e, nil) {
					return
				}
			}
			if len(page) < pageSize {
				return
			}
			start = "(" + string(page[len(page)-1].id)
		}
	}
}

// backoff is a pause that grows with failures in a row.
type backoff struct{ last time.Duration }

func (b *backoff) next() time.Duration {
	b.last = min(max(2*b.last, firstWait), maxWait)
	return b.last - time.Duration(rand.Int64N(int64(b.last/4)))
}

func (b *backoff) sleep(ctx context.Context) { sleep(ctx, b.next()) }

// sleep waits for d, or until ctx ends: then it returns false.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// isFatal reports whether Redis' answer will not change by waiting.
func isFatal(err error) bool {
	e, ok := rueidis.IsRedisErr(err)
	if !ok {
		return errors.Is(err, rueidis.ErrClosing) || errors.Is(err, errReply)
	}
	for _, prefix := range []string{"WRONGTYPE", "NOPERM", "NOAUTH", "WRONGPASS", "ERR"} {
		if strings.HasPrefix(e.Error(), prefix) {
			return true
		}
	}
	return false
}
