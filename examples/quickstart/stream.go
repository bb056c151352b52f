package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/redispatterns/redispatterns/stream"
)

// visitStream has two consumers score the texts of a stream. One text cannot be scored until the model is mended: it becomes a
// dead letter, and is put back.
func (t *tour) visitStream(ctx context.Context) error {
	fmt.Fprintf(t.out, "\nstream: the %d reviews in a stream, handled by two consumers of one group\n", len(t.texts))
	reviews, err := stream.New(t.client, t.prefix+"-reviews", stream.Options[string]{})
	if err != nil {
		return err
	}
	if _, err := reviews.PublishBatch(ctx, t.texts); err != nil {
		return err
	}
	bad, err := reviews.Publish(ctx, "", stream.IdempotencyKey("the empty one"))
	if err != nil {
		return err
	}
	again, err := reviews.Publish(ctx, "", stream.IdempotencyKey("the empty one"))
	if err != nil {
		return err
	}
	if again != bad {
		return fmt.Errorf("expected id %s again, got %s", bad, again)
	}

	var mu sync.Mutex
	handled, mended := 0, false
	score := func(_ context.Context, m *stream.Message[string]) error {
		mu.Lock()
		defer mu.Unlock()
		if m.Value == "" && !mended {
			return errors.New("no text")
		}
		handled++
		return nil
	}
	group := reviews.Group("scoring", stream.GroupOptions[string]{
		MaxAttempts: 3, Backoff: func(int) time.Duration { return 5 * time.Millisecond },
	})
	ctx, stop := context.WithTimeout(ctx, 30*time.Second)
	defer stop()
	var running sync.WaitGroup
	failed := make(chan error, 2)
	for range 2 {
		running.Go(func() { failed <- group.Run(ctx, score) })
	}
	// until waits until so many are handled and dead, and nothing is left.
	until := func(done int, dead int64) error {
		for {
			info, err := group.Info(ctx)
			mu.Lock()
			n := handled
			mu.Unlock()
			switch {
			case err == nil && n == done && info.Dead == dead && info.Pending == 0:
				return nil
			case err != nil && !errors.Is(err, stream.ErrNoGroup):
				return err
			case ctx.Err() != nil:
				return fmt.Errorf("expected %d handled, got %d: %w", done, n, ctx.Err())
			}
			time.Sleep(time.Millisecond)
		}
	}
	if err := until(len(t.texts), 1); err != nil {
		return err
	}
	fmt.Fprintf(t.out, "      %d handled and acknowledged, 1 is a dead letter:\n", len(t.texts))
	for d, err := range group.Dead(ctx) {
		if err != nil {
			return err
		}
		fmt.Fprintf(t.out, "      DEAD  after %d attempts: %q\n", d.Attempts, d.Reason)
	}
	mu.Lock()
	mended = true
	mu.Unlock()
	if _, err := group.Redrive(ctx); err != nil {
		return err
	}
	if err := until(len(t.texts)+1, 0); err != nil {
		return err
	}
	fmt.Fprintln(t.out, "      redriven, for this group alone, and handled")
	stop()
	running.Wait()
	for range 2 {
		if err := <-failed; err != nil {
			return err
		}
	}
	for _, key := range []string{t.prefix + "-reviews", "{" + t.prefix + "-reviews}:dead:scoring"} { // they have no TTL
		if err := t.client.Do(context.WithoutCancel(ctx), t.client.B().Del().Key(key).Build()).Error(); err != nil {
			return err
		}
	}
	return nil
}
