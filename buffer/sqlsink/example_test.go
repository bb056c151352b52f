package sqlsink_test

import (
	"context"
	"database/sql"
	"log"

	"github.com/redispatterns/redispatterns/buffer"
	"github.com/redispatterns/redispatterns/buffer/sqlsink"
)

var (
	ctx = context.Background()
	db  *sql.DB
)

func ExamplePostgres() {
	for _, statement := range sqlsink.Migrations(sqlsink.DialectPostgres) {
		if _, err := db.ExecContext(ctx, statement); err != nil {
			log.Fatal(err)
		}
	}
	sink, err := sqlsink.Postgres(db, sqlsink.Table{Name: "posts", Key: "id", KeyType: sqlsink.KeyInt})
	if err != nil {
		log.Fatal(err)
	}
	_ = sink // for Run or Flush
}

// Statements of one's own, under the same ledger.
func ExampleWithTx() {
	sink, err := sqlsink.WithTx(db, sqlsink.DialectPostgres, func(ctx context.Context, tx *sql.Tx, batch *buffer.Batch) error {
		for _, row := range batch.Rows {
			if _, err := tx.ExecContext(ctx, "SELECT add_views($1, $2)", row.Entity, row.Values[0].Int); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
	_ = sink // for Run or Flush
}
