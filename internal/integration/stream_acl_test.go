package integration

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/redispatterns/redispatterns/internal/integration/redistest"
	"github.com/redispatterns/redispatterns/stream"
)

// streamRights is what the package's comment says that Run's user needs.
var streamRights = []string{
	"EVAL", "EVALSHA", "XGROUP", "XREADGROUP", "XACK", "XPENDING", "XCLAIM", "XAUTOCLAIM", "XRANGE", "XADD", "XDEL", "XINFO", "TIME", "EXISTS",
	"ZREM", "ZRANGE", "ZRANGEBYSCORE",
}

// streamAs returns a client of a user of that name who has the rights, on the keys of the stream key.
func streamAs(t *testing.T, server *redistest.Server, admin rueidis.Client, name, key string, rights ...string) rueidis.Client {
	t.Helper()
	user := []string{"ACL", "SETUSER", name, "on", ">p", "resetkeys", "~" + key, "~{" + key + "}:*", "+@connection"}
	for _, r := range rights {
		user = append(user, "+"+strings.ToLower(r))
	}
	streamAdmin(t, admin, user...)
	return server.Client(t, func(o *rueidis.ClientOption) { o.Username, o.Password, o.DisableCache = name, "p", true })
}

// streamDenied runs a group as a user with some rights, through all that a Run does, and returns what it was denied.
func streamDenied(t *testing.T, server *redistest.Server, admin rueidis.Client, name string, rights ...string) (denied []error) {
	t.Helper()
	key := redistest.Prefix(t)
	plain := newStream(t, admin, key)
	// Left by a process that was killed, and one of them deleted.
	ids := streamGhosts(t, admin, key, plain, 2)
	streamOrphaned(t, admin, key, "1", ids...)
	streamAdmin(t, admin, "XDEL", key, string(ids[0]))
	_, err := plain.Publish(t.Context(), 2, stream.Delay(time.Millisecond))
	require.NoError(t, err)
	publishMany(t, plain, 3, 6)

	var mu sync.Mutex
	note := func(_ context.Context, op string, err error) {
		mu.Lock()
		defer mu.Unlock()
		// As Redis says it, in scripts of version 8, and in those of 7.0.
		for _, text := range []string{"NOPERM", "ACL failure", "can't run this command"} {
			if strings.Contains(err.Error(), text) {
				denied = append(denied, err)
				return
			}
		}
	}
	s := newStream(t, streamAs(t, server, admin, name, key, rights...), key)
	g := s.Group("g", stream.GroupOptions[int]{Lease: streamLease, DeleteOnAck: true, Backoff: quickly, Hooks: stream.Hooks{Error: note}})
	var counts streamCounts
	r := runStream(t, g, func(_ context.Context, m *stream.Message[int]) error {
		n := counts.add(m.Value)
		switch {
		case m.Value == 3 && n == 1:
			return errors.New("again")
		case m.Value == 4:
			return stream.DeadLetter(nil)
		}
		return nil
	})
	isDenied := func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(denied) > 0
	}
	require.Eventually(t, func() bool {
		select {
		case err := <-r.done:
			r.done <- err
			return true
		default:
		}
		info, err := plain.Group("g", stream.GroupOptions[int]{}).Info(t.Context())
		return isDenied() || err == nil && counts.handled() == 5 && info.Pending == 0 && info.Delayed == 0 && info.Dead == 1
	}, 10*time.Second, 5*time.Millisecond)
	if err := r.end(t); err != nil && !errors.Is(err, stream.ErrUnfinished) {
		note(t.Context(), "run", err)
	}
	mu.Lock()
	defer mu.Unlock()
	return denied
}

// With the rights that are documented Run does all that it does, and with one fewer it does not.
func TestStream_Rights(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	admin := server.Client(t)
	without := func(i int) []string { return append(append([]string{}, streamRights[:i]...), streamRights[i+1:]...) }
	require.NotEmpty(t, streamDenied(t, server, admin, "no-eval", without(0)...), "the server does not know the scripts yet")
	require.Empty(t, streamDenied(t, server, admin, "all", streamRights...))
	for i, right := range streamRights[1:] {
		t.Run(right, func(t *testing.T) {
			t.Parallel()
			denied := streamDenied(t, server, admin, "no-"+right, without(i+1)...)
			require.NotEmpty(t, denied)
		})
	}
}

// What others need: each does its work with these rights, and not with one fewer.
func TestStream_RightsOfOthers(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	admin := server.Client(t)
	group := func(s *stream.Stream[int]) *stream.Group[int] { return s.Group("g", stream.GroupOptions[int]{}) }
	for name, c := range map[string]struct {
		rights []string
		do     func(ctx context.Context, s *stream.Stream[int]) error
	}{
		"publish": {[]string{"XADD"}, func(ctx context.Context, s *stream.Stream[int]) error {
			_, err := s.Publish(ctx, 1)
			return err
		}},
		"once": {[]string{"EVALSHA", "XADD", "GET", "SET"}, func(ctx context.Context, s *stream.Stream[int]) error {
			_, err := s.Publish(ctx, 1, stream.IdempotencyKey(redistest.Prefix(t)))
			return err
		}},
		"delay": {[]string{"EVALSHA", "XADD", "TIME", "ZADD"}, func(ctx context.Context, s *stream.Stream[int]) error {
			_, err := s.Publish(ctx, 1, stream.Delay(time.Hour))
			return err
		}},
		"tail": {[]string{"XREAD"}, func(ctx context.Context, s *stream.Stream[int]) error {
			for _, err := range s.Tail(ctx, "") {
				return err
			}
			return nil
		}},
		"tail from now": {[]string{"XREAD", "XINFO"}, func(ctx context.Context, s *stream.Stream[int]) error {
			ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
			defer cancel()
			for _, err := range s.Tail(ctx, stream.Latest) {
				return err
			}
			return nil
		}},
		"range": {[]string{"XRANGE"}, func(ctx context.Context, s *stream.Stream[int]) error {
			for _, err := range s.Range(ctx, "", "") {
				return err
			}
			return nil
		}},
		"trim": {[]string{"EVALSHA", "EXISTS", "XINFO", "XPENDING", "XTRIM"}, func(ctx context.Context, s *stream.Stream[int]) error {
			_, err := s.TrimAcked(ctx)
			return err
		}},
		"info": {[]string{"XPENDING", "XINFO", "XLEN", "ZCARD"}, func(ctx context.Context, s *stream.Stream[int]) error {
			_, err := group(s).Info(ctx)
			return err
		}},
		"pending": {[]string{"XPENDING"}, func(ctx context.Context, s *stream.Stream[int]) error {
			for _, err := range group(s).Pending(ctx) {
				return err
			}
			return nil
		}},
		"dead": {[]string{"XRANGE"}, func(ctx context.Context, s *stream.Stream[int]) error {
			for _, err := range group(s).Dead(ctx) {
				return err
			}
			return nil
		}},
		"redrive": {[]string{"EVALSHA", "XREVRANGE", "XRANGE", "XADD", "XDEL"}, func(ctx context.Context, s *stream.Stream[int]) error {
			_, err := group(s).Redrive(ctx)
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			key, name := redistest.Prefix(t), strings.ReplaceAll(name, " ", "-")
			plain := newStream(t, admin, key)
			streamAdmin(t, admin, "XGROUP", "CREATE", key, "g", "0", "MKSTREAM")
			publishMany(t, plain, 0, 1)
			dead := func() {
				streamAdmin(t, admin, "XADD", "{"+key+"}:dead:g", "*", "_id", "1-1", "_reason", "r", "_attempts", "5", "data", "7")
			}
			dead()
			require.NoError(t, c.do(t.Context(), plain), "and the server knows the script")
			dead()
			require.NoError(t, c.do(t.Context(), newStream(t, streamAs(t, server, admin, name, key, c.rights...), key)))
			for i, right := range c.rights {
				dead()
				err := c.do(t.Context(), newStream(t, streamAs(t, server, admin, name+right, key, append(append([]string{}, c.rights[:i]...), c.rights[i+1:]...)...), key))
				require.Error(t, err, right)
			}
		})
	}
}
