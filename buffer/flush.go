package buffer

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	mathrand "math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/internal/script"
)

// Report is what a pass has done.
type Report struct {
	Batches int // applied and acknowledged
	Rows    int // in these
	Dead    int // rows that became dead letters, or parts of them
	Busy    int // shards that another flusher is working on
}

// Flush flushes what is pending at the moment, oldest first, and returns. It goes on with the other shards when one fails, and
// returns all errors. What another flusher is working on is left to it.
func (b *Buffer) Flush(ctx context.Context, sink Sink) (Report, error) {
	f := &flusher{Buffer: b, sink: sink, owner: rand.Text()}
	if sink == nil {
		return Report{}, errors.New("buffer: flush: sink is required")
	}
	failures, err := f.pass(ctx, ctx, nil)
	for _, shard := range slices.Sorted(maps.Keys(failures)) {
		err = errors.Join(err, failures[shard])
	}
	if err != nil {
		return f.report, fmt.Errorf("buffer: flush: %w", err)
	}
	return f.report, nil
}

// Run flushes every Options.FlushEvery until ctx ends, then finishes the batches in hand, for which it takes Options.Lease at
// most, and returns nil. Any number of processes may run it. Failures are retried and told to Hooks.Error. What is pending at
// the end is flushed by another process, or later; to have it flushed before this one ends, call Close and then Flush.
func (b *Buffer) Run(ctx context.Context, sink Sink) error {
	if sink == nil {
		return errors.New("buffer: run: sink is required")
	}
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		select {
		case <-time.After(b.opts.Lease):
			cancel()
		case <-work.Done():
		}
	})
	defer stop()
	f := &flusher{Buffer: b, sink: sink, owner: rand.Text()}
	retries := map[int]*retry{}
	var redis retry
	pause := time.Duration(mathrand.Int64N(int64(b.opts.FlushEvery)))
	for {
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
		pause = jitter(b.opts.FlushEvery)
		failures, err := f.pass(ctx, work, func(shard int) bool {
			r := retries[shard]
			return r == nil || sinceEpoch() >= r.at
		})
		if err != nil && ctx.Err() == nil {
			b.reportError(ctx, OpFlush, fmt.Errorf("buffer: flush: %w", err))
		}
		if err != nil && failures == nil {
			redis.failed(b.opts)
			pause = max(pause, redis.pause)
		} else {
			redis = retry{}
		}
		for shard, err := range failures {
			if err == nil {
				delete(retries, shard)
				continue
			}
			if retries[shard] == nil {
				retries[shard] = &retry{}
			}
			retries[shard].failed(b.opts)
		}
	}
}

// retry is when something that has failed is tried again.
type retry struct {
	pause, at time.Duration
}

func (r *retry) failed(o Options) {
	r.pause = min(max(2*r.pause, o.FlushEvery), o.Backoff)
	r.at = sinceEpoch() + jitter(r.pause)
}

func jitter(d time.Duration) time.Duration {
	return d - d/10 + time.Duration(mathrand.Int64N(int64(d/5)+1))
}

// flusher is one run of Flush or Run.
type flusher struct {
	*Buffer
	sink    Sink
	owner   string
	recount retry // when the number of shards is asked for again, after a failure

	mu     sync.Mutex
	report Report
}

// pass flushes what is pending in the shards that due says, and returns how each of them went: nil for those that went
// well. A nil map means that none was reached; with an error beside a map the number of shards may be an old one. When ctx
// ends, no more batches are begun; when work ends, so do those that were.
func (f *flusher) pass(ctx, work context.Context, due func(int) bool) (map[int]error, error) {
	all, err := f.count(ctx)
	asked := make([]int, 0, all)
	for n := range all {
		if due == nil || due(n) {
			asked = append(asked, n)
		}
	}
	shards, results := f.pending(ctx, asked)
	var failed []int
	for n, err := range results {
		if err != nil {
			failed = append(failed, n)
		}
	}
	if len(failed) == all { // it is Redis, of which once is enough to tell
		return nil, cmp.Or(err, results[0])
	}
	for _, n := range failed {
		f.reportShard(ctx, n, results[n])
	}
	if err == nil && len(failed) == 0 && len(asked) == all { // else it would wait for those that do not answer
		f.check(ctx)
	}
	queue := make(chan int, len(shards))
	for _, n := range shards {
		queue <- n
	}
	close(queue)
	var wg sync.WaitGroup
	for range min(f.opts.Workers, len(queue)) {
		wg.Go(func() {
			for n := range queue {
				err := f.drain(ctx, work, n)
				f.reportShard(ctx, n, err)
				f.mu.Lock()
				results[n] = err
				f.mu.Unlock()
			}
		})
	}
	wg.Wait()
	return results, err
}

func (f *flusher) reportShard(ctx context.Context, n int, err error) {
	if err != nil && ctx.Err() == nil {
		f.reportError(ctx, OpFlush, fmt.Errorf("buffer: flush: shard %d: %w", n, err))
	}
}

// check tells once if Redis evicts. That is no reason not to flush: what is pending there is safer elsewhere.
func (f *flusher) check(ctx context.Context) {
	if f.opts.Hooks.Error == nil || f.checked.Load() {
		return
	}
	if s, err := f.Stats(ctx); err == nil && f.checked.CompareAndSwap(false, true) && s.Evicts {
		f.reportError(ctx, OpCheck, ErrEvicting)
	}
}

// count returns how many shards there are, also with an error: as many as there were, or as this process has. The number has a
// slot of its own, whose node may be out of reach when those of the shards are not.
func (f *flusher) count(ctx context.Context) (int, error) {
	known := max(f.opts.Shards, int(f.known.Load()))
	if sinceEpoch() < f.recount.at {
		return known, nil
	}
	n, err := f.register(ctx)
	if err != nil {
		f.recount.failed(f.opts)
		return known, fmt.Errorf("number of shards: %w", err)
	}
	f.recount = retry{}
	return n, nil
}

// pending asks shards whether they have something to flush. It returns those that have, and how each of them answered.
func (f *flusher) pending(ctx context.Context, asked []int) (shards []int, results map[int]error) {
	results = make(map[int]error, len(asked))
	if len(asked) == 0 {
		return nil, results
	}
	calls := make([]script.Call, len(asked))
	for i, n := range asked {
		k := f.keys.shard(n, "")
		calls[i] = someScript.Call([]string{k.cur, k.gen, k.batch})
	}
	bound, cancel := context.WithTimeout(ctx, f.opts.OpTimeout)
	defer cancel()
	for i, r := range script.DoMulti(bound, f.client, calls) {
		if errors.Is(r.Error(), rueidis.ErrNoSlot) { // rueidis says so of all when one has no node
			r = f.call(ctx, calls[i])
		}
		some, err := r.AsInt64()
		results[asked[i]] = err
		if some > 0 {
			shards = append(shards, asked[i])
		}
	}
	// So that the flushers of many processes do not all begin with the first.
	mathrand.Shuffle(len(shards), func(i, j int) { shards[i], shards[j] = shards[j], shards[i] })
	return shards, results
}

// drain flushes the batches of one shard: the one that may be live, the rest of its generation, and what has come since.
func (f *flusher) drain(ctx, work context.Context, shard int) error {
	k := f.keys.shard(shard, "")
	for opened := false; ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		c, err := f.claim(work, k, !opened)
		switch {
		case err != nil:
			return fmt.Errorf("claim: %w", err)
		case c.busy:
			f.mu.Lock()
			f.report.Busy++
			f.mu.Unlock()
			return nil
		case c.nonce == "":
			return nil
		}
		opened = opened || c.opened
		began := time.Now()
		info := FlushInfo{Shard: shard, Attempt: c.attempt, Age: c.age}
		err = f.flush(work, shard, k, c, &info)
		if errors.Is(err, errOvertaken) {
			return nil
		}
		info.Took, info.Err = time.Since(began), err
		if f.opts.Hooks.Flush != nil {
			f.opts.Hooks.Flush(work, info)
		}
		if err != nil {
			// Another process may have more luck: one whose database answers, or that knows a new column.
			_, _ = f.extend(context.WithoutCancel(work), k, c.nonce, 0)
			return err
		}
		f.mu.Lock()
		f.report.Batches++
		f.report.Rows += info.Rows
		f.report.Dead += info.Dead
		f.mu.Unlock()
	}
}

// claimed is what claim.lua says of a batch.
type claimed struct {
	busy, opened, park bool
	nonce              string
	epoch, seq         int64
	follows            int64
	version, attempt   int
	age                time.Duration
}

func (f *flusher) claim(ctx context.Context, k shardKeys, open bool) (c claimed, err error) {
	mayOpen := "0"
	if open {
		mayOpen = "1"
	}
	reply, err := f.call(ctx, claimScript.Call([]string{k.meta, k.cur, k.gen, k.batch},
		f.owner, strconv.FormatInt(f.opts.Lease.Milliseconds(), 10), strconv.Itoa(f.opts.MaxBatch), rand.Text(), mayOpen,
		strconv.Itoa(max(maxBatchBytes, usualBytes*f.opts.MaxBatch)), strconv.Itoa(usualBytes))).AsStrSlice()
	if err != nil || len(reply) == 0 {
		return claimed{}, err
	}
	if len(reply) == 1 {
		return claimed{busy: true}, nil
	}
	if len(reply) != 9 {
		return claimed{}, errForeign
	}
	var numbers [6]int64 // epoch, seq, version, attempt, age, follows
	for i := range numbers {
		if numbers[i], err = strconv.ParseInt(reply[1+i], 10, 64); err != nil {
			return claimed{}, errForeign
		}
	}
	return claimed{
		nonce: reply[0], epoch: numbers[0], seq: numbers[1], version: int(numbers[2]), attempt: int(numbers[3]),
		age: time.Duration(numbers[4]) * time.Millisecond, follows: numbers[5], park: reply[7] == "1", opened: reply[8] == "1",
	}, nil
}

// call makes a round trip within OpTimeout.
func (f *flusher) call(ctx context.Context, c script.Call) rueidis.RedisResult {
	ctx, cancel := context.WithTimeout(ctx, f.opts.OpTimeout)
	defer cancel()
	return script.Do(ctx, f.client, c)
}

// errOvertaken means that the batch was acknowledged by another flusher, or is its now.
var errOvertaken = errors.New("another flusher has taken over")

// flush reads, applies and acknowledges a batch.
func (f *flusher) flush(ctx context.Context, shard int, k shardKeys, c claimed, info *FlushInfo) (err error) {
	ctx, stop := f.keepLease(ctx, k, c.nonce)
	defer stop()
	batch := &Batch{
		ID:     fmt.Sprintf("%s/%d/%s", f.ledgerName(), shard, c.nonce),
		Buffer: f.ledgerName(), Shard: shard, Epoch: c.epoch, Seq: c.seq, Follows: c.follows, Nonce: c.nonce,
		Attempt: c.attempt, OldestAt: time.Now().Add(-c.age), Columns: slices.Clone(f.columns),
	}
	park := c.park
	for regressed := false; ; {
		if err := f.read(ctx, k, batch, info); err != nil {
			return err
		}
		if park && len(batch.Rows) > 0 {
			if err := f.excludeAll(ctx, k, batch); err != nil {
				return err
			}
			continue
		}
		err := f.sink.Apply(ctx, batch)
		var applied *AppliedError
		var regress *RegressError
		var refused RowErrors
		switch {
		case err == nil:
			return f.ack(ctx, k, batch, batch.Version)
		case errors.As(err, &applied):
			return f.ack(ctx, k, batch, applied.Version)
		case errors.As(err, &refused):
			if err := f.exclude(ctx, k, batch, refused); err != nil {
				return err
			}
		case errors.As(err, &regress) && !regressed:
			regressed = true
			var err error
			if park, err = f.regress(ctx, k, batch, regress); err != nil {
				return err
			}
		default:
			if cause := context.Cause(ctx); errors.Is(cause, errOvertaken) {
				return cause
			}
			return fmt.Errorf("apply: %w", err)
		}
	}
}

// keepLease extends the lease of a batch until stop is called. If somebody else has it, it ends the context that it returns:
// the work would be in vain.
func (f *flusher) keepLease(ctx context.Context, k shardKeys, nonce string) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(max(f.opts.Lease/3, time.Millisecond))
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				ours, err := f.extend(ctx, k, nonce, f.opts.Lease)
				if err == nil && !ours {
					cancel(errOvertaken)
				}
			}
		}
	})
	return ctx, func() {
		cancel(nil)
		wg.Wait()
	}
}

func (f *flusher) extend(ctx context.Context, k shardKeys, nonce string, lease time.Duration) (bool, error) {
	return f.call(ctx, extendScript.Call([]string{k.meta}, f.owner, nonce, strconv.FormatInt(lease.Milliseconds(), 10))).AsBool()
}

// read fills in the rows and the version of the live batch.
func (f *flusher) read(ctx context.Context, k shardKeys, batch *Batch, info *FlushInfo) error {
	ctx, cancel := f.largeTimeout(ctx)
	defer cancel()
	reply, err := script.Do(ctx, f.client, readScript.Call([]string{k.meta, k.batch, k.marks}, batch.Nonce)).ToArray()
	if err != nil {
		return fmt.Errorf("read: %w", err)
	}
	if len(reply) == 0 {
		return errOvertaken
	}
	if len(reply) != 3 {
		return errForeign
	}
	version, err1 := reply[0].AsInt64()
	fields, err2 := reply[1].AsStrMap()
	excluded, err3 := reply[2].AsStrMap()
	if cmp.Or(err1, err2, err3) != nil {
		return errForeign
	}
	rows, err := rowsOf(f.columns, fields, excluded)
	if err != nil {
		return fmt.Errorf("read: %w", err)
	}
	batch.Rows, batch.Version = rows, int(version)
	info.Rows, info.Dead = len(rows), countEntities(excluded)
	return nil
}

func countEntities(fields map[string]string) int {
	seen := map[string]struct{}{}
	for field := range fields {
		if _, entity, err := splitField(field); err == nil {
			seen[entity] = struct{}{}
		}
	}
	return len(seen)
}

// rowsOf folds fields that are not excluded into rows, sorted by entity.
func rowsOf(columns []Column, fields, excluded map[string]string) ([]Row, error) {
	index := make(map[string]int, len(fields))
	rows := make([]Row, 0, len(fields))
	values := make([]Value, 0, len(fields)*len(columns))
	for field, text := range fields {
		if _, ok := excluded[field]; ok {
			continue
		}
		column, entity, err := splitField(field)
		if err != nil {
			return nil, err
		}
		c := slices.Index(columns, column)
		if c < 0 {
			return nil, fmt.Errorf("the batch has a column that this buffer does not have, %q", column.Name)
		}
		i, ok := index[entity]
		if !ok {
			i = len(rows)
			index[entity] = i
			n := len(values)
			values = values[:n+len(columns)]
			rows = append(rows, Row{entity, values[n : n+len(columns) : n+len(columns)]})
		}
		if rows[i].Values[c], err = decodeValue(column.Op, text); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(rows, func(a, b Row) int { return strings.Compare(a.Entity, b.Entity) })
	return rows, nil
}

// exclude marks the rows that the sink refuses.
func (f *flusher) exclude(ctx context.Context, k shardKeys, batch *Batch, refused RowErrors) error {
	args := []string{batch.Nonce}
	for _, e := range refused {
		i, ok := slices.BinarySearchFunc(batch.Rows, e.Entity, func(r Row, entity string) int { return strings.Compare(r.Entity, entity) })
		if !ok {
			continue
		}
		args = appendMarks(args, batch.Columns, batch.Rows[i], e.Err)
	}
	if len(args) == 1 {
		return fmt.Errorf("apply: %w", errNoRows)
	}
	return f.mark(ctx, k, args)
}

const (
	maxReason    = 300 // bytes
	marksPerCall = 1000
)

func appendMarks(args []string, columns []Column, row Row, reason error) []string {
	text := "refused"
	if reason != nil {
		text = reason.Error()
	}
	text = text[:min(len(text), maxReason)]
	for c, v := range row.Values {
		if v.Set {
			args = append(args, columns[c].field(row.Entity), text)
		}
	}
	return args
}

var errRegressed = errors.New("pending when redis turned out to be behind the ledger")

func (f *flusher) excludeAll(ctx context.Context, k shardKeys, batch *Batch) error {
	args := []string{batch.Nonce}
	for _, row := range batch.Rows {
		args = appendMarks(args, batch.Columns, row, errRegressed)
	}
	return f.mark(ctx, k, args)
}

// mark excludes fields; args are exclude.lua's.
func (f *flusher) mark(ctx context.Context, k shardKeys, args []string) error {
	nonce := args[0]
	for rest := range slices.Chunk(args[1:], 2*marksPerCall) {
		version, err := f.call(ctx, excludeScript.Call([]string{k.meta, k.marks}, append([]string{nonce}, rest...)...)).AsInt64()
		if err != nil {
			return fmt.Errorf("exclude: %w", err)
		}
		if version == 0 {
			return errOvertaken
		}
	}
	return nil
}

// regress finds out whether it is this flusher that was overtaken or Redis that lost what the ledger knows of, and gives the
// batch a place in the order that is free. It returns whether the batch's rows must not be applied.
func (f *flusher) regress(ctx context.Context, k shardKeys, batch *Batch, e *RegressError) (park bool, err error) {
	flag := "0"
	if f.opts.OnRegress == RegressPark {
		flag = "1"
	}
	reply, err := f.call(ctx, regressScript.Call([]string{k.meta, k.cur, k.gen}, batch.Nonce, strconv.FormatInt(e.Epoch, 10), flag)).AsStrSlice()
	if err != nil {
		return false, fmt.Errorf("regress: %w", err)
	}
	if len(reply) == 0 {
		return false, errOvertaken
	}
	if len(reply) != 5 {
		return false, errForeign
	}
	var err1, err2 error
	batch.Epoch, err1 = strconv.ParseInt(reply[0], 10, 64)
	batch.Seq, err2 = strconv.ParseInt(reply[1], 10, 64)
	if cmp.Or(err1, err2) != nil {
		return false, errForeign
	}
	batch.Follows = e.Epoch
	park = reply[2] == "1"
	if reply[4] == "1" {
		f.reportRegress(ctx, RegressInfo{Shard: batch.Shard, Rows: len(batch.Rows), Behind: reply[3] == "1", Parked: park})
	}
	return park, nil
}

// ack ends a batch. That it is not live any more means that another flusher has ended it, or an earlier copy of this call.
func (f *flusher) ack(ctx context.Context, k shardKeys, batch *Batch, version int) error {
	// The sink has it: its context's end is no reason to have it applied again.
	ctx = context.WithoutCancel(ctx)
	ended, err := f.call(ctx, ackScript.Call([]string{k.meta, k.batch, k.marks, k.dead, k.reasons}, batch.Nonce, strconv.Itoa(version))).AsInt64()
	if err != nil {
		return fmt.Errorf("acknowledge: %w", err)
	}
	if ended == 2 {
		f.reportRegress(ctx, RegressInfo{Shard: batch.Shard, Rows: len(batch.Rows)})
	}
	return nil
}
