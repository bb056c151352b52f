package sqlsink

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/redispatterns/redispatterns/buffer"
)

func TestNew_RefusesBadArguments(t *testing.T) {
	t.Parallel()
	db := &sql.DB{}
	good := Table{Name: "stats.posts", Key: "id"}
	for name, newSink := range map[string]func(*sql.DB, Table) (*Sink, error){"Postgres": Postgres, "MySQL": MySQL, "SQLite": SQLite} {
		_, err := newSink(db, good)
		require.NoError(t, err, name)
		_, err = newSink(nil, good)
		require.ErrorContains(t, err, "db is required")
		for field, bad := range map[string]Table{
			"Name":    {Name: `posts"; DROP TABLE x; --`, Key: "id"},
			"Key":     {Name: "posts"},
			"Ledger":  {Name: "posts", Key: "id", Ledger: "a.b.c"},
			"Columns": {Name: "posts", Key: "id", Columns: map[string]string{"views": "a`b"}},
			"KeyType": {Name: "posts", Key: "id", KeyType: KeyBytes + 1},
		} {
			_, err := newSink(db, bad)
			require.ErrorContains(t, err, "Table."+field)
		}
	}
	fn := func(context.Context, *sql.Tx, *buffer.Batch) error { return nil }
	_, err := WithTx(nil, DialectSQLite, fn)
	require.ErrorContains(t, err, "db")
	_, err = WithTx(db, DialectSQLite, nil)
	require.ErrorContains(t, err, "fn")
	_, err = WithTx(db, "oracle", fn)
	require.ErrorContains(t, err, "dialect")
}

type stateError string

func (e stateError) Error() string    { return "state " + string(e) }
func (e stateError) SQLState() string { return string(e) }

type codeError int

func (e codeError) Error() string { return "code" }
func (e codeError) Code() int     { return int(e) }

func TestIsRowError(t *testing.T) {
	t.Parallel()
	for _, err := range []error{
		buffer.RowErrors{},
		stateError("22003"), stateError("23514"), stateError("54000"), stateError("P0001"), stateError("44000"),
		codeError(19), codeError(2067), codeError(20), // CONSTRAINT, and extended; MISMATCH
		errors.New("Error 1690 (22003): BIGINT value is out of range"),
		errors.New("Error 4025 (23000): CONSTRAINT failed"),
		errors.New("Error 1366 (HY000): Incorrect string value"),
		errors.New("Error 1526 (HY000): Table has no partition for value 7"),
		errors.New("Error 1369 (HY000): CHECK OPTION failed 'db.view'"), errors.New("Error 1369 (44000): CHECK OPTION failed `db`.`view`"),
		errors.New("integer overflow"), errors.New("UNIQUE constraint failed: t.id"),
	} {
		require.True(t, isRowError(fmt.Errorf("sqlsink: write: %w", err)), "%v", err)
	}
	for _, err := range []error{
		stateError("40001"), stateError("40P01"), stateError("53100"), stateError("42P01"), stateError("57014"), stateError("25006"), stateError(""),
		codeError(5), codeError(6), codeError(13), codeError(1), // BUSY, LOCKED, FULL, ERROR
		errors.New("Error 1213 (40001): Deadlock found"), errors.New("Error 1205 (HY000): Lock wait timeout exceeded"),
		errors.New("Error 1146 (42S02): Table 'x' doesn't exist"),
		errors.New("connection refused"), context.Canceled, sql.ErrConnDone,
	} {
		require.False(t, isRowError(fmt.Errorf("sqlsink: write: %w", err)), "%v", err)
	}
}

// MySQL's AUTO_INCREMENT would store another key than 0, and a further row each time.
func TestKeys_ZeroInMySQL(t *testing.T) {
	t.Parallel()
	rows := []buffer.Row{{Entity: "-1"}, {Entity: "0"}, {Entity: "1"}}
	for _, d := range []Dialect{DialectPostgres, DialectMySQL, DialectSQLite} {
		for _, updateOnly := range []bool{false, true} {
			w := &writer{dialect: d, table: Table{KeyType: KeyInt, UpdateOnly: updateOnly}}
			keys, err := w.keys(rows)
			if d == DialectMySQL && !updateOnly {
				require.Equal(t, buffer.RowErrors{{Entity: "0", Err: ErrBadKey}}, err)
				continue
			}
			require.NoError(t, err)
			require.Equal(t, []any{int64(-1), int64(0), int64(1)}, keys)
		}
	}
}

func TestBind(t *testing.T) {
	t.Parallel()
	require.Equal(t, "a = $1 AND b = $2", DialectPostgres.bind("a = ? AND b = ?"))
	require.Equal(t, "a = ?", DialectSQLite.bind("a = ?"))
}

func TestArray(t *testing.T) {
	t.Parallel()
	values := []any{nil, int64(-1), 0.5, []byte{0, 0xff}, `a"b\c,{}`, "", "NULL"}
	require.Equal(t, `{NULL,-1,0.5,"\\x00ff","a\"b\\c,{}","","NULL"}`, array(len(values), func(i int) any { return values[i] }))
	require.Equal(t, "{}", array(0, nil))
}

// What is quoted can be read back by the rules of PostgreSQL's arrays, and ends where it should.
func FuzzArray(f *testing.F) {
	f.Add("a", `"\`)
	f.Fuzz(func(t *testing.T, a, b string) {
		text := array(2, func(i int) any { return []any{a, b}[i] })
		var got []string
		var element strings.Builder
		quoted := false
		for i := 1; i < len(text)-1; i++ {
			switch {
			case text[i] == '\\':
				i++
				element.WriteByte(text[i])
			case text[i] == '"' && quoted:
				got = append(got, element.String())
				element.Reset()
				quoted = false
			case text[i] == '"':
				quoted = true
			case quoted:
				element.WriteByte(text[i])
			}
		}
		require.Equal(t, []string{a, b}, got)
	})
}

func TestMigrations_AreForTheirDialect(t *testing.T) {
	t.Parallel()
	for _, d := range []Dialect{DialectPostgres, DialectMySQL, DialectSQLite} {
		require.Len(t, Migrations(d), 1)
		require.Contains(t, Migrations(d)[0], DefaultLedger)
	}
}
