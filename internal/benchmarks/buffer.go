package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/redis/rueidis"
	_ "modernc.org/sqlite"

	"github.com/redispatterns/redispatterns/buffer"
	"github.com/redispatterns/redispatterns/buffer/sqlsink"
	"github.com/redispatterns/redispatterns/internal/integration/redistest"
)

const (
	bufferEntities = 10_000
	flushRows      = 1_000
)

// bufferCases count events of one entity, or of 10,000, and flush rows to SQL. Their peer is what the pattern is known for: a
// ZINCRBY per event, and an UPDATE per row in a transaction of its own.
func bufferCases(b *bench) []benchCase {
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{b.addr}})
	if err != nil {
		b.fail(err)
		return nil
	}
	b.closes = append(b.closes, client.Close)
	newBuffer := func(name string, opts buffer.Options) *buffer.Buffer {
		opts.Prefix = b.prefix + name
		buf, err := buffer.New(client, "views", []buffer.Column{{Name: "views", Op: buffer.Sum}}, opts)
		b.fail(err)
		b.closes = append(b.closes, func() { _ = buf.Close(context.Background()) })
		return buf
	}
	counts := newBuffer("counts", buffer.Options{})
	posts := newBuffer("posts", buffer.Options{})
	entities := make([]string, bufferEntities)
	for i := range entities {
		entities[i] = "post-" + strconv.Itoa(i)
	}
	zset := b.prefix + "pending"
	one := buffer.Int("views", 1)
	at := func(worker, n int) string { return entities[(worker*7919+n)%bufferEntities] }
	hot := func(int, int) string { return entities[0] }
	add := func(entity func(int, int) string) func(context.Context, int, int) error {
		return func(ctx context.Context, w, n int) error { return counts.Add(ctx, entity(w, n), one) }
	}
	post := func(_ context.Context, _, _ int) error { return posts.Post(entities[0], one) }
	zincrby := func(entity func(int, int) string) func(context.Context, int, int) error {
		return func(ctx context.Context, w, n int) error {
			return client.Do(ctx, client.B().Zincrby().Key(zset).Increment(1).Member(entity(w, n)).Build()).Error()
		}
	}
	cases := []benchCase{
		{name: "buffer/add_hot", goroutines: 64, contestants: []contestant{{name: "add", do: add(hot)}, {name: "zincrby", do: zincrby(hot)}}},
		{name: "buffer/add_hot", goroutines: 512, contestants: []contestant{{name: "add", do: add(hot)}, {name: "zincrby", do: zincrby(hot)}}},
		{name: "buffer/post_hot", goroutines: 64, contestants: []contestant{{name: "post", do: post}, {name: "zincrby", do: zincrby(hot)}}},
		{name: "buffer/add_spread", goroutines: 64, contestants: []contestant{{name: "add", do: add(at)}, {name: "zincrby", do: zincrby(at)}}},
	}
	cases = append(cases, bufferBytes(b, client, newBuffer("bytes", buffer.Options{Shards: 1})))
	dir, err := os.MkdirTemp("", "benchmarks-")
	if err != nil {
		b.fail(err)
		return nil
	}
	b.closes = append(b.closes, func() { _ = os.RemoveAll(dir) })
	cases = append(cases, bufferFlush(b, client, newBuffer, sqlsink.DialectSQLite, redistest.Database{
		Driver: "sqlite", DSN: "file:" + filepath.Join(dir, "bench.db") + "?_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)",
	}))
	for dialect, kind := range map[sqlsink.Dialect]redistest.Kind{sqlsink.DialectPostgres: redistest.Postgres, sqlsink.DialectMySQL: redistest.MariaDB} {
		database, err := redistest.DatabaseForMain(kind)
		if err != nil {
			fmt.Fprintf(os.Stderr, "benchmarks: not run: buffer/flush_%s: %v\n", dialect, err)
			continue
		}
		cases = append(cases, bufferFlush(b, client, newBuffer, dialect, database))
	}
	return cases
}

// numericID is a name as of a row with an integer key.
func numericID(i int) string { return strconv.Itoa(1_000_000 + i) }

// fillOne puts one field per entity into the buffer's only shard.
func fillOne(ctx context.Context, buf *buffer.Buffer, entities int) error {
	for i := range entities {
		if err := buf.Post(numericID(i), buffer.Int("views", 1)); err != nil {
			return err
		}
	}
	for {
		stats, err := buf.Stats(ctx)
		if err != nil || stats.Local == 0 {
			return err
		}
		time.Sleep(time.Millisecond) // setting up: nothing is measured yet
	}
}

// bufferBytes compares what the same pending counts of the same entities take.
func bufferBytes(b *bench, client rueidis.Client, buf *buffer.Buffer) benchCase {
	ctx := context.Background()
	zset := b.prefix + "bytes"
	b.fail(fillOne(ctx, buf, bufferEntities))
	for i := range bufferEntities {
		b.fail(client.Do(ctx, client.B().Zincrby().Key(zset).Increment(1).Member(numericID(i)).Build()).Error())
	}
	size := func(key string) float64 {
		n, err := client.Do(ctx, client.B().MemoryUsage().Key(key).Samples(0).Build()).AsInt64()
		b.fail(err)
		return bufferEntities / float64(n)
	}
	return benchCase{
		name: "buffer/bytes", goroutines: 1, contestants: []contestant{{name: "buffer"}, {name: "zset"}},
		fixed: []float64{size(b.prefix + "bytes:{views:0}:cur"), size(zset)},
	}
}

var errNotFlushed = errors.New("rows were not flushed")

// bufferFlush flushes 1,000 rows per operation, which are put into Redis by one COPY.
func bufferFlush(
	b *bench, client rueidis.Client, newBuffer func(string, buffer.Options) *buffer.Buffer, dialect sqlsink.Dialect, d redistest.Database,
) benchCase {
	ctx := context.Background()
	name := "flush_" + string(dialect)
	buf := newBuffer(name, buffer.Options{Shards: 1, OpTimeout: 10 * time.Second})
	cur := b.prefix + name + ":{views:0}:cur"
	full := cur + "full"
	b.fail(fillOne(ctx, buf, flushRows))
	b.fail(client.Do(ctx, client.B().Rename().Key(cur).Newkey(full).Build()).Error())
	db, err := sql.Open(d.Driver, d.DSN)
	if err != nil {
		b.fail(err)
		return benchCase{}
	}
	b.closes = append(b.closes, func() { _ = db.Close() })
	key, update := "TEXT", "UPDATE pages SET views = views + ? WHERE id = ?"
	// The servers of the tests do not wait for the disk; those that count do, as SQLite does here.
	var durable []string
	newSink := sqlsink.SQLite
	switch dialect {
	case sqlsink.DialectPostgres:
		newSink, update = sqlsink.Postgres, "UPDATE pages SET views = views + $1 WHERE id = $2"
		durable = []string{"ALTER SYSTEM SET fsync = on", "SELECT pg_reload_conf()"}
	case sqlsink.DialectMySQL:
		newSink, key = sqlsink.MySQL, "VARBINARY(100)"
		durable = []string{"SET GLOBAL innodb_flush_log_at_trx_commit = 1"}
	case sqlsink.DialectSQLite:
	}
	for _, statement := range append(append(durable, sqlsink.Migrations(dialect)...), "CREATE TABLE pages (id "+key+" PRIMARY KEY, views BIGINT NOT NULL)") {
		_, err := db.ExecContext(ctx, statement)
		b.fail(err)
	}
	sink, err := newSink(db, sqlsink.Table{Name: "pages", Key: "id"})
	b.fail(err)
	flush := func(ctx context.Context, _, _ int) error {
		if err := client.Do(ctx, client.B().Copy().Source(full).Destination(cur).Build()).Error(); err != nil {
			return err
		}
		report, err := buf.Flush(ctx, sink)
		if err == nil && report.Rows != flushRows {
			err = errNotFlushed
		}
		return err
	}
	if b.failed == nil {
		b.fail(flush(ctx, 0, 0)) // so that there are rows to update
	}
	naive := func(ctx context.Context, _, _ int) error {
		for i := range flushRows {
			if _, err := db.ExecContext(ctx, update, 1, strconv.Itoa(1_000_000+i)); err != nil {
				return err
			}
		}
		return nil
	}
	return benchCase{name: "buffer/" + name, goroutines: 1, contestants: []contestant{
		{name: "flush", do: flush}, {name: "update_per_row", do: naive},
	}}
}
