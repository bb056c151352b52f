package httplimit_test

import (
	"log"
	"net/http"
	"net/netip"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/ratelimit"
	"github.com/redispatterns/redispatterns/ratelimit/httplimit"
)

var client rueidis.Client

// 100 requests per minute and address, behind proxies of one's own.
func ExampleMiddleware() {
	limiter, err := ratelimit.NewSlidingWindow(client, ratelimit.PerMinute(100), ratelimit.Options{Prefix: "http", OnFailure: ratelimit.Allow})
	if err != nil {
		log.Fatal(err)
	}
	limit, err := httplimit.Middleware(limiter, httplimit.IPKey(netip.MustParsePrefix("10.0.0.0/8")), httplimit.Options{})
	if err != nil {
		log.Fatal(err)
	}
	http.Handle("/", limit(http.FileServer(http.Dir("public"))))
}

// Limits per user, by tier, and for all users together.
func ExampleOptions() {
	users, err := ratelimit.NewSlidingWindow(client, ratelimit.PerMinute(60), ratelimit.Options{Prefix: "users"})
	if err != nil {
		log.Fatal(err)
	}
	everybody, err := ratelimit.NewTokenBucket(client, ratelimit.PerSecond(500), ratelimit.Options{Prefix: "everybody"})
	if err != nil {
		log.Fatal(err)
	}
	limit, err := httplimit.Middleware(users, func(r *http.Request) (string, error) { return r.Header.Get("Api-Key"), nil }, httplimit.Options{
		Name: "user",
		Limit: func(r *http.Request) ratelimit.Limit {
			if r.Header.Get("Tier") == "paid" { // as your authentication has found
				return ratelimit.PerMinute(6000)
			}
			return ratelimit.PerMinute(60)
		},
		More: []httplimit.Policy{{
			Name: "everybody", Limiter: everybody, Key: func(*http.Request) (string, error) { return "all", nil },
		}},
	})
	if err != nil {
		log.Fatal(err)
	}
	http.Handle("/api/", limit(http.NotFoundHandler()))
}
