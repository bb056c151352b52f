package ratelimit_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/ratelimit"
)

// What the examples need from the service they stand in.
var (
	ctx    = context.Background()
	client rueidis.Client
)

func send(context.Context, string) error { return nil }

func generate(context.Context, string) (tokens int64, err error) { return 700, nil }

// No more than 100 requests of a user in any minute.
func ExampleNewSlidingWindow() {
	limiter, err := ratelimit.NewSlidingWindow(client, ratelimit.PerMinute(100), ratelimit.Options{Prefix: "api"})
	if err != nil {
		log.Fatal(err)
	}
	result, err := limiter.Allow(ctx, "user-42")
	switch {
	case err != nil:
		fmt.Println("not decided:", err)
	case !result.Allowed:
		fmt.Println("come back in", result.RetryAfter)
	default:
		fmt.Println(result.Remaining, "more")
	}
}

// Ten a second in the long run, and fifty at once.
func ExampleNewTokenBucket() {
	limiter, err := ratelimit.NewTokenBucket(client, ratelimit.Limit{Rate: 10, Window: time.Second, Burst: 50}, ratelimit.Options{Prefix: "webhooks"})
	if err != nil {
		log.Fatal(err)
	}
	result, err := limiter.Allow(ctx, "acme")
	fmt.Println(result.Allowed, err)
}

// While Redis is down each of four processes admits a quarter.
func ExampleOptions() {
	limiter, err := ratelimit.NewFixedWindow(client, ratelimit.PerHour(1000), ratelimit.Options{
		Prefix:     "exports",
		OnFailure:  ratelimit.Local,
		LocalShare: 0.25,
		Timeout:    50 * time.Millisecond,
	})
	if err != nil {
		log.Fatal(err)
	}
	result, err := limiter.Allow(ctx, "acme")
	fmt.Println(result.Allowed, err, "decided by", result.Source)
}

// A worker that sends as fast as a partner allows, together with all other workers.
func ExampleLimiter_Wait() {
	limiter, err := ratelimit.NewTokenBucket(client, ratelimit.PerSecond(5), ratelimit.Options{Prefix: "partner"})
	if err != nil {
		log.Fatal(err)
	}
	for _, message := range []string{"a", "b", "c"} {
		bounded, cancel := context.WithTimeout(ctx, 10*time.Second)
		err := limiter.Wait(bounded, "sms")
		cancel()
		if errors.Is(err, ratelimit.ErrDeadline) {
			fmt.Println("too many are waiting")
			continue
		}
		if err == nil {
			err = send(ctx, message)
		}
		fmt.Println(err)
	}
}

// The cost is known only afterwards: reserve the most it can be, and give back the rest.
func ExampleLimiter_Refund() {
	limiter, err := ratelimit.NewSlidingWindow(client, ratelimit.PerHour(100_000), ratelimit.Options{Prefix: "llm-tokens"})
	if err != nil {
		log.Fatal(err)
	}
	const most = 4000
	result, err := limiter.AllowN(ctx, "acme", most)
	if err != nil || !result.Allowed {
		return
	}
	used, err := generate(ctx, "a prompt")
	fmt.Println(used, err)
	fmt.Println(limiter.Refund(ctx, "acme", most-used))
}

// Tiers have limits of their own for the same counts.
func ExampleLimiter_With() {
	limiter, err := ratelimit.NewSlidingWindow(client, ratelimit.PerMinute(60), ratelimit.Options{Prefix: "api"})
	if err != nil {
		log.Fatal(err)
	}
	tiers := map[string]ratelimit.Limit{"free": ratelimit.PerMinute(60), "paid": ratelimit.PerMinute(6000)}
	result, err := limiter.With(tiers["paid"]).Allow(ctx, "user-42")
	fmt.Println(result.Allowed, err)
}

// A request counts against its user and its tenant, or neither. The tag in braces puts both in one slot of a cluster.
func ExampleAllowAll() {
	users, err := ratelimit.NewSlidingWindow(client, ratelimit.PerMinute(60), ratelimit.Options{Prefix: "users"})
	if err != nil {
		log.Fatal(err)
	}
	tenants, err := ratelimit.NewTokenBucket(client, ratelimit.PerSecond(100), ratelimit.Options{Prefix: "tenants"})
	if err != nil {
		log.Fatal(err)
	}
	all, err := ratelimit.AllowAll(ctx,
		ratelimit.Request{Limiter: users, Key: "{acme}alice", N: 1},
		ratelimit.Request{Limiter: tenants, Key: "{acme}", N: 1},
	)
	fmt.Println(all.Allowed, all.RetryAfter, err)
}

// Many decisions in one round trip.
func ExampleAllowMany() {
	limiter, err := ratelimit.NewFixedWindow(client, ratelimit.PerHour(10), ratelimit.Options{Prefix: "mails"})
	if err != nil {
		log.Fatal(err)
	}
	var requests []ratelimit.Request
	for _, recipient := range []string{"alice", "bob"} {
		requests = append(requests, ratelimit.Request{Limiter: limiter, Key: recipient, N: 1})
	}
	results, err := ratelimit.AllowMany(ctx, requests...)
	for _, r := range results {
		fmt.Println(r.Allowed, err)
	}
}

// Counting decisions for a metrics library.
func ExampleHooks() {
	counts := map[string]int{} // or counters of a metrics library, which are safe for concurrent use
	_, err := ratelimit.NewFixedWindow(client, ratelimit.PerHour(10), ratelimit.Options{
		Hooks: ratelimit.Hooks{
			Decision: func(_ context.Context, i ratelimit.DecisionInfo) {
				counts[fmt.Sprintf("allowed=%t source=%v", i.Result.Allowed, i.Result.Source)]++
			},
			Error: func(_ context.Context, err error) { log.Println("redis did not decide:", err) },
		},
	})
	fmt.Println(err)
}
