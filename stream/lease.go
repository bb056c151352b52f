package stream

import (
	"context"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/redis/rueidis"
)

const (
	renewChunk = 200
	noCursor   = "0-0"
	// crowded is how long a sweep that found more than there was room for waits for some.
	crowded = 200 * time.Millisecond
)

// renewLoop renews the leases of what this consumer has, and ends handlers of what it has lost.
func (c *consumer[T]) renewLoop(ctx context.Context) {
	every := c.opts.Lease / 4
	pause := every
	for sleep(ctx, pause) {
		pause = every
		if err := c.renew(ctx, every); err != nil && ctx.Err() == nil {
			c.report(ctx, OpRenew, err)
			pause = max(min(every, maxWait)/2, firstWait/2)
		}
	}
}

// renew renews leases that were not for that long.
func (c *consumer[T]) renew(ctx context.Context, age time.Duration) error {
	now := sinceEpoch()
	var due []*task[T]
	c.mu.Lock()
	for _, t := range c.tasks {
		if now-time.Duration(t.renewed.Load()) >= age {
			due = append(due, t)
		}
	}
	c.mu.Unlock()
	for len(due) > 0 {
		chunk := due[:min(renewChunk, len(due))]
		due = due[len(chunk):]
		ids := make([]string, len(chunk))
		for i, t := range chunk {
			ids[i] = string(t.id)
		}
		sent := sinceEpoch()
		lost, err := c.onStream(ctx, renewScript, ids...).AsStrSlice()
		if isGone(err) { // nobody else has them either
			continue
		}
		if err != nil {
			return err
		}
		for _, t := range chunk {
			t.renewed.Store(int64(sent))
		}
		for _, id := range lost {
			c.mu.Lock()
			t := c.tasks[ID(id)]
			c.mu.Unlock()
			if t != nil {
				c.lose(t)
			}
		}
	}
	return nil
}

// lose notes that another consumer has t.
func (c *consumer[T]) lose(t *task[T]) {
	c.mu.Lock()
	c.remove(t)
	c.mu.Unlock()
	if t.lost.Swap(true) {
		return
	}
	c.g.counters.lost.Add(1)
	for _, w := range c.workers {
		w.lose(t)
	}
}

// sweepLoop takes over what other consumers have left. After a failure it lets a third of the lease pass from when Redis is back, in
// which living ones can renew what they could not.
func (c *consumer[T]) sweepLoop(ctx context.Context) {
	sw := sweep{cursor: noCursor}
	pause := time.Duration(rand.Int64N(int64(c.opts.Lease / 10)))
	rounds := 0
	for sleep(ctx, pause) {
		pause = c.opts.Lease/3 - time.Duration(rand.Int64N(int64(c.opts.Lease/20)))
		if c.g.isPausedNow() {
			continue
		}
		if c.laterOrphans.Swap(false) {
			c.orphans.Store(true)
		}
		more, err := c.sweep(ctx, &sw)
		if isGone(err) {
			err = c.create(ctx)
		}
		if err != nil {
			if ctx.Err() == nil {
				c.report(ctx, OpClaim, err)
			}
			continue
		}
		if more {
			pause = min(pause, crowded)
			continue
		}
		if rounds++; rounds%9 == 0 {
			if err := c.onStream(ctx, reapScript, millis(max(3*c.opts.Lease, 3*readBlock))).Error(); err != nil && ctx.Err() == nil && !isGone(err) {
				c.report(ctx, OpClean, err)
			}
		}
	}
}

// sweep is where a sweep goes on, and what the server's clock said when, if that is known.
type sweep struct {
	cursor string
	server int64
	at     time.Duration
	failed bool // since then
}

// sweep claims what there is room for, and returns whether there may be more.
func (c *consumer[T]) sweep(ctx context.Context, sw *sweep) (more bool, err error) {
	for {
		waiting, _ := c.queue.state()
		c.mu.Lock()
		n := min(c.opts.MaxInFlight-len(c.tasks), c.opts.Batch, c.ahead()-waiting)
		c.mu.Unlock()
		if n <= 0 {
			return true, nil
		}
		sent := sinceEpoch()
		latest := int64(0) // only to learn the time
		if sw.server > 0 && !sw.failed {
			latest = sw.server + (sent - sw.at + c.opTimeout).Milliseconds()
		}
		reply, err := c.onStream(ctx, claimScript, millis(c.opts.Lease), sw.cursor, strconv.Itoa(n), strconv.FormatInt(latest, 10)).ToArray()
		if err != nil {
			sw.failed = true
			return false, err
		}
		if len(reply) < 3 {
			return false, errReply
		}
		if sw.server, err = reply[0].AsInt64(); err != nil {
			return false, errReply
		}
		sw.at = sinceEpoch()
		if sw.cursor, err = reply[1].ToString(); err != nil {
			return false, errReply
		}
		deleted, err := reply[2].AsInt64()
		if err != nil {
			return false, errReply
		}
		c.g.counters.deleted.Add(uint64(deleted))
		tasks, err := c.claimed(reply[3:], sent)
		if err != nil {
			return false, err
		}
		for _, t := range tasks {
			c.inherit(t)
		}
		c.take(tasks)
		if failed := sw.failed; failed || sw.cursor == noCursor && latest > 0 {
			sw.failed = false
			return false, nil
		}
	}
}

// ahead is how many messages may wait for workers: what takes them a second, but for a start without knowing how long a handler takes.
func (c *consumer[T]) ahead() int {
	mean := c.mean.Load()
	if mean == 0 {
		return 2 * c.opts.Workers
	}
	return c.opts.Workers + int(min(int64(c.opts.MaxInFlight), int64(c.opts.Workers)*int64(time.Second)/mean))
}

// claimed makes tasks of the entries of a script's reply.
func (c *consumer[T]) claimed(reply []rueidis.RedisMessage, sent time.Duration) ([]*task[T], error) {
	tasks := make([]*task[T], len(reply))
	for i, m := range reply {
		parts, err := m.ToArray()
		if err != nil || len(parts) != 3 {
			return nil, errReply
		}
		t := &task[T]{}
		id, err := parts[0].ToString()
		if err != nil {
			return nil, errReply
		}
		begun, err := parts[1].AsInt64()
		if err != nil {
			return nil, errReply
		}
		if t.fields, err = parts[2].ToArray(); err != nil {
			return nil, errReply
		}
		t.id, t.attempt = ID(id), int(begun)+1
		t.renewed.Store(int64(sent))
		tasks[i] = t
	}
	c.g.counters.claimed.Add(uint64(len(tasks)))
	return tasks, nil
}

// inherit decides about a task whose last attempt another consumer has begun. What has had all its attempts is to become a dead
// letter. The last one is made while no other such one is: if it kills the process, it is known which did.
func (c *consumer[T]) inherit(t *task[T]) {
	most := c.opts.MaxAttempts
	if most > 0 && t.attempt > most {
		t.attempt--
		t.reason = errKilled.Error()
	}
	t.alone = t.attempt == most && t.attempt > 1
}

// suspect has the reader look for entries in replies that it never saw, now and once more when what was under way has ended.
func (c *consumer[T]) suspect() {
	c.orphans.Store(true)
	c.laterOrphans.Store(true)
}

// adopt takes entries that were delivered in a reply that was never seen, if there may be any.
func (c *consumer[T]) adopt(ctx context.Context) error {
	if !c.orphans.Load() {
		return nil
	}
	unseen, err := c.unseen(ctx)
	if err != nil {
		return err
	}
	for len(unseen) > 0 {
		chunk := unseen[:min(renewChunk, len(unseen))]
		unseen = unseen[len(chunk):]
		args := make([]string, len(chunk))
		for i, p := range chunk {
			args[i] = string(p.ID)
		}
		sent := sinceEpoch()
		reply, err := c.onStream(ctx, adoptScript, args...).ToArray()
		if err != nil {
			return err
		}
		tasks, err := c.claimed(reply, sent)
		if err != nil {
			return err
		}
		for _, t := range tasks {
			if t.attempt == 2 { // it was delivered, which counts as the first attempt, and not begun
				t.attempt, t.begun = 1, true
			} else {
				c.inherit(t)
			}
		}
		c.take(tasks)
	}
	c.orphans.Store(false)
	return nil
}

// unseen returns the entries that are pending for this consumer and that it does not know of.
func (c *consumer[T]) unseen(ctx context.Context) (found []PendingEntry, err error) {
	start := "-"
	for {
		opCtx, cancel := context.WithTimeout(ctx, c.opTimeout)
		page, err := c.g.pendingPage(opCtx, start, c.name)
		cancel()
		if err != nil {
			return nil, err
		}
		c.mu.Lock()
		for _, p := range page {
			if c.tasks[p.ID] == nil {
				found = append(found, p)
			}
		}
		c.mu.Unlock()
		if len(page) < pageSize {
			return found, nil
		}
		start = "(" + string(page[len(page)-1].ID)
	}
}

// dueLoop moves delayed entries that are due into the stream.
func (c *consumer[T]) dueLoop(ctx context.Context) {
	const least, longest = 10 * time.Millisecond, time.Second
	pause := least
	for sleep(ctx, pause) {
		pause = longest
		next, err := c.do(ctx, dueScript, []string{c.s.key, c.s.delayedKey(), c.s.dueKey()}, strconv.Itoa(pageSize)).AsInt64()
		switch {
		case err != nil && ctx.Err() == nil:
			c.report(ctx, OpDue, err)
		case err == nil && next >= 0:
			pause = min(longest, max(least, time.Duration(next)*time.Millisecond))
		}
	}
}
