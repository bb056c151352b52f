package redistest

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/redis/rueidis"
)

const (
	masterSet = "redistest"
	sentinels = 3
	quorum    = 2
)

// Sentinel is a primary and its replica, watched by three sentinels.
type Sentinel struct {
	host      host
	servers   []*node
	sentinels []*node
	mu        sync.Mutex // one failover at a time
}

// StartSentinel starts a Sentinel set-up for this test alone.
func StartSentinel(tb testing.TB) *Sentinel {
	tb.Helper()
	e, err := env()
	must(tb, err)
	s, err := startSentinel(e.defaultKind)
	must(tb, err)
	tb.Cleanup(s.host.close)
	return s
}

func startSentinel(kind Kind) (*Sentinel, error) {
	ctx, cancel := startContext()
	defer cancel()
	s := &Sentinel{}
	h, servers, err := boot(ctx, kind, 2+sentinels, func(ports []int) []*node {
		primary, replica := &node{port: ports[0]}, &node{port: ports[1]}
		primary.args = []string{"--repl-diskless-sync-delay", "0"}
		replica.args = append([]string{"--replicaof", "127.0.0.1 " + strconv.Itoa(primary.port)}, primary.args...)
		s.sentinels = nil // of an earlier attempt
		for _, port := range ports[2:] {
			s.sentinels = append(s.sentinels, &node{port: port, config: fmt.Sprintf(`sentinel monitor %[1]s 127.0.0.1 %[2]d %[3]d
sentinel down-after-milliseconds %[1]s 1000
sentinel failover-timeout %[1]s 10000
`, masterSet, primary.port, quorum)})
		}
		return []*node{primary, replica}
	})
	if err != nil {
		return nil, err
	}
	s.host, s.servers = h, servers
	if err := s.form(ctx); err != nil {
		h.close()
		return nil, fmt.Errorf("start sentinels: %w", err)
	}
	return s, nil
}

// form waits until the sentinels could fail over.
func (s *Sentinel) form(ctx context.Context) error {
	// A sentinel asks the primary for its replicas at once and then every ten seconds: the replica has to be there before.
	err := poll(ctx, func() (bool, error) {
		info, err := call(ctx, s.servers[1].addr(), "INFO", "replication")
		return infoField(info, "master_link_status") == "up", err
	})
	if err != nil {
		return fmt.Errorf("replica is not in sync: %w", err)
	}
	for _, n := range s.sentinels {
		if err := startNode(ctx, s.host, n); err != nil {
			return err
		}
	}
	return poll(ctx, func() (bool, error) {
		for _, n := range s.sentinels {
			view, err := call(ctx, n.addr(), "INFO", "sentinel")
			if err != nil {
				return false, err
			}
			// master0:name=redistest,status=ok,address=127.0.0.1:6379,slaves=1,sentinels=3
			master := infoField(view, "master0")
			if !strings.Contains(master, "status=ok") || !strings.HasSuffix(master, fmt.Sprintf(",slaves=1,sentinels=%d", sentinels)) {
				return false, fmt.Errorf("sentinel %s sees %s", n.addr(), master)
			}
		}
		return true, nil
	})
}

// Client returns a client of its own that asks the sentinels for the primary, closed at the end of the test.
func (s *Sentinel) Client(tb testing.TB, opts ...func(*rueidis.ClientOption)) rueidis.Client {
	tb.Helper()
	option := rueidis.ClientOption{Sentinel: rueidis.SentinelOption{MasterSet: masterSet}}
	for _, n := range s.sentinels {
		option.InitAddress = append(option.InitAddress, n.addr())
	}
	return newClient(tb, option, opts)
}

// KillPrimary kills the primary (SIGKILL) and waits until all sentinels announce the replica instead. The killed server
// stays dead, so there is one such failover. A write just before may be lost.
func (s *Sentinel) KillPrimary(tb testing.TB) {
	tb.Helper()
	s.change(tb, func(ctx context.Context, primary *node) error { return s.host.signal(ctx, primary, "KILL") })
}

// CutReplicaOff waits until the replica has all that was written, and cuts it off for good: what is written afterwards is lost
// when KillPrimary follows.
func (s *Sentinel) CutReplicaOff(tb testing.TB) {
	tb.Helper()
	ctx, cancel := startContext()
	defer cancel()
	primary, err := s.primary(ctx)
	if err == nil {
		err = poll(ctx, func() (bool, error) {
			info, err := call(ctx, primary.addr(), "INFO", "replication")
			replica := regexp.MustCompile(`slave0:.*,offset=(\d+)`).FindStringSubmatch(info)
			return replica != nil && strings.Contains(info, "master_repl_offset:"+replica[1]+"\r\n"), err
		})
	}
	for _, n := range s.servers {
		if err == nil && n != primary { // who comes with a password that nobody set is refused
			_, err = call(ctx, n.addr(), "CONFIG", "SET", "masteruser", "nobody", "masterauth", "wrong")
		}
	}
	if err == nil {
		_, err = call(ctx, primary.addr(), "CLIENT", "KILL", "TYPE", "replica")
	}
	if err != nil {
		tb.Fatalf("redistest: cut the replica off: %v", err)
	}
}

// Failover asks the sentinels to make the replica the primary and waits until all of them announce it. The old primary
// becomes the replica: its clients are disconnected, or told READONLY.
func (s *Sentinel) Failover(tb testing.TB) {
	tb.Helper()
	s.change(tb, func(ctx context.Context, _ *node) error {
		// NOGOODSLAVE and INPROG pass: after one failover the sentinels need a moment to see the new replica.
		return poll(ctx, func() (bool, error) {
			_, err := call(ctx, s.sentinels[0].addr(), "SENTINEL", "FAILOVER", masterSet)
			return err == nil, err
		})
	})
}

func (s *Sentinel) change(tb testing.TB, begin func(context.Context, *node) error) {
	tb.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	ctx, cancel := startContext()
	defer cancel()
	old, err := s.primary(ctx)
	if err == nil {
		err = begin(ctx, old)
	}
	if err == nil {
		err = poll(ctx, func() (bool, error) {
			now, err := s.primary(ctx)
			if err != nil || now == old {
				return false, errors.Join(err, errors.New("no new primary is announced"))
			}
			reply, err := call(ctx, now.addr(), "ROLE")
			return strings.HasPrefix(reply, "master"), err
		})
	}
	if err != nil {
		tb.Fatalf("redistest: Sentinel failover: %v", err)
	}
}

// primary is the server that all sentinels announce.
func (s *Sentinel) primary(ctx context.Context) (*node, error) {
	announced := ""
	for i, n := range s.sentinels {
		reply, err := call(ctx, n.addr(), "SENTINEL", "GET-MASTER-ADDR-BY-NAME", masterSet)
		if err != nil {
			return nil, err
		}
		if i > 0 && reply != announced {
			return nil, errors.New("the sentinels do not agree")
		}
		announced = reply
	}
	for _, n := range s.servers {
		if strings.HasSuffix(announced, "\n"+strconv.Itoa(n.port)) {
			return n, nil
		}
	}
	return nil, fmt.Errorf("the sentinels announce %q", announced)
}
