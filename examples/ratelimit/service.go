package main

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/ratelimit"
	"github.com/redispatterns/redispatterns/ratelimit/httplimit"
)

// tiers are what users pay for, by the first part of their token.
var tiers = map[string]ratelimit.Limit{
	"free": ratelimit.Per(5, 10*time.Second),
	"paid": ratelimit.Per(500, 10*time.Second),
}

// everybody may ask so much together.
var everybody = ratelimit.Limit{Rate: 100, Window: time.Second, Burst: 1000}

// newService returns a service whose keys begin with prefix.
func newService(client rueidis.Client, prefix string) (http.Handler, error) {
	users, err := ratelimit.NewSlidingWindow(client, tiers["free"], ratelimit.Options{
		Prefix:     prefix + "-users",
		Timeout:    200 * time.Millisecond,
		OnFailure:  ratelimit.Local, // without Redis each process counts for itself
		LocalShare: 0.5,             // and there are two
	})
	if err != nil {
		return nil, err
	}
	all, err := ratelimit.NewTokenBucket(client, everybody, ratelimit.Options{
		Prefix: prefix + "-all", Timeout: 200 * time.Millisecond, OnFailure: ratelimit.Allow,
	})
	if err != nil {
		return nil, err
	}
	limit, err := httplimit.Middleware(users, user, httplimit.Options{
		Name:  "user",
		Limit: func(r *http.Request) ratelimit.Limit { return tiers[tierOf(r)] },
		More: []httplimit.Policy{{
			Name: "everybody", Limiter: all, Key: func(*http.Request) (string, error) { return "all", nil },
		}},
	})
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("GET /quote", limit(http.HandlerFunc(quote)))
	return mux, nil
}

func tierOf(r *http.Request) string {
	tier, _, _ := strings.Cut(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "), "-")
	return tier
}

// user returns whom a request is from. A service would look the token up.
func user(r *http.Request) (string, error) {
	if _, ok := tiers[tierOf(r)]; !ok {
		return "", errors.New("no tier")
	}
	return strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "), nil
}

func quote(w http.ResponseWriter, _ *http.Request) {
	fmt.Fprintln(w, "Simplicity is prerequisite for reliability.")
}
