package stream

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/internal/script"
)

// Run handles messages until ctx ends. Then it hands what no handler has begun over to other consumers, waits for the
// handlers at work, acknowledges what they have done, and returns nil, or ErrUnfinished. Any number of processes may run a
// group.
//
// It returns an error at once if the options are bad, if Redis says that the key is no stream or that this is not allowed, or as
// ErrSecondGroup. While Redis cannot be reached it tries again, with pauses of a second at most.
//
// It uses one blocking connection, and otherwise those that the client shares, as long as they answer.
func (g *Group[T]) Run(ctx context.Context, h Handler[T]) error {
	if h == nil {
		return errors.New("stream: run: handler is required")
	}
	for i := len(g.opts.Middleware) - 1; i >= 0 && g.err == nil; i-- {
		if h = g.opts.Middleware[i](h); h == nil {
			return errors.New("stream: run: middleware returned nil")
		}
	}
	return g.run(ctx, h, nil)
}

// RunBatch is like Run for a handler that takes several messages at once: as many as are there, GroupOptions.Batch at most.
// Messages of a batch that failed are handled again each alone, so that a bad one keeps no other back.
func (g *Group[T]) RunBatch(ctx context.Context, h BatchHandler[T]) error {
	if h == nil {
		return errors.New("stream: run: handler is required")
	}
	if len(g.opts.Middleware) > 0 {
		return errors.New("stream: run: GroupOptions.Middleware is for Run")
	}
	return g.run(ctx, nil, h)
}

// consumer is one Run.
type consumer[T any] struct {
	g           *Group[T]
	s           *Stream[T]
	opts        *GroupOptions[T]
	name        string
	handle      Handler[T]
	handleBatch BatchHandler[T]
	opTimeout   time.Duration

	queue   *queue[T]
	acks    *acker[T]
	space   chan struct{} // there may be room for more
	turn    chan struct{} // the sweep need not wait longer
	workers []*worker[T]
	mean    atomic.Int64 // nanoseconds that a handler takes, about

	mu                sync.Mutex
	tasks             map[ID]*task[T] // all that this consumer has, from delivery to acknowledgement
	lanes             lanes[T]
	parked            map[*task[T]]struct{} // that wait for their next attempt
	stopping          bool
	reading, claiming int                // room that is kept for what is being read and claimed
	sweepWaits        bool               // for what reading keeps
	readDone          chan struct{}      // is closed when what the read under way has brought is in tasks; nil if there is none
	left              []*task[T]         // what came to be handled when it was stopping
	released          map[ID]struct{}    // what was handed over
	cancel            context.CancelFunc // of the read that waits
	existed           bool               // the group has: if it is gone, it begins with the first entry

	// On the package's clock; 0 if there is none.
	suspected  atomic.Int64 // the last reply that was never seen, and may have had entries
	readLost   atomic.Int64 // the last of those that was a read's
	looked     atomic.Int64 // when they were looked for last
	full       atomic.Int64 // until when dead letters wait for one to find room
	asideUntil atomic.Int64 // when the loops try shared connections again

	unanswered atomic.Bool // whether a command was, since the last claim
}

func (g *Group[T]) run(ctx context.Context, h Handler[T], hb BatchHandler[T]) error {
	if g.err != nil {
		return g.err
	}
	c := g.newConsumer(h, hb)
	if err := c.join(ctx); err != nil {
		return fmt.Errorf("stream: run: %w", err)
	}
	if ctx.Err() != nil {
		return nil
	}
	// What goes on until handlers have ended does not end with ctx.
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	c.makeWorkers(life)
	g.mu.Lock()
	g.runs[c] = struct{}{}
	g.mu.Unlock()
	defer func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.runs, c)
		c.mu.Lock()
		defer c.mu.Unlock()
		g.counters.inFlight.Add(-int64(len(c.tasks)))
		clear(c.tasks)
	}()

	var intake, handover, upkeep, workers sync.WaitGroup
	intake.Go(func() { c.readLoop(ctx) })
	intake.Go(func() { c.sweepLoop(ctx) })
	intake.Go(func() { c.dueLoop(ctx) })
	renew, stopRenewing := context.WithCancel(life)
	defer stopRenewing()
	upkeep.Go(func() { c.renewLoop(renew) })
	upkeep.Go(func() { c.acks.loop(life) })
	c.startWorkers(&workers)

	<-ctx.Done()
	handlers, stopHandlers := context.WithTimeout(life, c.opts.DrainTimeout)
	defer stopHandlers()
	left := c.stop()
	released := false
	handover.Go(func() {
		released = c.release(life, left)
		intake.Wait()
		released = released && c.release(life, c.takeLeft())
	})
	ended := c.finish(handlers, &workers)
	stopRenewing()
	defer time.AfterFunc(opTimeout, end).Stop() // for all that is to be told to Redis yet
	handover.Wait()
	c.acks.close()
	upkeep.Wait()
	if !released || !c.leave(life) || !ended || c.unfinished() {
		return ErrUnfinished
	}
	return nil
}

func (g *Group[T]) newConsumer(h Handler[T], hb BatchHandler[T]) *consumer[T] {
	name := g.opts.Consumer
	if name == "" {
		host, err := os.Hostname()
		if err != nil {
			host = "consumer"
		}
		name = host + "-" + strconv.Itoa(os.Getpid())
	}
	c := &consumer[T]{
		g: g, s: g.s, opts: &g.opts, name: name + "-" + rand.Text()[:8], handle: h, handleBatch: hb,
		opTimeout: min(opTimeout, max(g.opts.Lease/3, 100*time.Millisecond)),
		space:     make(chan struct{}, 1), turn: make(chan struct{}, 1), tasks: map[ID]*task[T]{}, parked: map[*task[T]]struct{}{},
		released: map[ID]struct{}{},
		lanes:    lanes[T]{keys: map[string][]*task[T]{}},
	}
	c.acks = newAcker(c)
	c.queue = newQueue[T](g.opts.Workers, func(all bool) {
		notify(c.space)
		if all {
			notify(c.acks.flush)
		}
	})
	return c
}

func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (c *consumer[T]) report(ctx context.Context, op string, err error) {
	if c.opts.Hooks.Error != nil && err != nil {
		c.opts.Hooks.Error(ctx, op, fmt.Errorf("stream: %s: %w", op, err))
	}
}

// do makes one bounded round trip.
func (c *consumer[T]) do(ctx context.Context, sc *script.Script, keys []string, args ...string) rueidis.RedisResult {
	return c.send(ctx, sc.Call(keys, args...))
}

func (c *consumer[T]) send(ctx context.Context, call script.Call) rueidis.RedisResult {
	ctx, cancel := context.WithTimeout(ctx, c.opTimeout)
	defer cancel()
	return script.Do(ctx, c.s.client, call)
}

// detourFor is how long the loops use connections of their own after a shared one was silent. It is longer than the
// client's defaults take to notice that.
const detourFor = 15 * time.Second

// aside reports whether the loops are to do without shared connections.
func (c *consumer[T]) aside() bool { return sinceEpoch() < time.Duration(c.asideUntil.Load()) }

// heed learns from what became of a command that one of the loops has sent.
func (c *consumer[T]) heed(err error) {
	c.doubt(err)
	if errors.Is(err, context.DeadlineExceeded) {
		c.detour()
	}
}

// detour has the loops do without shared connections for a while.
func (c *consumer[T]) detour() { c.asideUntil.Store(int64(sinceEpoch() + detourFor)) }

// doubt notes that a command was not answered, if so: others may not have been able to renew what they have.
func (c *consumer[T]) doubt(err error) {
	if _, answered := rueidis.IsRedisErr(err); err != nil && !answered && !errors.Is(err, context.Canceled) {
		c.unanswered.Store(true)
	}
}

// unbuilt is a command.
type unbuilt interface {
	Build() rueidis.Completed
	Blocking() rueidis.Completed
}

// built finishes a command, which if it is to be aside takes a connection of the blocking pool.
func built(cmd unbuilt, aside bool) rueidis.Completed {
	if aside {
		return cmd.Blocking()
	}
	return cmd.Build()
}

// loopDo is do for the loops, of which there are few.
func (c *consumer[T]) loopDo(ctx context.Context, sc *script.Script, keys []string, args ...string) rueidis.RedisResult {
	call := sc.Call(keys, args...)
	call.Aside = c.aside()
	r := c.send(ctx, call)
	c.heed(r.Error())
	return r
}

// onStream runs a script whose arguments begin with the group and the consumer, for a loop.
func (c *consumer[T]) onStream(ctx context.Context, sc *script.Script, args ...string) rueidis.RedisResult {
	return c.loopDo(ctx, sc, []string{c.s.key}, append([]string{c.g.name, c.name}, args...)...)
}

// onExit is onStream when no lease depends on how long it takes.
func (c *consumer[T]) onExit(ctx context.Context, sc *script.Script, args ...string) rueidis.RedisResult {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	return script.Do(ctx, c.s.client, sc.Call([]string{c.s.key}, append([]string{c.g.name, c.name}, args...)...))
}

// join makes the group unless it exists. If Redis cannot say, or is too full, reading will find out.
func (c *consumer[T]) join(ctx context.Context) error {
	var wait backoff
	for ctx.Err() == nil {
		err := c.create(ctx)
		if err == nil && c.opts.DeleteOnAck {
			err = c.checkAlone(ctx)
		}
		c.doubt(err)
		if err == nil || isOOM(err) {
			return nil
		}
		if isFatal(err) || errors.Is(err, ErrSecondGroup) {
			return err
		}
		if ctx.Err() == nil {
			c.report(ctx, OpRead, err)
			wait.sleep(ctx)
		}
	}
	return nil
}

func (c *consumer[T]) create(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.opTimeout)
	defer cancel()
	start := "0"
	c.mu.Lock()
	if !c.existed && c.opts.Start != "" {
		start = string(c.opts.Start)
	}
	existed := c.existed
	c.mu.Unlock()
	err := c.s.client.Do(ctx, c.s.client.B().XgroupCreate().Key(c.s.key).Group(c.g.name).Id(start).Mkstream().Build()).Error()
	if e, ok := rueidis.IsRedisErr(err); ok && e.IsBusyGroup() {
		err = nil
	} else if err == nil && existed {
		c.g.counters.recovered.Add(1)
	}
	if err == nil {
		c.mu.Lock()
		c.existed = true
		c.mu.Unlock()
	}
	return err
}

func (c *consumer[T]) checkAlone(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.opTimeout)
	defer cancel()
	groups, err := c.s.client.Do(ctx, c.s.ofPrimary(c.s.client.B().Arbitrary("XINFO", "GROUPS").Keys(c.s.key))).ToArray()
	if err == nil && len(groups) > 1 {
		err = ErrSecondGroup
	}
	return err
}

func isOOM(err error) bool {
	e, ok := rueidis.IsRedisErr(err)
	return ok && strings.HasPrefix(e.Error(), "OOM")
}

// isGone reports whether the group, or the stream, has disappeared.
func isGone(err error) bool {
	e, ok := rueidis.IsRedisErr(err)
	return ok && (strings.Contains(e.Error(), "NOGROUP") || strings.HasPrefix(e.Error(), "UNBLOCKED") && strings.Contains(e.Error(), "no longer exists"))
}

// readLoop reads new entries as long as there is room for them.
func (c *consumer[T]) readLoop(ctx context.Context) {
	var wait backoff
	grace, limit := c.leastGrace(), c.opts.Batch
	for {
		select {
		case <-c.g.running():
		case <-ctx.Done():
			return
		}
		if ctx.Err() != nil || !c.awaitLook(ctx) {
			return
		}
		room := c.room(limit)
		if room == 0 {
			select {
			case <-c.space:
			case <-ctx.Done():
				return
			}
			continue
		}
		sent := sinceEpoch()
		entries, err := c.read(ctx, room, grace)
		if err == nil {
			wait = backoff{}
			if sinceEpoch()-sent < readBlock+grace/4 {
				grace, limit = c.leastGrace(), min(2*limit, c.opts.Batch)
			}
			c.g.counters.received.Add(uint64(len(entries)))
			c.take(c.newTasks(entries, sent))
		} else if errors.Is(err, context.DeadlineExceeded) {
			// It may have been a large reply, which says nothing about others.
			grace, limit = min(2*grace, c.opTimeout), max(1, room/2)
			c.detour()
		} else {
			c.doubt(err)
		}
		_, answered := rueidis.IsRedisErr(err)
		if err != nil && !answered { // whoever waits for the end of this read is to know
			c.readLost.Store(int64(sinceEpoch()))
		}
		c.readingEnds()
		if err == nil {
			continue
		}
		if ctx.Err() != nil {
			return
		}
		if !answered {
			c.suspect()
			notify(c.turn)
		}
		if errors.Is(err, context.Canceled) { // by Pause
			continue
		}
		if isGone(err) {
			if err = c.create(ctx); err == nil {
				continue
			}
		}
		c.report(ctx, OpRead, err)
		wait.sleep(ctx)
	}
}

// awaitLook waits, where messages have an order, until entries in replies that were never seen have been looked for: they
// come before those that are read next. It returns false if ctx ends.
func (c *consumer[T]) awaitLook(ctx context.Context) bool {
	for c.opts.Key != nil && c.looked.Load() < c.suspected.Load() {
		if !sleep(ctx, 5*time.Millisecond) {
			return false
		}
	}
	return true
}

func (g *Group[T]) isPausedNow() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.isPaused()
}

// room returns how many entries to read now, limit at most, and keeps room for them, or 0 to wait until some are done.
func (c *consumer[T]) room(limit int) int {
	waiting, _ := c.queue.state()
	idle := c.acks.idle()
	c.mu.Lock()
	defer c.mu.Unlock()
	n := min(c.free(), c.opts.Batch, c.ahead()-waiting)
	if n <= 0 {
		return 0
	}
	// Many at once cost less than one by one: wait for acknowledgements under way, unless workers may run out of work.
	if n >= min(c.opts.Batch, c.opts.MaxInFlight)/2 || waiting <= c.opts.Workers && idle {
		if c.sweepWaits {
			notify(c.turn)
			return 0
		}
		c.reading, c.readDone = min(n, limit), make(chan struct{})
		return c.reading
	}
	return 0
}

// leastGrace is how much longer than it waits for entries a read may take, at first: if nothing is heard from a connection,
// the next read takes another one.
func (c *consumer[T]) leastGrace() time.Duration { return min(time.Second, c.opTimeout) }

func (c *consumer[T]) read(ctx context.Context, n int, grace time.Duration) ([]entry, error) {
	block := min(readBlock, c.opts.Lease/3)
	ctx, cancel := context.WithTimeout(ctx, block+grace)
	defer cancel()
	c.mu.Lock()
	c.cancel = cancel
	c.mu.Unlock()
	if c.g.isPausedNow() { // since before interrupt could know of this read
		return nil, context.Canceled
	}
	return parseRead(c.s.client.Do(ctx, c.s.client.B().Xreadgroup().Group(c.g.name, c.name).Count(int64(n)).Block(block.Milliseconds()).
		Streams().Key(c.s.key).Id(">").Build().ToPipe().UnblockOnCancel()))
}

// interrupt ends the read that waits.
func (c *consumer[T]) interrupt() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cancel != nil {
		c.cancel()
	}
}

// newTasks are of entries that were delivered after sent.
func (c *consumer[T]) newTasks(entries []entry, sent time.Duration) []*task[T] {
	tasks := make([]*task[T], 0, len(entries))
	for _, e := range entries {
		if e.fields == nil {
			continue
		}
		// Not of one array: one that waits for its next attempt would keep all of them, with their fields.
		t := &task[T]{id: e.id, fields: e.fields, attempt: 1, begun: true}
		t.renewed.Store(int64(sent))
		tasks = append(tasks, t)
	}
	return tasks
}

// take has tasks handled that Redis says are this consumer's now.
func (c *consumer[T]) take(tasks []*task[T]) {
	if len(tasks) == 0 {
		return
	}
	if c.opts.Key != nil {
		for _, t := range tasks {
			m, _, _, err := decode(c.s.opts.Codec, entry{t.id, t.fields}, nil)
			if err != nil {
				continue
			}
			t.keyErr = call(func() error {
				t.key = c.opts.Key(m.Value)
				return nil
			})
			if t.keyErr == nil {
				t.msg, t.keyed = m, true
			}
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	fresh := tasks[:0]
	for _, t := range tasks {
		if c.tasks[t.id] != nil {
			continue // it is at work: the group was made again
		}
		c.tasks[t.id] = t
		c.g.counters.inFlight.Add(1)
		fresh = append(fresh, t)
	}
	c.enqueue(fresh)
}

// enqueue passes tasks to workers, unless their lanes are taken. c.mu is held.
func (c *consumer[T]) enqueue(tasks []*task[T]) {
	if c.stopping {
		c.left = append(c.left, tasks...)
		return
	}
	ready := tasks[:0]
	for _, t := range tasks {
		if c.lanes.enter(t) {
			ready = append(ready, t)
		}
	}
	c.queue.push(ready...)
}

// park has a task handled again after d.
func (c *consumer[T]) park(t *task[T], d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	lost := t.lost.Load() // once: lose waits for c.mu, and then ends what it finds parked
	next := c.lanes.leave(t, lost)
	switch {
	case lost:
	case c.stopping:
		c.left = append(c.left, t)
	default:
		c.parked[t] = struct{}{}
		t.parked = time.AfterFunc(d, func() { c.unpark(t) })
	}
	t.due = sinceEpoch() + d
	c.enqueue(next)
	notify(c.space)
}

func (c *consumer[T]) unpark(t *task[T]) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.parked[t]; ok {
		delete(c.parked, t)
		c.enqueue([]*task[T]{t})
	}
}

// forget ends what a consumer has to do with tasks.
func (c *consumer[T]) forget(tasks ...*task[T]) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range tasks {
		c.remove(t)
		if t.holdsKey || t.holdsSolo {
			c.enqueue(c.lanes.leave(t, true))
		}
	}
	notify(c.space)
}

// remove is forget but for the lanes. c.mu is held.
func (c *consumer[T]) remove(t *task[T]) {
	if c.tasks[t.id] == t {
		delete(c.tasks, t.id)
		c.g.counters.inFlight.Add(-1)
	}
}

// stop ends the supply of workers and returns the tasks that none has begun.
func (c *consumer[T]) stop() []*task[T] {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopping = true
	left := append(c.queue.close(), c.lanes.close()...)
	for t := range c.parked {
		t.parked.Stop()
		left = append(left, t)
	}
	clear(c.parked)
	for _, w := range c.workers {
		left = append(left, w.rest...)
		w.rest = nil
	}
	left = append(left, c.left...)
	c.left = nil
	return left
}

// finish waits for the workers until handlers ends, then a second more with their contexts ended, and returns whether they did.
func (c *consumer[T]) finish(handlers context.Context, workers *sync.WaitGroup) bool {
	done := make(chan struct{})
	go func() {
		workers.Wait()
		close(done)
	}()
	select {
	case <-done:
		return true
	case <-handlers.Done():
	}
	for _, w := range c.workers {
		w.stop()
	}
	grace := time.NewTimer(time.Second)
	defer grace.Stop()
	select {
	case <-done:
		return true
	case <-grace.C:
		return false
	}
}

// releaseChunk keeps scripts short, and their arguments within what Lua unpacks.
const releaseChunk = 200

// release hands tasks over, and returns false if Redis does not confirm it: then it does not go on. One that waits for its
// next attempt is claimed no earlier than it would have been handled, but within a lease.
func (c *consumer[T]) release(ctx context.Context, tasks []*task[T]) bool {
	for len(tasks) > 0 {
		chunk := tasks[:min(releaseChunk, len(tasks))]
		tasks = tasks[len(chunk):]
		args := make([]string, 0, 3*len(chunk))
		for _, t := range chunk {
			begun := t.attempt - 1
			if t.reason != "" {
				begun = t.attempt
			}
			idle := c.opts.Lease - max(0, t.due-sinceEpoch())
			args = append(args, string(t.id), millis(max(0, idle)), strconv.Itoa(begun))
		}
		if err := c.onExit(ctx, releaseScript, args...).Error(); err != nil && !isGone(err) {
			c.report(ctx, OpDrain, err)
			return false
		}
		c.mu.Lock()
		for _, t := range chunk {
			c.remove(t)
			c.released[t.id] = struct{}{}
		}
		c.mu.Unlock()
	}
	return true
}

// takeLeft returns what came to be handled since it is stopping.
func (c *consumer[T]) takeLeft() []*task[T] {
	c.mu.Lock()
	defer c.mu.Unlock()
	left := c.left
	c.left = nil
	return left
}

// leave hands over what came too late, removes the consumer if nothing is pending for it, and returns false if Redis does
// not say what that is.
func (c *consumer[T]) leave(ctx context.Context) bool {
	if !c.release(ctx, c.takeLeft()) {
		return false
	}
	unseen, err := c.unseen(ctx, opTimeout)
	if err != nil && !isGone(err) {
		c.report(ctx, OpDrain, err)
		return false
	}
	// What was handed over is pending for this consumer until another one claims it, and stays as it is.
	c.mu.Lock()
	unseen = slices.DeleteFunc(unseen, func(p PendingEntry) bool {
		_, released := c.released[p.ID]
		return released
	})
	c.mu.Unlock()
	orphans, mayBeRead := make([]*task[T], len(unseen)), c.mayBeRead()
	for i, p := range unseen {
		orphans[i] = &task[T]{id: p.ID, attempt: p.Attempts + 1}
		if p.Attempts == 1 && mayBeRead {
			orphans[i].attempt = 1 // it was delivered, and not begun
		}
	}
	if !c.release(ctx, orphans) {
		return false
	}
	if err := c.onExit(ctx, leaveScript).Error(); err != nil && !isGone(err) {
		c.report(ctx, OpDrain, err)
	}
	return true
}

// unfinished reports whether anything was neither acknowledged nor handed over.
func (c *consumer[T]) unfinished() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.tasks) > 0
}
