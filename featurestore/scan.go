package featurestore

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/internal/script"
)

// scanCount is how many keys Redis looks at per SCAN.
const scanCount = 1000

// scan calls fn with the keys of the rows of a version, some of them twice: those that a SCAN of each primary has found.
func (v *view) scan(ctx context.Context, version string, fn func(keys []string) error) error {
	pattern := v.keys.pattern(version)
	nodes := v.client.Nodes()
	for _, node := range nodes {
		primary := len(nodes) == 1
		if !primary {
			var err error
			if primary, err = v.isPrimary(ctx, node); err != nil {
				return err
			}
		}
		for cursor := uint64(0); primary; {
			bounded, cancel := v.bound(ctx)
			entry, err := node.Do(bounded, node.B().Scan().Cursor(cursor).Match(pattern).Count(scanCount).Build()).AsScanEntry()
			cancel()
			if err != nil {
				return err
			}
			for keys := range slices.Chunk(entry.Elements, scanCount) { // a page may have more keys than were looked at
				if err := fn(keys); err != nil {
					return err
				}
			}
			cursor = entry.Cursor
			primary = cursor != 0
		}
	}
	return nil
}

func (v *view) isPrimary(ctx context.Context, node rueidis.Client) (bool, error) {
	bounded, cancel := v.bound(ctx)
	defer cancel()
	info, err := node.Do(bounded, node.B().Info().Section("replication").Build()).ToString()
	return !strings.Contains(info, "role:slave"), err
}

// All returns all rows of the version that is live when it begins, in no order. It takes a SCAN of all keys, and a round
// trip per page of it: it is for exports. Rows that are written meanwhile may be among them or not. It remembers a hash of
// each key, 16 bytes, so that none comes twice. If Redis cannot be asked, or the version was dropped meanwhile
// (ErrVersion), the last row is Broken, of no entity, with the error. With Options.Key, rows without event time, which may
// be somebody else's hashes, are left out.
func (v *View[K, T]) All(ctx context.Context) iter.Seq2[K, Row[T]] {
	return func(yield func(K, Row[T]) bool) {
		err := v.all(ctx, yield)
		if err != nil && !errors.Is(err, errStopped) {
			var none K
			yield(none, Row[T]{Info: Info{Status: Broken, Err: fmt.Errorf("featurestore: all: %w", err)}})
		}
	}
}

// errStopped means that who asked wants no more rows.
var errStopped = errors.New("stopped")

func (v *View[K, T]) all(ctx context.Context, yield func(K, Row[T]) bool) error {
	version, err := v.v.askLive(ctx)
	if err != nil {
		return err
	}
	if err := v.allOf(ctx, version, yield); err != nil || version == "" {
		return err
	}
	bounded, cancel := v.v.bound(ctx)
	defer cancel()
	_, state, err := liveReply(script.Do(bounded, v.v.client, liveScript.Call([]string{v.v.control}, version)))
	if err == nil && state != "ready" {
		err = fmt.Errorf("%w was dropped meanwhile", ErrVersion)
	}
	return err
}

func (v *View[K, T]) allOf(ctx context.Context, version string, yield func(K, Row[T]) bool) error {
	pinned := v.Pin(version)
	seen := map[[16]byte]struct{}{}
	var ks []K
	var rows []Row[T]
	return v.v.scan(ctx, version, func(keys []string) error {
		ks = ks[:0]
		for _, key := range keys {
			hash := sha256.Sum256([]byte(key))
			short := [16]byte(hash[:])
			if _, twice := seen[short]; twice {
				continue
			}
			seen[short] = struct{}{}
			var k K
			if v.v.keys.parseRow(key, version, unsafe.Pointer(&k)) == nil {
				ks = append(ks, k)
			}
		}
		var err error
		if rows, err = pinned.GetMany(ctx, ks, rows); err != nil {
			return err
		}
		for i, k := range ks {
			if v.v.keys.template && version == "" && rows[i].EventTime.IsZero() {
				continue // whose it is nobody knows
			}
			if rows[i].Status != Missing && !yield(k, rows[i]) {
				return errStopped
			}
		}
		return nil
	})
}

// Delete deletes rows of the version that is live, and returns how many there were. Other views' rows of the same entities
// stay. A Put that comes later writes again, whatever its event time. Two round trips; of a Cluster, the second one to each
// node.
func (v *View[K, T]) Delete(ctx context.Context, ks ...K) (int, error) {
	n, err := v.delete(ctx, ks)
	if err != nil {
		return n, fmt.Errorf("featurestore: delete: %w", err)
	}
	return n, nil
}

func (v *View[K, T]) delete(ctx context.Context, ks []K) (int, error) {
	version, known, err := v.v.target(ctx, true)
	if err != nil && !isFull(err) || len(ks) == 0 {
		return 0, err
	}
	keys := make([]string, len(ks))
	for i := range ks {
		key, err := v.v.keys.appendRow(nil, version, unsafe.Pointer(&ks[i]))
		if err != nil {
			return 0, err
		}
		keys[i] = string(key)
	}
	return v.v.deleteKeys(ctx, keys, known, false)
}

// deleteKeys deletes the view's fields of these keys, or only where the row has a time, and returns of how many there were any.
func (v *view) deleteKeys(ctx context.Context, keys []string, known *knownSchemas, timed bool) (n int, err error) {
	fields := append(v.codec.all(), known.fields...)
	args := append([]string{v.codec.timeField(), flag(timed), strconv.Itoa(len(fields))}, fields...)
	args = append(args, known.others...)
	calls := make([]script.Call, len(keys))
	for i, key := range keys {
		calls[i] = deleteScript.Call([]string{key}, args...)
	}
	bounded, cancel := v.bound(ctx)
	defer cancel()
	for _, reply := range script.DoMulti(bounded, v.client, calls) {
		deleted, replyErr := reply.AsInt64()
		switch {
		case replyErr == nil && deleted > 0:
			n++
		case replyErr != nil && !isWrongType(replyErr) && err == nil:
			err = replyErr
		}
	}
	return n, err
}

// DeleteAll deletes all rows of the view, of all versions, and what Redis knows of the view, and returns how many rows
// outside versions there were. Nobody should write the view meanwhile, and processes that wrote it before should be started
// anew: of rows that they write, other processes do not know the schema, and leave features that theirs has not. With
// Options.Key, rows without event time, which may be somebody else's hashes, stay. It takes a SCAN of all keys per version.
func (v *View[K, T]) DeleteAll(ctx context.Context) (int, error) {
	n, err := v.v.deleteAll(ctx)
	if err != nil {
		return n, fmt.Errorf("featurestore: delete all: %w", err)
	}
	return n, nil
}

func (v *view) deleteAll(ctx context.Context) (int, error) {
	n, err := v.deleteRows(ctx, "")
	if err != nil {
		return n, err
	}
	bounded, cancel := v.bound(ctx)
	names, err := v.client.Do(bounded, v.client.B().Hkeys().Key(v.control).Build()).AsStrSlice()
	cancel()
	if err != nil {
		return n, err
	}
	for _, name := range names {
		if version, ok := strings.CutPrefix(name, "v:"); ok {
			if _, err := v.deleteRows(ctx, version); err != nil {
				return n, err
			}
		}
	}
	bounded, cancel = v.bound(ctx)
	defer cancel()
	err = v.client.Do(bounded, v.client.B().Del().Key(v.control).Build()).Error()
	v.known.Store(nil)
	v.live.Store(nil)
	return n, err
}

// deleteRows deletes all rows of a version, and returns how many there were outside versions. Keys that only look like the
// view's are left alone.
func (v *view) deleteRows(ctx context.Context, version string) (n int, err error) {
	_, known, err := v.target(ctx, true)
	if err != nil && !isFull(err) {
		return 0, err
	}
	err = v.scan(ctx, version, func(keys []string) error {
		own := keys[:0]
		for _, key := range keys {
			if v.keys.owns(key, version) {
				own = append(own, key)
			}
		}
		if version != "" {
			return v.unlink(ctx, own)
		}
		deleted, err := v.deleteKeys(ctx, own, known, v.keys.template)
		n += deleted
		return err
	})
	return n, err
}

// unlink deletes hashes that have one row each.
func (v *view) unlink(ctx context.Context, keys []string) error {
	commands := make([]rueidis.Completed, len(keys))
	for i, key := range keys {
		commands[i] = v.client.B().Unlink().Key(key).Build()
	}
	bounded, cancel := v.bound(ctx)
	defer cancel()
	for _, reply := range v.client.DoMulti(bounded, commands...) {
		if err := reply.Error(); err != nil {
			return err
		}
	}
	return nil
}

func isWrongType(err error) bool {
	e, ok := rueidis.IsRedisErr(err)
	return ok && strings.HasPrefix(e.Error(), "WRONGTYPE")
}
