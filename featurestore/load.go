package featurestore

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"time"
	"unsafe"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/internal/script"
)

// Event is a row to be loaded.
type Event[T any] struct {
	Value T
	At    time.Time // the event time
}

// LoadOptions configures a Load; the zero value works.
type LoadOptions struct {
	// Batch is how many rows one pipeline writes; two of them are in memory. 1 to 10,000. Defaults to 500.
	Batch int

	// RowsPerSecond bounds the rate. 0, the default, means not to.
	RowsPerSecond int

	// Skip is how many rows to leave out at the beginning: LoadStats.Done of an earlier Load of the same rows, to resume it.
	Skip int64

	// SkipOrderCheck writes rows also where later ones are, and counts all as applied. In a Release it is much quicker, as it takes
	// no script.
	SkipOrderCheck bool

	// Progress, if set, is called after each batch, by the goroutine that called Load.
	Progress func(LoadStats)

	// Invalid, if set, is called with each row that was not written, its number, from 0, and why: it cannot be encoded
	// (ErrInvalid), or its key is of another type (ErrCorrupt).
	Invalid func(row int64, err error)
}

// LoadStats says how far a Load is.
type LoadStats struct {
	Done    int64 // rows skipped or written or found older or invalid; all before this number are
	Applied int64
	Older   int64
	Same    int64
	Invalid int64
	Took    time.Duration
}

// Load writes rows as Put does, in pipelines, and in order: of two rows of an entity with the same event time the second
// one stays. A row that cannot be written is counted, and no reason to stop. An error is: those of rows[:Done] are written,
// and maybe some after; Load again with Skip. It writes to the version that is live; if another one becomes so, from the
// next batch on to that. Memory is bounded by LoadOptions.Batch.
//
// Rows that have their hashes to themselves, without Options.Share, Options.Key and codec Feast, or in a version, replace them with
// RESTORE, with whatever somebody else had put there, if they have at most 128 fields of at most 64 bytes. Where Redis refuses
// that, as it does users without the category dangerous, and for other rows it takes HSET, as Put does.
func (v *View[K, T]) Load(ctx context.Context, rows iter.Seq2[K, Event[T]], o LoadOptions) (LoadStats, error) {
	return load(ctx, v.v, nil, rows, o)
}

// load loads into a version, or the live one if it is nil.
func load[K comparable, T any](ctx context.Context, v *view, version *string, rows iter.Seq2[K, Event[T]], o LoadOptions) (LoadStats, error) {
	l := loader[K]{v: v, version: version, opts: o, began: time.Now()}
	err := l.start(ctx)
	if err != nil {
		l.stats.Done = max(0, o.Skip) // as it was
	} else {
		ok, own := true, version != nil || v.keys.own("")
		for k, e := range rows {
			if l.seen++; l.seen <= o.Skip {
				l.stats.Done = l.seen
				continue
			}
			row, err := v.encode(unsafe.Pointer(&e.Value), e.At, own)
			row.unchecked = o.SkipOrderCheck
			l.rows = append(l.rows, loadRow[K]{number: l.seen - 1, key: k, row: row, err: err})
			if len(l.rows) == l.opts.Batch {
				if ok = l.flush(ctx); !ok {
					break
				}
			}
		}
		if ok && len(l.rows) > 0 {
			l.flush(ctx)
		}
		l.land(ctx)
		err = l.failed
	}
	l.stats.Took = time.Since(l.began)
	if err != nil {
		return l.stats, fmt.Errorf("featurestore: load: %w", err)
	}
	return l.stats, nil
}

// loader gathers a batch while the one before is on its way.
type loader[K comparable] struct {
	v        *view
	version  *string
	opts     LoadOptions
	began    time.Time
	stats    LoadStats
	seen     int64         // rows that the iterator gave
	next     time.Time     // when the next batch may go, for RowsPerSecond
	rows     []loadRow[K]  // the batch that is gathered
	flying   []loadRow[K]  // and the one that is on its way
	landed   chan struct{} // closed when that has arrived
	took     time.Duration // how long it was on its way
	plainly  bool          // whether rows are written without RESTORE
	restores bool          // whether that was seen to work, or is about to be
	failed   error
}

// loadRow is a row of a batch.
type loadRow[K comparable] struct {
	number int64
	key    K
	row    encoded
	err    error
	code   int64
}

const (
	defaultLoadBatch = 500
	maxLoadBatch     = 10_000
)

func (l *loader[K]) start(ctx context.Context) error {
	if l.opts.Batch == 0 {
		l.opts.Batch = defaultLoadBatch
	}
	if l.opts.Batch < 1 || l.opts.Batch > maxLoadBatch {
		return fmt.Errorf("LoadOptions.Batch must be 1 to %d, got %d", maxLoadBatch, l.opts.Batch)
	}
	if l.opts.RowsPerSecond < 0 || l.opts.Skip < 0 {
		return fmt.Errorf("LoadOptions.RowsPerSecond and Skip must not be negative, got %d and %d", l.opts.RowsPerSecond, l.opts.Skip)
	}
	if _, _, err := l.v.target(ctx, true); err != nil || l.version == nil {
		return err
	}
	bounded, cancel := l.v.bound(ctx)
	defer cancel()
	_, state, err := liveReply(script.Do(bounded, l.v.client, liveScript.Call([]string{l.v.control}, *l.version)))
	if err == nil && state != loading {
		err = errNotLoading
	}
	return err
}

// loading is the state of a version between Begin and Commit.
const loading = "loading"

var errNotLoading = fmt.Errorf("%w is not loading", ErrVersion)

// flush waits for the batch that is on its way, and sends the one that was gathered. It returns false if that makes no sense.
func (l *loader[K]) flush(ctx context.Context) bool {
	l.land(ctx)
	if l.failed == nil && l.opts.RowsPerSecond > 0 {
		select {
		case <-time.After(time.Until(l.next)):
		case <-ctx.Done():
		}
		if now := time.Now(); l.next.Before(now) { // what was late is not made up for
			l.next = now
		}
		l.next = l.next.Add(time.Duration(float64(len(l.rows)) / float64(l.opts.RowsPerSecond) * float64(time.Second)))
	}
	if l.failed == nil {
		l.failed = ctx.Err()
	}
	if l.failed != nil {
		return false
	}
	l.rows, l.flying = l.flying[:0], l.rows
	l.landed = make(chan struct{})
	go func() {
		defer close(l.landed)
		sent := time.Now()
		l.failed = l.send(ctx)
		l.took = time.Since(sent)
	}()
	return true
}

// land waits until the batch that is on its way has arrived, and counts its rows.
func (l *loader[K]) land(ctx context.Context) {
	if l.landed == nil {
		return
	}
	<-l.landed
	l.landed = nil
	info := WriteInfo{View: l.v.name, Took: l.took, Err: l.failed}
	if l.failed == nil {
		for i := range l.flying {
			row := &l.flying[i]
			if row.err != nil {
				info.Invalid++
				if l.opts.Invalid != nil {
					l.opts.Invalid(row.number, row.err)
				}
				continue
			}
			info.count(outcome(row.code), nil)
		}
		l.stats.Done += int64(len(l.flying))
		l.stats.Applied += int64(info.Applied)
		l.stats.Older += int64(info.Older)
		l.stats.Same += int64(info.Same)
		l.stats.Invalid += int64(info.Invalid)
		l.stats.Took = time.Since(l.began)
		if l.opts.Progress != nil {
			l.opts.Progress(l.stats)
		}
	}
	clear(l.flying)
	if l.v.opts.Hooks.Write != nil {
		l.v.opts.Hooks.Write(ctx, info)
	}
}

// send writes the rows of a batch, those of an unknown schema once more when it is known, and all again if another version has
// become live.
func (l *loader[K]) send(ctx context.Context) error {
	anew := false
	for i := range l.flying {
		l.flying[i].code = codeUnknown // as of now
	}
	for range maxAttempts {
		version, known, err := l.v.target(ctx, anew)
		if err != nil {
			return err
		}
		if l.version != nil {
			version = *l.version
		}
		moved, left, err := l.sendTo(ctx, version, known)
		if err != nil || left == 0 && !moved {
			return err
		}
		again := map[K]bool{} // entities with rows that are sent again: so are those that came after, to stay after
		for i := range l.flying {
			row := &l.flying[i]
			row.row.anySchema = anew && row.code == codeUnknown // still unknown: see put
			if moved || again[row.key] {
				row.code = codeUnknown
			}
			if row.err == nil && row.code == codeUnknown {
				again[row.key] = true
			}
		}
		anew = left > 0
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return errUnsettled
}

const (
	// loadedRows and loadedBytes bound what one script writes, so that it does not hold up others for much longer than half a
	// millisecond.
	loadedRows  = 32
	loadedBytes = 64 << 10
)

// sendTo writes to a version the rows that are not written yet, and returns how many are left.
func (l *loader[K]) sendTo(ctx context.Context, version string, known *knownSchemas) (moved bool, left int, err error) {
	v := l.v
	if l.version != nil && l.opts.SkipOrderCheck {
		return false, 0, l.replace(ctx)
	}
	most := loadedRows
	if v.client.Mode() == rueidis.ClientModeCluster {
		most = 1 // one script's keys are in one slot
	}
	var calls []script.Call
	var rows [][]*loadRow[K] // of each call
	size := loadedBytes + 1  // of the last call; there is none yet
	for i := range l.flying {
		row := &l.flying[i]
		if row.err != nil || row.code != codeUnknown {
			continue
		}
		key, err := v.keys.appendRow(nil, version, unsafe.Pointer(&row.key))
		if err != nil {
			row.err = err
			continue
		}
		if l.plainly {
			row.row.undump(v.codec.all())
		}
		payload := row.row.payload
		if payload == "" {
			calls, rows = append(calls, v.call(string(key), known, &row.row)), append(rows, []*loadRow[K]{row})
			size = loadedBytes + 1
			continue
		}
		if size += len(payload); size > loadedBytes || len(rows[len(rows)-1]) == most {
			call := loadScript.Call(nil, v.opts.Codec.String(), v.codec.timeField(), flag(!row.row.unchecked))
			calls, rows, size = append(calls, call), append(rows, nil), len(payload)
		}
		call, together := &calls[len(calls)-1], &rows[len(rows)-1]
		call.Keys = append(call.Keys, string(key))
		call.Args = append(call.Args, strconv.FormatInt(row.row.at, 10), strconv.FormatInt(v.ttl(), 10), payload)
		*together = append(*together, row)
	}
	if v.opts.Codec != Feast {
		calls = append(calls, liveScript.Call([]string{v.control}, version))
	}
	if len(calls) == 0 {
		return false, 0, nil
	}
	bounded, cancel := v.bound(ctx)
	defer cancel()
	sent := time.Now()
	replies := script.DoMulti(bounded, v.client, calls)
	for i, together := range rows {
		n, err := l.settle(together, &replies[i])
		if err != nil {
			return false, 0, err
		}
		left += n
	}
	if v.opts.Codec == Feast {
		return false, left, nil
	}
	live, state, err := v.liveAfter(ctx, replies[len(rows)], sent)
	if err != nil {
		return false, 0, err
	}
	if l.version != nil && state != loading {
		return false, 0, errNotLoading
	}
	return l.version == nil && live != version, left, nil
}

// replace writes a batch of a version without a look at what is there. Its hashes are of this view alone and nobody reads
// them yet, so that it needs no script: a load that is killed leaves rows that the next one replaces.
func (l *loader[K]) replace(ctx context.Context) error {
	b := l.v.client.B()
	commands := make([]rueidis.Completed, 0, len(l.flying)+2)
	for i := range l.flying {
		row := &l.flying[i]
		if row.err != nil {
			continue
		}
		name, err := l.v.keys.appendRow(nil, *l.version, unsafe.Pointer(&row.key))
		if err != nil {
			return err
		}
		key, ttl := string(name), l.v.ttl()
		row.code = 1
		if row.row.payload != "" && !l.plainly {
			commands = append(commands, b.Restore().Key(key).Ttl(ttl).SerializedValue(row.row.payload).Replace().Build())
			if !l.restores { // miniredis, for one, takes any payload for a string's: then this is an error
				commands = append(commands, b.Hlen().Key(key).Build())
				l.restores = true
			}
			continue
		}
		row.row.undump(nil)
		hset := b.Hset().Key(key).FieldValue()
		for i := 0; i < len(row.row.set); i += 2 {
			hset = hset.FieldValue(row.row.set[i], row.row.set[i+1])
		}
		commands = append(commands, b.Del().Key(key).Build(), hset.Build())
		if ttl > 0 {
			commands = append(commands, b.Pexpire().Key(key).Milliseconds(ttl).Build())
		}
	}
	commands = append(commands, b.Hget().Key(l.v.control).Field("v:"+*l.version).Build())
	bounded, cancel := l.v.bound(ctx)
	defer cancel()
	replies := l.v.client.DoMulti(bounded, commands...)
	for _, reply := range replies {
		err := reply.Error()
		if err == nil || rueidis.IsRedisNil(err) {
			continue
		}
		if _, refused := rueidis.IsRedisErr(err); refused && !l.plainly { // RESTORE perhaps, which not everybody may use, or knows
			l.plainly = true
			return l.replace(ctx)
		}
		return err
	}
	if state, _ := replies[len(replies)-1].ToString(); state != loading { // of a version that is gone there is none
		return errNotLoading
	}
	return nil
}

// settle notes what became of the rows of one call, and returns how many are to be sent again.
func (l *loader[K]) settle(rows []*loadRow[K], reply *rueidis.RedisResult) (left int, err error) {
	codes := []int64{0}
	if message, e := reply.ToMessage(); e == nil && message.IsArray() { // of load.lua
		codes, err = message.AsIntSlice()
	} else {
		codes[0], err = reply.AsInt64()
	}
	if err != nil && isWrongType(err) {
		codes[0], err = codeWrongType, nil
	}
	if err == nil && len(codes) != len(rows) {
		err = errors.New("a script's reply has another number of rows")
	}
	if err != nil {
		return 0, err
	}
	for i, row := range rows {
		switch row.code = codes[i]; row.code {
		case codeWrongType:
			row.err = ErrCorrupt
		case codeRefused:
			l.plainly = true
			row.code = codeUnknown
			left++
		case codeUnknown:
			left++
		}
	}
	return left, nil
}

// undump brings a row that was dumped back into the form that put.lua takes.
func (e *encoded) undump(all []string) {
	if e.payload == "" {
		return
	}
	has := map[string]bool{}
	for l := (listpack{rest: e.payload[dumpHead:]}); l.rest[0] != 0xff; {
		name, value := l.next(), l.next()
		e.set = append(e.set, name, value)
		has[name] = true
	}
	for _, name := range all {
		if !has[name] {
			e.drop = append(e.drop, name)
		}
	}
	e.payload = ""
}
