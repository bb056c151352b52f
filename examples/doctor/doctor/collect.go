package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/rueidis"
)

const (
	stepTimeout = 5 * time.Second // for one command, or a few that are sent together
	scanCount   = 500             // keys that one SCAN walks over
	maxScans    = 100             // of one prefix
	maxStreams  = 50              // of one node
	maxUnknown  = 10              // prefixes that nobody has named
)

// Snapshot is what was read, to be judged now or later: it can be written as JSON.
type Snapshot struct {
	Mode  string  `json:"mode"` // standalone, sentinel or cluster
	Nodes []*Node `json:"nodes"`
}

// Node is what was read from one server.
type Node struct {
	Addr     string             `json:"addr"`
	User     string             `json:"user,omitempty"`
	Replica  bool               `json:"replica,omitempty"` // one that was found by asking its primary
	Interval time.Duration      `json:"interval"`
	First    fields             `json:"first"` // INFO
	Second   fields             `json:"second"`
	Config   fields             `json:"config"`
	Cluster  fields             `json:"cluster,omitempty"`
	Latency  map[string]Latency `json:"latency,omitempty"` // by command, between the samples
	Keys     []*KeySample       `json:"keys,omitempty"`
	Streams  []*StreamSample    `json:"streams,omitempty"`
	NoPass   bool               `json:"noPass,omitempty"` // whether the user "default" needs no password
	Unseen   []string           `json:"unseen,omitempty"` // replicas that were not looked at
	Denied   map[source]string  `json:"denied,omitempty"` // what could not be read, and the error
}

// Latency is how long a command has run on the server.
type Latency struct {
	Calls int64 `json:"calls"`
	P99   int64 `json:"p99"` // at most so many microseconds: a power of two
}

// KeySample is what was seen of the keys with a prefix.
type KeySample struct {
	Prefix  string  `json:"prefix"`
	Pattern Pattern `json:"pattern,omitempty"`
	Seen    int     `json:"seen"`
	NoTTL   int     `json:"noTTL"`
	// Odd is how many of its bookkeeping keys, which have a TTL where the others have none, there are; they are not in Seen.
	Odd      int  `json:"odd,omitempty"`
	Untagged int  `json:"untagged,omitempty"` // without a hash tag
	All      bool `json:"all"`                // whether the whole keyspace was walked
}

// StreamSample is what was seen of a stream.
type StreamSample struct {
	Key    string         `json:"key"`
	Length int64          `json:"length"`
	Groups []*GroupSample `json:"groups,omitempty"`
}

// GroupSample is what was seen of a consumer group.
type GroupSample struct {
	Name      string `json:"name"`
	Pending   int64  `json:"pending"`
	Lag       int64  `json:"lag"` // -1 where Redis does not know
	LaterLag  int64  `json:"laterLag"`
	Abandoned int64  `json:"abandoned"` // pending entries that nobody has touched for ten leases, as far as was counted
}

// source is where something is read, and is named after the right that this takes.
type source string

const (
	fromInfo    source = "+info"
	fromConfig  source = "+config|get"
	fromLatency source = "+latency|histogram"
	fromCluster source = "+cluster|info"
	fromKeys    source = "%R~* +scan +pttl +type"
	fromStreams source = "%R~* +xlen +xinfo|groups +xpending"
	fromACL     source = "+acl|getuser"
)

// settings are the parameters that are read. requirepass is not one of them: its value is a secret.
var settings = []string{
	"appendfsync", "save", "no-appendfsync-on-rewrite", "min-replicas-to-write", "tracking-table-max-keys",
	"bind", "protected-mode", "port", "hash-max-listpack-entries",
}

// Collect reads what Judge needs. An error means that nothing was read; what a node refuses is in the snapshot.
func Collect(ctx context.Context, client rueidis.Client, expect Expect) (Snapshot, error) {
	if err := expect.setDefaults(); err != nil {
		return Snapshot{}, err
	}
	if client == nil {
		return Snapshot{}, errors.New("doctor: client is required")
	}
	s := Snapshot{Mode: string(client.Mode())}
	clients := map[*Node]rueidis.Client{}
	for addr, c := range client.Nodes() {
		n := newNode(addr)
		clients[n] = c
		s.Nodes = append(s.Nodes, n)
	}
	found, closeAll := dialReplicas(ctx, clients, expect)
	defer closeAll()
	maps.Copy(clients, found)
	s.Nodes = slices.AppendSeq(s.Nodes, maps.Keys(found))
	var reading sync.WaitGroup
	for n, c := range clients {
		reading.Go(func() { n.read(ctx, c, client.Mode() == rueidis.ClientModeCluster, expect) })
	}
	reading.Wait()
	if err := ctx.Err(); err != nil {
		return Snapshot{}, fmt.Errorf("doctor: %w", err)
	}
	slices.SortFunc(s.Nodes, func(a, b *Node) int { return strings.Compare(a.Addr, b.Addr) })
	return s, nil
}

func newNode(addr string) *Node {
	return &Node{Addr: addr, First: fields{}, Second: fields{}, Config: fields{}, Denied: map[source]string{}}
}

// dialReplicas finds the replicas of nodes, as they call themselves.
func dialReplicas(ctx context.Context, nodes map[*Node]rueidis.Client, expect Expect) (found map[*Node]rueidis.Client, closeAll func()) {
	found = map[*Node]rueidis.Client{}
	known := map[string]bool{}
	for n := range nodes {
		known[n.Addr] = true
	}
	for n, c := range nodes {
		info, err := readInfo(ctx, c, "replication")
		if err != nil {
			continue // read says so
		}
		for i := range int(info.number("connected_slaves")) {
			// slave0:ip=10.0.0.1,port=6379,state=online,…
			parts := map[string]string{}
			for part := range strings.SplitSeq(info["slave"+strconv.Itoa(i)], ",") {
				name, value, _ := strings.Cut(part, "=")
				parts[name] = value
			}
			addr := net.JoinHostPort(parts["ip"], parts["port"])
			if known[addr] {
				continue
			}
			known[addr] = true
			if expect.Dial == nil {
				n.Unseen = append(n.Unseen, addr)
				continue
			}
			replica, err := expect.Dial(addr)
			if err != nil {
				n.Unseen = append(n.Unseen, addr+" ("+err.Error()+")")
				continue
			}
			r := newNode(addr)
			r.Replica = true
			found[r] = replica
		}
	}
	return found, func() {
		for _, c := range found {
			c.Close()
		}
	}
}

// read fills in n. Keys come first, as looking at them counts as hits.
func (n *Node) read(ctx context.Context, c rueidis.Client, isCluster bool, expect Expect) {
	info, err := readInfo(ctx, c, "all")
	if err != nil {
		n.deny(fromInfo, err)
	}
	if user, err := do(ctx, c, c.B().AclWhoami().Build()).ToString(); err == nil { // only to say whom to grant what
		n.User = user
	}
	n.readSettings(ctx, c)
	if isCluster {
		text, err := do(ctx, c, c.B().ClusterInfo().Build()).ToString()
		if err != nil {
			n.deny(fromCluster, err)
		}
		n.Cluster = parseInfo(text)
	}
	if info["role"] != "slave" || !isCluster && !n.Replica {
		n.readKeys(ctx, c, expect)
		n.readStreams(ctx, c, expect, false)
	}

	before, err := readLatency(ctx, c)
	if err != nil {
		n.deny(fromLatency, err)
	}
	start := time.Now()
	if first, err := readInfo(ctx, c, "all"); err == nil {
		n.First = first
	} else {
		n.deny(fromInfo, err)
	}
	timer := time.NewTimer(expect.Interval)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return
	case <-timer.C:
	}
	n.Interval = time.Since(start)
	if second, err := readInfo(ctx, c, "all"); err == nil {
		n.Second = second
	} else {
		n.deny(fromInfo, err)
	}
	if after, err := readLatency(ctx, c); err == nil {
		n.Latency = between(before, after)
	}
	n.readStreams(ctx, c, expect, true)
}

func (n *Node) deny(from source, err error) {
	if n.Denied[from] == "" {
		n.Denied[from] = err.Error()
	}
}

// do bounds a command: a read without a deadline is repeated as long as a server is down.
func do(ctx context.Context, c rueidis.Client, cmd rueidis.Completed) rueidis.RedisResult {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	return c.Do(ctx, cmd)
}

func doMulti(ctx context.Context, c rueidis.Client, cmds []rueidis.Completed) []rueidis.RedisResult {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	return c.DoMulti(ctx, cmds...)
}

func readInfo(ctx context.Context, c rueidis.Client, section string) (fields, error) {
	text, err := do(ctx, c, c.B().Info().Section(section).Build()).ToString()
	if err != nil {
		return nil, err
	}
	return parseInfo(text), nil
}

func (n *Node) readSettings(ctx context.Context, c rueidis.Client) {
	cmds := make([]rueidis.Completed, 0, len(settings)+1)
	for _, name := range settings {
		cmds = append(cmds, c.B().ConfigGet().Parameter(name).Build())
	}
	replies := doMulti(ctx, c, append(cmds, c.B().AclGetuser().Username("default").Build()))
	for _, reply := range replies[:len(settings)] {
		values, err := reply.AsStrMap()
		if err != nil {
			n.deny(fromConfig, err)
		}
		maps.Copy(n.Config, values)
	}
	user, err := replies[len(settings)].AsMap()
	if err != nil {
		n.deny(fromACL, err)
		return
	}
	message := user["flags"]
	flags, err := message.AsStrSlice()
	if err != nil {
		n.deny(fromACL, err)
		return
	}
	n.NoPass = slices.Contains(flags, "on") && slices.Contains(flags, "nopass")
}

// histogram is a command's, cumulative: how many calls took at most so many microseconds.
type histogram map[int64]int64

func readLatency(ctx context.Context, c rueidis.Client) (map[string]histogram, error) {
	commands, err := do(ctx, c, c.B().LatencyHistogram().Build()).AsMap()
	if err != nil {
		return nil, err
	}
	histograms := make(map[string]histogram, len(commands))
	for name, message := range commands {
		command, err := message.AsMap()
		if err != nil {
			return nil, err
		}
		buckets, ok := command["histogram_usec"]
		if !ok {
			continue
		}
		h, err := parseHistogram(buckets.String())
		if err != nil {
			return nil, err
		}
		histograms[name] = h
	}
	return histograms, nil
}

// parseHistogram reads a histogram out of a message's JSON: its keys are integers, and rueidis has no method for maps with such.
func parseHistogram(message string) (histogram, error) {
	var list struct{ Value []struct{ Value int64 } }
	if err := json.Unmarshal([]byte(message), &list); err != nil {
		return nil, err
	}
	h := histogram{}
	for pair := range slices.Chunk(list.Value, 2) {
		h[pair[0].Value] = pair[len(pair)-1].Value
	}
	return h, nil
}

// upTo returns how many calls took at most us.
func (h histogram) upTo(us int64) int64 {
	var most int64
	for bound, count := range h {
		if bound <= us {
			most = max(most, count)
		}
	}
	return most
}

// between returns what was added to histograms.
func between(before, after map[string]histogram) map[string]Latency {
	latencies := map[string]Latency{}
	for name, h := range after {
		bounds := slices.Sorted(maps.Keys(h))
		if len(bounds) == 0 {
			continue
		}
		last := bounds[len(bounds)-1]
		calls := h.upTo(last) - before[name].upTo(last)
		if calls <= 0 { // none, or they were reset
			continue
		}
		for _, bound := range bounds {
			if (h.upTo(bound)-before[name].upTo(bound))*100 >= calls*99 {
				latencies[name] = Latency{Calls: calls, P99: bound}
				break
			}
		}
	}
	return latencies
}

// sampler adds keys up.
type sampler struct {
	node     *Node
	client   rueidis.Client
	prefixes prefixes
	samples  map[string]*KeySample
	counted  map[string]bool // keys: SCAN may return one twice
}

// readKeys walks over the keys: over all of them if there are few, otherwise it looks for each prefix by itself.
func (n *Node) readKeys(ctx context.Context, c rueidis.Client, expect Expect) {
	s := sampler{n, c, newPrefixes(expect.Prefixes), map[string]*KeySample{}, map[string]bool{}}
	all, err := s.scan(ctx, "", "", expect.SampleKeys)
	if err == nil && !all {
		for _, prefix := range s.prefixes.ordered {
			if _, err = s.scan(ctx, prefix, "", expect.SampleKeys); err != nil {
				break
			}
		}
	}
	if err == nil && !all {
		_, err = s.scan(ctx, "", "stream", maxStreams)
	}
	if err != nil {
		n.deny(fromKeys, err)
	}
	var unknown int
	for _, name := range slices.Sorted(maps.Keys(s.samples)) {
		sample := s.samples[name]
		sample.All = all
		if sample.Pattern == "" {
			if unknown++; unknown > maxUnknown {
				continue
			}
		}
		n.Keys = append(n.Keys, sample)
	}
}

// scan looks at keys until it has seen enough of them. It reports whether it has seen all.
func (s *sampler) scan(ctx context.Context, prefix, kind string, enough int) (all bool, err error) {
	var cursor uint64
	seen := 0
	for range maxScans {
		cmd := s.client.B().Arbitrary("SCAN").Args(strconv.FormatUint(cursor, 10), "COUNT", strconv.Itoa(scanCount))
		if prefix != "" {
			cmd = cmd.Args("MATCH", escape.Replace(prefix)+"*")
		}
		if kind != "" {
			cmd = cmd.Args("TYPE", kind)
		}
		page, err := do(ctx, s.client, cmd.Build()).AsScanEntry()
		if err != nil {
			return false, err
		}
		if err := s.look(ctx, page.Elements); err != nil {
			return false, err
		}
		seen += len(page.Elements)
		if cursor = page.Cursor; cursor == 0 {
			return true, nil
		}
		if seen >= enough {
			break
		}
	}
	return false, nil
}

var escape = strings.NewReplacer(`*`, `\*`, `?`, `\?`, `[`, `\[`, `]`, `\]`, `\`, `\\`, `^`, `\^`)

// look adds keys to the samples.
func (s *sampler) look(ctx context.Context, keys []string) error {
	keys = slices.DeleteFunc(keys, func(key string) bool { return s.counted[key] })
	if len(keys) == 0 {
		return nil
	}
	cmds := make([]rueidis.Completed, 0, 2*len(keys))
	for _, key := range keys {
		cmds = append(cmds, s.client.B().Pttl().Key(key).Build(), s.client.B().Type().Key(key).Build())
	}
	replies := doMulti(ctx, s.client, cmds)
	for i, key := range keys {
		ttl, err := replies[2*i].AsInt64()
		if err != nil {
			if isElsewhere(err) { // its slot is moving
				continue
			}
			return err
		}
		kind, err := replies[2*i+1].ToString()
		if err != nil {
			if isElsewhere(err) {
				continue
			}
			return err
		}
		if ttl == -2 { // gone
			continue
		}
		s.counted[key] = true
		s.add(key, kind, ttl == -1)
	}
	return nil
}

func isElsewhere(err error) bool {
	e, ok := rueidis.IsRedisErr(err)
	return ok && (strings.HasPrefix(e.Error(), "MOVED") || strings.HasPrefix(e.Error(), "ASK"))
}

func (s *sampler) add(key, kind string, noTTL bool) {
	prefix, pattern := s.prefixes.of(key)
	if pattern == "" && isStreams(key, kind) {
		prefix, pattern = "(streams)", Stream
	}
	if kind == "stream" && pattern == Stream && len(s.node.Streams) < maxStreams {
		s.node.Streams = append(s.node.Streams, &StreamSample{Key: key})
	}
	sample := s.samples[prefix]
	if sample == nil {
		sample = &KeySample{Prefix: prefix, Pattern: pattern}
		s.samples[prefix] = sample
	}
	if isBookkeeping(pattern, key) {
		sample.Odd++
		return
	}
	sample.Seen++
	if noTTL {
		sample.NoTTL++
	}
	if _, tag, ok := strings.Cut(key, "{"); !ok || strings.Index(tag, "}") < 1 {
		sample.Untagged++
	}
}

// readStreams reads the streams that were found; the second time only how far their groups have got.
func (n *Node) readStreams(ctx context.Context, c rueidis.Client, expect Expect, again bool) {
	for _, s := range n.Streams {
		if err := s.read(ctx, c, expect, again); err != nil && !isGone(err) {
			n.deny(fromStreams, err)
			return
		}
	}
}

// isGone reports whether a stream is no more where it was.
func isGone(err error) bool {
	e, ok := rueidis.IsRedisErr(err)
	return isElsewhere(err) || ok && (strings.Contains(e.Error(), "no such key") || strings.HasPrefix(e.Error(), "WRONGTYPE") ||
		strings.HasPrefix(e.Error(), "NOGROUP"))
}

func (s *StreamSample) read(ctx context.Context, c rueidis.Client, expect Expect, again bool) error {
	var err error
	if s.Length, err = do(ctx, c, c.B().Xlen().Key(s.Key).Build()).AsInt64(); err != nil {
		return err
	}
	groups, err := do(ctx, c, c.B().XinfoGroups().Key(s.Key).Build()).ToArray()
	if err != nil {
		return err
	}
	for _, message := range groups {
		fields, err := message.AsMap()
		if err != nil {
			return err
		}
		lag, pending, named := fields["lag"], fields["pending"], fields["name"]
		name, err := named.ToString()
		if err != nil {
			return err
		}
		g := &GroupSample{Name: name}
		if g.Pending, err = pending.AsInt64(); err != nil {
			return err
		}
		if g.Lag, err = lag.AsInt64(); err != nil { // null, or a version that does not say
			g.Lag = -1
		}
		if again {
			for _, earlier := range s.Groups {
				if earlier.Name == name {
					earlier.LaterLag = g.Lag
				}
			}
			continue
		}
		g.LaterLag = g.Lag
		old := strconv.FormatInt((10 * expect.Lease).Milliseconds(), 10)
		entries, err := do(ctx, c, c.B().Arbitrary("XPENDING").Keys(s.Key).Args(name, "IDLE", old, "-", "+", "10").Build()).ToArray()
		if err != nil {
			return err
		}
		g.Abandoned = int64(len(entries))
		s.Groups = append(s.Groups, g)
	}
	return nil
}
