package lock

import (
	"context"
	_ "embed"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/internal/deadline"
	"github.com/redispatterns/redispatterns/internal/key"
	"github.com/redispatterns/redispatterns/internal/script"
)

var (
	//go:embed common.lua
	commonSource string
	//go:embed acquire.lua
	acquireSource string
	//go:embed release.lua
	releaseSource string
	//go:embed gathered.lua
	gatheredSource string
	//go:embed renew.lua
	renewSource string
	//go:embed inspect.lua
	inspectSource string
	//go:embed break.lua
	breakSource string
)

// Only renewals are repeated by the client, which does so for as long as it may: when to give up the others is decided here.
var (
	acquireScript  = script.New(withCommon(acquireSource))
	releaseScript  = script.New(withCommon(releaseSource))
	gatheredScript = script.New(gatheredSource)
	renewScript    = script.NewRetryable(renewSource).BySource()
	inspectScript  = script.New(withCommon(inspectSource))
	breakScript    = script.New(withCommon(breakSource))
)

// withCommon puts common.lua where a script wants it.
func withCommon(source string) string { return strings.Replace(source, "--common\n", commonSource, 1) }

const (
	// claimWindow is how long a process that was handed a lock may take to claim it, and so how long one that is dead or
	// stopped delays the next.
	claimWindow = 600 * time.Millisecond
	// minAlive is for how long a waiter that does not poll keeps its place in the queue at least.
	minAlive = time.Second
	// maxOpTimeout bounds one command.
	maxOpTimeout = 2 * time.Second
)

// asideFor is for how long after a command had no reply commands do not go on connections that are shared: those may have
// fallen silent, which the client takes some 11s to notice.
const asideFor = 15 * time.Second

// maxAside is how many commands at a time go on connections of their own: what a server that hung did to many is no reason
// to open as many.
const maxAside = 8

// do runs a script. ctx is the caller's with a bound of ours.
func (l *Locker) do(ctx, caller context.Context, call script.Call) rueidis.RedisResult {
	if l.aside() {
		call.Aside = l.asides.Add(1) <= maxAside
		defer l.asides.Add(-1)
	}
	reply := script.Do(ctx, l.client, call)
	l.noteSilence(caller, call.Aside, reply.NonRedisError())
	return reply
}

// aside reports whether a command is to go on a connection of its own.
func (l *Locker) aside() bool {
	until := l.asideUntil.Load()
	return until != 0 && int64(sinceEpoch()) < until
}

// maxMisses is how many commands in a row may go aside and have no reply before one is tried on shared connections again:
// those of the pool may be silent too, and are closed when they prove to be; or the client may have no more of them.
const maxMisses = 2

// noteSilence notes what became of a command that went aside, or did not.
func (l *Locker) noteSilence(caller context.Context, aside bool, err error) {
	silent := errors.Is(err, context.DeadlineExceeded) && !deadline.Over(caller)
	switch {
	case !silent && aside:
		l.misses.Store(0)
	case !silent:
	case !aside:
		l.asideUntil.Store(int64(sinceEpoch() + asideFor))
	case l.misses.Add(1) >= maxMisses:
		l.misses.Store(0)
		l.asideUntil.Store(0)
	}
}

func opTimeout(ttl time.Duration) time.Duration { return min(ttl/2, maxOpTimeout) }

// guard is taken off each lease: what a clock that runs 1 % too slow adds, and what it takes to end a context.
func guard(ttl time.Duration) time.Duration { return ttl/100 + min(ttl/10, 2*time.Millisecond) }

// lockKeys are the keys of one lock: itself, its queue and its waiters. They are made here alone.
type lockKeys [3]string

func (l *Locker) keysOf(name string) lockKeys {
	queue := key.Tagged(l.keys, name, ":q")
	lock := queue[:len(queue)-len(":q")]
	return lockKeys{lock, queue, lock + ":w"}
}

// nameOf is what keysOf made a lock's key of.
func (l *Locker) nameOf(lockKey string) string {
	name := strings.TrimSuffix(strings.TrimPrefix(lockKey, l.keys+"{"), "}")
	return strings.TrimPrefix(name, "%")
}

// answer is what Redis said to an acquire script.
type answer struct {
	token string
	asked bool          // whether it was to wait
	sent  time.Duration // when the command was sent, since epoch

	granted bool
	fence   int64
	others  bool // whether other processes wait

	now          int64         // the server's clock, µs
	left         time.Duration // of the lease of who holds it
	holder, meta string
}

func (l *Locker) acquire(ctx context.Context, keys *lockKeys, token, mode string) (answer, error) {
	a := answer{token: token, asked: mode != "", sent: sinceEpoch()}
	caller := ctx
	ctx, cancel := l.deadlines.Bound(ctx, a.sent)
	defer cancel()
	args := []string{token, l.args.ttl, l.opts.Meta, mode, l.args.waiter}
	var reply rueidis.RedisResult
	var replicas int64
	if l.opts.Replicas == 0 {
		reply = l.do(ctx, caller, script.Call{Script: acquireScript, Keys: keys[:], Args: args})
	} else {
		// WAIT is for what its own connection wrote. A pipeline with it has a connection of its own.
		replies := l.client.DoMulti(ctx,
			l.client.B().Eval().Script(withCommon(acquireSource)).Numkeys(3).Key(keys[:]...).Arg(args...).Build(),
			l.client.B().Wait().Numreplicas(int64(l.opts.Replicas)).Timeout(opTimeout(l.opts.TTL).Milliseconds()/2).Build())
		reply = replies[0]
		var err error
		if replicas, err = replies[1].AsInt64(); err != nil && reply.Error() == nil {
			return a, err
		}
	}
	message, err := reply.ToMessage()
	if err != nil {
		return a, slow(caller, err)
	}
	if !message.IsArray() {
		a.granted = true
		if a.fence, err = message.AsInt64(); err == nil && replicas < int64(l.opts.Replicas) {
			err = ErrUnderReplicated
		}
		return a, err
	}
	if err := a.read(message); err != nil {
		return a, err
	}
	if a.granted && replicas < int64(l.opts.Replicas) {
		return a, ErrUnderReplicated
	}
	return a, nil
}

// slow says what it means that a command was not answered in time, other than the caller's.
func slow(ctx context.Context, err error) error {
	if errors.Is(err, context.DeadlineExceeded) && !deadline.Over(ctx) {
		return ErrSlow
	}
	return err
}

// read takes what a script says: {1, fence, now µs, whether others wait} or {0, now µs, ms left, holder's token and meta}.
func (a *answer) read(message rueidis.RedisMessage) error {
	values, err := message.ToArray()
	if err != nil {
		return err
	}
	granted, err := values[0].AsInt64()
	if err != nil {
		return err
	}
	if granted == 0 {
		var left int64
		a.now, _ = values[1].AsInt64()
		left, _ = values[2].AsInt64()
		a.left = time.Duration(left) * time.Millisecond
		a.holder, _ = values[3].ToString()
		a.meta, _ = values[4].ToString()
		return nil
	}
	a.granted = true
	a.fence, _ = values[1].AsInt64()
	others, _ := values[3].AsInt64()
	a.others = others > 0
	return nil
}

// hadNothing is what a release script says of a token that had neither the lock nor a place in the queue.
const hadNothing = 0

func (l *Locker) release(ctx context.Context, keys *lockKeys, token string, used int64) (int64, error) {
	bound, cancel := l.deadlines.Bound(ctx, sinceEpoch())
	defer cancel()
	return l.do(bound, ctx, script.Call{
		Script: releaseScript, Keys: keys[:], Args: []string{token, strconv.FormatInt(used, 10)},
	}).AsInt64()
}

// requeue releases token and queues the next one. It reports false if token had nothing to release; then it queues nothing.
func (l *Locker) requeue(ctx context.Context, keys *lockKeys, token string, used int64, next string) (answer, bool, error) {
	a := answer{token: next, asked: true, sent: sinceEpoch()}
	bound, cancel := l.deadlines.Bound(ctx, a.sent)
	defer cancel()
	message, err := l.do(bound, ctx, script.Call{Script: releaseScript, Keys: keys[:], Args: []string{
		token, strconv.FormatInt(used, 10),
		next, l.args.ttl, l.opts.Meta, l.args.waiter,
	}}).ToMessage()
	if err != nil || !message.IsArray() {
		return a, false, err
	}
	return a, true, a.read(message)
}

func (l *Locker) inspect(ctx context.Context, name string) (Info, error) {
	bound, cancel := l.deadlines.Bound(ctx, sinceEpoch())
	defer cancel()
	keys := l.keysOf(name)
	values, err := l.do(bound, ctx, inspectScript.Call(keys[:])).ToArray()
	if err != nil {
		return Info{}, err
	}
	holder, err := values[0].ToString()
	if err != nil {
		return Info{}, err
	}
	var n [3]int64
	for i := range n {
		if n[i], err = values[i+1].AsInt64(); err != nil {
			return Info{}, err
		}
	}
	meta, err := values[4].ToString()
	return Info{
		Held: holder != "", Holder: holder, Meta: meta, Fence: n[0], TTL: time.Duration(n[1]) * time.Millisecond, Waiting: int(n[2]),
	}, err
}

func (l *Locker) breakLock(ctx context.Context, name string) (bool, error) {
	bound, cancel := l.deadlines.Bound(ctx, sinceEpoch())
	defer cancel()
	keys := l.keysOf(name)
	token, err := l.do(bound, ctx, breakScript.Call(keys[:])).ToString()
	if err != nil {
		return false, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := l.names[name]; e != nil && e.state == held && e.token == token {
		l.lose(e, ErrLost, 0)
	}
	return token != "", nil
}

func isFull(err error) bool {
	e, ok := rueidis.IsRedisErr(err)
	return ok && strings.HasPrefix(e.Error(), "OOM")
}

// closings counts how often in a row the client has said that it is closed. One that has moved to another primary says so
// too, of what was on its way to the old one.
type closings int

const maxClosings = 3

// passing reports whether a failure may be over soon: of the network, or of a server that starts, fails over or is busy.
func (c *closings) passing(err error) bool {
	if errors.Is(err, rueidis.ErrClosing) {
		*c++
		return *c < maxClosings
	}
	*c = 0
	e, ok := rueidis.IsRedisErr(err)
	if !ok {
		return !errors.Is(err, ErrUnderReplicated)
	}
	for _, code := range []string{"LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "BUSY", "UNKILLABLE", "NOREPLICAS", "MOVED", "ASK"} {
		if strings.HasPrefix(e.Error(), code) {
			return true
		}
	}
	return false
}
