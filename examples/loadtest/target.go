package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/rueidis"
)

// embedded is the URL of a miniredis in this process. It has no clock, no memory figures and no CLIENT TRACKING, and would
// pass for a cluster.
const embedded = "embedded"

// connection is how to reach a server.
type connection struct {
	url           string
	ca, cert, key string // PEM files
	insecure      bool
	pool          bool
	multiplex     int
	flushDelay    time.Duration
	csc           bool
	retry         bool
}

// target is a server, or a cluster of them, under load.
type target struct {
	client  rueidis.Client // for the load
	info    rueidis.Client // for everything else, so that it does not wait behind the load
	address string         // without user and password
	sent    atomic.Int64   // bytes on the client's connections
	got     atomic.Int64
	close   func()
}

// option turns a connection into what rueidis needs.
func (c connection) option() (rueidis.ClientOption, error) {
	option, err := rueidis.ParseURL(c.url)
	if err != nil { // which may quote the password
		return option, errors.New("the URL is not of a form such as redis://user:password@host:6379/0, rediss://… or unix:///path")
	}
	if (c.ca != "" || c.cert != "" || c.key != "" || c.insecure) && option.TLSConfig == nil {
		return option, errors.New("--ca, --cert, --key and --insecure are for rediss:// URLs")
	}
	if c.ca != "" {
		pem, err := os.ReadFile(c.ca)
		if err != nil {
			return option, fmt.Errorf("--ca: %w", err)
		}
		option.TLSConfig.RootCAs = x509.NewCertPool()
		if !option.TLSConfig.RootCAs.AppendCertsFromPEM(pem) {
			return option, errors.New("--ca: no certificate in the file")
		}
	}
	if c.cert != "" || c.key != "" {
		pair, err := tls.LoadX509KeyPair(c.cert, c.key)
		if err != nil {
			return option, fmt.Errorf("--cert and --key: %w", err)
		}
		option.TLSConfig.Certificates = []tls.Certificate{pair}
	}
	if c.insecure {
		option.TLSConfig.InsecureSkipVerify = true
	}
	option.DisableCache = !c.csc
	option.DisableRetry = !c.retry // what fails is counted, not hidden
	option.DisableAutoPipelining = c.pool
	option.PipelineMultiplex = c.multiplex
	option.MaxFlushDelay = c.flushDelay
	option.Sentinel.Dialer, option.Sentinel.TLSConfig = option.Dialer, option.TLSConfig
	return option, nil
}

// remote returns the first of the URL's hosts that is not this machine, or "".
func (c connection) remote() string {
	u, err := url.Parse(c.url)
	if err != nil || u.Scheme == "unix" || c.url == embedded {
		return ""
	}
	for _, host := range append([]string{u.Host}, u.Query()["addr"]...) {
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		host = strings.Trim(host, "[]")
		if ip := net.ParseIP(host); host != "" && host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			return host
		}
	}
	return ""
}

// safeURL returns a URL without what is secret.
func safeURL(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		return "(not a URL)"
	}
	u.User = nil
	return u.String()
}

// connect opens the clients of a target.
func connect(c connection) (*target, error) {
	t := &target{address: safeURL(c.url)}
	var option rueidis.ClientOption
	stop := func() {}
	if c.url == embedded {
		server := miniredis.NewMiniRedis()
		if err := server.Start(); err != nil {
			return nil, fmt.Errorf("start the embedded Redis: %w", err)
		}
		stopClock := runClock(server)
		stop = func() {
			stopClock()
			server.Close()
		}
		option = rueidis.ClientOption{
			InitAddress: []string{server.Addr()}, DisableCache: true, ForceSingleClient: true, DisableRetry: !c.retry,
			DisableAutoPipelining: c.pool, PipelineMultiplex: c.multiplex, MaxFlushDelay: c.flushDelay,
		}
		t.address = "embedded miniredis"
	} else {
		var err error
		if option, err = c.option(); err != nil {
			return nil, err
		}
	}
	if option.Dialer.Timeout == 0 {
		option.Dialer.Timeout = 2 * time.Second // by default all who use a client wait 5s while it opens a connection
	}
	side := option // what looks on is neither counted nor a part of the load
	side.DisableCache, side.AlwaysRESP2, side.DisableRetry, side.PipelineMultiplex, side.MaxFlushDelay = true, true, false, -1, 0
	option.DialCtxFn = t.counting(option.DialCtxFn)
	var err error
	if t.client, err = rueidis.NewClient(option); err != nil {
		stop()
		return nil, fmt.Errorf("connect to %s: %w", t.address, err)
	}
	if t.info, err = rueidis.NewClient(side); err != nil {
		t.client.Close()
		stop()
		return nil, fmt.Errorf("connect to %s: %w", t.address, err)
	}
	t.close = sync.OnceFunc(func() {
		t.client.Close()
		t.info.Close()
		stop()
	})
	return t, nil
}

type dialFunc = func(context.Context, string, *net.Dialer, *tls.Config) (net.Conn, error)

// counting makes connections whose bytes are counted as they go over the wire, below TLS.
func (t *target) counting(dial dialFunc) dialFunc {
	return func(ctx context.Context, addr string, dialer *net.Dialer, config *tls.Config) (net.Conn, error) {
		var conn net.Conn
		var err error
		if dial != nil { // unix://
			conn, err = dial(ctx, addr, dialer, config)
		} else {
			conn, err = dialer.DialContext(ctx, "tcp", addr)
		}
		if err != nil {
			return nil, err
		}
		conn = countedConn{conn, t}
		if config == nil {
			return conn, nil
		}
		secure := tls.Client(conn, config)
		ctx, cancel := context.WithTimeout(ctx, dialer.Timeout)
		defer cancel()
		if err := secure.HandshakeContext(ctx); err != nil {
			return nil, errors.Join(err, conn.Close())
		}
		return secure, nil
	}
}

type countedConn struct {
	net.Conn
	t *target
}

func (c countedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.t.got.Add(int64(n))
	return n, err
}

func (c countedConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.t.sent.Add(int64(n))
	return n, err
}

// runClock lets keys of miniredis expire: it has no clock of its own, and time passes when it is told so.
func runClock(server *miniredis.Miniredis) (stop func()) {
	quit := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		tick := time.NewTicker(250 * time.Millisecond) // each tick looks at all keys
		defer tick.Stop()
		last := time.Now()
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
				now := time.Now()
				server.FastForward(now.Sub(last))
				last = now
			}
		}
	})
	return func() {
		close(quit)
		running.Wait()
	}
}
