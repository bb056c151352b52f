package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/redispatterns/redispatterns/ratelimit"
)

// allowance is how many texts a user may have scored in any allowanceWindow.
const (
	allowance       = 3
	allowanceWindow = time.Second
)

func (t *tour) visitRatelimit(ctx context.Context) error {
	limiter, err := ratelimit.NewSlidingWindow(t.client, ratelimit.Per(allowance, allowanceWindow), ratelimit.Options{
		Prefix:  t.prefix,
		Timeout: 2 * time.Second, // more than a service would: a slow machine shall not spoil the tour
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(t.out, "\nratelimit: %d texts per user in any %v\n\n", allowance, allowanceWindow)
	ask := func(limiter *ratelimit.Limiter, user string, n int64, want bool, note string) (ratelimit.Result, error) {
		r, err := limiter.AllowN(ctx, user, n)
		if err != nil {
			return r, err
		}
		if r.Allowed != want {
			return r, fmt.Errorf("expected allowed to be %t for %s: %+v", want, user, r)
		}
		answer := fmt.Sprintf("PASS  %d left", r.Remaining)
		if !r.Allowed {
			answer = fmt.Sprintf("WAIT  %4dms", r.RetryAfter.Milliseconds())
		}
		fmt.Fprintf(t.out, "%s\n", strings.TrimRight(fmt.Sprintf("      %-12s  %-5s  %2d  %s", answer, user, n, note), " "))
		return r, nil
	}
	var refused ratelimit.Result
	for _, step := range []struct {
		limiter *ratelimit.Limiter
		user    string
		n       int64
		want    bool
		note    string
	}{
		{limiter, "alice", 2, true, ""},
		{limiter, "bob", 3, true, "each user has a limit"},
		{limiter, "alice", 2, false, "all or nothing: one is left, and stays"},
		{limiter, "alice", 1, true, ""},
		{limiter.With(ratelimit.Per(10*allowance, allowanceWindow)), "bob", 20, true, "who has paid for ten times as much"},
	} {
		r, err := ask(step.limiter, step.user, step.n, step.want, step.note)
		if err != nil {
			return err
		}
		if !r.Allowed {
			refused = r
		}
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(refused.RetryAfter):
	}
	_, err = ask(limiter, "alice", 2, true, "after that time")
	return err
}
