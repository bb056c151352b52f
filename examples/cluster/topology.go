package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/rueidis"
)

const allSlots = 16384

// node is one Redis of the cluster, for what is asked of it alone.
type node struct {
	rueidis.Client
	port int
	id   string
}

func (n *node) addr() string { return "127.0.0.1:" + strconv.Itoa(n.port) }

func (n *node) do(ctx context.Context, args ...string) (string, error) {
	reply := n.Do(ctx, n.B().Arbitrary(args...).Build())
	if err := reply.Error(); err != nil {
		return "", fmt.Errorf("%s: %s: %w", n.addr(), strings.Join(args[:min(2, len(args))], " "), err)
	}
	text, _ := reply.ToString()                  // or a number, which is not looked at
	return strings.TrimPrefix(text, "txt:"), nil // RESP3 says that it is text
}

// dial connects to a node that has just been started.
func dial(ctx context.Context, port int) (*node, error) {
	n := &node{port: port}
	err := eventually(ctx, func() error {
		var err error
		if n.Client == nil {
			n.Client, err = rueidis.NewClient(rueidis.ClientOption{
				InitAddress: []string{n.addr()}, ForceSingleClient: true, DisableCache: true, PipelineMultiplex: -1,
			})
		}
		if err == nil {
			n.id, err = n.do(ctx, "CLUSTER", "MYID")
		}
		return err
	})
	return n, err
}

// form makes a cluster: the first half are primaries with equal shares of the slots, the second half their replicas.
func form(ctx context.Context, nodes []*node) error {
	primaries := nodes[:len(nodes)/2]
	for i, n := range primaries {
		from, to := allSlots*i/len(primaries), allSlots*(i+1)/len(primaries)-1
		if _, err := n.do(ctx, "CLUSTER", "ADDSLOTSRANGE", strconv.Itoa(from), strconv.Itoa(to)); err != nil {
			return err
		}
	}
	if err := join(ctx, nodes, nodes[1:]...); err != nil {
		return err
	}
	for i, n := range nodes[len(primaries):] {
		if _, err := n.do(ctx, "CLUSTER", "REPLICATE", primaries[i].id); err != nil {
			return err
		}
	}
	return eventually(ctx, func() error {
		for _, n := range nodes[len(primaries):] {
			info, err := n.do(ctx, "INFO", "replication")
			if err != nil {
				return err
			}
			if !strings.Contains(info, "master_link_status:up") {
				return errors.New("a replica is not in step")
			}
		}
		return nil
	})
}

// join makes newcomers meet one of the cluster's nodes, and waits until all know of each other.
func join(ctx context.Context, all []*node, newcomers ...*node) error {
	for _, n := range newcomers {
		if _, err := n.do(ctx, "CLUSTER", "MEET", "127.0.0.1", strconv.Itoa(all[0].port)); err != nil {
			return err
		}
	}
	return eventually(ctx, func() error {
		for _, n := range all {
			text, err := n.do(ctx, "CLUSTER", "NODES")
			if err != nil {
				return err
			}
			if slices.ContainsFunc(all, func(other *node) bool { return !strings.Contains(text, other.id) }) || strings.Contains(text, "handshake") {
				return errors.New("the nodes do not know each other")
			}
			info, err := n.do(ctx, "CLUSTER", "INFO")
			if err != nil {
				return err
			}
			if !strings.Contains(info, "cluster_state:ok") {
				return errors.New("a node sees no whole cluster")
			}
		}
		return nil
	})
}

// slotsOf returns the slots of each primary, by its id, as a node sees them.
func slotsOf(ctx context.Context, n *node) (map[string][]int, error) {
	text, err := n.do(ctx, "CLUSTER", "NODES")
	if err != nil {
		return nil, err
	}
	return parseNodes(text)
}

// parseNodes reads lines of id, address, flags, primary, ping, pong, epoch, link, and ranges of slots.
func parseNodes(text string) (map[string][]int, error) {
	slots := map[string][]int{}
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 8 || !strings.Contains(fields[2], "master") || strings.Contains(fields[2], "fail") {
			continue
		}
		owned := []int{}
		for _, r := range fields[8:] {
			if strings.HasPrefix(r, "[") { // a slot on its way
				continue
			}
			first, last, isRange := strings.Cut(r, "-")
			from, err := strconv.Atoi(first)
			to := from
			if isRange && err == nil {
				to, err = strconv.Atoi(last)
			}
			if err != nil {
				return nil, fmt.Errorf("what are the slots %q: %w", r, err)
			}
			for s := from; s <= to; s++ {
				owned = append(owned, s)
			}
		}
		slots[fields[0]] = owned
	}
	return slots, nil
}

// moveSlots moves slots with all their keys, while both nodes serve: a key is asked for where it was, and if it has left, the
// client is sent on.
func moveSlots(ctx context.Context, from, to *node, slots []int, all []*node) error {
	for batch := range slices.Chunk(slots, 64) {
		if err := each(ctx, to, batch, func(slot string) []string { return []string{"CLUSTER", "SETSLOT", slot, "IMPORTING", from.id} }); err != nil {
			return err
		}
		if err := each(ctx, from, batch, func(slot string) []string { return []string{"CLUSTER", "SETSLOT", slot, "MIGRATING", to.id} }); err != nil {
			return err
		}
		if err := moveKeys(ctx, from, to, batch); err != nil {
			return err
		}
		for _, n := range append([]*node{to, from}, all...) { // the new owner first: it must not be asked for what it does not have
			if err := each(ctx, n, batch, func(slot string) []string { return []string{"CLUSTER", "SETSLOT", slot, "NODE", to.id} }); err != nil {
				return err
			}
		}
	}
	return nil
}

// moveKeys moves all keys of slots. While they leave new ones are made where they go to.
func moveKeys(ctx context.Context, from, to *node, slots []int) error {
	for {
		var looks, moves []rueidis.Completed
		for _, slot := range slots {
			looks = append(looks, from.B().ClusterGetkeysinslot().Slot(int64(slot)).Count(100).Build())
		}
		for _, reply := range from.DoMulti(ctx, looks...) {
			keys, err := reply.AsStrSlice()
			if err != nil {
				return fmt.Errorf("%s: look into slots: %w", from.addr(), err)
			}
			if len(keys) > 0 {
				args := append([]string{"MIGRATE", "127.0.0.1", strconv.Itoa(to.port), "", "0", "5000", "KEYS"}, keys...)
				moves = append(moves, from.B().Arbitrary(args...).Build())
			}
		}
		if len(moves) == 0 {
			return nil
		}
		for _, reply := range from.DoMulti(ctx, moves...) {
			if err := reply.Error(); err != nil {
				return fmt.Errorf("%s: move keys: %w", from.addr(), err)
			}
		}
	}
}

// each sends a command for each slot to a node, in one pipeline.
func each(ctx context.Context, n *node, slots []int, command func(slot string) []string) error {
	cmds := make([]rueidis.Completed, len(slots))
	for i, slot := range slots {
		cmds[i] = n.B().Arbitrary(command(strconv.Itoa(slot))...).Build()
	}
	for _, reply := range n.DoMulti(ctx, cmds...) {
		if err := reply.Error(); err != nil {
			return fmt.Errorf("%s: move slots: %w", n.addr(), err)
		}
	}
	return nil
}

// eventually asks until it gets no error, or ctx ends, or it has taken too long.
func eventually(ctx context.Context, done func() error) error {
	const patience = 30 * time.Second
	for began := time.Now(); ; {
		err := done()
		if err == nil {
			return nil
		}
		if time.Since(began) > patience {
			return fmt.Errorf("waited for %v: %w", patience, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}
