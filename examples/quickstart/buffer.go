package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	_ "modernc.org/sqlite"

	"github.com/redispatterns/redispatterns/buffer"
	"github.com/redispatterns/redispatterns/buffer/sqlsink"
)

// forgetful is a sink whose first success is not heard of, as when a connection breaks during COMMIT.
type forgetful struct {
	buffer.Sink
	calls int
}

func (s *forgetful) Apply(ctx context.Context, batch *buffer.Batch) error {
	s.calls++
	if err := s.Sink.Apply(ctx, batch); err != nil || s.calls > 1 {
		return err
	}
	return errors.New("the connection broke during COMMIT")
}

// visitBuffer counts the reviews by label in Redis and flushes the counts to SQL, where a batch that is sent twice counts once.
func (t *tour) visitBuffer(ctx context.Context) error {
	model, err := NewModel(training, 1)
	if err != nil {
		return err
	}
	db, err := sql.Open("sqlite", ":memory:")
	if err != nil {
		return err
	}
	defer db.Close()
	db.SetMaxOpenConns(1) // each connection would have a memory of its own
	for _, statement := range append(sqlsink.Migrations(sqlsink.DialectSQLite),
		"CREATE TABLE labels (label TEXT PRIMARY KEY, reviews INTEGER NOT NULL)") {
		if _, err := db.ExecContext(ctx, statement); err != nil {
			return err
		}
	}
	table, err := sqlsink.SQLite(db, sqlsink.Table{Name: "labels", Key: "label"})
	if err != nil {
		return err
	}
	counts, err := buffer.New(t.client, "labels", []buffer.Column{{Name: "reviews", Op: buffer.Sum}},
		buffer.Options{Prefix: t.prefix, Shards: 1})
	if err != nil {
		return err
	}
	for _, text := range t.texts {
		if err := counts.Add(ctx, model.Predict(text).Label, buffer.Int("reviews", 1)); err != nil {
			return err
		}
	}
	if err := counts.Close(ctx); err != nil {
		return err
	}
	fmt.Fprintf(t.out, "\nbuffer: the %d reviews counted by label, in Redis, and flushed to SQL\n", len(t.texts))
	sink := &forgetful{Sink: table}
	for sink.calls < 2 {
		rows, err := counts.Pending(ctx, "pos", "neg")
		if err != nil {
			return err
		}
		pending := 0
		for _, row := range rows {
			pending += int(row.Values[0].Int)
		}
		_, err = counts.Flush(ctx, sink)
		how := "flushed"
		if err != nil {
			how = "the connection broke during COMMIT"
		}
		total, sqlErr := sumOf(ctx, db)
		if sqlErr != nil {
			return sqlErr
		}
		fmt.Fprintf(t.out, "      flush %d  %3d pending before, %3d in SQL after: %s\n", sink.calls, pending, total, how)
		if total != len(t.texts) || err != nil && sink.calls > 1 {
			return fmt.Errorf("expected %d reviews in SQL, got %d: %w", len(t.texts), total, err)
		}
	}
	fmt.Fprintln(t.out, "      the second one found the first in the ledger: no review is lost, and none counts twice")
	return nil
}

func sumOf(ctx context.Context, db *sql.DB) (total int, err error) {
	err = db.QueryRowContext(ctx, "SELECT COALESCE(SUM(reviews), 0) FROM labels").Scan(&total)
	return total, err
}
