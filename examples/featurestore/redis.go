package main

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/rueidis"
)

// connect returns a client of the Redis at REDIS_URL or else of an embedded one, and what ends both.
func connect() (client rueidis.Client, disconnect func(), err error) {
	if address := os.Getenv("REDIS_URL"); address != "" {
		option, err := rueidis.ParseURL(address)
		if err != nil { // which may quote the password
			return nil, nil, errors.New("REDIS_URL is not of the form redis://user:password@host:port/db")
		}
		option.Dialer.Timeout = time.Second // by default all who use a client wait 5s while it opens a connection
		client, err := rueidis.NewClient(option)
		if err != nil {
			return nil, nil, fmt.Errorf("connect to REDIS_URL: %w", err)
		}
		return client, client.Close, nil
	}
	server := miniredis.NewMiniRedis()
	if err := server.Start(); err != nil {
		return nil, nil, fmt.Errorf("start the embedded Redis: %w", err)
	}
	client, err = rueidis.NewClient(rueidis.ClientOption{
		InitAddress: []string{server.Addr()},
		// miniredis has no CLIENT TRACKING, and would pass for a cluster.
		DisableCache:      true,
		ForceSingleClient: true,
	})
	if err != nil {
		server.Close()
		return nil, nil, fmt.Errorf("connect to the embedded Redis: %w", err)
	}
	stopClock := runClock(server)
	return client, func() {
		client.Close()
		stopClock()
		server.Close()
	}, nil
}

// runClock lets keys of miniredis expire: it has no clock of its own, and time passes when it is told so.
func runClock(server *miniredis.Miniredis) (stop func()) {
	quit := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		tick := time.NewTicker(time.Second) // it looks at all keys each time
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
