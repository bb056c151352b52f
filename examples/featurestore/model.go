package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/featurestore"
)

// user is what the model knows of a user.
type user struct {
	Orders   int64                     `feature:"orders_7d"`
	Basket   float64                   `feature:"avg_basket,f32"`
	Visits   int32                     `feature:"visits_7d"`
	Member   bool                      `feature:"is_member"`
	Discount featurestore.Opt[float32] `feature:"discount_share,default=0.1"`
	Release  float32                   `feature:"release"` // of which version the row is, to see that none are mixed
}

// weights are of the features in the order of user, the last one of none.
var weights = []float32{0.6, 0.01, 0.05, 0.4, -0.5, 0}

const maxUsers = 1000

// service predicts.
type service struct {
	client  rueidis.Client
	users   *featurestore.View[int64, user]
	drivers *featurestore.View[int64, driver]
}

func prefixOf(temporary bool) string {
	if temporary {
		return fmt.Sprintf("predict-%08x", rand.Uint32())
	}
	return "predict"
}

func newService(client rueidis.Client, prefix string) (*service, error) {
	users, err := featurestore.NewView[int64, user](client, "users", featurestore.Options{
		Prefix: prefix, Codec: featurestore.Packed, MaxAge: 24 * time.Hour, Stale: featurestore.StaleDrops, TTL: 48 * time.Hour,
		OpTimeout: 30 * time.Second,
	})
	if err != nil {
		return nil, err
	}
	// A service would read this from beside its model's weights.
	if err := users.Require(users.Manifest()); err != nil {
		return nil, err
	}
	drivers, err := newDrivers(client, prefix)
	return &service{client, users, drivers}, err
}

type prediction struct {
	orders float32
	status featurestore.Status
}

// predict reads the features of all users in one round trip.
func (s *service) predict(ctx context.Context, ids []int64) ([]prediction, error) {
	features, statuses, err := s.users.Matrix(ctx, ids, nil, 0)
	if err != nil {
		return nil, err
	}
	predictions := make([]prediction, len(ids))
	for i := range ids {
		predictions[i].status = statuses[i]
		for j, w := range weights {
			predictions[i].orders += w * features[i*len(weights)+j]
		}
	}
	return predictions, nil
}

// release loads a version of all users and makes it live.
func (s *service) release(ctx context.Context, version string, users int, number float32, out io.Writer) error {
	r, err := s.users.Begin(ctx, version)
	if err != nil {
		return err
	}
	rnd := rand.New(rand.NewPCG(uint64(number), 0))
	now := time.Now()
	rows := func(yield func(int64, featurestore.Event[user]) bool) {
		for id := range int64(users) {
			u := user{Orders: rnd.Int64N(5), Basket: rnd.Float64() * 50, Visits: rnd.Int32N(30), Member: rnd.IntN(3) == 0, Release: number}
			if rnd.IntN(2) == 0 {
				u.Discount = featurestore.Some(rnd.Float32())
			}
			if !yield(id, featurestore.Event[user]{Value: u, At: now}) {
				return
			}
		}
	}
	shown := int64(-1)
	_, err = r.Load(ctx, rows, featurestore.LoadOptions{SkipOrderCheck: true, Progress: func(stats featurestore.LoadStats) {
		const width = 40
		if bars := stats.Done * width / int64(users); bars != shown { // a line per change, which terminals draw over the last one
			shown = bars
			fmt.Fprintf(out, "\rloading %s  [%s%s] %d of %d", version, strings.Repeat("#", int(bars)), strings.Repeat(" ", int(width-bars)), stats.Done, users)
		}
	}})
	fmt.Fprintln(out)
	if err != nil {
		return err
	}
	return r.Commit(ctx)
}
