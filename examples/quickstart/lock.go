package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/redispatterns/redispatterns/lock"
)

// visitLock has workers share something that is not safe for them: the lock lets one in after the other, and what comes late
// with an old fence is refused.
func (t *tour) visitLock(ctx context.Context) error {
	const workers, rounds = 4, 5
	fmt.Fprintf(t.out, "\nlock: %d workers, two Lockers as if in two processes, add to one count, which has no lock of its own\n", workers)
	var lockers [2]*lock.Locker
	for i := range lockers {
		var err error
		if lockers[i], err = lock.New(t.client, lock.Options{Prefix: t.prefix + "-lock"}); err != nil {
			return err
		}
		defer func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			_ = lockers[i].Close(ctx) // at worst a lease ends by itself
		}()
	}
	count, rising := 0, true
	var first, last int64
	var wg sync.WaitGroup
	errs := make([]error, workers)
	for w := range workers {
		wg.Go(func() {
			for range rounds {
				err := lockers[w%2].Do(ctx, "count", func(_ context.Context, fence int64) error {
					count++ // a data race, were it not for the lock
					if first == 0 {
						first = fence
					}
					rising = rising && fence > last
					last = fence
					return nil
				})
				if err != nil {
					errs[w] = err
					return
				}
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if count != workers*rounds || !rising {
		return fmt.Errorf("expected a count of %d under rising fences, got %d", workers*rounds, count)
	}
	fmt.Fprintf(t.out, "      the count is %d, and each fence was above the last\n", count)

	// A holder that lost its lock without knowing is refused by what it writes to.
	key := t.prefix + "-report"
	if err := lock.SetFenced(ctx, t.client, key, last, "by the last"); err != nil {
		return err
	}
	err := lock.SetFenced(ctx, t.client, key, first, "by the first, who was paused")
	if !errors.Is(err, lock.ErrStale) {
		return fmt.Errorf("expected %w, got %w", lock.ErrStale, err)
	}
	fmt.Fprintf(t.out, "      who comes late with the first of them is refused: %v\n", err)
	return t.client.Do(ctx, t.client.B().Del().Key(key).Build()).Error() // SetFenced's keys have no TTL
}
