package lock

import (
	"context"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/redis/rueidis"
)

// inbox is how a Locker hears that it was granted a lock that it waits for: a pub/sub channel of its own, for all its locks.
// Messages may get lost: then the next poll finds out. l.mu guards it.
type inbox struct {
	runs       bool
	subscribed bool
	works      bool          // a message has come through since it was last subscribed
	waiting    int           // entries that listen
	since      time.Duration // when it was last subscribed
	owed       time.Duration // since when a message that was asked for has not come; 0 if none is
	lastUse    time.Duration
	stop       chan struct{}
}

// idleInbox is after how long without use a subscription is given back.
const idleInbox = 30 * time.Second

// waits notes whether an entry listens.
func (i *inbox) waits(e *entry, yes bool) {
	if e.listens == yes {
		return
	}
	e.listens = yes
	if yes {
		i.waiting++
	} else {
		i.waiting--
		i.lastUse = sinceEpoch()
	}
}

// mode is that of the next acquire script that waits. It asks for a message, which is the only way to know that we may
// subscribe, that others may publish, and that one reaches the other: the connection may have fallen silent, or be to a
// server that is primary no more.
func (i *inbox) mode() string {
	if !i.subscribed {
		return "wait"
	}
	if i.owed == 0 {
		i.owed = sinceEpoch()
	}
	return "hello"
}

// listenAnew subscribes again if a message that was asked for has not come. l.mu is held.
func (l *Locker) listenAnew() {
	if i := &l.inbox; i.works && i.owed != 0 && sinceEpoch()-i.owed > claimWindow {
		i.end()
		l.startInbox()
	}
}

func (i *inbox) end() {
	if i.runs {
		close(i.stop)
	}
	i.runs, i.subscribed, i.works, i.owed = false, false, false, 0
}

// endIdle ends a subscription that has not been used for a while.
func (i *inbox) endIdle() {
	if i.runs && i.waiting == 0 && sinceEpoch()-i.lastUse >= idleInbox {
		i.end()
	}
}

// startInbox subscribes, if that is not done. l.mu is held.
func (l *Locker) startInbox() {
	if l.inbox.runs || l.closed {
		return
	}
	stop := make(chan struct{})
	l.inbox.runs, l.inbox.stop = true, stop
	l.spawn(func() { l.listen(stop) })
}

func (l *Locker) listen(stop chan struct{}) {
	const least, most = 20 * time.Millisecond, time.Second
	for pause := least; ; pause = min(2*pause, most) {
		began := sinceEpoch()
		err := l.listenOnce(stop)
		l.mu.Lock()
		if l.inbox.stop == stop { // and not a successor's
			l.inbox.subscribed, l.inbox.works = false, false
			l.inbox.endIdle()
			for _, e := range l.names {
				if e.state == queued {
					l.schedule(e, min(e.due, sinceEpoch()+rand.N(pollUnheard)))
				}
			}
		}
		if err != nil {
			l.survived(OpSubscribe, err)
		}
		l.mu.Unlock()
		if sinceEpoch()-began > most {
			pause = least
		}
		select {
		case <-stop:
			return
		default:
		}
		select {
		case <-stop:
			return
		case <-time.After(pause/2 + rand.N(pause)):
		}
	}
}

// listenOnce listens until the connection is lost or stop is closed, which it does itself when nobody has listened for a
// while. The connection is the subscription's own: closing it is the only sure way to end a subscription.
func (l *Locker) listenOnce(stop chan struct{}) error {
	client, giveBack := l.client.Dedicate()
	defer giveBack()
	defer client.Close()
	lost := client.SetPubSubHooks(rueidis.PubSubHooks{
		OnMessage: func(m rueidis.PubSubMessage) { l.heard(m.Message) },
		OnSubscription: func(s rueidis.PubSubSubscription) {
			if s.Kind == "subscribe" {
				l.subscribed()
			}
		},
	})
	ctx, cancel := context.WithTimeout(l.stop, maxOpTimeout)
	err := client.Do(ctx, client.B().Subscribe().Channel(l.inboxes+l.id).Build()).Error()
	cancel()
	if err != nil {
		return err
	}
	idle := time.NewTicker(idleInbox / 2)
	defer idle.Stop()
	for {
		select {
		case <-stop:
			return nil
		case err := <-lost:
			return err
		case <-idle.C:
			l.mu.Lock()
			if l.inbox.stop == stop {
				l.inbox.endIdle()
			}
			l.mu.Unlock()
		}
	}
}

// subscribed makes all who wait ask again: what they were granted before now they did not hear.
func (l *Locker) subscribed() {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := sinceEpoch()
	l.inbox.subscribed, l.inbox.since, l.inbox.owed = true, now, 0
	for _, e := range l.names {
		if e.state == queued {
			l.schedule(e, now)
		}
	}
}

// grantMessage tells a token that it was handed the lock.
type grantMessage struct {
	fence, now int64 // now is the server's clock, µs
	window     time.Duration
	others     bool // whether others wait
}

// heard is called with each message, on the goroutine that reads from the connection. The formats are those of common.lua.
func (l *Locker) heard(message string) {
	kind, rest, _ := strings.Cut(message, " ")
	number, rest, _ := strings.Cut(rest, " ")
	var n [4]int64
	count := map[string]int{"grant": 4, "next": 1}[kind]
	for i := range count {
		var field string
		var err error
		field, rest, _ = strings.Cut(rest, " ")
		if n[i], err = strconv.ParseInt(field, 10, 64); err != nil {
			return // anyone may publish
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.inbox.works, l.inbox.owed = l.inbox.subscribed, 0
	e := l.names[l.nameOf(rest)]
	if e == nil || e.keys[0] != rest || e.token != l.id+"."+number {
		return
	}
	switch kind {
	case "grant":
		g := &grantMessage{fence: n[0], now: n[1], window: time.Duration(n[2]) * time.Millisecond, others: n[3] > 0}
		switch e.state {
		case queued:
			l.granted(e, g)
		case calling:
			e.early = g
		case held: // it was noticed by a poll
		}
	case "next":
		if due := sinceEpoch() + time.Duration(n[0])*time.Millisecond + 10*time.Millisecond; e.state == queued && due < e.due {
			l.schedule(e, due)
		}
	case "break":
		if e.state == held {
			l.lose(e, ErrLost, 0)
		}
	}
}
