package redistest

import (
	"context"
	"database/sql"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/go-sql-driver/mysql"
	_ "github.com/jackc/pgx/v5/stdlib"
)

// The SQL databases.
const (
	Postgres Kind = "postgres-15"
	MariaDB  Kind = "mariadb-10.11"
)

// Database is a database of a SQL server which the tests of the run share.
type Database struct {
	Driver, DSN string // for sql.Open; both drivers are linked
}

// NewDatabase makes an empty database for this test alone, on a server shared by the run. Without Docker the test cannot run.
func NewDatabase(tb testing.TB, kind Kind) Database {
	tb.Helper()
	d, err := newDatabase(kind)
	must(tb, err)
	return d
}

// DatabaseForMain is NewDatabase for a program that has no testing.TB, which must have called StartForMain and later calls
// its stop.
func DatabaseForMain(kind Kind) (Database, error) { return newDatabase(kind) }

func newDatabase(kind Kind) (Database, error) {
	server, err := run.databases.get(kind, func() (*databaseServer, error) { return startDatabase(kind) })
	if err != nil {
		return Database{}, err
	}
	name := "test" + strconv.FormatUint(uint64(prefixRun), 16) + "_" + strconv.FormatUint(uint64(prefixSeq.Add(1)), 10)
	if err := server.exec("CREATE DATABASE " + name); err != nil {
		return Database{}, fmt.Errorf("database on %s: %w", kind, err)
	}
	return server.database(name), nil
}

// databaseServer is one process in a container.
type databaseServer struct {
	kind Kind
	port int
}

func (s *databaseServer) database(name string) Database {
	if s.kind == Postgres {
		return Database{"pgx", fmt.Sprintf("postgres://test@127.0.0.1:%d/%s?sslmode=disable", s.port, name)}
	}
	return Database{"mysql", fmt.Sprintf("root@tcp(127.0.0.1:%d)/%s", s.port, name)}
}

func (s *databaseServer) exec(statement string) error {
	ctx, cancel := startContext()
	defer cancel()
	name := "mysql"
	if s.kind == Postgres {
		name = "postgres"
	}
	d := s.database(name)
	db, err := sql.Open(d.Driver, d.DSN)
	if err != nil {
		return err
	}
	defer db.Close() //nolint:errcheck // the statement tells
	return poll(ctx, func() (bool, error) {
		_, err := db.ExecContext(ctx, statement)
		return err == nil || strings.Contains(err.Error(), "exists"), err
	})
}

// launchDatabase prepares a server's files, makes the user that it runs as, and starts it in the background, without fsync,
// which a client may turn on: tests kill the clients of databases, not databases.
var launchDatabase = map[Kind]string{
	Postgres: `set -e
printf 'root:x:0:0::/:/bin/sh\ndb:x:999:999::/db:/bin/sh\n' >/etc/passwd
mkdir -p /db; chown 999:999 /db; cd /db
as_db="setpriv --reuid=999 --regid=999 --clear-groups"
bin=$(echo /usr/lib/postgresql/*/bin)
$as_db "$bin/initdb" -D /db/data -U test -A trust -E UTF8 --locale=C --no-sync >/db/log 2>&1 || { cat /db/log; exit 1; }
echo "host all all 0.0.0.0/0 trust" >>/db/data/pg_hba.conf
echo "fsync = off" >>/db/data/postgresql.conf
$as_db "$bin/postgres" -D /db/data -p "$1" -k /db -c 'listen_addresses=*' -c max_connections=200 >>/db/log 2>&1 </dev/null &`,
	MariaDB: `set -e
printf 'root:x:0:0::/:/bin/sh\n' >/etc/passwd
mkdir -p /db; cd /db
mariadb-install-db --no-defaults --user=root --datadir=/db/data --skip-test-db >/db/log 2>&1 || { cat /db/log; exit 1; }
mariadbd --no-defaults --user=root --datadir=/db/data --port="$1" --bind-address=0.0.0.0 --socket=/db/socket --skip-grant-tables \
  --innodb-flush-log-at-trx-commit=0 --character-set-server=utf8mb4 --max-connections=200 --skip-name-resolve >>/db/log 2>&1 </dev/null &`,
}

func startDatabase(kind Kind) (*databaseServer, error) {
	e, err := env()
	if err != nil {
		return nil, err
	}
	if e.docker == nil {
		return nil, &unavailableError{string(kind), "needs Docker"}
	}
	found, err := freePorts(1)
	if err != nil {
		return nil, err
	}
	if kind == MariaDB {
		_ = mysql.SetLogger(&mysql.NopLogger{}) // it logs what it also returns; only nil is an error
	}
	// Building the image has its own bound, and is not part of the start's.
	if _, err := e.docker.image(kind); err != nil {
		return nil, err
	}
	ctx, cancel := startContext()
	defer cancel()
	h, err := e.docker.newContainer(ctx, kind, found)
	if err != nil {
		return nil, err
	}
	c := h.(*container)
	s := &databaseServer{kind, found[0]}
	err = func() error {
		if _, err := c.exec(ctx, launchDatabase[kind], strconv.Itoa(s.port)); err != nil {
			return err
		}
		return s.exec("CREATE DATABASE ready")
	}()
	if err != nil {
		log, _ := c.exec(context.WithoutCancel(ctx), `tail -n 20 /db/log`)
		c.close()
		return nil, fmt.Errorf("start %s: %w; its last lines:\n%s", kind, err, log)
	}
	_, _ = c.c.Inspect(ctx) // for its side effect: it closes idle connections to the daemon
	run.onStop(c.close)
	return s, nil
}
