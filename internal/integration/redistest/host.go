package redistest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/rueidis"
)

// Kind names a server and its version.
type Kind string

// The version matrix.
const (
	Redis70 Kind = "redis-7.0"
	Redis8  Kind = "redis-8"
	Valkey8 Kind = "valkey-8"
)

// host is where the servers of one test live: a container, or this machine.
type host interface {
	start(ctx context.Context, n *node) error
	// signal sends KILL, STOP or CONT. After KILL it returns when the process is gone.
	signal(ctx context.Context, n *node, name string) error
	alive(ctx context.Context, n *node) bool
	log(ctx context.Context, n *node) string // the last lines
	close()
}

// node is one server process. Its port is the same inside and outside a container.
type node struct {
	port   int
	args   []string
	config string // content of a configuration file which the server itself rewrites: Sentinel needs one
}

func (n *node) addr() string { return "127.0.0.1:" + strconv.Itoa(n.port) }

// command is everything after the binary's name.
func (n *node) command(bind string) []string {
	args := []string{"--port", strconv.Itoa(n.port), "--bind", bind, "--protected-mode", "no"}
	if n.config != "" {
		return append([]string{"node.conf", "--sentinel"}, args...)
	}
	return append(append(args, "--save", "", "--appendonly", "no"), n.args...)
}

// environment is where servers come from.
type environment struct {
	url         *rueidis.ClientOption // of REDIS_URL
	docker      *docker               // nil without Docker
	binaries    map[Kind]string       // servers on PATH, used only without Docker
	defaultKind Kind
}

const howToGetServers = `no Redis to test against: no Docker (%s), and there is no redis-server on PATH.
Install Docker, or redis-server >= 7.0 with your package manager, or set REDIS_URL=redis://host:port`

// env decides once.
var env = sync.OnceValues(func() (*environment, error) {
	e := &environment{}
	if u := os.Getenv("REDIS_URL"); u != "" {
		option, err := rueidis.ParseURL(u)
		if err != nil {
			return nil, fmt.Errorf("REDIS_URL: %w", err)
		}
		e.url = &option
	}
	dockerErr := errors.New("REDISTEST_MODE=process")
	switch mode := os.Getenv("REDISTEST_MODE"); mode {
	case "process":
	case "":
		e.docker, dockerErr = openDocker()
	default:
		return nil, fmt.Errorf("REDISTEST_MODE is %q; it can only be %q", mode, "process")
	}
	if e.docker != nil {
		e.defaultKind = Redis8
		if image := os.Getenv("REDIS_IMAGE"); image != "" {
			e.defaultKind = Kind(image)
		}
		return e, nil
	}
	if err := e.findBinaries(); err != nil {
		return nil, err
	}
	if len(e.binaries) == 0 {
		if e.url == nil {
			return nil, fmt.Errorf(howToGetServers, strings.ReplaceAll(dockerErr.Error(), "\n", "; "))
		}
		e.defaultKind = "server, cluster or sentinel of a test's own"
	}
	return e, nil
})

var versionPattern = regexp.MustCompile(`\bv=(\d+)\.(\d+)`)

// findBinaries asks redis-server and valkey-server on PATH what they are: some systems install one under both names.
func (e *environment) findBinaries() error {
	e.binaries = map[Kind]string{}
	for _, name := range []string{"redis-server", "valkey-server"} {
		path, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		out, err := exec.Command(path, "--version").Output()
		if err != nil {
			return fmt.Errorf("%s --version: %w", path, err)
		}
		v := versionPattern.FindStringSubmatch(string(out))
		if v == nil {
			return fmt.Errorf("%s --version says %q", path, out)
		}
		kind := Kind("redis-" + v[1])
		switch {
		case strings.Contains(string(out), "Valkey"):
			kind = Kind("valkey-" + v[1])
		case v[1] == "7":
			kind = Kind("redis-" + v[1] + "." + v[2])
		}
		if major, _ := strconv.Atoi(v[1]); major < 7 {
			return fmt.Errorf("%s is version %s.%s; 7.0 is the oldest that works", path, v[1], v[2])
		}
		if _, ok := e.binaries[kind]; !ok {
			e.binaries[kind] = path
		}
		if e.defaultKind == "" {
			e.defaultKind = kind
		}
	}
	return nil
}

// origin says where the servers of a kind come from, for the one line at the start of the run.
func (e *environment) origin(kind Kind) string {
	if e.docker == nil {
		return "as a process (" + filepath.Base(e.binaries[kind]) + " on PATH)"
	}
	image, _ := e.docker.image(kind)
	if strings.HasPrefix(image, builtPrefix) {
		return "in a container (image " + image + " built from Debian packages)"
	}
	return "in a container (image " + image + ")"
}

// newHost makes the place for servers on the given ports.
func (e *environment) newHost(ctx context.Context, kind Kind, ports []int) (host, error) {
	if e.docker != nil {
		return e.docker.newContainer(ctx, kind, ports)
	}
	binary, ok := e.binaries[kind]
	if !ok {
		why := "needs Docker; redis-server on PATH is " + string(e.defaultKind)
		if len(e.binaries) == 0 {
			why = "needs Docker or redis-server on PATH"
		}
		return nil, &unavailableError{string(kind), why}
	}
	return newProcesses(binary)
}

// boot starts nodes on a host of their own and waits until all answer. Another program may take a port between the moment
// it was found free and its use, hence the new attempts.
func boot(ctx context.Context, kind Kind, count int, nodes func(ports []int) []*node) (host, []*node, error) {
	e, err := env()
	if err != nil {
		return nil, nil, err
	}
	for attempt := 1; ; attempt++ {
		h, ns, err := bootOnce(ctx, e, kind, count, nodes)
		if err == nil {
			return h, ns, nil
		}
		if attempt == 5 || !isPortTaken(err) {
			return nil, nil, fmt.Errorf("start %s: %w", kind, err)
		}
	}
}

func bootOnce(ctx context.Context, e *environment, kind Kind, count int, nodes func([]int) []*node) (_ host, _ []*node, err error) {
	ports, err := freePorts(count)
	if err != nil {
		return nil, nil, err
	}
	h, err := e.newHost(ctx, kind, ports)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			h.close()
		}
	}()
	ns := nodes(ports)
	for _, n := range ns {
		if err := startNode(ctx, h, n); err != nil {
			return nil, nil, err
		}
	}
	return h, ns, nil
}

// startNode starts a server and waits until it answers.
func startNode(ctx context.Context, h host, n *node) error {
	if err := h.start(ctx, n); err != nil {
		return fmt.Errorf("server %s: %w", n.addr(), err)
	}
	begin, died := time.Now(), false
	err := poll(ctx, func() (bool, error) {
		reply, err := call(ctx, n.addr(), "PING")
		if reply == "PONG" || err != nil && strings.HasPrefix(err.Error(), "NOAUTH") {
			return true, nil
		}
		died = time.Since(begin) > time.Second && !h.alive(ctx, n) // asking costs more than PING: not at first
		return died, err
	})
	switch {
	case died:
		return fmt.Errorf("server %s ended; its last lines:\n%s", n.addr(), h.log(ctx, n))
	case err != nil:
		return fmt.Errorf("server %s does not answer PING: %w; its last lines:\n%s", n.addr(), err, h.log(ctx, n))
	}
	return nil
}

func isPortTaken(err error) bool {
	text := strings.ToLower(err.Error())
	return strings.Contains(text, "address already in use") || strings.Contains(text, "port is already allocated")
}

var ports struct {
	sync.Mutex
	given map[int]bool
}

// freePorts stays below the range from which systems take the ports of outgoing connections (Linux: 32768 up), so that
// nothing takes the port of a killed server before its restart, and leaves room for the Cluster bus 10000 above.
func freePorts(count int) ([]int, error) {
	const low, high = 12000, 22000
	ports.Lock()
	defer ports.Unlock()
	if ports.given == nil {
		ports.given = map[int]bool{}
	}
	var found []int
	for attempt := 0; attempt < 1000 && len(found) < count; attempt++ {
		port := low + rand.IntN(high-low)
		if ports.given[port] || !isFree(port) || !isFree(port+10000) {
			continue
		}
		ports.given[port] = true
		found = append(found, port)
	}
	if len(found) < count {
		return nil, fmt.Errorf("no free TCP port between %d and %d", low, high)
	}
	return found, nil
}

func isFree(port int) bool {
	l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port))
	if err != nil {
		return false
	}
	return l.Close() == nil
}
