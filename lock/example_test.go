package lock_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/lock"
)

// What the examples need from the service they stand in.
var (
	ctx    = context.Background()
	client rueidis.Client
	locks  *lock.Locker
)

func writeReport(context.Context, int64) error { return nil }
func nextStep(context.Context) bool            { return false }

func ExampleNew() {
	locks, err := lock.New(client, lock.Options{Prefix: "billing", TTL: 15 * time.Second, Meta: "host-1"})
	if err != nil {
		log.Fatal(err)
	}
	// Before client.Close:
	defer locks.Close(ctx)
}

// A job that one process runs at a time. Its ctx ends when the lock is lost.
func ExampleLocker_Do() {
	err := locks.Do(ctx, "report", func(ctx context.Context, fence int64) error {
		return writeReport(ctx, fence)
	})
	if errors.Is(err, lock.ErrLost) {
		fmt.Println("another may have written it meanwhile")
	}
}

// A job that is left to whoever runs it already.
func ExampleLocker_TryLock() {
	lk, err := locks.TryLock(ctx, "report")
	var held *lock.HeldError
	switch {
	case errors.As(err, &held):
		fmt.Println("runs on", held.Meta)
		return
	case err != nil:
		fmt.Println(err)
		return
	}
	err = writeReport(lk.Context(), lk.Fence())
	fmt.Println(errors.Join(err, lk.Unlock(ctx)))
}

// Waiting for a while, and looking whether the lock is still there before each step.
func ExampleLocker_Lock() {
	wait, cancel := context.WithTimeout(ctx, time.Minute)
	lk, err := locks.Lock(wait, "migration")
	cancel() // the lock does not end with it
	if err != nil {
		fmt.Println("not now:", err)
		return
	}
	for lk.Err() == nil && nextStep(lk.Context()) {
	}
	if err := lk.Unlock(ctx); err != nil {
		fmt.Println("somebody else may have been at it too:", err)
	}
}

// A holder that was paused for longer than its lease is refused by what it writes to.
func ExampleSetFenced() {
	err := locks.Do(ctx, "balance", func(ctx context.Context, fence int64) error {
		return lock.SetFenced(ctx, client, "balance:42", fence, "100")
	})
	if errors.Is(err, lock.ErrStale) {
		fmt.Println("a later holder has written already")
	}
}

// What an operator does with a lock that is stuck.
func ExampleLocker_Break() {
	info, err := locks.Inspect(ctx, "report")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(info.Meta, "holds it, and renews it for ever;", info.Waiting, "wait")
	was, err := locks.Break(ctx, "report")
	fmt.Println(was, err)
}

func ExampleHooks() {
	_, err := lock.New(client, lock.Options{Hooks: lock.Hooks{
		Acquire: func(_ context.Context, i lock.AcquireInfo) { log.Println("waited", i.Took, i.Err) },
		Lost:    func(_ context.Context, i lock.LostInfo) { log.Println("lost", i.Name, "after", i.Held) },
		Error:   func(_ context.Context, op string, err error) { log.Println("goes on:", op, err) },
	}})
	fmt.Println(err)
}
