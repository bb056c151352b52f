package integration

import (
	"database/sql"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/redispatterns/redispatterns/internal/integration/redistest"
)

func TestRedistest_Databases(t *testing.T) {
	t.Parallel()
	for _, kind := range []redistest.Kind{redistest.Postgres, redistest.MariaDB} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			a, b := redistest.NewDatabase(t, kind), redistest.NewDatabase(t, kind)
			require.NotEqual(t, a.DSN, b.DSN)
			for _, d := range []redistest.Database{a, b} {
				db, err := sql.Open(d.Driver, d.DSN)
				require.NoError(t, err)
				defer db.Close()
				_, err = db.ExecContext(t.Context(), "CREATE TABLE mine (id BIGINT PRIMARY KEY)")
				require.NoError(t, err, "each is empty")
			}
		})
	}
}
