package buffer_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/buffer"
	"github.com/redispatterns/redispatterns/buffer/sqlsink"
)

var (
	ctx    = context.Background()
	client rueidis.Client
	db     *sql.DB
	views  *buffer.Buffer
	sink   buffer.Sink
)

func Example() {
	views, err := buffer.New(client, "pages", []buffer.Column{
		{Name: "views", Op: buffer.Sum},
		{Name: "last_seen", Op: buffer.Max},
	}, buffer.Options{})
	if err != nil {
		log.Fatal(err)
	}

	// In each request:
	err = views.Add(ctx, "post-42", buffer.Int("views", 1), buffer.Int("last_seen", time.Now().Unix()))
	if err != nil {
		log.Print(err)
	}

	// In the background, in any number of processes:
	sink, err := sqlsink.Postgres(db, sqlsink.Table{Name: "pages", Key: "id"})
	if err != nil {
		log.Fatal(err)
	}
	if err := views.Run(ctx, sink); err != nil {
		log.Fatal(err)
	}
}

// What an error says about the values.
func ExampleBuffer_Add() {
	err := views.Add(ctx, "post-42", buffer.Int("views", 1))
	switch {
	case err == nil: // counted
	case errors.Is(err, buffer.ErrUnconfirmed): // will be, if this process lives on: do not add it again
	case errors.Is(err, buffer.ErrFull): // not counted: the database has been down for too long
	default: // not counted
	}
}

// Nothing waits for Redis, and up to some 10 milliseconds of views are lost when the process is killed.
func ExampleBuffer_Post() {
	if err := views.Post("post-42", buffer.Int("views", 1)); err != nil {
		log.Print(err)
	}
	// At the end of the process:
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := views.Close(ctx); err != nil {
		log.Print(err)
	}
}

// What the database has, and what is on its way there.
func ExampleBuffer_Pending() {
	rows, err := views.Pending(ctx, "post-42")
	if err != nil {
		log.Fatal(err)
	}
	var inSQL int64
	if err := db.QueryRowContext(ctx, "SELECT views FROM pages WHERE id = 'post-42'").Scan(&inSQL); err != nil {
		log.Fatal(err)
	}
	total := inSQL
	if row, ok := rows["post-42"]; ok {
		total += row.Values[0].Int
	}
	fmt.Println(total)
}

// From cron instead of in the background.
func ExampleBuffer_Flush() {
	report, err := views.Flush(ctx, sink)
	fmt.Println(report.Rows, report.Dead, err)
}

// Look at what the database refused, repair it, and have it flushed again.
func ExampleBuffer_Replay() {
	for letter, err := range views.DeadLetters(ctx) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(letter.Entity, letter.Column.Name, letter.Value.Int, letter.Reason)
	}
	replayed, err := views.Replay(ctx)
	fmt.Println(replayed, err)
}
