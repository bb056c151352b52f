package stream_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"
	"time"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/stream"
)

type Order struct {
	Item  string
	Count int
}

func pay(context.Context, Order) error { return nil }

var errNoSuchItem = errors.New("no such item")

// A service that publishes orders and handles them, in any number of processes.
func Example() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{"127.0.0.1:6379"}})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	orders, err := stream.New(client, "orders", stream.Options[Order]{})
	if err != nil {
		log.Fatal(err)
	}
	id, err := orders.Publish(ctx, Order{"pear", 3})
	fmt.Println(id, err)

	// Until it is interrupted; then what it has begun is finished, and the rest handed over.
	err = orders.Group("billing", stream.GroupOptions[Order]{}).Run(ctx, func(ctx context.Context, m *stream.Message[Order]) error {
		err := pay(ctx, m.Value)
		switch {
		case errors.Is(err, errNoSuchItem):
			return stream.DeadLetter(err) // trying again is of no use
		case errors.Is(err, context.DeadlineExceeded):
			return stream.RetryAfter(time.Minute, err) // without counting the attempt
		}
		return err
	})
	fmt.Println(err)
}

func ExampleStream_Publish() {
	ctx := context.Background()
	orders := newOrders()
	// However often this is sent, it is there once.
	id, err := orders.Publish(ctx, Order{"pear", 3}, stream.IdempotencyKey("order-17"), stream.Header("trace", "abc"))
	fmt.Println(id, err)
	// In an hour.
	_, err = orders.Publish(ctx, Order{"plum", 1}, stream.Delay(time.Hour))
	fmt.Println(err)
}

func ExampleStream_PublishBatch() {
	ids, err := newOrders().PublishBatch(context.Background(), []Order{{"pear", 1}, {"plum", 2}})
	var batch *stream.BatchError
	if errors.As(err, &batch) {
		for i, err := range batch.Errs {
			fmt.Println(i, ids[i], err)
		}
	}
}

func ExampleStream_Tail() {
	// From now on, until the context ends.
	for m, err := range newOrders().Tail(context.Background(), stream.Latest) {
		if err != nil {
			fmt.Println(m.ID, err)
			continue
		}
		fmt.Println(m.ID, m.Value)
	}
}

func ExampleStream_TrimAcked() {
	removed, err := newOrders().TrimAcked(context.Background()) // now and then
	fmt.Println(removed, err)
}

func ExampleGroup_Redrive() {
	ctx := context.Background()
	billing := newOrders().Group("billing", stream.GroupOptions[Order]{})
	for d, err := range billing.Dead(ctx) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(d.Original, d.Reason, d.Attempts, d.Value)
	}
	n, err := billing.Redrive(ctx) // all of them, for this group alone
	fmt.Println(n, err)
}

func ExampleGroup_RunBatch() {
	audit := newOrders().Group("audit", stream.GroupOptions[Order]{Batch: 1000, Workers: 2})
	err := audit.RunBatch(context.Background(), func(_ context.Context, ms []*stream.Message[Order]) error {
		fmt.Println("insert", len(ms), "rows")
		return nil
	})
	fmt.Println(err)
}

func ExampleFields() {
	type Reading struct {
		Sensor  string  `stream:"sensor"`
		Celsius float64 `stream:"celsius"`
	}
	fields, err := stream.Fields[Reading]().Append(nil, Reading{"roof", 21.5})
	fmt.Println(fields, err)
	// Output: [sensor roof celsius 21.5] <nil>
}

func newOrders() *stream.Stream[Order] {
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{"127.0.0.1:6379"}})
	if err != nil {
		log.Fatal(err)
	}
	orders, err := stream.New(client, "orders", stream.Options[Order]{})
	if err != nil {
		log.Fatal(err)
	}
	return orders
}
