// Package integration holds every test that talks to a server.
package integration

import (
	"os"
	"testing"

	"github.com/redispatterns/redispatterns/internal/integration/redistest"
)

func TestMain(m *testing.M) { os.Exit(redistest.Run(m)) }
