package cache_test

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"log"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/cache"
)

// What the examples need from the service they stand in.
var (
	ctx    = context.Background()
	client rueidis.Client
)

type Features struct{ Age, Visits int }

type User struct {
	ID   int64
	Name string
}

func loadUser(context.Context, int64) (User, error)                        { return User{}, nil }
func loadUsers(context.Context, []int64) (map[int64]User, error)           { return nil, nil }
func embed(context.Context, string) ([]float32, error)                     { return nil, nil }
func renderPage(context.Context, string) ([]byte, error)                   { return nil, nil }
func runModel(context.Context, Features) (float64, error)                  { return 0, nil }
func runModelOnBatch(context.Context, []string) (map[string]string, error) { return nil, nil }

// A struct as the key: Options.Key says which id it has.
func ExampleNew() {
	predictions, err := cache.New(client, "churn", cache.Options[Features, float64]{
		TTL:     10 * time.Minute,
		Version: "model-2026-11",
		Key:     func(f Features) string { return fmt.Sprintf("%d/%d", f.Age, f.Visits) },
	})
	if err != nil {
		log.Fatal(err)
	}
	p, err := predictions.Fetch(ctx, Features{Age: 31, Visits: 4}, runModel)
	fmt.Println(p, err)
}

// Long or private keys are hashed, and values have an encoding of their own.
func ExampleOptions() {
	embeddings, err := cache.New(client, "embeddings", cache.Options[string, []float32]{
		TTL: 24 * time.Hour,
		Key: func(text string) string {
			sum := sha256.Sum256([]byte(text))
			return hex.EncodeToString(sum[:])
		},
		Codec: cache.Func(
			func(v []float32) ([]byte, error) { return binary.Append(nil, binary.LittleEndian, v) },
			func(b []byte) ([]float32, error) {
				v := make([]float32, len(b)/4)
				_, err := binary.Decode(b, binary.LittleEndian, v)
				return v, err
			},
		),
	})
	if err != nil {
		log.Fatal(err)
	}
	// Before client.Close:
	defer embeddings.Close(ctx)
	v, err := embeddings.Fetch(ctx, "a long text", embed)
	fmt.Println(len(v), err)
}

// Telling, for one call, whether the cache had the value: hooks get the caller's context.
func ExampleHooks_perCall() {
	type traceKey struct{}
	users, err := cache.New(client, "users", cache.Options[int64, User]{
		TTL: time.Hour,
		Hooks: cache.Hooks{Lookup: func(ctx context.Context, i cache.LookupInfo) {
			if hit, ok := ctx.Value(traceKey{}).(*bool); ok {
				*hit = i.Hits+i.Stale > 0
			}
		}},
	})
	if err != nil {
		log.Fatal(err)
	}
	var hit bool
	user, err := users.Fetch(context.WithValue(ctx, traceKey{}, &hit), 42, loadUser)
	fmt.Println(user.Name, err, "X-Cache hit:", hit)
}

// Callers never wait for a load but the first of all: values past their TTL are served for another hour while one
// process loads them anew, and also while that fails.
func ExampleCache_Fetch_stale() {
	pages, err := cache.New(client, "pages", cache.Options[string, []byte]{
		TTL:      time.Minute,
		StaleTTL: time.Hour,
		Codec:    cache.Compress(cache.Bytes(), 1024),
	})
	if err != nil {
		log.Fatal(err)
	}
	page, err := pages.Fetch(ctx, "/products", renderPage)
	fmt.Println(len(page), err)
}

// That a row does not exist is remembered too.
func ExampleCache_Fetch_notFound() {
	users, err := cache.New(client, "users", cache.Options[int64, User]{TTL: time.Hour, NegativeTTL: time.Minute})
	if err != nil {
		log.Fatal(err)
	}
	user, err := users.Fetch(ctx, 42, func(ctx context.Context, id int64) (User, error) {
		u, err := loadUser(ctx, id)
		if u.ID == 0 && err == nil {
			return u, cache.ErrNotFound
		}
		return u, err
	})
	switch {
	case errors.Is(err, cache.ErrNotFound):
		fmt.Println("no such user")
	case err != nil:
		fmt.Println(err)
	default:
		fmt.Println(user.Name)
	}
}

// One query for all users that are not in the cache.
func ExampleCache_FetchMany() {
	users, err := cache.New(client, "users", cache.Options[int64, User]{TTL: time.Hour})
	if err != nil {
		log.Fatal(err)
	}
	found, err := users.FetchMany(ctx, []int64{1, 2, 3}, loadUsers)
	if err != nil {
		fmt.Println("some are missing:", err)
	}
	for id, u := range found {
		fmt.Println(id, u.Name)
	}
}

// After the row was changed, no process will serve the old one.
func ExampleCache_Delete() {
	users, err := cache.New(client, "users", cache.Options[int64, User]{TTL: time.Hour})
	if err != nil {
		log.Fatal(err)
	}
	// UPDATE users …, then:
	if err := users.Delete(ctx, 42); err != nil {
		fmt.Println("repeat it, or the old row may be served until its TTL ends:", err)
	}
}

// All of one tenant's values are forgotten at once.
func ExampleCache_Segment() {
	labels, err := cache.New(client, "labels", cache.Options[string, string]{TTL: time.Hour, Codec: cache.String()})
	if err != nil {
		log.Fatal(err)
	}
	acme := labels.Segment("acme")
	found, err := acme.FetchMany(ctx, []string{"a text", "another"}, runModelOnBatch)
	fmt.Println(found, err)
	fmt.Println(acme.Invalidate(ctx))
}

// Counting hits and misses for a metrics library.
func ExampleHooks() {
	var hits, misses, unavailable atomic.Int64 // or the counters of a metrics library
	_, err := cache.New(client, "users", cache.Options[int64, User]{
		TTL: time.Hour,
		Hooks: cache.Hooks{
			Lookup: func(_ context.Context, i cache.LookupInfo) {
				hits.Add(int64(i.Hits + i.Stale))
				misses.Add(int64(i.Misses))
				unavailable.Add(int64(i.Unavailable))
			},
			Error: func(_ context.Context, op string, err error) { log.Println("cache goes on without redis:", op, err) },
		},
	})
	fmt.Println(err, hits.Load(), misses.Load(), unavailable.Load())
}
