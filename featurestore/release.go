package featurestore

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/internal/script"
)

// ErrVersion means that a version is not in the state that it takes: see Begin, Commit, Rollback and Drop.
var ErrVersion = errors.New("featurestore: version")

// ErrConflict means that another version has become live since Begin.
var ErrConflict = errors.New("featurestore: another version has become live")

var errUnsettled = errors.New("the live version keeps changing")

// liveField is the field of a view's control key that has the live version.
const liveField = "live"

const (
	// recheck is how long a process takes a version for live without asking.
	recheck = 20 * time.Millisecond
	// trusted is how old that knowledge may be when a reply comes; else the read is made again.
	trusted = time.Second
	// grace is how long after a version was live its rows stay at least. It must be longer than trusted, and than the seconds that
	// drop.lua counts are exact.
	grace = 3 * time.Second
)

// liveVersion is which version was live at a time.
type liveVersion struct {
	version string
	at      time.Duration // since the view was made
}

// version returns which version to read, and whether to ask meanwhile if it is live.
func (v *view) version(pinned *string) (version string, check bool) {
	if pinned != nil {
		return *pinned, false
	}
	if v.opts.Codec == Feast {
		return "", false
	}
	live := v.live.Load()
	if live == nil {
		return "", true
	}
	return live.version, time.Since(v.began)-live.at > recheck
}

// confirm reports whether version may be used that was read in a trip sent at a time; check is the answer to what is live, if
// that was asked. It may have come long before the rows, from another node: if they are late, it is asked for once more. While Redis
// cannot tell, what was live last is, but there is doubt.
func (v *view) confirm(ctx context.Context, version string, sent time.Time, check *rueidis.RedisResult) (ok bool, doubt, err error) {
	if check != nil {
		now, err := check.ToString()
		if rueidis.IsRedisNil(err) {
			now, err = "", nil
		}
		if err == nil {
			v.setLive(ctx, now, sent)
			if now == version && time.Since(sent) > trusted {
				if now, err = v.askLive(ctx); err != nil {
					return false, nil, err
				}
			}
			return now == version, nil, nil
		}
		if v.live.Load() == nil {
			return false, nil, err
		}
		return true, err, nil
	}
	live := v.live.Load() // nil if DeleteAll has come in between
	return live != nil && live.version == version && time.Since(v.began)-live.at <= trusted, nil, nil
}

// setLive remembers what was live at a time, unless something later is known.
func (v *view) setLive(ctx context.Context, version string, at time.Time) {
	next := &liveVersion{version, at.Sub(v.began)}
	for {
		last := v.live.Load()
		if last != nil && last.at > next.at {
			return
		}
		if v.live.CompareAndSwap(last, next) {
			v.switched(ctx, last, version)
			return
		}
	}
}

func (v *view) switched(ctx context.Context, last *liveVersion, version string) {
	if last != nil && last.version != version && v.opts.Hooks.Switch != nil {
		v.opts.Hooks.Switch(ctx, v.name, last.version, version)
	}
}

// Release is a version of a view that is being loaded. Readers do not see it before Commit.
type Release[K comparable, T any] struct {
	v       *view
	version string
	base    string // what was live at Begin
}

// Begin begins a version, or goes on with one that was begun and neither committed nor aborted, by whatever process. The
// version is of letters, digits, _, . and -, and other than all that the view has: else it returns ErrVersion. One round
// trip.
//
// Codec Feast has no versions: in Feast a version is part of the view's name.
func (v *View[K, T]) Begin(ctx context.Context, version string) (*Release[K, T], error) {
	err := checkName(version)
	if err == nil && v.v.opts.Codec == Feast {
		err = errors.New("codec Feast has no versions")
	}
	if err != nil {
		return nil, fmt.Errorf("featurestore: begin: %w", err)
	}
	bounded, cancel := v.v.bound(ctx)
	defer cancel()
	reply, err := script.Do(bounded, v.v.client, beginScript.Call([]string{v.v.control}, version)).ToArray()
	if err != nil {
		return nil, fmt.Errorf("featurestore: begin: %w", err)
	}
	if began, err := reply[0].AsInt64(); err != nil || began != 1 {
		return nil, fmt.Errorf("featurestore: begin: %w exists", ErrVersion)
	}
	base, err := reply[1].ToString()
	if err != nil {
		return nil, fmt.Errorf("featurestore: begin: %w", err)
	}
	return &Release[K, T]{v.v, version, base}, nil
}

// Load writes rows of the version, as View.Load does. It returns ErrVersion once the version is committed or aborted.
func (r *Release[K, T]) Load(ctx context.Context, rows iter.Seq2[K, Event[T]], o LoadOptions) (LoadStats, error) {
	return load(ctx, r.v, &r.version, rows, o)
}

// Commit makes the version live: with one command, for all readers. A read that begins 20ms later, in whatever process, is
// of it, and no read is of two versions. It returns ErrConflict if another version has become live since Begin, and
// ErrVersion if this one was aborted; calling it again does no harm. One round trip.
func (r *Release[K, T]) Commit(ctx context.Context) error {
	if err := r.v.switchTo(ctx, r.version, loading, &r.base); err != nil {
		return fmt.Errorf("featurestore: commit: %w", err)
	}
	return nil
}

// Abort deletes what was loaded: see Drop.
func (r *Release[K, T]) Abort(ctx context.Context) error {
	if err := r.v.drop(ctx, r.version); err != nil {
		return fmt.Errorf("featurestore: abort: %w", err)
	}
	return nil
}

// Rollback makes a version live again that was, or "": rows outside versions. It returns ErrVersion if there is none of that name
// which was committed. One round trip, and as quick as Commit.
func (v *View[K, T]) Rollback(ctx context.Context, version string) error {
	if err := v.v.switchTo(ctx, version, "ready", nil); err != nil {
		return fmt.Errorf("featurestore: rollback: %w", err)
	}
	return nil
}

// Live returns the version that is live, or "". One round trip.
func (v *View[K, T]) Live(ctx context.Context) (string, error) {
	version, err := v.v.askLive(ctx)
	if err != nil {
		return "", fmt.Errorf("featurestore: live: %w", err)
	}
	return version, nil
}

func (v *view) askLive(ctx context.Context) (string, error) {
	if v.opts.Codec == Feast {
		return "", nil
	}
	bounded, cancel := v.bound(ctx)
	defer cancel()
	sent := time.Now()
	version, err := v.client.Do(bounded, v.client.B().Hget().Key(v.control).Field(liveField).Build()).ToString()
	if rueidis.IsRedisNil(err) {
		version, err = "", nil
	}
	if err == nil {
		v.setLive(ctx, version, sent)
	}
	return version, err
}

func (v *view) switchTo(ctx context.Context, version, state string, base *string) error {
	if v.opts.Codec == Feast {
		return errors.New("codec Feast has no versions")
	}
	args := []string{version, state, "0", ""}
	if base != nil {
		args[2], args[3] = "1", *base
	}
	bounded, cancel := v.bound(ctx)
	defer cancel()
	sent := time.Now()
	switch code, err := script.Do(bounded, v.client, switchScript.Call([]string{v.control}, args...)).AsInt64(); {
	case err != nil:
		return err
	case code == 0:
		return fmt.Errorf("%w is not %s", ErrVersion, state)
	case code < 0:
		return ErrConflict
	}
	// What others asked meanwhile may be older. But the reply may be late, and by now another version live: it is as old as
	// the command.
	v.switched(ctx, v.live.Swap(&liveVersion{version, sent.Sub(v.began)}), version)
	return nil
}

// Drop deletes the rows of a version that is not live, and forgets it. It waits until reads that may be of it have ended,
// for 3 seconds after it was live, and then takes a SCAN of all keys. It returns ErrVersion if the version is live. A Load
// of the version that runs meanwhile ends with ErrVersion, and what it wrote last may stay until Drop is called again, as
// may what is left if Drop returns an error.
func (v *View[K, T]) Drop(ctx context.Context, version string) error {
	if err := v.v.drop(ctx, version); err != nil {
		return fmt.Errorf("featurestore: drop: %w", err)
	}
	return nil
}

func (v *view) drop(ctx context.Context, version string) error {
	if err := checkName(version); err != nil {
		return err
	}
	for {
		bounded, cancel := v.bound(ctx)
		since, err := script.Do(bounded, v.client, dropScript.Call([]string{v.control}, version)).AsInt64()
		cancel()
		switch {
		case err != nil:
			return err
		case since == -1:
			return fmt.Errorf("%w is live", ErrVersion)
		case since > int64(grace/time.Second):
			return v.finishDrop(ctx, version)
		}
		select {
		case <-time.After(grace / 6):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (v *view) finishDrop(ctx context.Context, version string) error {
	if _, err := v.deleteRows(ctx, version); err != nil {
		return err
	}
	bounded, cancel := v.bound(ctx)
	defer cancel()
	return v.client.Do(bounded, v.client.B().Hdel().Key(v.control).Field("v:"+version, "left:"+version).Build()).Error()
}
