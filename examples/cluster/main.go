// Cluster is what "basic sharding", a router and a loop over a few hosts, becomes with Redis Cluster: hits of thousands of pages
// are counted through package timeseries on three primaries and read back with one pipeline per node; a fourth primary joins and
// gets a quarter of the slots, with what is in them, while counting goes on; a primary is killed and its replica takes over. At the
// end it says what was acknowledged, and what is there.
//
//	go -C examples run ./cluster
//
// It starts the cluster itself: from redis-server if that is installed, else in a container, of REDIS_IMAGE or redis:8. With
// REDIS_URL, redis://host:port?addr=host2:port2, it counts on your cluster, under a prefix of its own, and changes nothing about
// its nodes. To make it yours, copy the folder, then: go mod init example; until there is a release, go mod edit -replace
// github.com/redispatterns/redispatterns=where/you/cloned/it; go mod tidy; go run .
//
// It prints, with other ports and numbers:
//
//	3 primaries, each with a replica
//
//	three primaries: 28575 hits in 3.0s, 9493 a second
//	  127.0.0.1:24796  5461 slots   4932 keys #############
//	  127.0.0.1:29600  5461 slots   4986 keys #############
//	  127.0.0.1:25826  5462 slots   4996 keys #############
//	  read 5000 pages in 50ms: 28575 hits
//
//	127.0.0.1:29854 has joined: 4098 slots moved in 4.1s
//	...
//	127.0.0.1:24796 was killed: 127.0.0.1:21458 serves in its place after 5.2s
//
//	one is killed: 17544 hits in 6.0s, 2914 a second; of 5652 it is not known whether they were counted
//	...
//	acknowledged 95878, read 95878: 0 are missing, 0 more are there; of 5652 it was not known
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/timeseries"
)

type options struct {
	series, workers int
	each            time.Duration // how long each act lasts at least
}

func main() {
	var o options
	flag.IntVar(&o.series, "series", 5000, "how many pages there are")
	flag.IntVar(&o.workers, "workers", 64, "how many goroutines count")
	flag.DurationVar(&o.each, "each", 3*time.Second, "how long each act lasts at least")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, o, os.Stdout)
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("interrupted (%w)", err)
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options, out io.Writer) error {
	if o.series < 1 || o.series > 20_000 || o.workers < 1 || o.each <= 0 {
		return errors.New("-series must be 1 to 20000, -workers at least 1, and -each positive")
	}
	if address := os.Getenv("REDIS_URL"); address != "" {
		option, err := rueidis.ParseURL(address)
		if err != nil { // which may quote the password
			return errors.New("REDIS_URL is not of the form redis://user:password@host:port?addr=host2:port2")
		}
		return onTheirs(ctx, option, o, out)
	}
	return onOurs(ctx, o, out)
}

// onTheirs counts on a cluster that is there, and removes what it counted, also after a Ctrl-C.
func onTheirs(ctx context.Context, option rueidis.ClientOption, o options, out io.Writer) (err error) {
	client, err := connect(option)
	if err != nil {
		return fmt.Errorf("connect to REDIS_URL: %w", err)
	}
	defer client.Close()
	p := &play{options: o, out: out, client: client}
	name := fmt.Sprintf("example%d", time.Now().UnixNano())
	if err := p.open(ctx, name); err != nil {
		return err
	}
	defer p.close()
	defer func() {
		removing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		err = errors.Join(err, remove(removing, client, "ts:{"+name))
	}()
	if err := p.act(ctx, "counting", nil); err != nil {
		return err
	}
	return p.finish(ctx)
}

// remove deletes all keys that begin with a prefix. Store.Delete is for one series, and there are thousands.
func remove(ctx context.Context, client rueidis.Client, prefix string) error {
	for _, node := range client.Nodes() {
		for cursor := uint64(0); ; {
			page, err := node.Do(ctx, node.B().Scan().Cursor(cursor).Match(prefix+"*").Count(1000).Build()).AsScanEntry()
			if err != nil {
				return fmt.Errorf("remove %s*: %w", prefix, err)
			}
			unlinks := make(rueidis.Commands, len(page.Elements))
			for i, key := range page.Elements {
				unlinks[i] = client.B().Unlink().Key(key).Build()
			}
			for _, r := range client.DoMulti(ctx, unlinks...) {
				if err := r.Error(); err != nil {
					return fmt.Errorf("remove %s*: %w", prefix, err)
				}
			}
			if cursor = page.Cursor; cursor == 0 {
				break
			}
		}
	}
	return nil
}

// onOurs starts a cluster and does to it what happens to clusters.
func onOurs(ctx context.Context, o options, out io.Writer) error {
	const primaries = 3
	m, err := boot(ctx, 2*primaries+1)
	if err != nil {
		return err
	}
	defer m.close()
	nodes := make([]*node, 0, len(m.ports))
	defer func() {
		for _, n := range nodes {
			n.Close()
		}
	}()
	for _, port := range m.ports {
		if err := m.start(ctx, port); err != nil {
			return err
		}
		n, err := dial(ctx, port)
		if err != nil {
			return err
		}
		nodes = append(nodes, n)
		// An epoch of its own, the newcomer's the highest: nodes of the same epoch choose new ones when they meet, and a node
		// that does so while slots move takes back what it has just given away.
		if _, err := n.do(ctx, "CLUSTER", "SET-CONFIG-EPOCH", strconv.Itoa(len(nodes))); err != nil {
			return err
		}
	}
	old, fourth := nodes[:2*primaries], nodes[2*primaries]
	if err := form(ctx, old); err != nil {
		return fmt.Errorf("form the cluster: %w", err)
	}
	fmt.Fprintf(out, "%d primaries, each with a replica\n", primaries)
	var addrs []string
	for _, n := range old {
		addrs = append(addrs, n.addr())
	}
	client, err := connect(rueidis.ClientOption{InitAddress: addrs})
	if err != nil {
		return err
	}
	defer client.Close()
	p := &play{options: o, out: out, client: client, nodes: slices.Clone(nodes[:primaries])}
	if err := p.open(ctx, "example"); err != nil {
		return err
	}
	defer p.close()

	if err := p.act(ctx, "three primaries", nil); err != nil {
		return err
	}
	if err := p.act(ctx, "a fourth joins", func() error { return p.grow(ctx, fourth) }); err != nil {
		return err
	}
	victim, heir := nodes[0], nodes[primaries]
	if err := p.act(ctx, "one is killed", func() error { return p.failOver(ctx, m, victim, heir) }); err != nil {
		return err
	}
	return p.finish(ctx)
}

func connect(option rueidis.ClientOption) (rueidis.Client, error) {
	option.Dialer.Timeout = time.Second // by default all who use a client wait 5s while it opens a connection
	return rueidis.NewClient(option)
}

// play is what is shown, act by act.
type play struct {
	options
	out      io.Writer
	client   rueidis.Client
	nodes    []*node // primaries that are alive, if they are ours
	counting *counting
}

func (p *play) open(ctx context.Context, name string) error {
	if p.client.Mode() != rueidis.ClientModeCluster {
		return errors.New("that is no Redis Cluster")
	}
	store, err := timeseries.New(p.client, name, timeseries.Options{})
	if err != nil {
		return err
	}
	if _, err := store.Now(ctx); err != nil {
		return err
	}
	p.counting = newCounting(store, p.series)
	return nil
}

func (p *play) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := p.counting.store.Close(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
	}
}

// act counts while something happens, and for a while at least, and says how that went.
func (p *play) act(ctx context.Context, title string, happens func() error) error {
	c := p.counting
	before, unknown, refused, began := c.total(), c.unknown.Load(), c.refused.Load(), time.Now()
	c.start(ctx, p.workers)
	var err error
	if happens != nil {
		err = happens()
	}
	select {
	case <-ctx.Done():
	case <-time.After(p.each - time.Since(began)):
	}
	c.pause()
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return err
	}
	took := time.Since(began)
	fmt.Fprintf(p.out, "\n%s: %d hits in %.1fs, %.0f a second", title, c.total()-before, took.Seconds(), float64(c.total()-before)/took.Seconds())
	if n := c.refused.Load() - refused; n > 0 {
		fmt.Fprintf(p.out, "; %d refused, the last with %q", n, c.lastRefusal.Load())
	}
	if n := c.unknown.Load() - unknown; n > 0 {
		fmt.Fprintf(p.out, "; of %d it is not known whether they were counted", n)
	}
	fmt.Fprintln(p.out)
	if err := p.shares(ctx); err != nil {
		return err
	}
	d, err := c.readBack(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(p.out, "  read %d pages in %s: %d hits\n", len(c.series), d.took.Round(time.Millisecond), d.read)
	return nil
}

// shares says what each primary has.
func (p *play) shares(ctx context.Context) error {
	for _, n := range p.nodes {
		slots, err := slotsOf(ctx, n)
		if err != nil {
			return err
		}
		keys, err := n.Do(ctx, n.B().Dbsize().Build()).AsInt64()
		if err != nil {
			return err
		}
		share := len(slots[n.id])
		fmt.Fprintf(p.out, "  %s %5d slots %6d keys %s\n", n.addr(), share, keys, strings.Repeat("#", (share*40+allSlots/2)/allSlots))
	}
	return nil
}

// grow lets a new primary join and gives it its share of the slots, some from each.
func (p *play) grow(ctx context.Context, newcomer *node) error {
	if err := join(ctx, append(slices.Clone(p.nodes), newcomer), newcomer); err != nil {
		return fmt.Errorf("join: %w", err)
	}
	slots, err := slotsOf(ctx, p.nodes[0])
	if err != nil {
		return err
	}
	began, moved := time.Now(), 0
	for _, from := range p.nodes {
		others := slices.DeleteFunc(slices.Clone(p.nodes), func(n *node) bool { return n == from })
		owned := slots[from.id]
		leaving := owned[len(owned)*len(p.nodes)/(len(p.nodes)+1):]
		if err := moveSlots(ctx, from, newcomer, leaving, others); err != nil {
			return err
		}
		moved += len(leaving)
	}
	p.nodes = append(p.nodes, newcomer)
	fmt.Fprintf(p.out, "\n%s has joined: %d slots moved in %.1fs\n", newcomer.addr(), moved, time.Since(began).Seconds())
	return nil
}

// failOver kills a primary and waits until its replica serves in its place.
func (p *play) failOver(ctx context.Context, m *machine, victim, heir *node) error {
	if err := m.kill(ctx, victim.port); err != nil {
		return err
	}
	began := time.Now()
	err := eventually(ctx, func() error {
		for _, n := range p.nodes {
			if n == victim {
				continue
			}
			slots, err := slotsOf(ctx, n)
			if err != nil {
				return err
			}
			if len(slots[heir.id]) == 0 {
				return errors.New("the replica has not taken over")
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	p.nodes[slices.Index(p.nodes, victim)] = heir
	fmt.Fprintf(p.out, "\n%s was killed: %s serves in its place after %.1fs\n", victim.addr(), heir.addr(), time.Since(began).Seconds())
	return nil
}

// finish compares what was acknowledged with what is there.
func (p *play) finish(ctx context.Context) error {
	d, err := p.counting.readBack(ctx)
	if err != nil {
		return err
	}
	unknown := p.counting.unknown.Load()
	fmt.Fprintf(p.out, "\nacknowledged %d, read %d: %d are missing, %d more are there; of %d it was not known\n",
		d.acknowledged, d.read, d.missing, d.extra, unknown)
	if d.extra > unknown {
		return errors.New("hits were counted twice")
	}
	if d.missing > 0 {
		fmt.Fprintln(p.out, "What is missing had been acknowledged by the primary that was killed and had not reached its replica: replication is asynchronous.")
	}
	return nil
}
