package timeseries_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/timeseries"
)

var (
	ctx    = context.Background()
	client rueidis.Client
	store  *timeseries.Store
)

func Example() {
	store, err := timeseries.New(client, "web", timeseries.Options{FlushEvery: time.Second})
	if err != nil {
		log.Fatal(err)
	}

	// In each request:
	if err := store.Counter("hits").Incr(ctx, 1); err != nil {
		log.Print(err)
	}

	// Anywhere:
	from, to, err := store.Today(ctx, time.Local)
	if err != nil {
		log.Fatal(err)
	}
	today, err := store.Counter("hits").Sum(ctx, from, to)
	fmt.Println(today.Value, err)

	// At the end, or the last second is lost:
	if err := store.Close(ctx); err != nil {
		log.Print(err)
	}
}

// What an error says about the event.
func ExampleCounter_IncrAt() {
	err := store.Counter("hits").IncrAt(ctx, time.Now().Add(-3*time.Hour), 1)
	switch {
	case err == nil: // counted
	case errors.Is(err, timeseries.ErrUnknown): // perhaps
	case errors.Is(err, timeseries.ErrTooLate): // no, and never
	default: // not now
	}
}

// Hits per day of this year, in Berlin.
func ExampleCounter_Range() {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		log.Fatal(err)
	}
	now := time.Now()
	days, err := store.Counter("hits").Range(ctx, timeseries.Range{
		From: time.Date(now.Year(), 1, 1, 0, 0, 0, 0, berlin), To: now, Calendar: timeseries.Day, Location: berlin,
	})
	if err != nil {
		log.Fatal(err)
	}
	for _, p := range days.Points {
		fmt.Println(p.Start.Format(time.DateOnly), p.Value, p.Partial)
	}
}

func ExampleStats_Observe() {
	began := time.Now()
	// ...
	if err := store.Stats("took").Observe(ctx, time.Since(began).Seconds()); err != nil {
		log.Print(err)
	}
}

func ExampleDistinct_Union() {
	now := time.Now()
	visitors, err := store.Distinct("visitors/de").Union(ctx, now.Add(-24*time.Hour), now, "visitors/fr")
	fmt.Println(visitors.Count, err)
}

func ExampleTop_List() {
	now := time.Now()
	top, err := store.Top("pages").List(ctx, now.Add(-time.Hour), now, 10)
	for _, r := range top.Ranked {
		fmt.Printf("%s: %d to %d\n", r.Member, r.Count-r.Error, r.Count)
	}
	fmt.Println(err)
}
