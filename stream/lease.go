package stream

import (
	"context"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"github.com/redis/rueidis"
)

const (
	renewChunk = 200
	noCursor   = "0-0"
	dueChunk   = 500
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
	known := t.lost.Swap(true)
	c.mu.Lock()
	c.remove(t)
	if _, waits := c.parked[t]; waits {
		t.parked.Stop()
		delete(c.parked, t)
		c.enqueue(c.lanes.leave(t, true))
	}
	c.mu.Unlock()
	notify(c.space)
	if known {
		return
	}
	c.g.counters.lost.Add(1)
	for _, w := range c.workers {
		w.lose(t)
	}
}

// sweepLoop takes over what other consumers have left, and what came in replies that were never seen. After a failure it
// lets a quarter of the lease pass from when Redis is back, in which living ones can renew what they could not.
func (c *consumer[T]) sweepLoop(ctx context.Context) {
	sw := sweep{cursor: noCursor}
	orphans := adoption{looked: sinceEpoch(), most: renewChunk}
	next := sinceEpoch() + time.Duration(rand.Int64N(int64(c.opts.Lease/10)))
	cleaned := sinceEpoch()
	noRoom, unanswered, sweptAll := false, false, true
	for {
		pause := min(next-sinceEpoch(), c.untilLook(&orphans))
		// What was not done is due at once, and would not be done again.
		switch {
		case noRoom:
			pause = min(crowded, c.opts.Lease/4)
		case unanswered:
			pause = max(pause, orphans.wait.last)
		}
		if !c.sleepOrTurn(ctx, pause) || !c.awaitResume(ctx) {
			return
		}
		var err error
		noRoom, err = c.look(ctx, &orphans)
		c.reportClaim(ctx, err)
		_, answered := rueidis.IsRedisErr(err)
		if unanswered = err != nil && !answered; unanswered {
			sw.failed = true
			continue
		}
		// Not before it is time: whatever woke it, others are to have the time to renew theirs.
		if noRoom || sweptAll && sinceEpoch() < next {
			continue
		}
		next = sinceEpoch() + c.opts.Lease/4 + time.Duration(rand.Int64N(int64(c.opts.Lease/20))) // and some for finding room
		noRoom, err = c.sweep(ctx, &sw)
		sweptAll = !noRoom
		if isGone(err) {
			err = c.create(ctx)
		}
		c.reportClaim(ctx, err)
		if err == nil && sinceEpoch()-cleaned >= 2*c.opts.Lease {
			cleaned = sinceEpoch()
			c.clean(ctx)
		}
	}
}

// awaitResume waits while the group is paused, and returns false if ctx ends.
func (c *consumer[T]) awaitResume(ctx context.Context) bool {
	select {
	case <-c.g.running():
		return true
	default:
	}
	c.claimingEnds()
	select {
	case <-c.g.running():
		return true
	case <-ctx.Done():
		return false
	}
}

// clean removes consumers that are gone.
func (c *consumer[T]) clean(ctx context.Context) {
	err := c.onStream(ctx, reapScript, millis(max(3*c.opts.Lease, 3*readBlock))).Error()
	if ctx.Err() == nil && !isGone(err) {
		c.report(ctx, OpClean, err)
	}
}

func (c *consumer[T]) reportClaim(ctx context.Context, err error) {
	if ctx.Err() == nil && !isGone(err) {
		c.report(ctx, OpClaim, err)
	}
}

// sweep is where a sweep goes on, and what the server's clock said when, if that is known.
type sweep struct {
	cursor string
	server int64
	at     time.Duration
	failed bool // since then
	most   int  // entries at once, after a reply with more was too slow; 0 if none was
}

// sweep claims what there is room for, and returns whether there may be more.
func (c *consumer[T]) sweep(ctx context.Context, sw *sweep) (more bool, err error) {
	for more = true; more; {
		n := c.reserveToClaim(sw.most)
		if n == 0 {
			return true, nil
		}
		more, err = c.claim(ctx, sw, n)
		c.claimingEnds()
	}
	return false, err
}

// claim claims up to n entries, and returns whether there may be more.
func (c *consumer[T]) claim(ctx context.Context, sw *sweep, n int) (more bool, err error) {
	sent := sinceEpoch()
	sw.failed = c.unanswered.Swap(false) || sw.failed
	latest := int64(0) // only to learn the time
	if sw.server > 0 && !sw.failed {
		latest = sw.server + (sent - sw.at + min(c.opTimeout, c.opts.Lease/3)).Milliseconds()
	}
	reply, err := c.onStream(ctx, claimScript, millis(c.opts.Lease), sw.cursor, strconv.Itoa(n), strconv.FormatInt(latest, 10)).ToArray()
	if err != nil {
		sw.failed = true
		if _, answered := rueidis.IsRedisErr(err); !answered { // Redis may have done it, and be sending much
			sw.most = max(1, n/4)
			c.suspect()
		}
		return false, err
	}
	if len(reply) < 3 {
		return false, errReply
	}
	if sw.server, err = reply[0].AsInt64(); err != nil {
		return false, errReply
	}
	sw.at = sinceEpoch()
	if sw.at-sent < c.opTimeout/4 {
		sw.most = min(2*sw.most, most) // 0 stays
	}
	if sw.cursor, err = reply[1].ToString(); err != nil {
		return false, errReply
	}
	deleted, err := reply[2].AsStrSlice()
	if err != nil {
		return false, errReply
	}
	c.countDeleted(deleted)
	tasks, err := c.claimed(reply[3:], sent)
	if err != nil {
		return false, err
	}
	for _, t := range tasks {
		c.inherit(t)
	}
	c.take(tasks)
	failed := sw.failed
	sw.failed = false
	return !failed && (sw.cursor != noCursor || latest == 0), nil
}

// countDeleted counts deleted entries, but those that this consumer has: if they are not at work, they are counted when
// they would begin.
func (c *consumer[T]) countDeleted(ids []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range ids {
		if c.tasks[ID(id)] == nil {
			c.g.counters.deleted.Add(1)
		}
	}
}

// reserveToClaim returns how many entries to claim now, most at most unless it is 0, and keeps room for as many until
// claimingEnds. If there is none, what comes free is for claiming.
func (c *consumer[T]) reserveToClaim(most int) int {
	waiting, _ := c.queue.state()
	c.mu.Lock()
	defer c.mu.Unlock()
	free, ahead := c.free(), c.ahead()-waiting
	c.sweepWaits = free <= 0 || ahead <= 0
	if c.sweepWaits {
		notify(c.space)
		return 0
	}
	c.claiming = min(free, ahead, c.opts.Batch)
	if most > 0 {
		c.claiming = min(c.claiming, most)
	}
	return c.claiming
}

// claimingEnds gives up what reserveToClaim has kept.
func (c *consumer[T]) claimingEnds() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.claiming, c.sweepWaits = 0, false
	notify(c.space)
}

// readingEnds gives up what room has kept.
func (c *consumer[T]) readingEnds() {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.readDone)
	c.reading, c.readDone = 0, nil
}

// sleepOrTurn waits for d, or until it is the sweep's turn. If ctx ends it returns false.
func (c *consumer[T]) sleepOrTurn(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-c.turn:
		return true
	case <-ctx.Done():
		return false
	}
}

// free is for how many messages there is room. c.mu is held.
func (c *consumer[T]) free() int { return c.opts.MaxInFlight - len(c.tasks) - c.reading - c.claiming }

// ahead is how many messages may wait for workers: what takes them a second, but for a start without knowing how long a
// handler takes.
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

// suspect notes that a reply was not seen which may have had entries.
func (c *consumer[T]) suspect() { c.suspected.Store(int64(sinceEpoch())) }

// mayBeRead reports whether what such a reply had may be what was read, and not only what was claimed.
func (c *consumer[T]) mayBeRead() bool {
	lost := time.Duration(c.readLost.Load())
	return lost != 0 && time.Duration(c.looked.Load()) < lost+readBlock+opTimeout
}

// adoption is how far the search for entries in replies that were never seen has come.
type adoption struct {
	looked time.Duration // when it was, the last time that it succeeded
	wait   backoff
	most   int // entries at once
}

// untilLook returns how long it is until the search: once at once, and once when whatever was under way has reached Redis
// or never will.
func (c *consumer[T]) untilLook(a *adoption) time.Duration {
	suspected := time.Duration(c.suspected.Load())
	switch settled := suspected + readBlock + opTimeout; {
	case suspected == 0 || a.looked >= settled:
		return maxLease
	case a.looked >= suspected:
		return max(settled-sinceEpoch(), a.wait.last)
	default:
		return a.wait.last
	}
}

// look takes entries that were delivered to this consumer in replies that it never saw, if there may be any, and returns
// whether there are more than it has room for.
func (c *consumer[T]) look(ctx context.Context, a *adoption) (more bool, err error) {
	if c.untilLook(a) > a.wait.last {
		return false, nil
	}
	began := sinceEpoch()
	unseen, err := c.orphans(ctx)
	for err == nil && len(unseen) > 0 {
		n := min(c.reserveToClaim(a.most), len(unseen))
		if n == 0 {
			return true, nil
		}
		err = c.adopt(ctx, unseen[:n], a)
		c.claimingEnds()
		unseen = unseen[n:]
	}
	if err != nil && !isGone(err) {
		a.wait.next()
		return false, err
	}
	a.looked, a.wait = began, backoff{}
	c.looked.Store(int64(began))
	return false, nil
}

// orphans returns the entries that are pending for this consumer and that no reply has brought, nor will the read under way.
func (c *consumer[T]) orphans(ctx context.Context) ([]PendingEntry, error) {
	unseen, err := c.unseen(ctx, c.opTimeout)
	if err != nil || len(unseen) == 0 {
		return nil, err
	}
	c.mu.Lock()
	done := c.readDone
	c.mu.Unlock()
	if done != nil {
		select {
		case <-done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.DeleteFunc(unseen, func(p PendingEntry) bool { return c.tasks[p.ID] != nil }), nil
}

// adopt fetches orphans.
func (c *consumer[T]) adopt(ctx context.Context, orphans []PendingEntry, a *adoption) error {
	args := make([]string, len(orphans))
	for i, p := range orphans {
		args[i] = string(p.ID)
	}
	sent := sinceEpoch()
	reply, err := c.onStream(ctx, adoptScript, args...).ToArray()
	if err != nil {
		a.most = max(1, len(orphans)/2) // they may be large
		return err
	}
	if sinceEpoch()-sent < c.opTimeout/4 {
		a.most = min(2*a.most, renewChunk)
	}
	tasks, err := c.claimed(reply, sent)
	if err != nil {
		return err
	}
	mayBeRead := c.mayBeRead()
	for _, t := range tasks {
		if t.attempt == 2 && mayBeRead { // it was delivered, which counts as the first attempt, and not begun
			t.attempt, t.begun = 1, true
		} else {
			c.inherit(t)
		}
	}
	c.take(tasks)
	return nil
}

// unseen returns the entries that are pending for this consumer and that it does not know of.
func (c *consumer[T]) unseen(ctx context.Context, timeout time.Duration) (found []PendingEntry, err error) {
	start := "-"
	for {
		opCtx, cancel := context.WithTimeout(ctx, timeout)
		page, err := c.g.pendingPage(opCtx, start, c.name, c.aside())
		cancel()
		c.heed(err)
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
		next, err := c.loopDo(ctx, dueScript, []string{c.s.key, c.s.delayedKey(), c.s.dueKey()}, strconv.Itoa(dueChunk)).AsInt64()
		switch {
		case err != nil && ctx.Err() == nil:
			c.report(ctx, OpDue, err)
		case err == nil && next >= 0:
			pause = min(longest, max(least, time.Duration(next)*time.Millisecond))
		}
	}
}
