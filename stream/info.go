package stream

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"time"

	"github.com/redispatterns/redispatterns/internal/script"
)

// ErrNoGroup means that the group does not exist: no Run has made it yet.
var ErrNoGroup = errors.New("stream: no such group")

// GroupInfo is the state of a group, of all processes together.
type GroupInfo struct {
	// Lag is how many entries of the stream were not delivered yet, if LagKnown. Redis does not know if entries in the middle of the
	// stream were deleted.
	Lag      int64
	LagKnown bool
	// Pending is how many messages were delivered and not acknowledged, those that wait for their next attempt included.
	Pending int64
	// Oldest is the first of them, "" if there is none; see ID.Time.
	Oldest    ID
	Delayed   int64 // messages of the stream that are not due yet
	Dead      int64 // dead letters
	Consumers []ConsumerInfo
}

// ConsumerInfo is one consumer of a group.
type ConsumerInfo struct {
	Name    string
	Pending int64
	Idle    time.Duration // since it has asked Redis for anything
}

// Info returns the state of the group. One round trip.
func (g *Group[T]) Info(ctx context.Context) (GroupInfo, error) {
	if g.err != nil {
		return GroupInfo{}, g.err
	}
	info, err := g.info(ctx)
	if isGone(err) {
		err = ErrNoGroup
	}
	if err != nil {
		return GroupInfo{}, fmt.Errorf("stream: info: %w", err)
	}
	return info, nil
}

func (g *Group[T]) info(ctx context.Context) (info GroupInfo, err error) {
	s, ask := g.s, g.s.client.B().Arbitrary
	r := s.client.DoMulti(ctx,
		s.ofPrimary(ask("XPENDING").Keys(s.key).Args(g.name)), s.ofPrimary(ask("XINFO", "GROUPS").Keys(s.key)),
		s.ofPrimary(ask("XINFO", "CONSUMERS").Keys(s.key).Args(g.name)),
		s.ofPrimary(ask("XLEN").Keys(s.deadKey(g.name))), s.ofPrimary(ask("ZCARD").Keys(s.dueKey())))
	pending, err := r[0].ToArray()
	if err != nil {
		return info, err
	}
	if len(pending) < 2 {
		return info, errReply
	}
	if info.Pending, err = pending[0].AsInt64(); err != nil {
		return info, errReply
	}
	if !pending[1].IsNil() {
		oldest, err := pending[1].ToString()
		if err != nil {
			return info, errReply
		}
		info.Oldest = ID(oldest)
	}
	groups, err := r[1].ToArray()
	if err != nil {
		return info, err
	}
	for _, m := range groups {
		group, err := m.AsMap()
		if err != nil {
			return info, errReply
		}
		name, lag := group["name"], group["lag"]
		if s, err := name.ToString(); err == nil && s == g.name {
			info.Lag, err = lag.AsInt64()
			info.LagKnown = err == nil
		}
	}
	consumers, err := r[2].ToArray()
	if err != nil {
		return info, err
	}
	for _, m := range consumers {
		fields, err := m.AsMap()
		if err != nil {
			return info, errReply
		}
		name, pending, idle := fields["name"], fields["pending"], fields["idle"]
		var c ConsumerInfo
		var err1, err2, err3 error
		c.Name, err1 = name.ToString()
		c.Pending, err2 = pending.AsInt64()
		var ms int64
		ms, err3 = idle.AsInt64()
		if errors.Join(err1, err2, err3) != nil {
			return info, errReply
		}
		c.Idle = time.Duration(ms) * time.Millisecond
		info.Consumers = append(info.Consumers, c)
	}
	if info.Dead, err = r[3].AsInt64(); err != nil {
		return info, err
	}
	info.Delayed, err = r[4].AsInt64()
	return info, err
}

// PendingEntry is a message that was delivered and not acknowledged.
type PendingEntry struct {
	ID       ID
	Consumer string
	Idle     time.Duration // since it was delivered or its lease renewed
	Attempts int           // that have begun, or 1 if it has been delivered only
}

// Pending yields the messages that consumers have, in the order of their ids. An error is the last. One round trip per 100.
func (g *Group[T]) Pending(ctx context.Context) iter.Seq2[PendingEntry, error] {
	return func(yield func(PendingEntry, error) bool) {
		if g.err != nil {
			yield(PendingEntry{}, g.err)
			return
		}
		start := "-"
		for {
			page, err := g.pendingPage(ctx, start, "", false)
			if isGone(err) {
				err = ErrNoGroup
			}
			if err != nil {
				yield(PendingEntry{}, fmt.Errorf("stream: pending: %w", err))
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
			start = "(" + string(page[len(page)-1].ID)
		}
	}
}

// pendingPage returns some of what one consumer has, or all, on a connection of the blocking pool if it is to be aside.
func (g *Group[T]) pendingPage(ctx context.Context, start, consumer string, aside bool) ([]PendingEntry, error) {
	cmd := g.s.client.B().Arbitrary("XPENDING").Keys(g.s.key).Args(g.name, start, "+", strconv.Itoa(pageSize))
	if consumer != "" {
		cmd = cmd.Args(consumer)
	}
	list, err := g.s.client.Do(ctx, built(cmd, aside)).ToArray()
	if err != nil {
		return nil, err
	}
	page := make([]PendingEntry, len(list))
	for i, m := range list {
		parts, err := m.ToArray()
		if err != nil || len(parts) != 4 {
			return nil, errReply
		}
		id, err1 := parts[0].ToString()
		consumer, err2 := parts[1].ToString()
		idle, err3 := parts[2].AsInt64()
		attempts, err4 := parts[3].AsInt64()
		if errors.Join(err1, err2, err3, err4) != nil {
			return nil, errReply
		}
		page[i] = PendingEntry{ID(id), consumer, time.Duration(idle) * time.Millisecond, int(attempts)}
	}
	return page, nil
}

// DeadMessage is a dead letter.
type DeadMessage[T any] struct {
	ID       ID // of the dead letter, for Redrive; its time is when it became one
	Original ID // of the message
	Reason   string
	Attempts int
	Fields   []string // of the original entry as it was, names and values in turn
	Value    T        // of these
	Err      error    // why there is no Value, if they cannot be decoded
	Headers  map[string]string
}

// Dead yields the group's dead letters, the oldest first. An error is the last. One round trip per 100.
func (g *Group[T]) Dead(ctx context.Context) iter.Seq2[*DeadMessage[T], error] {
	return func(yield func(*DeadMessage[T], error) bool) {
		if g.err != nil {
			yield(nil, g.err)
			return
		}
		for e, err := range g.s.entries(ctx, g.s.deadKey(g.name), "", "") {
			var d *DeadMessage[T]
			if err == nil {
				d, err = g.dead(e)
			}
			if err != nil {
				yield(nil, fmt.Errorf("stream: dead: %w", err))
				return
			}
			if !yield(d, nil) {
				return
			}
		}
	}
}

// ownFields is how many strings dead.lua puts before the original fields.
const ownFields = 6

func (g *Group[T]) dead(e entry) (*DeadMessage[T], error) {
	fields, err := stringsOf(e.fields, nil)
	if err != nil {
		return nil, err
	}
	if len(fields) < ownFields {
		return nil, errReply
	}
	d := &DeadMessage[T]{ID: e.id, Original: ID(fields[1]), Reason: fields[3], Fields: fields[ownFields:]}
	if d.Attempts, err = strconv.Atoi(fields[5]); err != nil {
		return nil, errReply
	}
	m, _, _, err := decode(g.s.opts.Codec, entry{e.id, e.fields[ownFields:]}, nil)
	d.Value, d.Headers = m.Value, m.Headers
	if err != nil {
		d.Err = &DecodeError{err}
	}
	return d, nil
}

// Redrive puts dead letters back at the end of the stream, for this group alone, and returns how many: those of the given
// ids, of DeadMessage.ID, or all that there are when it begins. Each is put back once, whoever calls how often. They come
// with new ids and begin with their first attempt. Readers without a group see them too, as do programs that do not use
// this package.
func (g *Group[T]) Redrive(ctx context.Context, ids ...ID) (int, error) {
	if g.err != nil {
		return 0, g.err
	}
	n, err := g.redrive(ctx, ids)
	if err != nil {
		return n, fmt.Errorf("stream: redrive: %w", err)
	}
	return n, nil
}

func (g *Group[T]) redrive(ctx context.Context, ids []ID) (n int, err error) {
	key := g.s.deadKey(g.name)
	for _, id := range ids {
		if !id.valid() {
			return 0, errors.New("not an id")
		}
	}
	if len(ids) == 0 {
		cmd := g.s.client.B().Arbitrary("XREVRANGE").Keys(key).Args("+", "-", "COUNT", "1")
		last, err := g.s.client.Do(ctx, g.s.ofPrimary(cmd)).ToMessage()
		if err != nil {
			return 0, err
		}
		newest, err := parseEntries(last)
		if err != nil || len(newest) == 0 {
			return 0, err
		}
		for e, err := range g.s.entries(ctx, key, "", newest[0].id) {
			if err != nil {
				return n, err
			}
			ids = append(ids, e.id)
		}
	}
	for len(ids) > 0 {
		chunk := ids[:min(pageSize, len(ids))]
		ids = ids[len(chunk):]
		calls := make([]script.Call, len(chunk))
		for i, id := range chunk {
			calls[i] = redriveScript.Call([]string{g.s.key, key}, g.name, string(id))
		}
		for _, r := range script.DoMulti(ctx, g.s.client, calls) {
			moved, e := r.AsInt64()
			n += int(moved)
			err = errors.Join(err, e)
		}
		if err != nil {
			return n, err
		}
	}
	return n, nil
}
