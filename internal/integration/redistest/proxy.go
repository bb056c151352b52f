package redistest

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/redis/rueidis"
	"github.com/rs/zerolog"
)

// Proxy is a TCP proxy before a server which does to the traffic what a bad network does. Toxiproxy runs in this process.
type Proxy struct {
	proxy *toxiproxy.Proxy
	mu    sync.Mutex // one verb at a time
}

// NewProxy starts a proxy before upstream (host:port), gone at the end of the test.
func NewProxy(tb testing.TB, upstream string) *Proxy {
	tb.Helper()
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	// A port below those of outgoing connections: nothing takes it between Cut and Restore.
	found, err := freePorts(1)
	must(tb, err)
	p := &Proxy{proxy: toxiproxy.NewProxy(server, "redis", fmt.Sprintf("127.0.0.1:%d", found[0]), upstream)}
	must(tb, p.proxy.Start())
	tb.Cleanup(func() {
		p.proxy.Toxics.ResetToxics(context.Background())
		p.proxy.Stop()
	})
	return p
}

// Addr returns the host:port to connect to instead of the server's.
func (p *Proxy) Addr() string { return p.proxy.Listen }

// Through is an option for Server.Client: the client goes through the proxy.
func (p *Proxy) Through(o *rueidis.ClientOption) { o.InitAddress = []string{p.Addr()} }

// Latency delays every reply by d, in existing and new connections.
func (p *Proxy) Latency(tb testing.TB, d time.Duration) {
	tb.Helper()
	p.add(tb, fmt.Sprintf(`{"type":"latency","stream":"downstream","attributes":{"latency":%d}}`, d.Milliseconds()))
}

// DropReplies lets requests reach the server and swallows the replies.
func (p *Proxy) DropReplies(tb testing.TB) {
	tb.Helper()
	p.add(tb, `{"type":"timeout","stream":"downstream","attributes":{"timeout":0}}`)
}

// BlackHole swallows requests and replies; connections stay open and new ones are accepted.
func (p *Proxy) BlackHole(tb testing.TB) {
	tb.Helper()
	p.add(tb, `{"type":"timeout","stream":"upstream","attributes":{"timeout":0}}`)
	p.DropReplies(tb)
}

// Cut closes all connections and refuses new ones.
func (p *Proxy) Cut(testing.TB) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.proxy.Stop()
}

// Restore ends everything that the other verbs began. Connections that lost data are closed, as they would be out of step.
func (p *Proxy) Restore(tb testing.TB) {
	tb.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.proxy.Toxics.ResetToxics(context.Background())
	if !p.proxy.Enabled {
		must(tb, p.proxy.Start())
	}
}

func (p *Proxy) add(tb testing.TB, toxic string) {
	tb.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, err := p.proxy.Toxics.AddToxicJson(strings.NewReader(toxic)); err != nil {
		tb.Fatalf("redistest: proxy %s: %v", toxic, err)
	}
}
