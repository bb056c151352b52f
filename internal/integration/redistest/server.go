package redistest

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/redis/rueidis"
)

// Server is a single Redis or Valkey server.
type Server struct {
	option rueidis.ClientOption
	host   host // nil for the server of REDIS_URL
	node   *node
}

// Shared returns the server that all tests of the run share. Tests keep apart by Prefix; nobody pauses, kills, configures
// or flushes it.
func Shared(tb testing.TB) *Server {
	tb.Helper()
	e, err := env()
	must(tb, err)
	if e.url != nil {
		s := &Server{option: *e.url}
		announce(e, s, "server")
		return s
	}
	return SharedKind(tb, e.defaultKind)
}

// SharedKind is like Shared, for one version of the matrix.
func SharedKind(tb testing.TB, kind Kind) *Server {
	tb.Helper()
	s, err := shared(kind)
	must(tb, err)
	return s
}

func shared(kind Kind) (*Server, error) {
	return run.servers.get(kind, func() (*Server, error) {
		s, err := start(kind)
		if err == nil {
			run.onStop(s.host.close)
		}
		return s, err
	})
}

// Start starts a server for this test alone, with options as on redis-server's command line ("--maxmemory", "5mb"). It has
// no persistence unless they say so, and is gone at the end of the test.
func Start(tb testing.TB, args ...string) *Server {
	tb.Helper()
	e, err := env()
	must(tb, err)
	return StartKind(tb, e.defaultKind, args...)
}

// StartKind is like Start, for one version of the matrix.
func StartKind(tb testing.TB, kind Kind, args ...string) *Server {
	tb.Helper()
	s, err := start(kind, args...)
	must(tb, err)
	tb.Cleanup(s.host.close)
	return s
}

func start(kind Kind, args ...string) (*Server, error) {
	ctx, cancel := startContext()
	defer cancel()
	h, nodes, err := boot(ctx, kind, 1, func(ports []int) []*node { return []*node{{port: ports[0], args: args}} })
	if err != nil {
		return nil, err
	}
	s := &Server{host: h, node: nodes[0], option: rueidis.ClientOption{InitAddress: []string{nodes[0].addr()}}}
	if e, err := env(); err == nil && kind == e.defaultKind && e.url == nil {
		announce(e, s, kind)
	}
	return s, nil
}

// Addr returns host:port, which stays the same after Restart.
func (s *Server) Addr() string { return s.option.InitAddress[0] }

// Client returns a client of its own, closed at the end of the test.
func (s *Server) Client(tb testing.TB, opts ...func(*rueidis.ClientOption)) rueidis.Client {
	tb.Helper()
	return newClient(tb, s.option, opts)
}

func newClient(tb testing.TB, option rueidis.ClientOption, opts []func(*rueidis.ClientOption)) rueidis.Client {
	tb.Helper()
	option.InitAddress = slices.Clone(option.InitAddress) // rueidis shuffles it
	for _, opt := range opts {
		opt(&option)
	}
	client, err := rueidis.NewClient(option)
	if err != nil {
		tb.Fatalf("redistest: client of %s: %v", strings.Join(option.InitAddress, ", "), err)
	}
	tb.Cleanup(client.Close)
	return client
}

// OneConnection is an option for Client: all commands share one connection. By default rueidis opens up to four when it
// first needs them, and a command that finds its connection unopened while replies are lost is never sent: its HELLO is.
func OneConnection(o *rueidis.ClientOption) { o.PipelineMultiplex = -1 }

// Kill ends the server with SIGKILL: whatever it had not written to disk is lost. Until Restart, new connections are refused,
// or, where Docker forwards the port, closed at once.
func (s *Server) Kill(tb testing.TB) {
	tb.Helper()
	s.signal(tb, "KILL")
}

// Pause stops the server with SIGSTOP: connections stay open, nothing is answered.
func (s *Server) Pause(tb testing.TB) {
	tb.Helper()
	s.signal(tb, "STOP")
}

// Resume ends a Pause. What clients sent meanwhile is then executed.
func (s *Server) Resume(tb testing.TB) {
	tb.Helper()
	s.signal(tb, "CONT")
}

// Restart starts the server again, on the same address with the same files, after a Kill of its own if it still runs, and
// waits until it answers.
func (s *Server) Restart(tb testing.TB) {
	tb.Helper()
	s.signal(tb, "KILL")
	ctx, cancel := startContext()
	defer cancel()
	must(tb, startNode(ctx, s.host, s.node))
}

func (s *Server) signal(tb testing.TB, name string) {
	tb.Helper()
	if s.host == nil {
		tb.Fatal("redistest: the server of REDIS_URL is not ours to kill or pause: use Start")
	}
	ctx, cancel := startContext()
	defer cancel()
	if err := s.host.signal(ctx, s.node, name); err != nil {
		tb.Fatalf("redistest: SIG%s to %s: %v", name, s.Addr(), err)
	}
}

var announceOnce sync.Once

// announce says once per run what the tests run against.
func announce(e *environment, s *Server, kind Kind) {
	announceOnce.Do(func() {
		what, origin := string(kind), "at REDIS_URL"
		if s.host != nil {
			origin = e.origin(kind)
		}
		if kind == Kind(os.Getenv("REDIS_IMAGE")) {
			what = "server"
		}
		ctx, cancel := startContext()
		defer cancel()
		info, _ := call(ctx, s.Addr(), "INFO", "server") // a server that wants a password does not say its version
		for _, field := range []string{"valkey_version", "redis_version"} {
			if version := infoField(info, field); version != "" {
				what += " " + version
				break
			}
		}
		fmt.Fprintln(os.Stderr, "redistest:", what, origin)
	})
}

func infoField(info, name string) string {
	for line := range strings.Lines(info) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
