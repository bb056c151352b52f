package cache_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/cache"
)

func Example() {
	ctx := context.Background()
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{"127.0.0.1:6379"}})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	scores, err := cache.New(client, "scores", cache.Options[string, float64]{TTL: time.Hour, Version: "model-1"})
	if err != nil {
		log.Fatal(err)
	}
	acme := scores.Segment("acme")

	// However many callers and processes ask at once, predict runs once, as long as Redis answers.
	score, err := acme.Fetch(ctx, "user-42", predict)
	fmt.Println(score, err)

	// Forget all scores of acme, however many there are.
	fmt.Println(acme.Invalidate(ctx))
}

func predict(ctx context.Context, user string) (float64, error) {
	return 0.93, nil // ask the model
}
