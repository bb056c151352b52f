package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redispatterns/redispatterns/featurestore"
)

const (
	clients = 2
	asked   = 100                  // users of a request
	pause   = 5 * time.Millisecond // of a client between requests, so that the loader gets a turn too
)

// tally is what clients have seen.
type tally struct {
	mu        sync.Mutex
	took      []time.Duration
	predicted int
	versions  map[string]int // of checks
	mixed     int
	missing   int
}

// measure predicts for a while, and switches versions meanwhile.
func measure(ctx context.Context, s *service, users int, d time.Duration, out io.Writer) error {
	if err := s.release(ctx, "v1", users, 1, out); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	serving, stopServing := context.WithCancel(ctx)
	defer stopServing()
	served := make(chan error, 1)
	go func() { served <- s.serve(serving, listener) }()

	t := &tally{versions: map[string]int{}}
	working, stop := context.WithCancel(ctx)
	defer stop()
	failed := make(chan error, clients+1)
	var running sync.WaitGroup
	for range clients {
		running.Go(func() { failed <- t.client(working, "http://"+listener.Addr().String(), users) })
	}
	running.Go(func() { failed <- t.check(working, s, users) })
	began := time.Now()
	err = s.release(ctx, "v2", users, 2, out)
	if err == nil {
		err = wait(ctx, max(d/4, d/2-time.Since(began)))
	}
	if err == nil {
		err = s.users.Rollback(ctx, "v1")
	}
	if err == nil {
		err = wait(ctx, max(d/4, d-time.Since(began)))
	}
	stop()
	running.Wait()
	stopServing()
	err = errors.Join(err, <-served)
	for range clients + 1 {
		err = errors.Join(err, <-failed)
	}
	if err != nil {
		return err
	}
	if err := t.print(out); err != nil {
		return err
	}
	if err := s.showFeast(ctx, out); err != nil {
		return err
	}
	if os.Getenv("REDIS_URL") == "" {
		return nil // the embedded Redis ends, with all that is in it
	}
	_, err = s.users.DeleteAll(ctx)
	return err
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func someUsers(users int) []int64 {
	ids := make([]int64, asked)
	for i := range ids {
		ids[i] = rand.Int64N(int64(users))
	}
	return ids
}

// client asks for predictions until ctx ends.
func (t *tally) client(ctx context.Context, base string, users int) error {
	for ctx.Err() == nil {
		var query strings.Builder
		for _, id := range someUsers(users) {
			query.WriteString("&user=" + strconv.FormatInt(id, 10))
		}
		began := time.Now()
		n, missing, err := get(context.WithoutCancel(ctx), base+"/predict?"+query.String()[1:])
		if err != nil {
			return err
		}
		t.mu.Lock()
		t.took = append(t.took, time.Since(began))
		t.predicted += n
		t.missing += missing
		t.mu.Unlock()
		<-time.After(pause)
	}
	return nil
}

func get(ctx context.Context, url string) (lines, missing int, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, 0, err
	}
	reply, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, 0, err
	}
	defer reply.Body.Close()
	if reply.StatusCode != http.StatusOK {
		return 0, 0, fmt.Errorf("predict: %s", reply.Status)
	}
	text := bufio.NewScanner(reply.Body)
	for text.Scan() {
		lines++
		if strings.HasSuffix(text.Text(), featurestore.Missing.String()) {
			missing++
		}
	}
	return lines, missing, text.Err()
}

// check reads rows as the service does, and looks which version each is of.
func (t *tally) check(ctx context.Context, s *service, users int) error {
	var rows []featurestore.Row[user]
	for ctx.Err() == nil {
		var err error
		if rows, err = s.users.GetMany(context.WithoutCancel(ctx), someUsers(users), rows); err != nil {
			return err
		}
		t.mu.Lock()
		t.versions[rows[0].Version]++
		for _, row := range rows {
			if row.Version != rows[0].Version || row.Version != fmt.Sprintf("v%.0f", row.Value.Release) {
				t.mixed++
			}
			if row.Status == featurestore.Missing {
				t.missing++
			}
		}
		t.mu.Unlock()
		<-time.After(pause)
	}
	return nil
}

func (t *tally) print(out io.Writer) error {
	if len(t.took) == 0 {
		return errors.New("nothing was predicted")
	}
	slices.Sort(t.took)
	at := func(q float64) time.Duration {
		return t.took[int(q*float64(len(t.took)-1))].Round(10 * time.Microsecond)
	}
	fmt.Fprintf(out, "\npredictions    %10d in requests of %d\n", t.predicted, asked)
	fmt.Fprintf(out, "p50            %10v\np99            %10v\n", at(.5), at(.99))
	fmt.Fprintf(out, "by version          v1: %d  v2: %d\n", t.versions["v1"], t.versions["v2"])
	fmt.Fprintf(out, "mixed          %10d\nmissing        %10d\n", t.mixed, t.missing)
	if t.mixed > 0 || t.missing > 0 {
		return errors.New("replies are mixed or not complete")
	}
	return nil
}
