package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/lock"
)

// job is the name of what only one worker may do.
const job = "job"

// work is what a worker does: it waits for the lock, goes on where the job is, and ends when the job is done or lost. What
// happens it writes down, a line each.
func work(ctx context.Context, name string, out io.Writer) error {
	client, disconnect, err := connect()
	if err != nil {
		return err
	}
	defer disconnect()
	prefix := os.Getenv(prefixEnv)
	locks, err := lock.New(client, lock.Options{Prefix: prefix, TTL: ttl, Meta: name})
	if err != nil {
		return err
	}
	defer func() { _ = locks.Close(context.WithoutCancel(ctx)) }() // at worst a lease ends by itself

	err = locks.Do(ctx, job, func(ctx context.Context, fence int64) error {
		return runJob(ctx, client, prefix, fence, out)
	})
	switch {
	case errors.Is(err, lock.ErrStale):
		fmt.Fprintln(out, "refused:", lock.ErrStale)
		return nil
	case errors.Is(err, lock.ErrLost): // it was stopped just before it looked
		fmt.Fprintln(out, "gives up:", lock.ErrLost)
		return nil
	}
	if err == nil {
		fmt.Fprintln(out, "finished")
	}
	return err
}

// runJob does what is left of the job. Before each step it looks whether the lock is still there; but a process may be
// stopped after that, and so each step is written under the fence.
func runJob(ctx context.Context, client rueidis.Client, prefix string, fence int64, out io.Writer) error {
	done, err := progress(ctx, client, prefix)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "has the lock, fence %d, and goes on after step %d\n", fence, done)
	for step := done + 1; step <= steps; step++ {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		time.Sleep(each) // the work
		// Not ctx, which would keep a worker that was stopped from trying: it is the resource that must refuse.
		if err := lock.SetFenced(context.WithoutCancel(ctx), client, resource(prefix), fence, strconv.Itoa(step)); err != nil {
			return err
		}
		fmt.Fprintln(out, "step", step)
	}
	return nil
}

func resource(prefix string) string { return prefix + ":progress" }

// progress is the last step that was done.
func progress(ctx context.Context, client rueidis.Client, prefix string) (int, error) {
	n, err := client.Do(ctx, client.B().Hget().Key(resource(prefix)).Field("value").Build()).AsInt64()
	if rueidis.IsRedisNil(err) {
		return 0, nil
	}
	return int(n), err
}
