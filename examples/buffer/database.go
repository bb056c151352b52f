package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"

	"github.com/jackc/pgx/v5/stdlib"
	_ "modernc.org/sqlite"

	"github.com/redispatterns/redispatterns/buffer"
	"github.com/redispatterns/redispatterns/buffer/sqlsink"
)

// openDatabase opens the PostgreSQL of a URL or else an SQLite file, with the tables that are needed.
func openDatabase(ctx context.Context, postgres, file string) (*sql.DB, error) {
	driver, source, dialect := "pgx", postgres, sqlsink.DialectPostgres
	if postgres == "" {
		driver, dialect = "sqlite", sqlsink.DialectSQLite
		source = "file:" + url.PathEscape(file) + "?_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)"
	}
	db, err := sql.Open(driver, source)
	if err != nil {
		return nil, fmt.Errorf("open the database: %w", err)
	}
	for _, statement := range append(sqlsink.Migrations(dialect),
		"CREATE TABLE IF NOT EXISTS pages (page TEXT PRIMARY KEY, views BIGINT NOT NULL, last_seen BIGINT)") {
		if _, err := db.ExecContext(ctx, statement); err != nil {
			return nil, errors.Join(fmt.Errorf("make the tables: %w", err), db.Close())
		}
	}
	return db, nil
}

func newSink(db *sql.DB) (buffer.Sink, error) {
	table := sqlsink.Table{Name: "pages", Key: "page"}
	if _, ok := db.Driver().(*stdlib.Driver); ok {
		return sqlsink.Postgres(db, table)
	}
	return sqlsink.SQLite(db, table)
}

func viewsOf(ctx context.Context, db *sql.DB, page string) (views int64, err error) {
	err = db.QueryRowContext(ctx, "SELECT views FROM pages WHERE page = $1", page).Scan(&views)
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	return views, err
}

func totalViews(ctx context.Context, db *sql.DB) (total int64, err error) {
	err = db.QueryRowContext(ctx, "SELECT COALESCE(SUM(views), 0) FROM pages").Scan(&total)
	return total, err
}
