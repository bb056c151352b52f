package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/rueidis"
)

// connect returns a client of the Redis at REDIS_URL or else of an embedded one, its URL, and what ends both.
func connect() (client rueidis.Client, url string, disconnect func(), err error) {
	if url := os.Getenv("REDIS_URL"); url != "" {
		client, err := dial(url)
		if err != nil {
			return nil, "", nil, err
		}
		return client, url, client.Close, nil
	}
	server := miniredis.NewMiniRedis()
	if err := server.Start(); err != nil {
		return nil, "", nil, fmt.Errorf("start the embedded Redis: %w", err)
	}
	url = embedded + server.Addr()
	client, err = dial(url)
	if err != nil {
		server.Close()
		return nil, "", nil, err
	}
	stopClock := runClock(server)
	return client, url, func() {
		client.Close()
		stopClock()
		server.Close()
	}, nil
}

// embedded marks the URL of a miniredis, which has no CLIENT TRACKING and would pass for a cluster.
const embedded = "embedded://"

func dial(url string) (rueidis.Client, error) {
	var option rueidis.ClientOption
	if addr, ok := strings.CutPrefix(url, embedded); ok {
		option = rueidis.ClientOption{InitAddress: []string{addr}, DisableCache: true, ForceSingleClient: true}
	} else {
		var err error
		if option, err = rueidis.ParseURL(url); err != nil { // which may quote the password
			return nil, errors.New("REDIS_URL is not of the form redis://user:password@host:port/db")
		}
	}
	option.Dialer.Timeout = time.Second // by default all who use a client wait 5s while it opens a connection
	client, err := rueidis.NewClient(option)
	if err != nil {
		return nil, fmt.Errorf("connect to Redis: %w", err)
	}
	return client, nil
}

// runClock lets keys of miniredis expire: it has no clock of its own, and time passes when it is told so.
func runClock(server *miniredis.Miniredis) (stop func()) {
	quit := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		tick := time.NewTicker(50 * time.Millisecond) // each tick looks at all keys
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
