package main

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/buffer"
	"github.com/redispatterns/redispatterns/cache"
	"github.com/redispatterns/redispatterns/featurestore"
	"github.com/redispatterns/redispatterns/lock"
	"github.com/redispatterns/redispatterns/ratelimit"
	"github.com/redispatterns/redispatterns/stream"
	"github.com/redispatterns/redispatterns/timeseries"
)

const (
	classTimeout = "timeout"
	classNetwork = "network"
	classOther   = "other"
)

// sentinels are errors of the packages that are classes of their own.
var sentinels = []error{
	cache.ErrUnavailable, cache.ErrClosed, cache.ErrTooLarge,
	lock.ErrLost, lock.ErrClosed,
	ratelimit.ErrUnavailable,
	buffer.ErrFull, buffer.ErrUnconfirmed, buffer.ErrClosed,
	timeseries.ErrFull, timeseries.ErrUnknown, timeseries.ErrOverflow,
	stream.ErrStopping, stream.ErrLeaseLost,
	featurestore.ErrCorrupt, featurestore.ErrConflict, featurestore.ErrVersion,
}

// classify puts an error into one of a few classes: the first word of what the server said, such as OOM, MOVED, LOADING or
// READONLY; an error of a package, such as "lock: lost"; timeout; network; other.
func classify(err error) string {
	if e, ok := rueidis.IsRedisErr(err); ok {
		return serverClass(e.Error())
	}
	var re *rueidis.RedisError
	if errors.As(err, &re) { // wrapped by a package
		return serverClass(re.Error())
	}
	for _, s := range sentinels {
		if errors.Is(err, s) {
			return s.Error()
		}
	}
	var netErr net.Error
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return classTimeout
	case errors.As(err, &netErr):
		if netErr.Timeout() {
			return classTimeout
		}
		return classNetwork
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed), errors.Is(err, rueidis.ErrClosing):
		return classNetwork
	}
	return classOther
}

// serverClass takes the first word of a server's error, if it is one in capitals; all others are ERR.
func serverClass(message string) string {
	word, _, _ := strings.Cut(message, " ")
	if len(word) < 2 || len(word) > 20 || strings.Trim(word, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" {
		return "ERR"
	}
	return word
}
