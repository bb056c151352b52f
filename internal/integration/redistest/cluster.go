package redistest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/redis/rueidis"
)

const (
	primaries = 3
	slots     = 16384
)

// Cluster is a Redis Cluster of three primaries.
type Cluster struct {
	host  host
	nodes []*node // the primaries, then the replica of each
}

// SharedCluster returns the cluster without replicas that all tests of the run share, under the rules of Shared.
func SharedCluster(tb testing.TB) *Cluster {
	tb.Helper()
	e, err := env()
	must(tb, err)
	c, err := run.clusters.get(e.defaultKind, func() (*Cluster, error) {
		// Nothing can be failed over to, so a slow machine should not make nodes give each other up.
		c, err := startCluster(e.defaultKind, 0, "15000")
		if err == nil {
			run.onStop(c.host.close)
		}
		return c, err
	})
	must(tb, err)
	return c
}

// StartCluster starts a cluster for this test alone, with no or one replica per primary.
func StartCluster(tb testing.TB, replicas int) *Cluster {
	tb.Helper()
	e, err := env()
	must(tb, err)
	c, err := startCluster(e.defaultKind, replicas, "2000")
	must(tb, err)
	tb.Cleanup(c.host.close)
	return c
}

func startCluster(kind Kind, replicas int, nodeTimeout string) (*Cluster, error) {
	ctx, cancel := startContext()
	defer cancel()
	h, nodes, err := boot(ctx, kind, primaries*(1+replicas), func(ports []int) []*node {
		nodes := make([]*node, len(ports))
		for i, port := range ports {
			nodes[i] = &node{port: port, args: []string{
				"--cluster-enabled", "yes", "--cluster-node-timeout", nodeTimeout, "--cluster-announce-ip", "127.0.0.1",
				"--cluster-port", strconv.Itoa(port + 10000), "--repl-diskless-sync-delay", "0",
			}}
		}
		return nodes
	})
	if err != nil {
		return nil, err
	}
	c := &Cluster{h, nodes}
	if err := c.form(ctx); err != nil {
		h.close()
		return nil, fmt.Errorf("form a cluster: %w", err)
	}
	return c, nil
}

// form does what redis-cli --cluster create does.
func (c *Cluster) form(ctx context.Context) error {
	ids := make([]string, len(c.nodes))
	for i, n := range c.nodes {
		var err error
		if ids[i], err = call(ctx, n.addr(), "CLUSTER", "MYID"); err != nil {
			return err
		}
		if _, err := call(ctx, n.addr(), "CLUSTER", "SET-CONFIG-EPOCH", strconv.Itoa(i+1)); err != nil {
			return err
		}
		for _, other := range c.nodes[:i] { // all pairs: quicker than gossip
			if _, err := call(ctx, n.addr(), "CLUSTER", "MEET", "127.0.0.1", strconv.Itoa(other.port)); err != nil {
				return err
			}
		}
		if i < primaries {
			first, last := i*slots/primaries, (i+1)*slots/primaries-1
			if _, err := call(ctx, n.addr(), "CLUSTER", "ADDSLOTSRANGE", strconv.Itoa(first), strconv.Itoa(last)); err != nil {
				return err
			}
		}
	}
	for i, n := range c.nodes[primaries:] {
		// A node refuses to be the replica of one it has not met yet.
		err := poll(ctx, func() (bool, error) {
			_, err := call(ctx, n.addr(), "CLUSTER", "REPLICATE", ids[i])
			return err == nil, err
		})
		if err != nil {
			return fmt.Errorf("replica %s: %w", n.addr(), err)
		}
	}
	return poll(ctx, func() (bool, error) {
		for i, n := range c.nodes {
			if err := c.isReady(ctx, n); err != nil {
				return false, err
			}
			if i < primaries {
				continue
			}
			if info, err := call(ctx, n.addr(), "INFO", "replication"); err != nil || infoField(info, "master_link_status") != "up" {
				return false, errors.Join(errors.New("replica "+n.addr()+" is not in sync"), err)
			}
		}
		return true, nil
	})
}

// isReady says what a node still misses.
func (c *Cluster) isReady(ctx context.Context, n *node) error {
	info, err := call(ctx, n.addr(), "CLUSTER", "INFO")
	if err != nil {
		return err
	}
	if state, known := infoField(info, "cluster_state"), infoField(info, "cluster_known_nodes"); state != "ok" ||
		known != strconv.Itoa(len(c.nodes)) {
		return fmt.Errorf("node %s: state %s, knows %s nodes", n.addr(), state, known)
	}
	// The other nodes may know of the replicas before they know whose replicas they are.
	view, err := call(ctx, n.addr(), "CLUSTER", "NODES")
	if err != nil {
		return err
	}
	if got := strings.Count(view, "slave "); got != len(c.nodes)-primaries {
		return fmt.Errorf("node %s: knows %d replicas", n.addr(), got)
	}
	return nil
}

// Addrs returns the addresses of all nodes, primaries first.
func (c *Cluster) Addrs() []string {
	addrs := make([]string, len(c.nodes))
	for i, n := range c.nodes {
		addrs[i] = n.addr()
	}
	return addrs
}

// Client returns a client of its own, closed at the end of the test.
func (c *Cluster) Client(tb testing.TB, opts ...func(*rueidis.ClientOption)) rueidis.Client {
	tb.Helper()
	return newClient(tb, rueidis.ClientOption{InitAddress: c.Addrs()}, opts)
}

// Failover kills (SIGKILL) the primary that serves the key and waits until its replica serves it and all other nodes know.
// The killed node stays dead, so this works once per primary. Replication is asynchronous: a write just before may be lost,
// unless the test waited for it (WAIT 1).
func (c *Cluster) Failover(tb testing.TB, key string) {
	tb.Helper()
	ctx, cancel := startContext()
	defer cancel()
	if err := c.failover(ctx, key); err != nil {
		tb.Fatalf("redistest: fail over: %v", err)
	}
}

func (c *Cluster) failover(ctx context.Context, key string) error {
	var live []*node
	for _, n := range c.nodes {
		if c.host.alive(ctx, n) {
			live = append(live, n)
		}
	}
	old, err := primaryOf(ctx, live[0], key)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(live, func(n *node) bool { return n.port == old })
	if i < 0 {
		return fmt.Errorf("no live node at port %d", old)
	}
	if err := c.host.signal(ctx, live[i], "KILL"); err != nil {
		return err
	}
	// No CLUSTER FAILOVER FORCE to be quicker: nodes would list the dead primary as online until the node timeout.
	live = slices.Delete(live, i, i+1)
	elected := 0
	err = poll(ctx, func() (bool, error) {
		for j, n := range live {
			info, err := call(ctx, n.addr(), "CLUSTER", "INFO")
			if err != nil {
				return false, err
			}
			port, err := primaryOf(ctx, n, key)
			if err != nil {
				return false, err
			}
			if j == 0 {
				elected = port
			}
			if state := infoField(info, "cluster_state"); state != "ok" || port == old || port != elected {
				return false, fmt.Errorf("node %s: state %s, primary is %d", n.addr(), state, port)
			}
		}
		return true, nil
	})
	if err != nil {
		return fmt.Errorf("no new primary instead of port %d: %w", old, err)
	}
	return nil
}

// primaryOf returns the port of the primary that serves the key in the eyes of n.
func primaryOf(ctx context.Context, n *node, key string) (int, error) {
	text, err := call(ctx, n.addr(), "CLUSTER", "KEYSLOT", key)
	if err != nil {
		return 0, err
	}
	slot, err := strconv.Atoi(text)
	if err != nil {
		return 0, err
	}
	view, err := call(ctx, n.addr(), "CLUSTER", "NODES")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(view) {
		// id 127.0.0.1:port@busport[,hostname] flags primary ping pong epoch state range range …
		fields := strings.Fields(line)
		if len(fields) < 9 {
			continue
		}
		for _, r := range fields[8:] {
			from, to, ok := strings.Cut(r, "-")
			if !ok {
				to = from
			}
			first, err1 := strconv.Atoi(from)
			last, err2 := strconv.Atoi(to)
			if err1 != nil || err2 != nil || slot < first || slot > last {
				continue
			}
			_, port, _ := strings.Cut(fields[1], ":")
			port, _, _ = strings.Cut(port, "@")
			return strconv.Atoi(port)
		}
	}
	return 0, fmt.Errorf("slot %d of no node", slot)
}
