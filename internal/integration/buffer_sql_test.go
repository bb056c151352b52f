package integration

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/redis/rueidis/rueidishook"
	"github.com/stretchr/testify/require"
	_ "modernc.org/sqlite"

	"github.com/redispatterns/redispatterns/buffer"
	"github.com/redispatterns/redispatterns/buffer/sqlsink"
	"github.com/redispatterns/redispatterns/internal/integration/redistest"
)

// sqlTargets are the databases that sqlsink is for.
var sqlTargets = []struct {
	dialect sqlsink.Dialect
	open    func(t *testing.T) redistest.Database
}{
	{sqlsink.DialectSQLite, func(t *testing.T) redistest.Database {
		file := filepath.Join(t.TempDir(), "test.db")
		return redistest.Database{Driver: "sqlite", DSN: "file:" + file + "?_pragma=busy_timeout(20000)&_pragma=journal_mode(WAL)&_pragma=synchronous(OFF)"}
	}},
	{sqlsink.DialectPostgres, func(t *testing.T) redistest.Database { return redistest.NewDatabase(t, redistest.Postgres) }},
	{sqlsink.DialectMySQL, func(t *testing.T) redistest.Database { return redistest.NewDatabase(t, redistest.MariaDB) }},
}

// eachDatabase runs fn on an empty database of each kind.
func eachDatabase(t *testing.T, fn func(t *testing.T, dialect sqlsink.Dialect, d redistest.Database)) {
	t.Helper()
	for _, target := range sqlTargets {
		t.Run(string(target.dialect), func(t *testing.T) {
			t.Parallel()
			fn(t, target.dialect, target.open(t))
		})
	}
}

// openDatabase opens a database through a spy and makes the ledger and the table of counts.
func openDatabase(t *testing.T, dialect sqlsink.Dialect, d redistest.Database, dbSpy *dbSpy) *sql.DB {
	t.Helper()
	db, err := openSpied(d, dbSpy)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	key, text := "TEXT", "TEXT"
	if dialect == sqlsink.DialectMySQL {
		key, text = "VARBINARY(255)", "VARCHAR(255)"
	}
	for _, statement := range append(sqlsink.Migrations(dialect),
		"CREATE TABLE hits (id "+key+" PRIMARY KEY, views BIGINT NOT NULL DEFAULT 0, spent DOUBLE PRECISION, best BIGINT, worst BIGINT, "+
			"status "+text+", status_at BIGINT, CHECK (views <> 1000000))") {
		_, err := db.ExecContext(t.Context(), statement)
		require.NoError(t, err)
	}
	for _, statement := range sqlsink.Migrations(dialect) {
		_, err := db.ExecContext(t.Context(), statement)
		require.NoError(t, err, "a second time")
	}
	return db
}

func newTableSink(dialect sqlsink.Dialect, db *sql.DB, table sqlsink.Table) (*sqlsink.Sink, error) {
	switch dialect {
	case sqlsink.DialectPostgres:
		return sqlsink.Postgres(db, table)
	case sqlsink.DialectMySQL:
		return sqlsink.MySQL(db, table)
	case sqlsink.DialectSQLite:
	}
	return sqlsink.SQLite(db, table)
}

// rowsInSQL reads the table of counts.
func rowsInSQL(t *testing.T, db *sql.DB) map[string][]buffer.Value {
	t.Helper()
	result, err := db.QueryContext(t.Context(), "SELECT id, views, spent, best, worst, status, status_at FROM hits")
	require.NoError(t, err)
	defer result.Close()
	rows := map[string][]buffer.Value{}
	for result.Next() {
		var id string
		var views, best, worst, at sql.NullInt64
		var spent sql.NullFloat64
		var status sql.NullString
		require.NoError(t, result.Scan(&id, &views, &spent, &best, &worst, &status, &at))
		row := []buffer.Value{
			{Set: true, Int: views.Int64},
			{Set: true, Float: spent.Float64},
			{Set: best.Valid, Int: best.Int64},
			{Set: worst.Valid, Int: worst.Int64},
			{Set: status.Valid, Text: status.String},
		}
		if at.Valid {
			row[4].At = time.UnixMicro(at.Int64).UTC()
		}
		rows[id] = row
	}
	require.NoError(t, result.Err())
	return rows
}

func TestSQLSink_EqualsTheOracle(t *testing.T) {
	t.Parallel()
	eachDatabase(t, func(t *testing.T, dialect sqlsink.Dialect, d redistest.Database) {
		for _, updateOnly := range []bool{false, true} {
			db := openDatabase(t, dialect, d, nil)
			entities := []string{"", "a", "A", "ключ", `"quoted" \ and 'quoted'`, "{a,b}", "NULL", "?$1", strings.Repeat("x", 200)}
			table := sqlsink.Table{Name: "hits", Key: "id", UpdateOnly: updateOnly}
			if dialect == sqlsink.DialectMySQL {
				table.KeyType = sqlsink.KeyBytes
			}
			if updateOnly {
				insert := "INSERT INTO hits (id) VALUES (?)"
				if dialect == sqlsink.DialectPostgres {
					insert = "INSERT INTO hits (id) VALUES ($1)"
				}
				for _, e := range entities {
					_, err := db.ExecContext(t.Context(), insert, e)
					require.NoError(t, err)
				}
			}
			sink, err := newTableSink(dialect, db, table)
			require.NoError(t, err)
			b := newBuffer(t, redistest.Shared(t).Client(t), allColumns, buffer.Options{MaxBatch: 13})
			oracle := map[string][]buffer.Value{}
			r := rand.New(rand.NewPCG(1, 2))
			for i := range 300 {
				entity := entities[r.IntN(len(entities))]
				n, at := r.Int64N(1000)-500, time.UnixMicro(r.Int64N(10)).UTC()
				texts := []string{"", "a", "B", "é", `"`, `\`, "{}", "NULL", "null"}
				all := []struct {
					delta buffer.Delta
					value buffer.Value
				}{
					{buffer.Int("views", n*20+1), buffer.Value{Set: true, Int: n*20 + 1}},
					{buffer.Float("spent", float64(n)/8), buffer.Value{Set: true, Float: float64(n) / 8}},
					{buffer.Int("best", n), buffer.Value{Set: true, Int: n}},
					{buffer.Int("worst", n), buffer.Value{Set: true, Int: n}},
					{buffer.Delta{}, buffer.Value{Set: true, At: at, Text: texts[r.IntN(len(texts))]}},
				}
				all[4].delta = buffer.At("status", at, all[4].value.Text)
				if oracle[entity] == nil { // sums are never null
					oracle[entity] = []buffer.Value{{Set: true}, {Set: true}, {}, {}, {}}
				}
				var deltas []buffer.Delta
				for c := range all {
					if r.IntN(2) == 0 {
						deltas = append(deltas, all[c].delta)
						mergeValue(allColumns[c].Op, &oracle[entity][c], all[c].value)
					}
				}
				if len(deltas) == 0 {
					deltas = append(deltas, buffer.Int("views", 0))
				}
				require.NoError(t, b.Add(t.Context(), entity, deltas...))
				if i%25 == 0 {
					drainTo(t, b, sink)
				}
			}
			drainTo(t, b, sink)
			stats, err := b.Stats(t.Context())
			require.NoError(t, err)
			for l, err := range b.DeadLetters(t.Context()) {
				require.NoError(t, err)
				t.Log(l)
			}
			require.Zero(t, stats.DeadLetters)
			require.Equal(t, oracle, rowsInSQL(t, db))
			_, err = db.ExecContext(t.Context(), "DROP TABLE hits")
			require.NoError(t, err)
		}
	})
}

func TestSQLSink_KeyTypes(t *testing.T) {
	t.Parallel()
	eachDatabase(t, func(t *testing.T, dialect sqlsink.Dialect, d redistest.Database) {
		db := openDatabase(t, dialect, d, nil)
		bytes := map[sqlsink.Dialect]string{sqlsink.DialectPostgres: "BYTEA", sqlsink.DialectMySQL: "VARBINARY(700)", sqlsink.DialectSQLite: "BLOB"}[dialect]
		for _, statement := range []string{
			"CREATE TABLE numbers (id BIGINT PRIMARY KEY, n BIGINT NOT NULL)",
			"CREATE TABLE binaries (id " + bytes + " PRIMARY KEY, n BIGINT NOT NULL)",
		} {
			_, err := db.ExecContext(t.Context(), statement)
			require.NoError(t, err)
		}
		columns := map[string]string{"views": "n"}
		zero := []string{"0"} // which MySQL might store as another number
		if dialect == sqlsink.DialectMySQL {
			zero = nil
		}
		for _, c := range []struct {
			table     sqlsink.Table
			good, bad []string
		}{
			{
				sqlsink.Table{Name: "numbers", Key: "id", KeyType: sqlsink.KeyInt, Columns: columns},
				append(zero, "-1", "42", strconv.Itoa(math.MaxInt64), strconv.Itoa(math.MinInt64)),
				[]string{"", "x", "042", "+1", "9223372036854775808", "1.5", " 1"},
			},
			{
				sqlsink.Table{Name: "binaries", Key: "id", KeyType: sqlsink.KeyBytes, Columns: columns},
				[]string{"", "\x00", "a\x00b", "\xff", `\`, "{a}"},
				nil,
			},
		} {
			for _, updateOnly := range []bool{false, true} {
				c.table.UpdateOnly = updateOnly
				b := newBuffer(t, redistest.Shared(t).Client(t), allColumns[:1], buffer.Options{})
				sink, err := newTableSink(dialect, db, c.table)
				require.NoError(t, err)
				for _, e := range append(c.good, c.bad...) {
					require.NoError(t, b.Add(t.Context(), e, buffer.Int("views", 1)))
				}
				drainTo(t, b, sink)
				stats, err := b.Stats(t.Context())
				require.NoError(t, err)
				require.Equal(t, int64(len(c.bad)), stats.DeadLetters)
			}
			var rows, sum int
			require.NoError(t, db.QueryRowContext(t.Context(), "SELECT COUNT(*), SUM(n) FROM "+c.table.Name).Scan(&rows, &sum))
			require.Equal(t, len(c.good), rows)
			require.Equal(t, 2*len(c.good), sum)
		}
	})
}

// A key that is no column of the table is nobody's fault but the program's: no row becomes a dead letter for it.
func TestSQLSink_AKeyThatIsNoColumn(t *testing.T) {
	t.Parallel()
	eachDatabase(t, func(t *testing.T, dialect sqlsink.Dialect, d redistest.Database) {
		db := openDatabase(t, dialect, d, nil)
		for _, updateOnly := range []bool{false, true} {
			sink, err := newTableSink(dialect, db, sqlsink.Table{Name: "hits", Key: "kee", UpdateOnly: updateOnly})
			require.NoError(t, err)
			b := newBuffer(t, redistest.Shared(t).Client(t), allColumns, buffer.Options{})
			require.NoError(t, b.Add(t.Context(), "e", buffer.Int("views", 1)))
			_, err = b.Flush(t.Context(), sink)
			require.ErrorContains(t, err, "kee")
			stats, err := b.Stats(t.Context())
			require.NoError(t, err)
			require.Equal(t, int64(1), stats.Pending)
			require.Zero(t, stats.DeadLetters)
		}
	})
}

// One row in 10,000 that the database refuses, for each reason there is, does not hold up the others.
func TestSQLSink_APoisonRow(t *testing.T) {
	t.Parallel()
	type poison struct {
		entity string
		deltas []buffer.Delta
		repair string // of the table
		want   int64
	}
	poisons := map[string]poison{
		"constraint": {"poison", []buffer.Delta{buffer.Int("views", 999_999)}, "UPDATE hits SET views = 0 WHERE id = 'poison'", 999_999},
		"overflow":   {"poison", []buffer.Delta{buffer.Int("views", math.MaxInt64)}, "UPDATE hits SET views = 0 WHERE id = 'poison'", math.MaxInt64},
		"bad text":   {"poison", []buffer.Delta{buffer.Int("views", 1), buffer.At("status", time.Now(), "\xff")}, "", 0},
		"bad key":    {"\xff", []buffer.Delta{buffer.Int("views", 1)}, "", 0},
		"long key":   {incompressible(10 << 10), []buffer.Delta{buffer.Int("views", 1)}, "", 0},
		"unknown":    {"unknown", []buffer.Delta{buffer.Int("views", 5)}, "INSERT INTO hits (id) VALUES ('unknown')", 5},
	}
	eachDatabase(t, func(t *testing.T, dialect sqlsink.Dialect, d redistest.Database) {
		rows := 10_000
		if dialect == sqlsink.DialectSQLite && !soak() {
			rows = 500 // the race detector slows it down most of all
		}
		for name, p := range poisons {
			if dialect == sqlsink.DialectSQLite && name == "long key" {
				continue // it takes any
			}
			var spied dbSpy
			db := openDatabase(t, dialect, d, &spied)
			ctx := t.Context()
			_, err := db.ExecContext(ctx, "INSERT INTO hits (id, views) VALUES ('poison', 1)")
			require.NoError(t, err)
			table := sqlsink.Table{Name: "hits", Key: "id", UpdateOnly: name == "unknown"}
			sink, err := newTableSink(dialect, db, table)
			require.NoError(t, err)
			b := newBuffer(t, redistest.Shared(t).Client(t), allColumns, buffer.Options{Shards: 1, MaxBatch: 2 * rows})
			n := rows
			switch {
			case name == "unknown":
				n = 1
			case name != "constraint" && !soak():
				n = 300
			}
			for i := range n - 1 {
				require.NoError(t, b.Post("e"+strconv.Itoa(i), buffer.Int("views", 1)))
			}
			if name == "unknown" {
				require.NoError(t, b.Add(ctx, "poison", buffer.Int("views", 1)))
			}
			require.NoError(t, b.Add(ctx, p.entity, p.deltas...))
			require.Eventually(t, func() bool {
				stats, err := b.Stats(ctx)
				require.NoError(t, err)
				return stats.Local == 0
			}, 20*time.Second, time.Millisecond)
			spied.begins.Store(0)
			report, err := b.Flush(ctx, sink)
			require.NoError(t, err, name)
			require.Equal(t, 1, report.Dead, name)
			require.LessOrEqual(t, spied.begins.Load(), int64(math.Log2(float64(max(n, 16))))+1, name)
			var letters int
			for l, err := range b.DeadLetters(ctx) {
				require.NoError(t, err)
				require.Equal(t, p.entity, l.Entity)
				require.NotEmpty(t, l.Reason)
				letters++
			}
			require.Equal(t, len(p.deltas), letters, name)
			var count int
			require.NoError(t, db.QueryRowContext(ctx, "SELECT COUNT(*) FROM hits WHERE id <> 'poison' AND views = 1").Scan(&count))
			require.Equal(t, n-1, count, name)
			if p.repair != "" {
				_, err := db.ExecContext(ctx, p.repair)
				require.NoError(t, err)
				replayed, err := b.Replay(ctx)
				require.NoError(t, err)
				require.Equal(t, len(p.deltas), replayed)
				drainTo(t, b, sink)
				require.Equal(t, p.want, rowsInSQL(t, db)[p.entity][0].Int, name)
			}
			_, err = db.ExecContext(ctx, "DROP TABLE hits")
			require.NoError(t, err)
		}
	})
}

func TestSQLSink_WithTx(t *testing.T) {
	t.Parallel()
	eachDatabase(t, func(t *testing.T, dialect sqlsink.Dialect, d redistest.Database) {
		db := openDatabase(t, dialect, d, nil)
		b := newBuffer(t, redistest.Shared(t).Client(t), allColumns, buffer.Options{Shards: 1})
		broken := true
		var batches []*buffer.Batch
		sink, err := sqlsink.WithTx(db, dialect, func(ctx context.Context, tx *sql.Tx, batch *buffer.Batch) error {
			batches = append(batches, batch)
			for _, row := range batch.Rows {
				if row.Entity == "bad" {
					return buffer.RowErrors{{Entity: "bad", Err: errors.New("not this one")}}
				}
			}
			for _, row := range batch.Rows {
				if _, err := tx.ExecContext(ctx, fmt.Sprintf("INSERT INTO hits (id, views) VALUES ('%s', %d)", row.Entity, row.Values[0].Int)); err != nil {
					return err
				}
			}
			if broken {
				broken = false
				return errors.New("broken")
			}
			return nil
		})
		require.NoError(t, err)
		for _, e := range []string{"a", "b", "bad"} {
			require.NoError(t, b.Add(t.Context(), e, buffer.Int("views", 2)))
		}
		_, err = b.Flush(t.Context(), sink)
		require.ErrorContains(t, err, "broken")
		require.Empty(t, rowsInSQL(t, db))
		report, err := b.Flush(t.Context(), sink)
		require.NoError(t, err)
		require.Equal(t, buffer.Report{Batches: 1, Rows: 2, Dead: 1}, report)
		require.Len(t, rowsInSQL(t, db), 2)

		// The ledger refuses it from now on, in all its versions.
		var applied *buffer.AppliedError
		for _, batch := range batches {
			require.ErrorAs(t, sink.Apply(t.Context(), batch), &applied)
			require.Equal(t, 1, applied.Version)
		}
		other := *batches[0]
		other.Nonce = "other"
		var regress *buffer.RegressError
		require.ErrorAs(t, sink.Apply(t.Context(), &other), &regress)
		require.Equal(t, other.Epoch, regress.Epoch)
		// Nor does it take a new epoch of a Redis that does not know of the ledger's, and so has lost it.
		other.Epoch++
		require.ErrorAs(t, sink.Apply(t.Context(), &other), &regress)
		require.Equal(t, batches[0].Epoch, regress.Epoch)
		other.Rows = nil
		for _, follows := range []int64{regress.Epoch, regress.Epoch + 10} { // or more, if the ledger is an old copy
			other.Epoch, other.Follows, other.Nonce = follows+1, follows, strconv.FormatInt(follows, 10)
			require.NoError(t, sink.Apply(t.Context(), &other))
			require.ErrorAs(t, sink.Apply(t.Context(), &other), &applied)
		}
		require.Len(t, rowsInSQL(t, db), 2)
	})
}

func incompressible(n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte('a' + rand.IntN(26))
	}
	return string(b)
}

// dbSpy sees what is done to a database, and may do something then.
type dbSpy struct {
	begins atomic.Int64
	at     func(point string)

	loseCommits bool // each third transaction is committed, but says that it is not
	commits     atomic.Int64
	lost        atomic.Int64
}

func (s *dbSpy) see(point string) {
	if s.at != nil {
		s.at(point)
	}
}

func openSpied(d redistest.Database, s *dbSpy) (*sql.DB, error) {
	db, err := sql.Open(d.Driver, d.DSN)
	if err != nil || s == nil {
		return db, err
	}
	drv := db.Driver()
	if err := db.Close(); err != nil {
		return nil, err
	}
	return sql.OpenDB(&spiedConnector{drv, d.DSN, s}), nil
}

type spiedConnector struct {
	driver driver.Driver
	dsn    string
	dbSpy  *dbSpy
}

func (c *spiedConnector) Driver() driver.Driver { return c.driver }

func (c *spiedConnector) Connect(context.Context) (driver.Conn, error) {
	conn, err := c.driver.Open(c.dsn)
	if err != nil {
		return nil, err
	}
	return &spiedConn{conn, c.dbSpy}, nil
}

// spiedConn passes on what the three drivers implement.
type spiedConn struct {
	driver.Conn
	dbSpy *dbSpy
}

func (c *spiedConn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	c.dbSpy.begins.Add(1)
	tx, err := c.Conn.(driver.ConnBeginTx).BeginTx(ctx, opts)
	if err != nil {
		return nil, err
	}
	c.dbSpy.see("begun")
	return &spiedTx{tx, c.dbSpy}, nil
}

func (c *spiedConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	res, err := c.Conn.(driver.ExecerContext).ExecContext(ctx, query, args)
	c.dbSpy.seeExec(query, res, err)
	return res, err
}

func (c *spiedConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	return c.Conn.(driver.QueryerContext).QueryContext(ctx, query, args)
}

func (c *spiedConn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	stmt, err := c.Conn.(driver.ConnPrepareContext).PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	return &spiedStmt{stmt, query, c.dbSpy}, nil
}

func (c *spiedConn) CheckNamedValue(v *driver.NamedValue) error {
	if checker, ok := c.Conn.(driver.NamedValueChecker); ok {
		return checker.CheckNamedValue(v)
	}
	return driver.ErrSkip
}

type spiedStmt struct {
	driver.Stmt
	query string
	dbSpy *dbSpy
}

func (s *spiedStmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	res, err := s.Stmt.(driver.StmtExecContext).ExecContext(ctx, args)
	s.dbSpy.seeExec(s.query, res, err)
	return res, err
}

func (s *spiedStmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	return s.Stmt.(driver.StmtQueryContext).QueryContext(ctx, args)
}

func (s *spiedStmt) CheckNamedValue(v *driver.NamedValue) error {
	if checker, ok := s.Stmt.(driver.NamedValueChecker); ok {
		return checker.CheckNamedValue(v)
	}
	return driver.ErrSkip
}

func (s *dbSpy) seeExec(query string, res driver.Result, err error) {
	if err != nil {
		return
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return
	}
	switch {
	case strings.HasPrefix(query, "UPDATE") && strings.Contains(query, sqlsink.DefaultLedger):
		s.see("ledger written")
	case strings.HasPrefix(query, "INSERT") && strings.Contains(query, "hits"):
		s.see("rows written")
	}
}

type spiedTx struct {
	driver.Tx
	dbSpy *dbSpy
}

func (t *spiedTx) Commit() error {
	t.dbSpy.see("before COMMIT")
	err := t.Tx.Commit()
	if err == nil {
		t.dbSpy.see("after COMMIT")
	}
	if t.dbSpy.loseCommits && t.dbSpy.commits.Add(1)%3 == 0 {
		t.dbSpy.lost.Add(1)
		return errors.Join(errors.New("the connection was lost"), err)
	}
	return err
}

// spiedClient sees a flusher's scripts, which it knows by their number of keys.
type spiedClient struct {
	redistest.PassThrough
	dbSpy *dbSpy
}

func (h spiedClient) Do(client rueidis.Client, ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	name := map[string]string{"4": "claim", "3": "read", "5": "ack"}[cmd.Commands()[2]]
	if name != "" {
		h.dbSpy.see("before " + name)
	}
	r := client.Do(ctx, cmd)
	if name != "" && r.Error() == nil {
		h.dbSpy.see("after " + name)
	}
	return r
}

var killPoints = []string{
	"before claim", "after claim", "after read", "begun", "ledger written", "rows written", "before COMMIT", "after COMMIT", "before ack", "after ack",
}

// bufferChild flushes until it comes to a point for the nth time: there it kills, or stops, itself.
func bufferChild() error {
	times, err := strconv.Atoi(os.Getenv("CHILD_TIMES"))
	if err != nil {
		return err
	}
	sig := syscall.SIGKILL
	if os.Getenv("CHILD_SIGNAL") == "STOP" {
		sig = syscall.SIGSTOP
	}
	goesOn := make(chan os.Signal, 1)
	signal.Notify(goesOn, syscall.SIGCONT)
	var seen atomic.Int64
	spied := &dbSpy{at: func(point string) {
		if point == os.Getenv("CHILD_POINT") && seen.Add(1) == int64(times) {
			_ = syscall.Kill(os.Getpid(), sig)
			<-goesOn // another thread may be the first to notice, and this one be beyond the point by then
		}
	}}
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{os.Getenv("CHILD_ADDR")}, DisableCache: true})
	if err != nil {
		return err
	}
	defer client.Close()
	dialect := sqlsink.Dialect(os.Getenv("CHILD_DIALECT"))
	db, err := openSpied(redistest.Database{Driver: os.Getenv("CHILD_DRIVER"), DSN: os.Getenv("CHILD_DSN")}, spied)
	if err != nil {
		return err
	}
	sink, err := newTableSink(dialect, db, sqlsink.Table{Name: "hits", Key: "id"})
	if err != nil {
		return err
	}
	b, err := buffer.New(rueidishook.WithHook(client, spiedClient{dbSpy: spied}), "counts", allColumns, killOptions(os.Getenv("CHILD_PREFIX")))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := b.Run(ctx, sink); err != nil {
		return err
	}
	return errors.New("still alive")
}

func killOptions(prefix string) buffer.Options {
	return buffer.Options{
		Prefix: prefix, Shards: 2, Workers: 1, MaxBatch: 40, FlushEvery: 2 * time.Millisecond, Backoff: 20 * time.Millisecond,
		Lease: 60 * time.Millisecond, OpTimeout: 5 * time.Second, AddTimeout: 20 * time.Second,
	}
}

func startBufferChild(t *testing.T, dialect sqlsink.Dialect, d redistest.Database, prefix, point, signal string, times int) *exec.Cmd {
	t.Helper()
	cmd := child(t, "buffer", "CHILD_ADDR="+redistest.Shared(t).Addr(), "CHILD_PREFIX="+prefix, "CHILD_DIALECT="+string(dialect),
		"CHILD_DRIVER="+d.Driver, "CHILD_DSN="+d.DSN, "CHILD_POINT="+point, "CHILD_SIGNAL="+signal, "CHILD_TIMES="+strconv.Itoa(times))
	require.NoError(t, cmd.Start())
	return cmd
}

// produce adds to a buffer until stop is called, which returns what was counted.
func produce(t *testing.T, b *buffer.Buffer) (stop func() map[string]int64) {
	t.Helper()
	done := make(chan struct{})
	var wg sync.WaitGroup
	var mu sync.Mutex
	counted := map[string]int64{}
	for range 4 {
		wg.Go(func() {
			tick := time.NewTicker(time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-done:
					return
				case <-tick.C:
				}
				entity := "hot"
				if rand.IntN(3) > 0 {
					entity = "e" + strconv.Itoa(rand.IntN(60))
				}
				n := rand.Int64N(9)
				require.NoError(t, b.Add(context.Background(), entity, buffer.Int("views", n), buffer.Int("best", n)))
				mu.Lock()
				counted[entity] += n
				mu.Unlock()
			}
		})
	}
	return func() map[string]int64 {
		close(done)
		wg.Wait()
		return counted
	}
}

func requireCounts(t *testing.T, db *sql.DB, counted map[string]int64) {
	t.Helper()
	rows := rowsInSQL(t, db)
	require.Len(t, rows, len(counted))
	for entity, n := range counted {
		require.Equal(t, n, rows[entity][0].Int, entity)
	}
}

func TestBuffer_KillMatrix(t *testing.T) {
	t.Parallel()
	rounds := 2
	if soak() {
		rounds = 50
	}
	eachDatabase(t, func(t *testing.T, dialect sqlsink.Dialect, d redistest.Database) {
		db := openDatabase(t, dialect, d, nil)
		prefix := redistest.Prefix(t)
		b := newBuffer(t, redistest.Shared(t).Client(t), allColumns, killOptions(prefix))
		stop := produce(t, b)
		kills := 0
		for range rounds {
			for _, point := range killPoints {
				cmd := startBufferChild(t, dialect, d, prefix, point, "KILL", 1+rand.IntN(3))
				require.Error(t, cmd.Wait())
				status := cmd.ProcessState.Sys().(syscall.WaitStatus)
				require.True(t, status.Signaled() && status.Signal() == syscall.SIGKILL, "%s: %v", point, cmd.ProcessState)
				kills++
			}
		}
		counted := stop()
		sink, err := newTableSink(dialect, db, sqlsink.Table{Name: "hits", Key: "id"})
		require.NoError(t, err)
		drainTo(t, b, sink)
		requireCounts(t, db, counted)
		stats, err := b.Stats(t.Context())
		require.NoError(t, err)
		require.Zero(t, stats.DeadLetters)
		require.Zero(t, stats.Regressions)
		var total int64
		for _, n := range counted {
			total += n
		}
		t.Logf("%d kills, %d counted, difference 0", kills, total)
	})
}

// A flusher that is stopped for longer than its lease, anywhere, changes nothing when it goes on.
func TestBuffer_AZombieFlusher(t *testing.T) {
	t.Parallel()
	eachDatabase(t, func(t *testing.T, dialect sqlsink.Dialect, d redistest.Database) {
		db := openDatabase(t, dialect, d, nil)
		prefix := redistest.Prefix(t)
		b := newBuffer(t, redistest.Shared(t).Client(t), allColumns, killOptions(prefix))
		sink, err := newTableSink(dialect, db, sqlsink.Table{Name: "hits", Key: "id"})
		require.NoError(t, err)
		defer logLocks(t, dialect, db)
		counted := map[string]int64{}
		add := func() {
			t.Helper()
			for i := range 100 {
				e := "e" + strconv.Itoa(i)
				require.NoError(t, b.Add(t.Context(), e, buffer.Int("views", 2)))
				counted[e] += 2
			}
		}
		for _, point := range []string{"after claim", "after read", "before COMMIT", "after COMMIT", "before ack"} {
			add()
			cmd := startBufferChild(t, dialect, d, prefix, point, "STOP", 1)
			var status syscall.WaitStatus
			_, err := syscall.Wait4(cmd.Process.Pid, &status, syscall.WUNTRACED, nil)
			require.NoError(t, err)
			require.True(t, status.Stopped(), "%s: %v", point, status)
			if point == "before COMMIT" {
				// It has the ledger's row locked: the others wait. Whoever is first, it is applied once.
				var others sync.WaitGroup
				others.Go(func() { _, _ = b.Flush(t.Context(), sink) })
				require.NoError(t, cmd.Process.Signal(syscall.SIGCONT))
				others.Wait()
			} else {
				drainTo(t, b, sink)
				add()
				drainTo(t, b, sink) // its batch's place is taken by now
				add()
				requireBatch(t, b, sink) // and there is a live one, of somebody else
				require.NoError(t, cmd.Process.Signal(syscall.SIGCONT))
			}
			// It goes on, and flushes what is left.
			require.Eventually(t, func() bool {
				stats, err := b.Stats(t.Context())
				require.NoError(t, err)
				return stats.Pending == 0
			}, 20*time.Second, time.Millisecond, point)
			require.NoError(t, cmd.Process.Kill())
			require.Error(t, cmd.Wait())
			requireCounts(t, db, counted)
			stats, err := b.Stats(t.Context())
			require.NoError(t, err)
			require.Zero(t, stats.Regressions, point)
		}
	})
}

// logLocks says, if the test has failed, who waits for whom in PostgreSQL.
func logLocks(t *testing.T, dialect sqlsink.Dialect, db *sql.DB) {
	t.Helper()
	if !t.Failed() || dialect != sqlsink.DialectPostgres {
		return
	}
	const query = `SELECT coalesce(string_agg(concat_ws(' ', pid, state, wait_event, now() - xact_start, pg_blocking_pids(pid)::text, query), E'\n'), '')
		FROM pg_stat_activity WHERE datname = current_database()`
	var activity string
	err := db.QueryRowContext(context.Background(), query).Scan(&activity)
	t.Log(activity, err)
}

// requireBatch leaves a live batch behind.
func requireBatch(t *testing.T, b *buffer.Buffer, sink buffer.Sink) {
	t.Helper()
	_, err := b.Flush(t.Context(), failingSink{sink})
	require.ErrorContains(t, err, "not today")
}

type failingSink struct{ buffer.Sink }

func (failingSink) Apply(context.Context, *buffer.Batch) error { return errors.New("not today") }

// Several flushers of several shards whose rows are interleaved in one table, and no deadlock.
func TestSQLSink_SeveralFlushers(t *testing.T) {
	t.Parallel()
	eachDatabase(t, func(t *testing.T, dialect sqlsink.Dialect, d redistest.Database) {
		db := openDatabase(t, dialect, d, nil)
		prefix := redistest.Prefix(t)
		opts := killOptions(prefix)
		opts.Workers, opts.Shards, opts.Lease = 4, 4, 30*time.Second
		var failed atomic.Int64
		opts.Hooks.Error = func(_ context.Context, op string, err error) {
			if op == buffer.OpFlush {
				failed.Add(1)
				t.Log(err)
			}
		}
		ctx, stopFlushers := context.WithCancel(t.Context())
		defer stopFlushers()
		var flushers sync.WaitGroup
		sink, err := newTableSink(dialect, db, sqlsink.Table{Name: "hits", Key: "id"})
		require.NoError(t, err)
		for range 3 {
			b := newBuffer(t, redistest.Shared(t).Client(t), allColumns, opts)
			flushers.Go(func() { require.NoError(t, b.Run(ctx, sink)) })
		}
		opts.Shards = 3 // the same entities in other shards
		b := newBuffer(t, redistest.Shared(t).Client(t), allColumns, opts)
		other := newBuffer(t, redistest.Shared(t).Client(t), allColumns, killOptions(prefix))
		stop, stopOther := produce(t, b), produce(t, other)
		after1s := time.After(time.Second)
		<-after1s
		counted := stop()
		for e, n := range stopOther() {
			counted[e] += n
		}
		stopFlushers()
		flushers.Wait()
		drainTo(t, b, sink)
		requireCounts(t, db, counted)
		require.Zero(t, failed.Load())
	})
}
