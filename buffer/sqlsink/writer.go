package sqlsink

import (
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/redispatterns/redispatterns/buffer"
)

// writer writes rows to a table.
type writer struct {
	dialect   Dialect
	table     Table
	name, key string // quoted
}

// cell is one column of the table: a column of the buffer is one, or two with its event time.
type cell struct {
	name string // quoted
	// array is the PostgreSQL type to send it as.
	array string
	// set is the value after an update: {t} stands for the value that is there, {n} for the new one; for a Last also {tt}
	// and {nt} for the times of both.
	set string
	// at is the name of a Last's time.
	at    string
	value func(row buffer.Row) any // nil, int64, float64 or string
}

// cells returns the table's columns for those of a buffer. A Last's text comes before its time, on which it depends: MySQL
// assigns from left to right.
func (w *writer) cells(columns []buffer.Column) []cell {
	var cells []cell
	for i, c := range columns {
		name := c.Name
		if other, ok := w.table.Columns[name]; ok {
			name = other
		}
		quoted, _ := w.dialect.quote(name)
		at, _ := w.dialect.quote(name + "_at")
		integer := func(row buffer.Row) any {
			if !row.Values[i].Set {
				return nil
			}
			return row.Values[i].Int
		}
		switch c.Op {
		case buffer.Sum:
			sum := "COALESCE({t}, 0) + {n}"
			if w.dialect == DialectSQLite {
				// It would make a sum that is too large a float, without a word. The ELSE fails with "integer overflow".
				sum = "CASE typeof(" + sum + ") WHEN 'real' THEN abs(-9223372036854775807 - 1) ELSE " + sum + " END"
			}
			cells = append(cells, cell{name: quoted, array: "bigint", set: sum, value: func(row buffer.Row) any { return row.Values[i].Int }})
		case buffer.SumFloat:
			sum := "COALESCE({t}, 0) + {n}"
			if w.dialect == DialectSQLite { // likewise, infinite
				sum = "CASE WHEN abs(" + sum + ") <= 1.7976931348623157e308 THEN " + sum + " ELSE abs(-9223372036854775807 - 1) END"
			}
			cells = append(cells, cell{
				name: quoted, array: "double precision", set: sum,
				value: func(row buffer.Row) any { return row.Values[i].Float },
			})
		case buffer.Max, buffer.Min:
			cells = append(cells, cell{name: quoted, array: "bigint", set: w.extreme(c.Op == buffer.Max), value: integer})
		case buffer.Last:
			cells = append(cells, cell{
				name: quoted, array: "text", at: at,
				set: "CASE WHEN {nt} IS NOT NULL AND ({tt} IS NULL OR {nt} > {tt} OR ({nt} = {tt} AND ({t} IS NULL OR " +
					w.bytesOf("{n}") + " > " + w.bytesOf("{t}") + "))) THEN {n} ELSE {t} END",
				value: func(row buffer.Row) any {
					if !row.Values[i].Set {
						return nil
					}
					return row.Values[i].Text
				},
			}, cell{
				name: at, array: "bigint", set: w.extreme(true),
				value: func(row buffer.Row) any {
					if !row.Values[i].Set {
						return nil
					}
					return row.Values[i].At.UnixMicro()
				},
			})
		}
	}
	return cells
}

// extreme is the larger or the smaller of both values, of which either may be null.
func (w *writer) extreme(largest bool) string {
	name := "LEAST"
	switch {
	case largest && w.dialect == DialectSQLite:
		name = "max"
	case largest:
		name = "GREATEST"
	case w.dialect == DialectSQLite:
		name = "min"
	}
	return name + "(COALESCE({t}, {n}), COALESCE({n}, {t}))"
}

// bytesOf makes text compare by its bytes, whatever the column's collation.
func (w *writer) bytesOf(expression string) string {
	switch w.dialect {
	case DialectPostgres:
		return expression + ` COLLATE "C"`
	case DialectMySQL:
		return "CAST(" + expression + " AS BINARY)"
	case DialectSQLite:
	}
	return expression + " COLLATE BINARY"
}

// assign is "column = value" with the placeholders of set replaced.
func (c cell) assign(there, thereAt, fresh, freshAt string) string {
	return c.name + " = " + strings.NewReplacer("{t}", there, "{tt}", thereAt, "{n}", fresh, "{nt}", freshAt).Replace(c.set)
}

// write writes rows, whose order it keeps.
func (w *writer) write(ctx context.Context, tx *sql.Tx, batch *buffer.Batch, rows []buffer.Row) error {
	cells := w.cells(batch.Columns)
	if err := w.check(cells); err != nil {
		return err
	}
	keys, err := w.keys(rows)
	if err != nil {
		return err
	}
	if w.table.UpdateOnly {
		if err := w.lock(ctx, tx, rows, keys); err != nil {
			return err
		}
	}
	switch {
	case w.dialect == DialectPostgres:
		err = w.writeArrays(ctx, tx, cells, rows, keys)
	case w.table.UpdateOnly:
		err = w.update(ctx, tx, cells, rows, keys)
	default:
		err = w.upsert(ctx, tx, cells, rows, keys)
	}
	if err != nil {
		return fmt.Errorf("sqlsink: write: %w", err)
	}
	return nil
}

const maxIdentifier = 63 // bytes; PostgreSQL cuts what is longer, without an error

// check finds names that cannot be: only a batch knows the buffer's columns.
func (w *writer) check(cells []cell) error {
	taken := map[string]bool{w.key: true}
	for _, c := range cells {
		switch {
		case len(c.name) > maxIdentifier+len(`""`):
			return fmt.Errorf("sqlsink: a column's name must have at most %d bytes, got %s: see Table.Columns", maxIdentifier, c.name)
		case taken[c.name]:
			return fmt.Errorf("sqlsink: two columns would be written to %s: see Table.Columns", c.name)
		}
		taken[c.name] = true
	}
	return nil
}

// keys returns the entities as keys, or those rows that cannot be stored.
func (w *writer) keys(rows []buffer.Row) ([]any, error) {
	var bad buffer.RowErrors
	keys := make([]any, len(rows))
	for i, row := range rows {
		var err error
		switch w.table.KeyType {
		case KeyText:
			keys[i] = row.Entity
			if !isText(w.dialect, row.Entity) {
				err = ErrBadText
			}
		case KeyBytes:
			keys[i] = []byte(row.Entity)
		case KeyInt:
			n, parseErr := strconv.ParseInt(row.Entity, 10, 64)
			keys[i] = n
			if parseErr != nil || strconv.FormatInt(n, 10) != row.Entity || n == 0 && w.dialect == DialectMySQL && !w.table.UpdateOnly {
				err = ErrBadKey
			}
		}
		for _, v := range row.Values {
			if !isText(w.dialect, v.Text) {
				err = ErrBadText
			}
		}
		if err != nil {
			bad = append(bad, buffer.RowError{Entity: row.Entity, Err: err})
		}
	}
	if bad != nil {
		return nil, bad
	}
	return keys, nil
}

// lock locks the rows of the keys and returns those that are not there as errors.
func (w *writer) lock(ctx context.Context, tx *sql.Tx, rows []buffer.Row, keys []any) error {
	found := make(map[string]bool, len(keys))
	query := func(statement string, args ...any) error {
		result, err := tx.QueryContext(ctx, statement, args...)
		if err != nil {
			return err
		}
		defer result.Close() //nolint:errcheck // Err tells
		for result.Next() {
			var key any
			if err := result.Scan(&key); err != nil {
				return err
			}
			found[keyText(key)] = true
		}
		return result.Err()
	}
	lock := " FOR UPDATE"
	if w.dialect == DialectSQLite {
		lock = "" // the ledger's row has locked all of it
	}
	var err error
	if w.dialect == DialectPostgres {
		err = query("SELECT "+w.key+" FROM "+w.name+" WHERE "+w.key+" = ANY(CAST($1::text AS "+w.keyArray()+"[])) ORDER BY 1"+lock,
			array(len(keys), func(i int) any { return keys[i] }))
	} else {
		for at := 0; at < len(keys) && err == nil; at += maxValues(w.dialect) {
			part := keys[at:min(at+maxValues(w.dialect), len(keys))]
			// SQLite takes a quoted name that is no column for a string, unless it says of which table.
			err = query("SELECT t."+w.key+" FROM "+w.name+" AS t WHERE t."+w.key+" IN (?"+strings.Repeat(", ?", len(part)-1)+") ORDER BY 1"+lock, part...)
		}
	}
	if err != nil {
		return fmt.Errorf("sqlsink: lock: %w", err)
	}
	var missing buffer.RowErrors
	for i, key := range keys {
		if !found[keyText(key)] {
			missing = append(missing, buffer.RowError{Entity: rows[i].Entity, Err: ErrUnknownKey})
		}
	}
	if missing != nil {
		return missing
	}
	return nil
}

// keyText makes keys comparable: drivers return bytes for text, or the reverse.
func keyText(key any) string {
	switch k := key.(type) {
	case []byte:
		return string(k)
	case string:
		return k
	}
	return fmt.Sprint(key)
}

// maxValues is how many values a statement may have. SQLite would take 32,766; but it is in the process, where a statement
// more costs little, and what its drivers need to bind values grows with the square of their number.
func maxValues(d Dialect) int {
	if d == DialectMySQL {
		return 65_535
	}
	return 100
}

// upsert writes rows in as few statements as the number of values allows. For SQLite, to which it costs no round trip, it has one
// prepared: reading the text of many is half of what they take.
func (w *writer) upsert(ctx context.Context, tx *sql.Tx, cells []cell, rows []buffer.Row, keys []any) error {
	width := 1 + len(cells)
	perStatement := max(1, maxValues(w.dialect)/width)
	args := make([]any, 0, min(perStatement, len(rows))*width)
	var prepared *sql.Stmt
	for at := 0; at < len(rows); at += perStatement {
		end := min(at+perStatement, len(rows))
		args = args[:0]
		for i := at; i < end; i++ {
			args = append(args, keys[i])
			for _, c := range cells {
				args = append(args, c.value(rows[i]))
			}
		}
		var err error
		switch {
		case w.dialect != DialectSQLite || end-at < perStatement:
			_, err = tx.ExecContext(ctx, w.upsertStatement(cells, end-at), args...)
		case prepared == nil:
			if prepared, err = tx.PrepareContext(ctx, w.upsertStatement(cells, perStatement)); err != nil {
				return err
			}
			defer prepared.Close() //nolint:errcheck // nothing depends on it
			fallthrough
		default:
			_, err = prepared.ExecContext(ctx, args...)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) upsertStatement(cells []cell, rows int) string {
	tuple := "(?" + strings.Repeat(", ?", len(cells)) + ")"
	return "INSERT INTO " + w.name + w.alias() + " (" + w.columnList(cells) + ") VALUES " +
		tuple + strings.Repeat(", "+tuple, rows-1) + w.onConflict(cells)
}

func (w *writer) alias() string {
	if w.dialect == DialectMySQL {
		return ""
	}
	return " AS t"
}

func (w *writer) columnList(cells []cell) string {
	names := w.key
	for _, c := range cells {
		names += ", " + c.name
	}
	return names
}

func (w *writer) onConflict(cells []cell) string {
	assignments := make([]string, len(cells))
	for i, c := range cells {
		if w.dialect == DialectMySQL {
			assignments[i] = c.assign(c.name, c.at, "VALUES("+c.name+")", "VALUES("+c.at+")")
		} else {
			assignments[i] = c.assign("t."+c.name, "t."+c.at, "excluded."+c.name, "excluded."+c.at)
		}
	}
	clause := " ON CONFLICT (" + w.key + ") DO UPDATE SET "
	if w.dialect == DialectMySQL {
		clause = " ON DUPLICATE KEY UPDATE "
	}
	return clause + strings.Join(assignments, ", ")
}

// writeArrays sends each column as one text, which PostgreSQL reads as an array: no limit to the number of rows, and the same
// statement each time. How drivers encode arrays differs; text is text.
func (w *writer) writeArrays(ctx context.Context, tx *sql.Tx, cells []cell, rows []buffer.Row, keys []any) error {
	args := []any{array(len(rows), func(i int) any { return keys[i] })}
	arrays := "CAST($1::text AS " + w.keyArray() + "[])"
	names := `":"` // no column has this name
	for n, c := range cells {
		args = append(args, array(len(rows), func(i int) any { return c.value(rows[i]) }))
		arrays += ", CAST($" + strconv.Itoa(n+2) + "::text AS " + c.array + "[])"
		names += ", " + c.name
	}
	from := "unnest(" + arrays + ") AS n(" + names + ")"
	statement := "INSERT INTO " + w.name + " AS t (" + w.columnList(cells) + ") SELECT * FROM " + from + w.onConflict(cells)
	if w.table.UpdateOnly {
		assignments := make([]string, len(cells))
		for i, c := range cells {
			assignments[i] = c.assign("t."+c.name, "t."+c.at, "n."+c.name, "n."+c.at)
		}
		statement = "UPDATE " + w.name + " AS t SET " + strings.Join(assignments, ", ") + " FROM " + from + " WHERE t." + w.key + ` = n.":"`
	}
	_, err := tx.ExecContext(ctx, statement, args...)
	return err
}

func (w *writer) keyArray() string {
	switch w.table.KeyType {
	case KeyInt:
		return "bigint"
	case KeyBytes:
		return "bytea"
	case KeyText:
	}
	return "text"
}

// array writes values as PostgreSQL's text form of an array.
func array(n int, value func(i int) any) string {
	var b strings.Builder
	b.WriteByte('{')
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		switch v := value(i).(type) {
		case nil:
			b.WriteString("NULL")
		case int64:
			b.WriteString(strconv.FormatInt(v, 10))
		case float64:
			b.WriteString(strconv.FormatFloat(v, 'g', 17, 64))
		case []byte:
			b.WriteString(`"\\x` + hex.EncodeToString(v) + `"`)
		case string:
			b.WriteByte('"')
			for j := range len(v) {
				if v[j] == '"' || v[j] == '\\' {
					b.WriteByte('\\')
				}
				b.WriteByte(v[j])
			}
			b.WriteByte('"')
		}
	}
	b.WriteByte('}')
	return b.String()
}

var errNotUpdated = errors.New("a row that was locked is not there")

// update changes rows one by one: MySQL assigns from left to right in such statements only, and in SQLite they cost little.
func (w *writer) update(ctx context.Context, tx *sql.Tx, cells []cell, rows []buffer.Row, keys []any) error {
	// Each new value is bound as often as it is used, in the order of use.
	const fresh, freshAt = "\x01", "\x02"
	assignments := make([]string, len(cells))
	for i, c := range cells {
		assignments[i] = c.assign(c.name, c.at, fresh, freshAt)
	}
	var uses []int // indexes of cells
	for i, a := range assignments {
		for _, r := range a {
			switch string(r) {
			case fresh:
				uses = append(uses, i)
			case freshAt:
				uses = append(uses, i+1)
			}
		}
		assignments[i] = strings.NewReplacer(fresh, "?", freshAt, "?").Replace(a)
	}
	statement, err := tx.PrepareContext(ctx, "UPDATE "+w.name+" SET "+strings.Join(assignments, ", ")+" WHERE "+w.key+" = ?")
	if err != nil {
		return err
	}
	defer statement.Close() //nolint:errcheck // it ends with the transaction
	for i, row := range rows {
		args := make([]any, 0, len(uses)+1)
		for _, u := range uses {
			args = append(args, cells[u].value(row))
		}
		result, err := statement.ExecContext(ctx, append(args, keys[i])...)
		if err != nil {
			return err
		}
		// MySQL counts rows that change: none of a row that stays as it was.
		if n, err := result.RowsAffected(); w.dialect == DialectSQLite && (err != nil || n != 1) {
			return errors.Join(errNotUpdated, err)
		}
	}
	return nil
}
