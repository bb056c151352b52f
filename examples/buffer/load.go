package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"
)

const (
	clients    = 8
	pages      = 100
	killEvery  = 150 * time.Millisecond
	flusherEnv = "BUFFER_EXAMPLE_FLUSHER" // makes the program a flusher: the prefix to flush
)

// flusher is what the program does in a process of its own: it flushes until it is killed.
func flusher(ctx context.Context) error {
	client, err := dial(os.Getenv("BUFFER_EXAMPLE_REDIS"))
	if err != nil {
		return err
	}
	defer client.Close()
	db, err := openDatabase(ctx, os.Getenv("DATABASE_URL"), os.Getenv("BUFFER_EXAMPLE_DB"))
	if err != nil {
		return err
	}
	defer db.Close()
	s, err := newService(client, os.Getenv(flusherEnv), db)
	if err != nil {
		return err
	}
	return s.views.Run(ctx, s.sink)
}

// measure lets clients view pages for a while, during which it kills one flusher after the other, and compares totals.
func measure(ctx context.Context, client rueidis.Client, redisURL string, d time.Duration, out io.Writer) error {
	dir, err := os.MkdirTemp("", "buffer-example-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a temporary folder
	file := filepath.Join(dir, "views.db")
	db, err := openDatabase(ctx, os.Getenv("DATABASE_URL"), file)
	if err != nil {
		return err
	}
	defer db.Close()
	before, err := totalViews(ctx, db)
	if err != nil {
		return err
	}
	prefix := "example-" + rand.Text()
	s, err := newService(client, prefix, db)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{Handler: s.handler(), ReadHeaderTimeout: time.Second}
	serving := make(chan error, 1)
	go func() { serving <- server.Serve(listener) }()
	fmt.Fprintf(out, "%d clients view %d pages; the flusher is killed every %v or so\n\n", clients, pages, killEvery)

	loading, stop := context.WithTimeout(ctx, d)
	defer stop()
	var acknowledged, failed atomic.Int64
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for loading.Err() == nil {
				// Not with loading: a request that is cut off may have been counted.
				if err := view(ctx, "http://"+listener.Addr().String(), "/page-"+strconv.Itoa(mathrand.IntN(pages))); err != nil {
					failed.Add(1)
				} else {
					acknowledged.Add(1)
				}
			}
		})
	}
	kills, killErr := 0, error(nil)
	for loading.Err() == nil && killErr == nil {
		if killErr = killOne(loading, prefix, redisURL, file); killErr == nil {
			kills++
		}
	}
	wg.Wait()
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	err = errors.Join(killErr, ctx.Err(), server.Shutdown(ending), s.views.Close(ending))
	if served := <-serving; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	if err != nil {
		return err
	}
	// A shard may be another's for as long as the lease of the last one that was killed.
	for pending := int64(1); pending > 0; {
		if _, err := s.views.Flush(ending, s.sink); err != nil {
			return err
		}
		stats, err := s.views.Stats(ending)
		if err != nil {
			return err
		}
		if pending = stats.Pending; pending > 0 {
			time.Sleep(10 * time.Millisecond)
		}
	}
	after, err := totalViews(ending, db)
	if err != nil {
		return err
	}
	total := after - before
	fmt.Fprintf(out, "views acknowledged  %8d\nviews in SQL        %8d\ndifference          %8d\nflushers killed     %8d\n",
		acknowledged.Load(), total, total-acknowledged.Load(), kills)
	if total != acknowledged.Load() || failed.Load() > 0 || total == 0 || kills == 0 {
		return fmt.Errorf("expected equal totals, kills and no failures: %d acknowledged, %d in SQL, %d kills, %d failed",
			acknowledged.Load(), total, kills, failed.Load())
	}
	return nil
}

func view(ctx context.Context, base, page string) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/view?page="+page, nil)
	if err != nil {
		return err
	}
	reply, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	if err := reply.Body.Close(); err != nil {
		return err
	}
	if reply.StatusCode != http.StatusNoContent {
		return fmt.Errorf("status %s", reply.Status)
	}
	return nil
}

// killOne starts a flusher and kills it some time later.
func killOne(ctx context.Context, prefix, redisURL, file string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), flusherEnv+"="+prefix, "BUFFER_EXAMPLE_REDIS="+redisURL, "BUFFER_EXAMPLE_DB="+file)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	var status error
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		status = cmd.Wait()
	}()
	select {
	case <-ended:
		return fmt.Errorf("the flusher ended by itself: %w", status)
	case <-time.After(killEvery/2 + mathrand.N(killEvery)):
	case <-ctx.Done():
	}
	err = cmd.Process.Kill()
	<-ended
	return err
}
