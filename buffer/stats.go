package buffer

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"time"

	"github.com/redispatterns/redispatterns/internal/script"
)

// Stats describes a buffer: first what Redis has of all processes, then what this one has.
type Stats struct {
	Pending     int64         // fields that are not flushed yet
	OldestAge   time.Duration // how long the oldest of them has been there, by Redis' clock; alert on this
	LiveBatches int           // batches that are claimed and not acknowledged: one per shard at most
	Attempts    int           // of the live batch that has had most
	DeadLetters int64         // fields
	Regressions int64         // how often a shard lost what it had, as far as it still knows: see Hooks.Regress
	Evicts      bool          // whether a server is known to evict keys: see ErrEvicting

	Local   int    // rows of this process that Redis has not confirmed
	Dropped uint64 // values, posted or unconfirmed, that were not counted since the sum would overflow
}

// Stats reads how the buffer is doing, in one round trip after another that tells the number of shards.
func (b *Buffer) Stats(ctx context.Context) (Stats, error) {
	var s Stats
	for _, shard := range b.shards {
		shard.mu.Lock()
		s.Local += shard.rows
		shard.mu.Unlock()
	}
	s.Dropped = b.stats.dropped.Load()
	n, err := b.register(ctx)
	if err != nil {
		return s, fmt.Errorf("buffer: stats: %w", err)
	}
	calls := make([]script.Call, n)
	for i := range calls {
		k := b.keys.shard(i, "")
		calls[i] = statsScript.Call([]string{k.meta, k.cur, k.gen, k.batch, k.dead})
	}
	ctx, cancel := context.WithTimeout(ctx, b.opts.OpTimeout)
	defer cancel()
	for _, r := range script.DoMulti(ctx, b.client, calls) {
		v, err := r.AsIntSlice()
		if err == nil && len(v) != 7 {
			err = errForeign
		}
		if err != nil {
			return s, fmt.Errorf("buffer: stats: %w", err)
		}
		s.Pending += v[0]
		s.OldestAge = max(s.OldestAge, time.Duration(v[1])*time.Millisecond)
		s.LiveBatches += int(v[2])
		s.Attempts = max(s.Attempts, int(v[3]))
		s.DeadLetters += v[4]
		s.Regressions += v[5]
		s.Evicts = s.Evicts || v[6] == 1
	}
	return s, nil
}

// Pending returns what is on its way to the sink for each of the entities that have anything: what Redis has, dead letters
// not included. Call it first and read the sink's value then: since a batch that the sink has applied counts until it is
// acknowledged, both together may be too large for a moment, never too small. In the other order, what is flushed and
// acknowledged in between is missing.
func (b *Buffer) Pending(ctx context.Context, entities ...string) (map[string]Row, error) {
	rows, err := b.readPending(ctx, entities)
	if err != nil {
		return nil, fmt.Errorf("buffer: pending: %w", err)
	}
	return rows, nil
}

func (b *Buffer) readPending(ctx context.Context, entities []string) (map[string]Row, error) {
	const perCall = 100
	byShard := map[int][]string{}
	for _, e := range slices.Compact(slices.Sorted(slices.Values(entities))) {
		n := shardOf(e, len(b.shards))
		byShard[n] = append(byShard[n], e)
	}
	var calls []script.Call
	var asked [][]string
	for n, entities := range byShard {
		k := b.keys.shard(n, "")
		for chunk := range slices.Chunk(entities, perCall) {
			fields := make([]string, 0, len(chunk)*len(b.columns))
			for _, e := range chunk {
				for _, c := range b.columns {
					fields = append(fields, c.field(e))
				}
			}
			calls = append(calls, pendingScript.Call([]string{k.cur, k.gen, k.batch}, fields...))
			asked = append(asked, chunk)
		}
	}
	if len(calls) == 0 {
		return map[string]Row{}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, b.opts.OpTimeout)
	defer cancel()
	rows := map[string]Row{}
	for i, r := range script.DoMulti(ctx, b.client, calls) {
		replies, err := r.ToArray()
		if err != nil {
			return nil, err
		}
		width := len(asked[i]) * len(b.columns)
		if len(replies) != 3*width {
			return nil, errForeign
		}
		for j := range width {
			entity, c := asked[i][j/len(b.columns)], j%len(b.columns)
			var parts []Value // of cur, gen and batch
			for k := j; k < len(replies); k += width {
				if replies[k].IsNil() {
					continue
				}
				text, err := replies[k].ToString()
				if err != nil {
					return nil, err
				}
				v, err := decodeValue(b.columns[c].Op, text)
				if err != nil {
					return nil, err
				}
				parts = append(parts, v)
			}
			if len(parts) == 0 {
				continue
			}
			row, ok := rows[entity]
			if !ok {
				row = Row{entity, make([]Value, len(b.columns))}
				rows[entity] = row
			}
			if row.Values[c], ok = mergeAll(b.columns[c].Op, parts); !ok {
				return nil, fmt.Errorf("%w: %s", ErrOverflow, b.columns[c].Name)
			}
		}
	}
	return rows, nil
}

// DeadLetter is a value that the sink refused for good.
type DeadLetter struct {
	Entity string
	Column Column
	Value  Value
	Reason string // of the latest refusal
}

// DeadLetters returns all values that the sink refused for good: one per field, merged, or more if their sum overflows. They
// stay until Replay. The order is arbitrary, and a letter that comes, or grows, meanwhile may or may not be seen.
func (b *Buffer) DeadLetters(ctx context.Context) iter.Seq2[DeadLetter, error] {
	return func(yield func(DeadLetter, error) bool) {
		err := b.scanDead(ctx, func(_ shardKeys, letters []storedLetter) error {
			for _, stored := range letters {
				letter, err := stored.decode()
				if err != nil {
					return err
				}
				if !yield(letter, nil) {
					return errStop
				}
			}
			return nil
		})
		if err != nil && !errors.Is(err, errStop) {
			yield(DeadLetter{}, fmt.Errorf("buffer: dead letters: %w", err))
		}
	}
}

var errStop = errors.New("stop")

// storedLetter is a dead letter as Redis has it.
type storedLetter struct{ field, value, reason string }

func (l storedLetter) decode() (DeadLetter, error) {
	column, entity, err := splitField(originalField(l.field))
	if err != nil {
		return DeadLetter{}, err
	}
	v, err := decodeValue(column.Op, l.value)
	if err != nil {
		return DeadLetter{}, err
	}
	return DeadLetter{Entity: entity, Column: column, Value: v, Reason: l.reason}, nil
}

// originalField takes out the digits that ack.lua puts after the first byte of a field.
func originalField(dead string) string {
	for i := 1; i < len(dead); i++ {
		if dead[i] < '0' || dead[i] > '9' {
			return dead[:1] + dead[i:]
		}
	}
	return dead
}

// scanDead calls fn with portions of the dead letters of each shard.
func (b *Buffer) scanDead(ctx context.Context, fn func(k shardKeys, letters []storedLetter) error) error {
	n, err := b.register(ctx)
	if err != nil {
		return err
	}
	for i := range n {
		k := b.keys.shard(i, "")
		// A scan may return a field twice.
		seen := map[string]struct{}{}
		for cursor, first := "0", true; first || cursor != "0"; first = false {
			var found, letters []storedLetter
			cursor, found, err = b.scan(ctx, k, cursor)
			if err != nil {
				return err
			}
			for _, l := range found {
				if _, ok := seen[l.field]; !ok {
					seen[l.field] = struct{}{}
					letters = append(letters, l)
				}
			}
			if len(letters) == 0 {
				continue
			}
			if err := fn(k, letters); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *Buffer) scan(ctx context.Context, k shardKeys, cursor string) (next string, letters []storedLetter, err error) {
	ctx, cancel := b.largeTimeout(ctx)
	defer cancel()
	reply, err := script.Do(ctx, b.client, lettersScript.Call([]string{k.dead, k.reasons}, cursor)).ToArray()
	if err != nil {
		return "", nil, err
	}
	if len(reply) != 2 {
		return "", nil, errForeign
	}
	next, err1 := reply[0].ToString()
	items, err2 := reply[1].AsStrSlice()
	if err1 != nil || err2 != nil || len(items)%3 != 0 {
		return "", nil, errForeign
	}
	for l := range slices.Chunk(items, 3) {
		letters = append(letters, storedLetter{l[0], l[1], l[2]})
	}
	return next, letters, nil
}

// Replay puts dead letters back to be flushed again, those of the given entities or, without any, all, and returns how many.
// Call it after what the sink refused was repaired. One that would overflow a sum that is pending stays. Options.MaxPending
// does not bound it.
func (b *Buffer) Replay(ctx context.Context, entities ...string) (int, error) {
	wanted := make(map[string]struct{}, len(entities))
	for _, e := range entities {
		wanted[e] = struct{}{}
	}
	moved := 0
	err := b.scanDead(ctx, func(k shardKeys, letters []storedLetter) error {
		var fields []string
		for _, l := range letters {
			if len(wanted) > 0 {
				_, entity, err := splitField(originalField(l.field))
				if _, ok := wanted[entity]; err != nil || !ok {
					continue
				}
			}
			fields = append(fields, l.field)
		}
		if len(fields) == 0 {
			return nil
		}
		n, err := b.replay(ctx, k, fields)
		moved += int(n)
		return err
	})
	if err != nil {
		return moved, fmt.Errorf("buffer: replay: %w", err)
	}
	return moved, nil
}

func (b *Buffer) replay(ctx context.Context, k shardKeys, fields []string) (int64, error) {
	ctx, cancel := b.largeTimeout(ctx)
	defer cancel()
	args := append([]string{strconv.Itoa(usualBytes)}, fields...)
	return script.Do(ctx, b.client, replayScript.Call([]string{k.meta, k.cur, k.dead, k.reasons}, args...)).AsInt64()
}
