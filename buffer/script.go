package buffer

import (
	_ "embed"

	"github.com/redispatterns/redispatterns/internal/script"
)

// What each script does is said at its beginning.
var (
	//go:embed merge.lua
	mergeSource string
	//go:embed add.lua
	addSource string
	//go:embed claim.lua
	claimSource string
	//go:embed read.lua
	readSource string
	//go:embed extend.lua
	extendSource string
	//go:embed exclude.lua
	excludeSource string
	//go:embed ack.lua
	ackSource string
	//go:embed regress.lua
	regressSource string
	//go:embed replay.lua
	replaySource string
	//go:embed register.lua
	registerSource string
	//go:embed stats.lua
	statsSource string
	//go:embed pending.lua
	pendingSource string
)

var (
	// Not retryable, though it may be sent again: whether an earlier copy may have run decides on what an error means.
	addScript      = script.New(mergeSource + addSource)
	claimScript    = script.NewRetryable(claimSource)
	readScript     = script.NewRetryable(readSource)
	extendScript   = script.NewRetryable(extendSource)
	excludeScript  = script.NewRetryable(excludeSource)
	ackScript      = script.NewRetryable(mergeSource + ackSource)
	regressScript  = script.NewRetryable(regressSource)
	replayScript   = script.NewRetryable(mergeSource + replaySource)
	registerScript = script.NewRetryable(registerSource)
	statsScript    = script.NewRetryable(statsSource)
	pendingScript  = script.NewRetryable(pendingSource)
)
