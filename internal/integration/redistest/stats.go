package redistest

import (
	"context"
	"strconv"
	"strings"
	"testing"
)

// connectionCommands are those that rueidis sends by itself when it makes a client, opens a connection or keeps it alive.
var connectionCommands = []string{
	"info", "hello", "auth", "select", "ping", "client|tracking", "client|setinfo", "client|setname", "cluster|shards", "cluster|slots",
}

// Commands returns how often the server executed which command while fn ran, by name in lower case ("evalsha",
// "config|set"). Commands that a script calls count too. It leaves out INFO, and what rueidis sends to open a connection and
// to keep it alive, so that the numbers depend on fn alone. The server must not have other clients: use Start.
func Commands(tb testing.TB, s *Server, fn func()) map[string]int64 {
	tb.Helper()
	before := commandCalls(tb, s)
	fn()
	delta := map[string]int64{}
	for name, calls := range commandCalls(tb, s) {
		if calls != before[name] {
			delta[name] = calls - before[name]
		}
	}
	for _, name := range connectionCommands {
		delete(delta, name)
	}
	return delta
}

func commandCalls(tb testing.TB, s *Server) map[string]int64 {
	tb.Helper()
	info, err := call(context.Background(), s.Addr(), "INFO", "commandstats")
	if err != nil {
		tb.Fatalf("redistest: INFO commandstats of %s: %v", s.Addr(), err)
	}
	calls := map[string]int64{}
	for line := range strings.Lines(info) {
		// cmdstat_get:calls=3,usec=…
		name, rest, ok := strings.Cut(strings.TrimPrefix(line, "cmdstat_"), ":calls=")
		if !ok {
			continue
		}
		number, _, _ := strings.Cut(rest, ",")
		if calls[name], err = strconv.ParseInt(number, 10, 64); err != nil {
			tb.Fatalf("redistest: INFO commandstats says %q", line)
		}
	}
	return calls
}
