package featurestore

import (
	_ "embed"

	"github.com/redispatterns/redispatterns/internal/script"
)

// What each script does is said at its beginning.
var (
	//go:embed put.lua
	putSource string
	//go:embed load.lua
	loadSource string
	//go:embed delete.lua
	deleteSource string
	//go:embed live.lua
	liveSource string
	//go:embed begin.lua
	beginSource string
	//go:embed switch.lua
	switchSource string
	//go:embed drop.lua
	dropSource string
)

var (
	putScript    = script.NewRetryable(putSource).Last() // of two rows of an entity in one pipeline the second one is to stay
	loadScript   = script.NewRetryable(loadSource).Last()
	deleteScript = script.NewRetryable(deleteSource)
	liveScript   = script.NewRetryable(liveSource).Last()
	beginScript  = script.NewRetryable(beginSource)
	switchScript = script.NewRetryable(switchSource)
	dropScript   = script.NewRetryable(dropSource)
)
