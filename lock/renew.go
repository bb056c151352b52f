package lock

import (
	"container/heap"
	"context"
	"strconv"
	"time"

	"github.com/redispatterns/redispatterns/internal/script"
)

// maxBatch is how many locks one script renews, so that it keeps a server for well under a millisecond.
const maxBatch = 200

// agenda is a heap of entries, that with the earliest due first.
type agenda []*entry

func (a agenda) Len() int           { return len(a) }
func (a agenda) Less(i, j int) bool { return a[i].due < a[j].due }
func (a agenda) Swap(i, j int)      { a[i], a[j] = a[j], a[i]; a[i].place, a[j].place = i, j }

// Push is for package heap.
func (a *agenda) Push(x any) {
	e, _ := x.(*entry)
	e.place = len(*a)
	*a = append(*a, e)
}

// Pop is for package heap.
func (a *agenda) Pop() any {
	last := len(*a) - 1
	e := (*a)[last]
	(*a)[last] = nil
	*a = (*a)[:last]
	e.place = -1
	return e
}

func (a *agenda) remove(e *entry) {
	if e.place >= 0 {
		heap.Remove(a, e.place)
	}
}

// schedule sets when an entry is due. l.mu is held, as for all below unless they say otherwise.
func (l *Locker) schedule(e *entry, due time.Duration) {
	e.due = due
	if e.place < 0 {
		heap.Push(&l.agenda, e)
	} else {
		heap.Fix(&l.agenda, e.place)
	}
	l.setTimer(due)
}

// setTimer makes the timer fire at due at the latest. That it may fire for nothing saves setting it for each lock.
func (l *Locker) setTimer(due time.Duration) {
	if l.wake != 0 && l.wake <= due {
		return
	}
	l.wake = due
	if in := due - sinceEpoch(); l.timer == nil {
		l.timer = time.AfterFunc(in, l.tick)
	} else {
		l.timer.Reset(in)
	}
}

// plan schedules what is next for a lease: its renewal, or its end.
func (l *Locker) plan(e *entry) {
	due := e.end()
	if !e.renewing && l.renewable(e) {
		due = min(due, max(e.until+guard(l.opts.TTL)-l.opts.TTL*2/3, e.retry))
	}
	l.schedule(e, due)
}

// renewable reports whether a lease is to be renewed: not if its tenant may not hold it for longer, or has been forgotten.
func (l *Locker) renewable(e *entry) bool {
	t := e.tenant
	return t == nil || !l.opts.NoRenewal && (l.opts.MaxHold == 0 || t.since+l.opts.MaxHold > e.until)
}

// tick is what the timer does: it ends what is over, polls, and renews. It takes l.mu.
func (l *Locker) tick() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.wake = 0
	now := sinceEpoch()
	soon := now
	for len(l.agenda) > 0 && l.agenda[0].due <= soon {
		e := l.agenda[0]
		if e.due > now && (e.state != held || e.renewing || e.due >= e.end()) {
			break
		}
		switch {
		case e.state == queued:
			l.agenda.remove(e)
			e.state = calling
			l.spawn(func() { l.ask(e, 0) })
		case e.state == held && now >= e.end():
			l.lose(e, ErrLost, guard(l.opts.TTL))
		case e.state == held && !e.renewing && (e.tenant == nil || e.tenant.handle.Value() != nil):
			l.renewNow(e)
			l.plan(e)
			soon = now + l.opts.TTL/12 // what will be due soon goes into the same batch
		default: // its user has lost the Lock
			l.schedule(e, e.end())
		}
	}
	if len(l.agenda) > 0 {
		l.setTimer(l.agenda[0].due)
	}
}

// renewNow renews a lease, in a cluster at once and else as soon as those that are being renewed are done.
func (l *Locker) renewNow(e *entry) {
	if e.renewing || l.closed || e.tenant != nil && !l.renewable(e) {
		return
	}
	e.renewing = true
	l.batch = append(l.batch, e)
	if !l.renews {
		l.renews = true
		l.spawn(l.renewAll)
	}
}

// renewal is one lease in a batch.
type renewal struct {
	e     *entry
	token string
	ttl   time.Duration
}

// renewAll renews until there is nothing left to renew. It takes l.mu.
func (l *Locker) renewAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.batch) > 0 && !l.closed {
		n := min(len(l.batch), maxBatch)
		if l.cluster { // a script each; and nobody waits for a node that hangs but those who have to do with it
			n, l.renews = len(l.batch), false
		}
		renewals := make([]renewal, 0, n)
		for _, e := range l.batch[:n] {
			if e.state == held && e.renewing {
				renewals = append(renewals, renewal{e, e.token, l.opts.TTL})
			}
		}
		if l.batch = l.batch[n:]; len(l.batch) == 0 {
			l.batch = nil
		}
		if len(renewals) == 0 {
			continue
		}
		l.mu.Unlock()
		sent := sinceEpoch()
		ctx, cancel := context.WithTimeout(l.stop, min(l.opts.TTL/6, maxOpTimeout)) // so that a slow node does not keep up the others for long
		states, err := l.sendRenewals(ctx, l.stop, renewals)
		cancel()
		l.mu.Lock()
		if err != nil {
			l.survived(OpRenew, err)
		}
		for i, r := range renewals {
			if r.e.state == held && r.e.token == r.token {
				r.e.renewing = false
				l.renewed(r, sent, states[i])
			}
		}
		if l.cluster {
			return
		}
	}
	l.renews = false
}

// renewalState is what became of a renewal.
type renewalState struct {
	state int
	now   int64 // the server's clock, µs
}

// The states.
const (
	renewalFailed = -1
	renewalLost   = 0
	renewalDone   = 1 // and above: others wait
)

// renewed goes on after a lease was renewed.
func (l *Locker) renewed(r renewal, sent time.Duration, s renewalState) {
	e := r.e
	if e.state != held || e.token != r.token {
		return
	}
	switch s.state {
	case renewalFailed:
		e.retry = sinceEpoch() + max(min(l.opts.TTL/20, 100*time.Millisecond), time.Millisecond)
		l.plan(e)
		return
	case renewalLost:
		l.lose(e, ErrLost, 0)
		return
	}
	e.retry = 0
	e.until = max(e.until, sent+r.ttl-guard(r.ttl))
	e.sent = max(e.sent, sent)
	e.lastFence = max(e.lastFence, s.now-1) // what is granted to another after this is above
	e.others = s.state > renewalDone
	if t := e.tenant; t != nil {
		t.until.Store(int64(l.bounded(t, e.until)))
		l.plan(e)
		return
	}
	l.plan(e)
	if e.calls.first != nil && e.nextFence > e.lastFence {
		// The server's clock was set back: the fences above ours it may give to another after us. It has to be asked for each.
		l.requeueNow(e)
		return
	}
	l.next(e)
}

// sendRenewals renews leases, in one script or, in a cluster, in one pipeline of a script for each, since a script cannot
// have keys of several slots. It does no locking.
func (l *Locker) sendRenewals(ctx, caller context.Context, renewals []renewal) ([]renewalState, error) {
	states := make([]renewalState, len(renewals))
	for i := range states {
		states[i].state = renewalFailed
	}
	size := len(renewals)
	if l.cluster {
		size = 1
	}
	var batch []script.Call
	aside := l.aside()
	for begin := 0; begin < len(renewals); begin += size {
		keys, args := make([]string, 0, 2*size), make([]string, 0, 2*size)
		for _, r := range renewals[begin : begin+size] {
			keys = append(keys, r.e.keys[0], r.e.keys[1])
			args = append(args, r.token, strconv.FormatInt(r.ttl.Milliseconds(), 10))
		}
		call := renewScript.Call(keys, args...)
		call.Aside = aside
		batch = append(batch, call)
	}
	var failed error
	for i, reply := range script.DoMulti(ctx, l.client, batch) {
		values, err := reply.AsIntSlice()
		if err != nil {
			failed = err
			continue
		}
		for j, state := range values[1:] {
			states[i*size+j] = renewalState{int(state), values[0]}
		}
	}
	l.noteSilence(caller, aside, failed)
	return states, failed
}
