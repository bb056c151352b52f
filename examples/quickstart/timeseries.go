package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/redispatterns/redispatterns/timeseries"
)

// visitTimeseries counts the texts as if one had come every three minutes, and asks what there was.
func (t *tour) visitTimeseries(ctx context.Context) error {
	store, err := timeseries.New(t.client, "reviews", timeseries.Options{Prefix: t.prefix})
	if err != nil {
		return err
	}
	defer store.Close(ctx)
	texts := t.texts[:min(40, len(t.texts))]
	fmt.Fprintf(t.out, "\ntimeseries: %d texts, one every 3 minutes until now, counted when they came\n\n", len(texts))
	now, err := store.Now(ctx)
	if err != nil {
		return err
	}
	for i, text := range texts {
		at := now.Add(time.Duration(i+1-len(texts)) * 3 * time.Minute)
		if err := store.Counter("texts").IncrAt(ctx, at, 1); err != nil {
			return err
		}
		if err := store.Stats("bytes").ObserveAt(ctx, at, float64(len(text))); err != nil {
			return err
		}
	}
	from := now.Add(-2 * time.Hour).Truncate(15 * time.Minute)
	chart, err := store.Counter("texts").Range(ctx, timeseries.Range{From: from, To: now, Step: 15 * time.Minute})
	if err != nil {
		return err
	}
	for _, p := range chart.Points {
		note := ""
		if p.Partial {
			note = "  running"
		}
		line := fmt.Sprintf("      %s  %-5s%s", p.Start.Format("15:04"), strings.Repeat("#", int(p.Value)), note)
		fmt.Fprintln(t.out, strings.TrimRight(line, " "))
	}
	began := time.Now()
	total, err := store.Counter("texts").Sum(ctx, from, now)
	if err != nil {
		return err
	}
	took := time.Since(began)
	if total.Value != int64(len(texts)) {
		return fmt.Errorf("%d texts were counted as %d", len(texts), total.Value)
	}
	size, err := store.Stats("bytes").Sum(ctx, from, now)
	if err != nil {
		return err
	}
	fmt.Fprintf(t.out, "      %d in all, in one round trip of %.2fms; %.0f to %.0f bytes, mean %.0f\n",
		total.Value, float64(took.Microseconds())/1000, size.Min, size.Max, size.Mean())
	return nil
}
