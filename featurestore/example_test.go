package featurestore_test

import (
	"context"
	"fmt"
	"log"
	"maps"
	"time"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/featurestore"
)

type User struct {
	Orders int64                    `feature:"orders_7d"`
	Basket float64                  `feature:"avg_basket,default=0"`
	Tier   featurestore.Opt[string] `feature:"tier"`
}

type Item struct {
	Price float64    `feature:"price"`
	Embed [8]float32 `feature:"embed"`
}

var (
	client rueidis.Client
	ctx    = context.Background()
)

func Example() {
	users, err := featurestore.NewView[int64, User](client, "users", featurestore.Options{MaxAge: time.Hour, TTL: 24 * time.Hour})
	if err != nil {
		log.Fatal(err)
	}
	outcome, err := users.Put(ctx, 42, User{Orders: 3, Basket: 9.5, Tier: featurestore.Some("gold")}, time.Now())
	fmt.Println(outcome, err)

	row, err := users.Get(ctx, 42)
	if err != nil {
		log.Fatal(err)
	}
	switch row.Status {
	case featurestore.Found, featurestore.Partial:
		fmt.Println(row.Value.Orders, row.Value.Tier.State == featurestore.Set, row.EventTime)
	case featurestore.Missing, featurestore.Stale:
		fmt.Println("use the defaults")
	}
}

// What another program wrote with HSET user:123 tier gold.
func ExampleOptions_key() {
	users, err := featurestore.NewView[int64, User](client, "users", featurestore.Options{Key: "user:%v"})
	if err != nil {
		log.Fatal(err)
	}
	row, err := users.Get(ctx, 123)
	fmt.Println(row.Value.Tier.V, err) // gold
}

// What Feast's Python SDK wrote.
func ExampleOptions_feast() {
	type Driver struct {
		Rate  float32 `feature:"conv_rate"`
		Trips int64   `feature:"avg_daily_trips"`
	}
	drivers, err := featurestore.NewView[int64, Driver](client, "driver_hourly_stats", featurestore.Options{
		Codec: featurestore.Feast, Feast: featurestore.FeastOptions{Project: "my_project", JoinKey: "driver_id"},
	})
	if err != nil {
		log.Fatal(err)
	}
	row, err := drivers.Get(ctx, 1001)
	fmt.Println(row.Value.Trips, row.EventTime, err)
}

// The input of a model, without a struct per row.
func ExampleProjection_Matrix() {
	items, err := featurestore.NewView[string, Item](client, "items", featurestore.Options{Codec: featurestore.Packed})
	if err != nil {
		log.Fatal(err)
	}
	var input []float32
	input, statuses, err := items.Matrix(ctx, []string{"a", "b"}, input, 0)
	fmt.Println(len(input) == 2*len(items.Columns()), len(statuses), err)
}

func ExampleBatch() {
	users, err := featurestore.NewView[int64, User](client, "users", featurestore.Options{})
	if err != nil {
		log.Fatal(err)
	}
	items, err := featurestore.NewView[string, Item](client, "items", featurestore.Options{})
	if err != nil {
		log.Fatal(err)
	}
	var b featurestore.Batch
	user, shown := users.In(&b, 42), items.InMany(&b, []string{"a", "b"})
	if err := b.Exec(ctx); err != nil {
		log.Fatal(err)
	}
	fmt.Println(user.Row().Value.Orders, shown.Rows()[1].Value.Price)
}

// A new version of all rows, which readers see at once and as a whole.
func ExampleView_Begin() {
	items, err := featurestore.NewView[string, Item](client, "items", featurestore.Options{Codec: featurestore.Packed})
	if err != nil {
		log.Fatal(err)
	}
	before, err := items.Live(ctx)
	if err != nil {
		log.Fatal(err)
	}
	release, err := items.Begin(ctx, "2026-11-21")
	if err != nil {
		log.Fatal(err)
	}
	rows := map[string]featurestore.Event[Item]{"a": {Value: Item{Price: 1}, At: time.Now()}}
	stats, err := release.Load(ctx, maps.All(rows), featurestore.LoadOptions{
		SkipOrderCheck: true,
		Progress:       func(s featurestore.LoadStats) { fmt.Println(s.Done) },
	})
	if err != nil {
		log.Fatal(err) // Begin and Load again, with Skip: stats.Done
	}
	fmt.Println(stats.Applied)
	if err := release.Commit(ctx); err != nil {
		log.Fatal(err)
	}
	// And back, should it be worse.
	fmt.Println(items.Rollback(ctx, before))
}

// The schema that a model was trained with is kept beside it, and compared where it is served.
func ExampleProjection_Require() {
	users, err := featurestore.NewView[int64, User](client, "users", featurestore.Options{})
	if err != nil {
		log.Fatal(err)
	}
	trained := users.Manifest() // read from a file
	fmt.Println(users.Require(trained))
}
