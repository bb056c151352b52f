package main

import (
	"context"
	"fmt"
	"time"

	"github.com/redispatterns/redispatterns/featurestore"
)

// reviewFeatures are what a model might want to know of a review.
type reviewFeatures struct {
	Score  float64                  `feature:"score"`
	Length int64                    `feature:"length"`
	Reply  featurestore.Opt[string] `feature:"reply"`
}

// visitFeaturestore keeps features of reviews and reads them back: with what is missing, null, stale or late.
func (t *tour) visitFeaturestore(ctx context.Context) error {
	model, err := NewModel(training, 1)
	if err != nil {
		return err
	}
	reviews, err := featurestore.NewView[int, reviewFeatures](t.client, "reviews", featurestore.Options{
		Prefix: t.prefix + "-features", MaxAge: time.Hour, TTL: 24 * time.Hour, OpTimeout: 30 * time.Second,
	})
	if err != nil {
		return err
	}
	now := time.Now()
	rows := func(yield func(int, featurestore.Event[reviewFeatures]) bool) {
		for i, text := range t.texts {
			row := reviewFeatures{Score: model.Predict(text).Score, Length: int64(len(text))}
			row.Reply.State = featurestore.Null // it is known that nobody has replied
			if !yield(i, featurestore.Event[reviewFeatures]{Value: row, At: now}) {
				return
			}
		}
	}
	stats, err := reviews.Load(ctx, rows, featurestore.LoadOptions{})
	if err != nil {
		return err
	}
	fmt.Fprintf(t.out, "\nfeaturestore: %d rows loaded, read in one round trip\n", stats.Applied)
	late, err := reviews.Put(ctx, 0, reviewFeatures{Score: -1}, now.Add(-time.Minute))
	if err != nil {
		return err
	}
	stale := len(t.texts)
	if _, err := reviews.Put(ctx, stale, reviewFeatures{Score: .5, Reply: featurestore.Some("thanks")}, now.Add(-2*time.Hour)); err != nil {
		return err
	}
	got, err := reviews.GetMany(ctx, []int{0, stale, stale + 1}, nil)
	if err != nil {
		return err
	}
	for i, note := range []string{"the reply is null; a late write was " + late.String(), "of two hours ago", "never written"} {
		fmt.Fprintf(t.out, "      %-8v score %.3f  %s\n", got[i].Status, got[i].Value.Score, note)
	}
	_, err = reviews.DeleteAll(ctx)
	return err
}
