package main

import (
	"bufio"
	"context"
	_ "embed"
	"encoding/hex"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/featurestore"
)

// driverHash is an entity as Feast's Python SDK writes it to Redis, in hexadecimal: its key, then its fields and their values.
//
//go:embed testdata/driver.hex
var driverHash string

// driver is of a feature view of Feast's tutorial.
type driver struct {
	ConvRate float32 `feature:"conv_rate"`
	AccRate  float32 `feature:"acc_rate"`
	Trips    int64   `feature:"avg_daily_trips"`
}

func newDrivers(client rueidis.Client, prefix string) (*featurestore.View[int64, driver], error) {
	return featurestore.NewView[int64, driver](client, "driver_hourly_stats", featurestore.Options{
		Prefix: prefix, Codec: featurestore.Feast, Feast: featurestore.FeastOptions{Project: "my_project", JoinKey: "driver_id"},
		OpTimeout: 30 * time.Second,
	})
}

// playFeast writes driverHash to Redis as it is.
func playFeast(ctx context.Context, client rueidis.Client) error {
	var words []string
	for lines := bufio.NewScanner(strings.NewReader(driverHash)); lines.Scan(); {
		for word := range strings.FieldsSeq(lines.Text()) {
			raw, err := hex.DecodeString(word)
			if err != nil {
				return err
			}
			words = append(words, string(raw))
		}
	}
	hset := client.B().Hset().Key(words[0]).FieldValue()
	for i := 1; i+1 < len(words); i += 2 {
		hset = hset.FieldValue(words[i], words[i+1])
	}
	return client.Do(ctx, hset.Build()).Error()
}

// showFeast reads it, and deletes it.
func (s *service) showFeast(ctx context.Context, out io.Writer) error {
	if err := playFeast(ctx, s.client); err != nil {
		return err
	}
	row, err := s.drivers.Get(ctx, 1001)
	if err != nil {
		return err
	}
	if row.Status != featurestore.Found {
		return fmt.Errorf("the driver is %v", row.Status)
	}
	fmt.Fprintf(out, "\na driver whom Feast wrote: conv_rate %.3f, acc_rate %.3f, avg_daily_trips %d, at %s\n",
		row.Value.ConvRate, row.Value.AccRate, row.Value.Trips, row.EventTime.Format(time.RFC3339))
	_, err = s.drivers.Delete(ctx, 1001)
	return err
}
