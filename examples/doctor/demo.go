package main

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"time"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/cache"
	"github.com/redispatterns/redispatterns/examples/doctor/doctor"
	"github.com/redispatterns/redispatterns/lock"
)

// recording is what doctor.Collect has read from a server that was filled as fill does.
//
//go:embed recording.json
var recording []byte

const demoLimit = 8 << 20 // bytes

// demonstrate looks at a server with a mistake that many make: locks beside a cache.
func demonstrate(ctx context.Context, c config, out io.Writer) error {
	c.expect.Interval = min(c.expect.Interval, time.Second)
	// The locks are evicted by the time anybody looks, so that the server's keys do not show that it is for locks as well.
	c.expect.Uses = append(c.expect.Uses, doctor.Cache, doctor.Lock)
	snapshot, what, err := live(ctx, c.expect)
	if errors.Is(err, exec.ErrNotFound) {
		what = "What follows is a recording, as there is no redis-server in PATH to show it with: locks and a cache on one Redis under allkeys-lru."
		err = json.Unmarshal(recording, &snapshot)
	}
	if err != nil {
		return err
	}
	report, err := doctor.Judge(snapshot, c.expect)
	if err != nil {
		return err
	}
	if c.format == "text" {
		fmt.Fprintf(out, "%s\nTo look at yours: go -C examples run ./doctor redis://127.0.0.1:6379\n\n", what)
	}
	return write(out, snapshot, report, c)
}

// live starts a server, fills it and reads it. The error is exec.ErrNotFound if there is none to start.
func live(ctx context.Context, expect doctor.Expect) (doctor.Snapshot, string, error) {
	path, err := exec.LookPath("redis-server")
	if err != nil {
		path, err = exec.LookPath("valkey-server")
	}
	if err != nil {
		return doctor.Snapshot{}, "", exec.ErrNotFound
	}
	port, err := freePort()
	if err != nil {
		return doctor.Snapshot{}, "", err
	}
	dir, err := os.MkdirTemp("", "doctor")
	if err != nil {
		return doctor.Snapshot{}, "", err
	}
	defer func() { _ = os.RemoveAll(dir) }() // it is in the directory for temporary files
	server := exec.CommandContext(ctx, path, "--port", strconv.Itoa(port), "--bind", "127.0.0.1", "--dir", dir, "--save", "",
		"--maxmemory", strconv.Itoa(demoLimit), "--maxmemory-policy", "allkeys-lru")
	if err := server.Start(); err != nil {
		return doctor.Snapshot{}, "", err
	}
	defer func() {
		_ = server.Process.Kill() // it has nothing to save
		_ = server.Wait()
	}()
	client, err := dial(ctx, "127.0.0.1:"+strconv.Itoa(port))
	if err != nil {
		return doctor.Snapshot{}, "", err
	}
	defer client.Close()
	lost, err := fill(ctx, client)
	if err != nil {
		return doctor.Snapshot{}, "", err
	}
	snapshot, err := doctor.Collect(ctx, client, expect)
	return snapshot, fmt.Sprintf("A Redis was started for this, with 8 MB under allkeys-lru. Of %d locks that were held, %d were evicted when the cache filled up.", locks, lost), err
}

const locks = 20

// fill takes locks and then fills the cache. It returns how many locks were lost.
func fill(ctx context.Context, client rueidis.Client) (lost int, err error) {
	locker, err := lock.New(client, lock.Options{TTL: time.Minute})
	if err != nil {
		return 0, err
	}
	defer func() { _ = locker.Close(ctx) }() // the server ends with it
	held := make([]*lock.Lock, locks)
	for i := range held {
		if held[i], err = locker.TryLock(ctx, "job-"+strconv.Itoa(i)); err != nil {
			return 0, err
		}
	}
	pages, err := cache.New(client, "cache", cache.Options[int, []byte]{TTL: time.Hour})
	if err != nil {
		return 0, err
	}
	defer pages.Close(ctx)
	page := make([]byte, 4096)
	for i := range 3 * demoLimit / len(page) {
		if err := pages.Segment("pages").Set(ctx, i, page); err != nil {
			return 0, err
		}
	}
	for i := range held {
		n, err := client.Do(ctx, client.B().Exists().Key("lock:{job-"+strconv.Itoa(i)+"}").Build()).AsInt64()
		if err != nil {
			return 0, err
		}
		lost += 1 - int(n)
	}
	return lost, nil
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// dial waits until the server answers.
func dial(ctx context.Context, address string) (rueidis.Client, error) {
	for end := time.Now().Add(10 * time.Second); ; {
		client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{address}, DisableCache: true})
		if err == nil || ctx.Err() != nil || time.Now().After(end) {
			return client, err
		}
		time.Sleep(20 * time.Millisecond)
	}
}
