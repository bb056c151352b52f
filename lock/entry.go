package lock

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"
	"weak"
)

// entry is what a process has to do with one lock: it holds it, waits for it in Redis, or is asking. All calls of the
// process for that name share it, so that a thousand of them are one holder or waiter in Redis. It lives as long as there
// is something to do. Its Locker's mu guards it.
type entry struct {
	name  string
	keys  lockKeys
	token string // that holds the lock, waits, or asks
	state state

	calls calls // that wait, first come first

	due   time.Duration // when the agenda has something to do, since epoch
	place int           // in the agenda; -1 if it is not there

	// While asking and waiting.
	sent    time.Duration // when the last command that was answered was sent
	now     int64         // what the server's clock was then, µs
	failing time.Duration // since when commands have failed; 0 if they do not
	failed  int           // how many
	closed  closings
	doubt   time.Duration // when a command with this token failed last, which may still be on its way; 0 if none did
	late    int           // how many leases were over before they were known
	holder  string        // who had the lock then, what it says of itself, and what was left of its lease
	meta    string
	left    time.Duration
	early   *grantMessage // a grant that was heard before the answer that explains it
	listens bool          // to the inbox

	// While held. The lease is the process's; its tenant is who has the lock within it, or nil for a moment.
	tenant    *tenure
	until     time.Duration // end of the lease, less the guard
	since     time.Duration // when the process got the lease
	nextFence int64
	lastFence int64 // that may be used: the server's clock when it last said that the lease is ours
	others    bool  // whether other processes were waiting then
	renewing  bool
	extended  bool          // for longer than a TTL, or about to be
	retry     time.Duration // when to renew after a failure
}

type state int8

const (
	calling state = iota // a command about it is under way, or about to be
	queued               // in Redis' queue
	held
)

// call is a Lock or TryLock that waits.
type call struct {
	ctx        context.Context
	try        bool
	done       chan struct{} // closed when there is lock or err
	lock       *Lock
	err        error
	waits      bool // is in its entry's calls
	prev, next *call
}

// calls is a list of calls.
type calls struct {
	first, last *call
	tries       int // how many are TryLocks
}

func (cs *calls) add(c *call) {
	cs.count(c, 1)
	c.waits, c.prev, c.next = true, cs.last, nil
	if cs.last == nil {
		cs.first = c
	} else {
		cs.last.next = c
	}
	cs.last = c
}

func (cs *calls) addFirst(c *call) {
	cs.count(c, 1)
	c.waits, c.prev, c.next = true, nil, cs.first
	if cs.first == nil {
		cs.last = c
	} else {
		cs.first.prev = c
	}
	cs.first = c
}

func (cs *calls) count(c *call, n int) {
	if c.try {
		cs.tries += n
	}
}

func (cs *calls) remove(c *call) {
	cs.count(c, -1)
	if c.prev == nil {
		cs.first = c.next
	} else {
		c.prev.next = c.next
	}
	if c.next == nil {
		cs.last = c.prev
	} else {
		c.next.prev = c.prev
	}
	c.waits, c.prev, c.next = false, nil, nil
}

func (cs *calls) patient() bool {
	for c := cs.first; c != nil; c = c.next {
		if !c.try {
			return true
		}
	}
	return false
}

// How a lease is passed on within a process.
const (
	// stint is for how long calls of a process pass the lock on while other processes wait.
	stint = 5 * time.Millisecond
	// freshness is how old the knowledge whether others wait may be for that.
	freshness = 5 * time.Millisecond
	// fewFences is how many fences are left when more are asked for.
	fewFences = 256
)

// How long to wait between commands about one lock.
const (
	// pollUnheard is for waiters whose inbox does not work, or not yet.
	pollUnheard = 100 * time.Millisecond
	minPoll     = 5 * time.Millisecond
	// tryAttempts is how often a TryLock sends its command.
	tryAttempts = 6
	// releaseAttempts is how often a release is repeated at once, if it fails: on each connection of a client there may be.
	releaseAttempts = 6
	// lateAttempts is how often a lease may be over before its grant is known.
	lateAttempts = 3
)

func (l *Locker) newToken() string {
	l.number++
	return l.id + "." + strconv.FormatUint(l.number, 36)
}

// lateFor is for how long a command that failed may still be on its way.
const lateFor = 10 * time.Second

// uncertain reports whether a command with the entry's token may still come.
func (e *entry) uncertain() bool { return e.doubt != 0 && sinceEpoch()-e.doubt < lateFor }

func (l *Locker) renewToken(e *entry) { e.token, e.doubt, e.early = l.newToken(), 0, nil }

func (l *Locker) lock(ctx context.Context, name string, try bool) (*Lock, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("lock: acquire: %w", err)
	}
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil, ErrClosed
	}
	e := l.names[name]
	if e != nil && e.state == held && sinceEpoch() >= e.end() {
		l.lose(e, ErrLost, guard(l.opts.TTL))
		e = l.names[name]
	}
	if e == nil {
		e = &entry{name: name, keys: l.keysOf(name), token: l.newToken(), place: -1}
		l.names[name] = e
		l.running++
		l.mu.Unlock()
		defer l.done()
		return l.first(ctx, e, try)
	}
	if try && e.state != calling {
		err := l.heldHere(e)
		if e.state == queued {
			err = &HeldError{Holder: e.holder, Meta: e.meta, TTL: max(0, e.sent+e.left-sinceEpoch())}
		}
		l.mu.Unlock()
		return nil, err
	}
	c := &call{ctx: ctx, try: try, done: make(chan struct{})}
	e.calls.add(c)
	if e.state == held && e.tenant != nil && e.nextFence > e.lastFence {
		l.renewNow(e) // so that the lock can be passed on without a wait
	}
	l.mu.Unlock()
	return l.wait(ctx, e, c)
}

// heldHere is the error of a TryLock for a lock that this process has.
func (l *Locker) heldHere(e *entry) *HeldError {
	return &HeldError{Holder: e.token, Meta: l.opts.Meta, TTL: max(0, e.until-sinceEpoch())}
}

// first is the first call in its process for a name: it asks Redis itself.
func (l *Locker) first(ctx context.Context, e *entry, try bool) (*Lock, error) {
	mode := "wait"
	if try {
		mode = ""
	}
	returned := false
	defer l.abandon(&returned, e, e.token, 0)
	a, err := l.acquireFirst(ctx, &e.keys, e.token, mode)
	returned = true
	l.mu.Lock()
	if err == nil && a.granted && !l.closed && l.hold(e, a) {
		lk := l.admit(ctx, e)
		l.mu.Unlock()
		return l.ready(ctx, lk)
	}
	if err != nil && ctx.Err() != nil {
		l.giveUp(e.keys, a.token, 0, true, 0)
		l.restart(e) // with another token: this one is given up
		l.mu.Unlock()
		return nil, fmt.Errorf("lock: acquire: %w", ctx.Err())
	}
	c := &call{ctx: ctx, try: try, done: make(chan struct{})}
	e.calls.addFirst(c)
	l.answered(e, a, err)
	l.mu.Unlock()
	return l.wait(ctx, e, c)
}

// wait returns when c is done, or ctx.
func (l *Locker) wait(ctx context.Context, e *entry, c *call) (*Lock, error) {
	select {
	case <-c.done:
	default:
		select {
		case <-c.done:
		case <-ctx.Done():
		}
	}
	if err := ctx.Err(); err != nil {
		err = fmt.Errorf("lock: acquire: %w", err)
		l.mu.Lock()
		if !c.waits { // it came too late
			if c.lock != nil {
				l.discard(ctx, c.lock)
			}
			l.mu.Unlock()
			return nil, err
		}
		e.calls.remove(c)
		if e.state == queued && e.calls.first == nil {
			l.leave(e)
		}
		l.mu.Unlock()
		return nil, err
	}
	if c.err != nil {
		return nil, c.err
	}
	return l.ready(ctx, c.lock)
}

// ready gives a lock that was passed on the lease that it would otherwise get by renewal.
func (l *Locker) ready(ctx context.Context, lk *Lock) (*Lock, error) {
	if !l.opts.NoRenewal || time.Duration(lk.until.Load())-sinceEpoch() > l.opts.TTL*9/10 {
		return lk, nil
	}
	if err := l.extend(ctx, lk.tenure, l.opts.TTL); err != nil {
		l.mu.Lock()
		l.discard(ctx, lk)
		l.mu.Unlock()
		return nil, fmt.Errorf("lock: acquire: %w", err)
	}
	return lk, nil
}

// discard unlocks in the background what nobody has heard of, unless it is over, as it is after Close. l.mu is held.
func (l *Locker) discard(ctx context.Context, lk *Lock) {
	if lk.e.tenant == lk.tenure {
		l.spawn(func() { _ = l.unlock(ctx, lk.tenure) })
	}
}

// abandon is deferred where the client is called on a goroutine of the user's, which may end there: if the client, or a hook around
// it, panics.
func (l *Locker) abandon(returned *bool, e *entry, token string, used int64) {
	if *returned {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.giveUp(e.keys, token, used, true, 0)
	l.restart(e)
}

// hold begins a lease that Redis granted, unless it is over already. l.mu is held, as for all below.
func (l *Locker) hold(e *entry, a answer) bool {
	until := a.sent + l.opts.TTL - guard(l.opts.TTL)
	if sinceEpoch() >= until {
		return false
	}
	l.begin(e, a.sent, until, a.fence, a.others)
	return true
}

func (l *Locker) begin(e *entry, sent, until time.Duration, fence int64, others bool) {
	e.state, e.since, e.until = held, sinceEpoch(), until
	e.sent, e.nextFence, e.lastFence, e.others = sent, fence, fence, others
	e.failing, e.failed, e.closed, e.late, e.early, e.retry, e.renewing, e.extended = 0, 0, 0, 0, nil, 0, false, false
	l.inbox.waits(e, false)
}

// admit makes a tenant of the one who has ctx. There is a fence for it.
func (l *Locker) admit(ctx context.Context, e *entry) *Lock {
	t := &tenure{l: l, e: e, parent: ctx, fence: e.nextFence, since: sinceEpoch()}
	e.nextFence++
	lk := &Lock{tenure: t}
	t.handle = weak.Make(lk)
	t.until.Store(int64(l.bounded(t, e.until)))
	e.tenant = t
	if e.calls.tries > 0 {
		l.dismiss(e, l.heldHere(e))
	}
	l.plan(e)
	return lk
}

// bounded is the end of a lease for a tenant that may not hold the lock for longer than MaxHold.
func (l *Locker) bounded(t *tenure, until time.Duration) time.Duration {
	if l.opts.MaxHold > 0 {
		return min(until, t.since+l.opts.MaxHold)
	}
	return until
}

// end is when the lease is over, for its tenant if it has one.
func (e *entry) end() time.Duration {
	if e.tenant != nil {
		return time.Duration(e.tenant.until.Load())
	}
	return e.until
}

// next passes a lease without a tenant to the first call that waits, or releases it.
func (l *Locker) next(e *entry) {
	c := e.calls.first
	if c == nil {
		token, used, uncertain := e.token, e.nextFence-1, e.uncertain()
		l.released(e)
		l.spawn(func() {
			_ = l.tellReleased(l.stop, e, token, used, false, uncertain) // it goes on in the background
		})
		return
	}
	if e.nextFence > e.lastFence { // Redis may have granted that one to another
		l.renewNow(e)
		l.plan(e)
		return
	}
	e.calls.remove(c)
	if e.lastFence-e.nextFence < fewFences && e.calls.first != nil || sinceEpoch()-e.sent > freshness {
		l.renewNow(e) // before it has a tenant, who may not want renewal
	}
	c.lock = l.admit(c.ctx, e)
	close(c.done)
}

// unlock is Unlock.
func (l *Locker) unlock(ctx context.Context, t *tenure) error {
	ctx = context.WithoutCancel(ctx)
	l.mu.Lock()
	e := t.e
	now := sinceEpoch()
	if e.tenant == t && now >= e.end() {
		l.lose(e, ErrLost, guard(l.opts.TTL))
	}
	if e.tenant != t {
		l.mu.Unlock()
		return t.end.Load().cause
	}
	e.tenant = nil
	t.finish(endReleased)
	token, used := e.token, e.nextFence-1
	switch {
	case e.calls.first == nil:
		l.released(e)
		uncertain := e.uncertain()
		l.running++
		l.mu.Unlock()
		defer l.done()
		return l.tellReleased(ctx, e, token, used, false, uncertain)
	case e.others && now-e.since >= stint || e.extended: // which is not for the next
		l.released(e)
		uncertain := e.uncertain()
		l.renewToken(e)
		l.running++
		l.mu.Unlock()
		defer l.done()
		return l.tellRequeued(ctx, e, token, used, uncertain)
	}
	l.next(e)
	l.mu.Unlock()
	return nil
}

// released takes the lease from an entry whose token is about to be released.
func (l *Locker) released(e *entry) {
	e.state, e.renewing = calling, false
	l.agenda.remove(e)
}

// tellReleased releases a token whose lease was valid a moment ago, and goes on with the entry. If the release was tried
// before, or is repeated, and then finds nothing, the first one did it. If it is uncertain whether a command that takes the
// lock is still on its way, it is released again later.
func (l *Locker) tellReleased(ctx context.Context, e *entry, token string, used int64, repeated, uncertain bool) error {
	began := sinceEpoch()
	returned := false
	defer l.abandon(&returned, e, token, used)
	var closed closings
	found, err := l.releaseHeld(ctx, &e.keys, token, used)
	for attempt := range releaseAttempts {
		if err == nil || !closed.passing(err) || sinceEpoch()-began > opTimeout(l.opts.TTL)/2 {
			break
		}
		if attempt > 0 {
			pause(l.stop, time.Millisecond<<attempt)
		}
		repeated = true
		found, err = l.release(ctx, &e.keys, token, used)
	}
	returned = true
	l.mu.Lock()
	defer l.mu.Unlock()
	l.restart(e)
	if err != nil || uncertain {
		l.giveUp(e.keys, token, used, true, 0)
	}
	switch {
	case err != nil:
		return fmt.Errorf("lock: release: %w", slow(ctx, err))
	case found == hadNothing && !repeated:
		return ErrLost // it was broken, or deleted, or Redis lost it
	}
	return nil
}

// pause reports whether it lasted.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// restart asks for the lock anew if there are calls that wait for it, and forgets it otherwise.
func (l *Locker) restart(e *entry) {
	if e.calls.first == nil {
		l.forget(e)
		return
	}
	if l.closed {
		l.failAll(e, ErrClosed)
		l.forget(e)
		return
	}
	l.renewToken(e)
	e.state, e.failing, e.failed, e.closed, e.now, e.early = calling, 0, 0, 0, 0, nil
	l.spawn(func() { l.ask(e, 0) })
}

// tellRequeued releases a token and queues the entry's next one, behind the processes that wait.
func (l *Locker) tellRequeued(ctx context.Context, e *entry, token string, used int64, uncertain bool) error {
	returned := false
	defer l.abandon(&returned, e, token, used)
	a, done, err := l.requeue(ctx, &e.keys, token, used, e.token)
	returned = true
	if err != nil { // of the network, or because the queue does not fit into a full memory
		l.mu.Lock()
		l.giveUp(e.keys, a.token, 0, true, 0)
		l.mu.Unlock()
		var closed closings
		return l.tellReleased(ctx, e, token, used, closed.passing(err), uncertain)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if uncertain {
		l.giveUp(e.keys, token, used, true, 0)
	}
	switch {
	case !done:
		l.restart(e)
		return ErrLost
	case a.granted && l.opts.Replicas > 0: // whether they have it is to be asked
		l.spawn(func() { l.ask(e, 0) })
	default:
		l.answered(e, a, nil)
	}
	return nil
}

// requeueNow does so in the background for a lease that has no tenant.
func (l *Locker) requeueNow(e *entry) {
	token, used, uncertain := e.token, e.nextFence-1, e.uncertain()
	l.released(e)
	l.renewToken(e)
	l.spawn(func() { _ = l.tellRequeued(l.stop, e, token, used, uncertain) })
}

// ask asks for the lock in the background, after a delay.
func (l *Locker) ask(e *entry, delay time.Duration) {
	if delay > 0 {
		pause(l.stop, delay)
	}
	l.mu.Lock()
	if e.calls.first == nil || l.closed {
		l.failAll(e, ErrClosed)
		l.forget(e)
		l.giveUp(e.keys, e.token, 0, e.uncertain(), 0)
		l.mu.Unlock()
		return
	}
	token, mode := e.token, ""
	if e.calls.patient() {
		l.listenAnew()
		mode = l.inbox.mode()
	}
	l.mu.Unlock()
	a, err := l.acquire(l.stop, &e.keys, token, mode)
	l.mu.Lock()
	defer l.mu.Unlock()
	if a.granted { // and no message sent
		l.inbox.owed = 0
	}
	l.answered(e, a, err)
}

// answered goes on after Redis was asked, with what it said.
func (l *Locker) answered(e *entry, a answer, err error) {
	switch {
	case err != nil:
		l.askFailed(e, a, err)
		return
	case l.closed || e.calls.first == nil:
		l.failAll(e, ErrClosed)
		l.forget(e)
		l.giveUp(e.keys, a.token, 0, e.uncertain(), 0)
		return
	case a.granted && l.hold(e, a):
		l.plan(e)
		l.next(e)
		return
	case a.granted:
		l.giveUp(e.keys, a.token, 0, e.uncertain(), 0)
		l.renewToken(e)
		if e.late++; e.late >= lateAttempts || !e.calls.patient() {
			l.failAll(e, ErrSlow)
			l.forget(e)
			return
		}
		l.spawn(func() { l.ask(e, 0) })
		return
	}
	e.failing, e.failed, e.closed, e.late = 0, 0, 0, 0
	l.dismiss(e, &HeldError{Holder: a.holder, Meta: a.meta, TTL: max(0, a.left)})
	switch {
	case e.calls.first == nil:
		l.forget(e)
		if a.asked || e.now > 0 || e.uncertain() { // it may have been queued for a call that has left
			l.giveUp(e.keys, a.token, 0, e.uncertain(), 0)
		}
		return
	case !a.asked:
		l.spawn(func() { l.ask(e, 0) })
		return
	}
	e.state, e.sent, e.now = queued, a.sent, a.now
	e.holder, e.meta, e.left = a.holder, a.meta, a.left
	l.inbox.waits(e, true)
	l.startInbox()
	every := l.opts.TTL / 3
	if !l.inbox.works || a.sent < l.inbox.since { // a grant may have been told to nobody
		every = min(every, pollUnheard*3/4+rand.N(pollUnheard/2))
	}
	if a.left >= 0 { // a lease that ends without a release is noticed by those who wait; not by all at once
		every = min(every, a.left+time.Millisecond+rand.N(10*time.Millisecond))
	}
	l.schedule(e, a.sent+max(every, min(minPoll, l.opts.TTL/3)))
	if early := e.early; early != nil {
		e.early = nil
		l.granted(e, early)
	}
}

// askFailed goes on after Redis could not be asked: whether the token is queued or has the lock is not known.
func (l *Locker) askFailed(e *entry, a answer, err error) {
	now := sinceEpoch()
	if e.failing == 0 {
		e.failing = now
	}
	e.failed++
	e.doubt = now
	if l.closed {
		err = ErrClosed
	}
	again := e.closed.passing(err) || isFull(err) && e.now > 0 // who is in the queue already can still be served
	hopeless := l.closed || !again || now-e.failing > l.opts.TTL || !e.calls.patient() && e.failed >= tryAttempts
	if e.calls.first == nil || hopeless {
		if !errors.Is(err, ErrClosed) && !errors.Is(err, ErrUnderReplicated) && !errors.Is(err, ErrSlow) {
			err = fmt.Errorf("lock: acquire: %w", err)
		}
		l.failAll(e, err)
		l.forget(e)
		l.giveUp(e.keys, a.token, 0, true, 0)
		return
	}
	l.survived(OpAcquire, err)
	if e.failed >= tryAttempts {
		l.dismiss(e, fmt.Errorf("lock: acquire: %w", err))
	}
	e.state = calling
	delay := min(time.Millisecond<<min(e.failed, 7), 100*time.Millisecond)
	l.spawn(func() { l.ask(e, delay/2+rand.N(delay)) })
}

// granted takes a lease that another process handed to a token that waits.
func (l *Locker) granted(e *entry, g *grantMessage) {
	// The grant came after the server's clock was e.now, which was after e.sent. How long after is for the server to say. One
	// that is older than the last answer was not claimed in time.
	elapsed := max(0, time.Duration(g.now-e.now)*time.Microsecond)
	since := e.sent + elapsed - elapsed/100 // our clock may be a hundredth slower
	until := since + g.window - guard(g.window)
	if l.opts.Replicas > 0 || g.now < e.now || since > sinceEpoch() || sinceEpoch() >= until {
		l.agenda.remove(e)
		e.state = calling
		l.spawn(func() { l.ask(e, 0) })
		return
	}
	l.begin(e, since, until, g.fence, g.others)
	l.renewNow(e) // that claims it
	l.plan(e)
	l.next(e)
}

// lose ends a lease that is over, or will be within the guard, and asks anew for the calls that wait. The token is given up
// after the guard, in case a renewal was executed of which the reply was lost.
func (l *Locker) lose(e *entry, cause error, after time.Duration) {
	token, used := e.token, e.nextFence-1
	if t := e.tenant; t != nil {
		e.tenant = nil
		if cause == ErrClosed { //nolint:errorlint // ours alone
			t.finish(endClosed)
		} else {
			t.finish(endLost)
		}
	}
	l.giveUp(e.keys, token, used, e.uncertain(), after)
	l.released(e)
	l.restart(e)
}

// expire notices that a tenant's lease is over.
func (l *Locker) expire(t *tenure) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if t.e.tenant == t && sinceEpoch() >= t.e.end() {
		l.lose(t.e, ErrLost, guard(l.opts.TTL))
	}
}

// leave takes an entry out of Redis' queue.
func (l *Locker) leave(e *entry) {
	l.forget(e)
	l.giveUp(e.keys, e.token, 0, e.uncertain(), 0)
}

func (l *Locker) forget(e *entry) {
	l.agenda.remove(e)
	l.inbox.waits(e, false)
	e.state = calling
	if l.names[e.name] == e {
		delete(l.names, e.name)
	}
}

func (l *Locker) failAll(e *entry, err error) {
	for c := e.calls.first; c != nil; c = e.calls.first {
		e.calls.remove(c)
		c.err = err
		close(c.done)
	}
}

// dismiss ends the calls of TryLock.
func (l *Locker) dismiss(e *entry, err error) {
	for c := e.calls.first; c != nil; {
		next := c.next
		if c.try {
			e.calls.remove(c)
			c.err = err
			close(c.done)
		}
		c = next
	}
}

// How often a token is given up whose commands may still be on their way, on another connection than the one that gives it
// up: at once, and after each of these.
var lateArrivals = []time.Duration{50 * time.Millisecond, 200 * time.Millisecond, 600 * time.Millisecond}

// maxRepeats is of how many tokens at a time the release is repeated after it failed: what is more in an outage ends with its lease.
const maxRepeats = 10_000

// giveUp releases a token in the background, or takes it out of the queue, whichever it turns out to be in.
func (l *Locker) giveUp(keys lockKeys, token string, used int64, uncertain bool, after time.Duration) {
	l.spawn(func() {
		if after > 0 && !pause(l.stop, min(after, 500*time.Millisecond)) {
			return
		}
		began := sinceEpoch()
		var closed closings
		repeats := false
		defer func() { l.repeat(&repeats, false) }()
		for attempt, done := 0, 0; ; attempt++ {
			_, err := l.release(l.stop, &keys, token, used)
			passed := sinceEpoch() - began
			var delay time.Duration
			switch {
			case err == nil && (!uncertain || done == len(lateArrivals)):
				return
			case err == nil:
				delay = lateArrivals[done]
				done++
			case !closed.passing(err) || passed > l.opts.TTL+time.Second || !l.repeat(&repeats, true):
				return
			default:
				delay = min(5*time.Millisecond<<min(attempt, 5), 100*time.Millisecond)
				delay = max(delay, min(passed/8, 500*time.Millisecond)) // there may be many
				l.mu.Lock()
				l.survived(OpRelease, err)
				l.mu.Unlock()
			}
			if !pause(l.stop, delay) {
				return
			}
		}
	})
}

// repeat counts a token whose release failed, or no more. It reports false if there are too many.
func (l *Locker) repeat(counted *bool, yes bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case *counted == yes:
	case !yes:
		l.repeats--
	case l.repeats == maxRepeats:
		return false
	default:
		l.repeats++
	}
	*counted = yes
	return true
}
