// Package sqlsink flushes a [buffer.Buffer] to PostgreSQL, MySQL or MariaDB, or SQLite, exactly once: what a batch brings is
// written in one transaction together with a row of a ledger, which says that it was.
//
//	for _, statement := range sqlsink.Migrations(sqlsink.DialectPostgres) { … } // once: makes the ledger
//	sink, err := sqlsink.Postgres(db, sqlsink.Table{Name: "posts", Key: "id", KeyType: sqlsink.KeyInt})
//	err = views.Run(ctx, sink)
//
// It imports no driver: db is from whichever database/sql driver the program uses.
//
// # What it promises
//
// A batch is applied once, whatever is killed or cut off between whichever two lines, COMMIT's reply included: a second attempt
// finds the ledger's row. Flushers that lost their lease, or slept through it, find it too. So the ledger's table must not be
// emptied or restored apart from the others.
//
// Rows that the database refuses for good do not hold up the others: a violated constraint, a number out of range, text that
// is not UTF-8, a key of the wrong type, an unknown key with Table.UpdateOnly. When a batch fails for such a reason, a second
// transaction, rolled back, finds the rows by halving with savepoints, and a third applies the others; the rows become dead
// letters. Other failures (no connection, a deadlock, a table that is not there) are retried as they are. So is a violated
// DEFERRABLE constraint in SQLite, where nothing tells whose it is: do not defer there. PostgreSQL is asked for it.
//
// Rows are written in the order of their entities' bytes, so that flushers do not deadlock each other. After Options.Shards was
// changed, two shards may have the same entities, and flushers with and without UpdateOnly may lock them in different orders:
// the database then ends one of the transactions, which is retried.
//
// # Columns
//
// A column of the buffer is one of the table, of the same name unless Table.Columns says otherwise:
//
//	Sum       an integer of 8 bytes; a new row begins with the sum
//	SumFloat  a double
//	Max, Min  an integer of 8 bytes, nullable unless it is the buffer's only column
//	Last      text, nullable, and beside it a nullable integer of 8 bytes for the event time in microseconds since 1970:
//	          the column's name and "_at"
//
// A batch may have some of a row's columns and the next one the others, also of those that are always added together.
//
// An upsert checks the constraints also of the row that it would insert if there were none: a CHECK that a single batch's sum
// may violate, such as one against negative stock, needs UpdateOnly. A null counts as nothing.
//
// The key needs a primary key or unique index, and equality of its own must be that of bytes. In PostgreSQL that rules out
// citext and nondeterministic collations: two entities of a batch that are equal there make the statement fail each time
// (SQLSTATE 21000), and hold up the shard. In MySQL and MariaDB it must be the only unique index of the table, or use UpdateOnly:
// an upsert there changes the row that any of them finds, which may be another entity's. Keys are compared by the column's
// collation: declare it binary, or entities that differ in case alone share a row; and use a strict sql_mode, as is the default,
// or values that do not fit are cut instead of refused. Their max_allowed_packet must be larger than a batch: see
// [buffer.Options]. In SQLite, let connections wait for each other: PRAGMA busy_timeout.
//
// Set a timeout for idle transactions, such as idle_in_transaction_session_timeout in PostgreSQL: a flusher that is stopped in
// the middle of one keeps its shard's row in the ledger locked.
package sqlsink

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/redispatterns/redispatterns/buffer"
)

// Dialect is a kind of SQL.
type Dialect string

// The dialects, and the oldest versions that have what is used.
const (
	DialectPostgres Dialect = "postgres" // PostgreSQL 9.6
	DialectMySQL    Dialect = "mysql"    // MySQL 5.7, MariaDB 10.2
	DialectSQLite   Dialect = "sqlite"   // SQLite 3.24
)

// KeyType is the type of a table's key, which entities are turned into.
type KeyType uint8

// The key types.
const (
	KeyText KeyType = iota // entities must be valid UTF-8, and in PostgreSQL without NUL
	// KeyInt: entities must be decimal integers of 64 bits, written as strconv does. An upsert of MySQL refuses 0, which an
	// AUTO_INCREMENT column would replace by its next number.
	KeyInt
	KeyBytes // BYTEA, VARBINARY or BLOB: entities may have any bytes
)

// Table is where batches go. Names are taken as they are, with upper and lower case; a name may have a schema before a dot.
type Table struct {
	Name string
	// Key is the column for the entity, which must be unique.
	Key     string
	KeyType KeyType
	// Columns maps columns of the buffer to columns of the table where the names differ.
	Columns map[string]string
	// UpdateOnly changes rows that are there and makes none: entities without a row become dead letters.
	UpdateOnly bool
	// Ledger is the ledger's table. Defaults to DefaultLedger.
	Ledger string
}

// DefaultLedger is the name of the ledger's table.
const DefaultLedger = "redispatterns_ledger"

// ErrUnknownKey is why a row that does not exist becomes a dead letter with Table.UpdateOnly.
var ErrUnknownKey = errors.New("sqlsink: no row has this key")

// ErrBadText is why an entity or a text that the database cannot store becomes a dead letter.
var ErrBadText = errors.New("sqlsink: not valid text")

// ErrBadKey is why an entity that is not an integer, or one that [KeyInt] does not take, becomes a dead letter with it.
var ErrBadKey = errors.New("sqlsink: the key is not an integer that can be a key")

// Migrations returns the statements that make the ledger's table, under its default name, if it is not there.
func Migrations(dialect Dialect) []string {
	number, text := "BIGINT", "TEXT"
	switch dialect {
	case DialectMySQL:
		text = "VARBINARY(255)"
	case DialectSQLite:
		number = "INTEGER"
	case DialectPostgres:
	}
	return []string{"CREATE TABLE IF NOT EXISTS " + DefaultLedger + " (" +
		"buffer " + text + " NOT NULL, shard " + number + " NOT NULL, " +
		"epoch " + number + " NOT NULL, seq " + number + " NOT NULL, " +
		"nonce " + text + " NOT NULL, version " + number + " NOT NULL, " +
		"PRIMARY KEY (buffer, shard))"}
}

// Sink applies batches to a SQL database. It is safe for concurrent use and never closes the database.
type Sink struct {
	db      *sql.DB
	dialect Dialect
	ledger  string
	apply   func(ctx context.Context, tx *sql.Tx, batch *buffer.Batch, rows []buffer.Row) error
	halve   bool // whether rows that were refused are to be found
}

// Postgres returns a sink for a table of PostgreSQL. A batch is one statement.
func Postgres(db *sql.DB, table Table) (*Sink, error) { return newSink(db, DialectPostgres, table) }

// MySQL returns a sink for a table of MySQL or MariaDB. A batch is one statement of up to 65,535 values, several if it has
// more; with Table.UpdateOnly it is one statement per row.
func MySQL(db *sql.DB, table Table) (*Sink, error) { return newSink(db, DialectMySQL, table) }

// SQLite returns a sink for a table of SQLite. A batch is statements of up to 100 values or, with Table.UpdateOnly, one per
// row: SQLite is in the process, so that statements are no round trips.
func SQLite(db *sql.DB, table Table) (*Sink, error) { return newSink(db, DialectSQLite, table) }

var identifier = regexp.MustCompile(`^[\pL_][\pL\pN_$]*$`)

func newSink(db *sql.DB, dialect Dialect, t Table) (*Sink, error) {
	if db == nil {
		return nil, errors.New("sqlsink: db is required")
	}
	w := &writer{dialect: dialect, table: t}
	if t.Ledger == "" {
		t.Ledger = DefaultLedger
	}
	var ledger string
	for _, n := range []struct {
		field, name string
		quoted      *string
	}{{"Name", t.Name, &w.name}, {"Key", t.Key, &w.key}, {"Ledger", t.Ledger, &ledger}} {
		q, ok := dialect.quote(n.name)
		if !ok {
			return nil, fmt.Errorf("sqlsink: Table.%s must be an identifier, got %q", n.field, n.name)
		}
		*n.quoted = q
	}
	taken := map[string]bool{t.Key: true}
	for from, to := range t.Columns {
		if taken[to] {
			return nil, fmt.Errorf("sqlsink: Table.Columns[%q] must be a column of its own, got %q", from, to)
		}
		taken[to] = true
		if _, ok := dialect.quote(to); !ok || strings.Contains(to, ".") {
			return nil, fmt.Errorf("sqlsink: Table.Columns[%q] must be an identifier, got %q", from, to)
		}
	}
	if t.KeyType > KeyBytes {
		return nil, fmt.Errorf("sqlsink: Table.KeyType must be one of the key types, got %d", t.KeyType)
	}
	return &Sink{db: db, dialect: dialect, ledger: ledger, apply: w.write, halve: true}, nil
}

// WithTx returns a sink whose rows are written by fn, with statements of its own, in the transaction that the ledger's row is
// written in too: so what fn does happens once. fn must not commit or roll back; it may return [buffer.RowErrors]. It is not
// called for a batch without rows. The ledger is the one of the default name.
func WithTx(db *sql.DB, dialect Dialect, fn func(ctx context.Context, tx *sql.Tx, batch *buffer.Batch) error) (*Sink, error) {
	switch {
	case db == nil:
		return nil, errors.New("sqlsink: db is required")
	case fn == nil:
		return nil, errors.New("sqlsink: fn is required")
	}
	ledger, ok := dialect.quote(DefaultLedger)
	if !ok {
		return nil, fmt.Errorf("sqlsink: there is no dialect %q", dialect)
	}
	apply := func(ctx context.Context, tx *sql.Tx, batch *buffer.Batch, _ []buffer.Row) error {
		return fn(ctx, tx, batch)
	}
	return &Sink{db: db, dialect: dialect, ledger: ledger, apply: apply}, nil
}

// quote quotes a name, and its schema if it has one.
func (d Dialect) quote(name string) (string, bool) {
	mark := `"`
	switch d {
	case DialectMySQL:
		mark = "`"
	case DialectPostgres, DialectSQLite:
	default:
		return "", false
	}
	parts := strings.Split(name, ".")
	for i, p := range parts {
		if !identifier.MatchString(p) {
			return "", false
		}
		parts[i] = mark + p + mark
	}
	return strings.Join(parts, "."), len(parts) <= 2
}

// bind replaces each ? by what the dialect uses. There are none in names.
func (d Dialect) bind(statement string) string {
	if d != DialectPostgres {
		return statement
	}
	var b strings.Builder
	n := 0
	for _, r := range statement {
		if r == '?' {
			n++
			b.WriteString("$" + strconv.Itoa(n))
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}

// Apply applies a batch, as [buffer.Sink] asks for.
func (s *Sink) Apply(ctx context.Context, batch *buffer.Batch) error {
	err := s.transaction(ctx, batch, func(tx *sql.Tx) error {
		if len(batch.Rows) == 0 {
			return nil
		}
		return s.apply(ctx, tx, batch, batch.Rows)
	})
	var known buffer.RowErrors
	if err == nil || !s.halve || errors.As(err, &known) || !isRowError(err) {
		return err
	}
	if refused, halveErr := s.refused(ctx, batch); halveErr != nil || len(refused) > 0 {
		if halveErr != nil {
			return halveErr
		}
		return refused
	}
	return err // gone by itself: a row that another transaction was about to change, say
}

// transaction runs fn between the ledger's row and COMMIT.
func (s *Sink) transaction(ctx context.Context, batch *buffer.Batch, fn func(*sql.Tx) error) error {
	// In SQLite there is only one level, which drivers need not know the name of. Elsewhere the default may be
	// stricter, and then waiting for another flusher would end in a serialization failure.
	var opts *sql.TxOptions
	if s.dialect != DialectSQLite {
		opts = &sql.TxOptions{Isolation: sql.LevelReadCommitted}
	}
	conn, err := s.db.Conn(ctx)
	if err != nil {
		return fmt.Errorf("sqlsink: begin: %w", err)
	}
	defer conn.Close() //nolint:errcheck // it goes back to the pool
	tx, err := conn.BeginTx(ctx, opts)
	if err != nil {
		return fmt.Errorf("sqlsink: begin: %w", err)
	}
	defer tx.Rollback() //nolint:errcheck // after Commit it does nothing, and after an error there is one already
	if err := s.mark(ctx, tx, batch); err != nil {
		return err
	}
	if err := fn(tx); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		if s.dialect == DialectSQLite {
			// A COMMIT that fails leaves the transaction open, which database/sql, and not every driver, knows.
			_, _ = conn.ExecContext(context.WithoutCancel(ctx), "ROLLBACK")
		}
		return fmt.Errorf("sqlsink: commit: %w", err)
	}
	return nil
}

// mark writes the batch into the ledger, whose row it keeps locked, or says why not.
func (s *Sink) mark(ctx context.Context, tx *sql.Tx, b *buffer.Batch) error {
	for range 2 {
		res, err := tx.ExecContext(ctx, s.dialect.bind("UPDATE "+s.ledger+" SET epoch = ?, seq = ?, nonce = ?, version = ? "+
			"WHERE buffer = ? AND shard = ? AND nonce <> ? AND (epoch <= ? OR (epoch = ? AND seq < ?))"),
			b.Epoch, b.Seq, b.Nonce, b.Version, b.Buffer, b.Shard, b.Nonce, b.Follows, b.Epoch, b.Seq)
		if err != nil {
			return fmt.Errorf("sqlsink: ledger: %w", err)
		}
		if n, err := res.RowsAffected(); err != nil || n > 0 {
			return err
		}
		var epoch int64
		var nonce string
		var version int
		err = tx.QueryRowContext(ctx, s.dialect.bind("SELECT epoch, nonce, version FROM "+s.ledger+" WHERE buffer = ? AND shard = ?"),
			b.Buffer, b.Shard).Scan(&epoch, &nonce, &version)
		switch {
		case err == nil && nonce == b.Nonce:
			return &buffer.AppliedError{Version: version}
		case err == nil:
			return &buffer.RegressError{Epoch: epoch}
		case !errors.Is(err, sql.ErrNoRows):
			return fmt.Errorf("sqlsink: ledger: %w", err)
		}
		insert := "INSERT INTO " + s.ledger + " (buffer, shard, epoch, seq, nonce, version) VALUES (?, ?, 0, 0, '', 0)"
		if s.dialect == DialectMySQL {
			insert += " ON DUPLICATE KEY UPDATE shard = shard"
		} else {
			insert += " ON CONFLICT DO NOTHING"
		}
		if _, err := tx.ExecContext(ctx, s.dialect.bind(insert), b.Buffer, b.Shard); err != nil {
			return fmt.Errorf("sqlsink: ledger: %w", err)
		}
	}
	return errors.New("sqlsink: ledger: a row that was there is not")
}

var errRollback = errors.New("roll back")

// refused finds the rows that the database refuses, by halving, in a transaction that it rolls back. What is good stays applied
// until then, so that rows which are good one by one but not together are found too.
func (s *Sink) refused(ctx context.Context, batch *buffer.Batch) (refused buffer.RowErrors, err error) {
	err = s.transaction(ctx, batch, func(tx *sql.Tx) error {
		if s.dialect == DialectPostgres { // deferred ones would show at COMMIT only
			if _, err := tx.ExecContext(ctx, "SET CONSTRAINTS ALL IMMEDIATE"); err != nil {
				return err
			}
		}
		var find func(rows []buffer.Row, known error) error
		find = func(rows []buffer.Row, known error) error {
			if known == nil {
				if _, err := tx.ExecContext(ctx, "SAVEPOINT part"); err != nil {
					return err
				}
				err := s.apply(ctx, tx, batch, rows)
				if err == nil {
					_, err := tx.ExecContext(ctx, "RELEASE SAVEPOINT part")
					return err
				}
				if !isRowError(err) {
					return err
				}
				known = err
				if _, err := tx.ExecContext(ctx, "ROLLBACK TO SAVEPOINT part"); err != nil {
					return err
				}
			}
			var found buffer.RowErrors
			if errors.As(known, &found) { // it said which
				refused = append(refused, found...)
				rest := without(rows, found)
				if len(rest) == 0 {
					return nil
				}
				return find(rest, nil)
			}
			if len(rows) == 1 {
				refused = append(refused, buffer.RowError{Entity: rows[0].Entity, Err: known})
				return nil
			}
			if err := find(rows[:len(rows)/2], nil); err != nil {
				return err
			}
			return find(rows[len(rows)/2:], nil)
		}
		if err := find(batch.Rows, errors.New("a row was refused")); err != nil {
			return err
		}
		return errRollback
	})
	if errors.Is(err, errRollback) {
		err = nil
	}
	return refused, err
}

func without(rows []buffer.Row, refused buffer.RowErrors) []buffer.Row {
	bad := make(map[string]bool, len(refused))
	for _, e := range refused {
		bad[e.Entity] = true
	}
	var rest []buffer.Row
	for _, r := range rows {
		if !bad[r.Entity] {
			rest = append(rest, r)
		}
	}
	return rest
}

// isRowError reports whether it is a row that is to blame, in words that drivers have in common: a SQLSTATE of class 22 (data),
// 23 (constraints), 44 (a view's WITH CHECK OPTION), raised by a trigger, or 54 (too large), as a method or as part of MySQL's
// text; codes of SQLite.
func isRowError(err error) bool {
	var rows buffer.RowErrors
	if errors.As(err, &rows) {
		return true
	}
	var state interface{ SQLState() string } // pgx, lib/pq
	if errors.As(err, &state) {
		return isRowState(state.SQLState())
	}
	var code interface{ Code() int } // modernc.org/sqlite
	if errors.As(err, &code) {
		switch code.Code() & 0xff {
		case 18, 19, 20: // TOOBIG, CONSTRAINT, MISMATCH
			return true
		}
	}
	text := err.Error()
	if m := mysqlError.FindStringSubmatch(text); m != nil {
		switch m[1] {
		case "1366", "3819", "4025", "1364", "1644", // bad text, CHECK (MySQL, MariaDB), no default, SIGNAL
			"1369", "1526": // WITH CHECK OPTION, no partition
			return true
		}
		return isRowState(m[2])
	}
	// mattn/go-sqlite3 has no methods; and an overflow, see writer, has no code of its own.
	for _, part := range []string{"integer overflow", "constraint failed", "datatype mismatch", "string or blob too big"} {
		if strings.Contains(text, part) {
			return true
		}
	}
	return false
}

var mysqlError = regexp.MustCompile(`Error (\d+) \((\w{5})\): `)

func isRowState(state string) bool {
	switch state[:min(2, len(state))] {
	case "22", "23", "44", "54":
		return true
	}
	return state == "P0001"
}

func isText(dialect Dialect, s string) bool {
	return utf8.ValidString(s) && (dialect != DialectPostgres || !strings.Contains(s, "\x00"))
}
