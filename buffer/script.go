package buffer

import (
	_ "embed"

	"github.com/redispatterns/redispatterns/internal/script"
)

// What each script does is said at its beginning.
var (
	//go:embed merge.lua
	mergeSource string
	//go:embed loss.lua
	lossSource string
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
	//go:embed some.lua
	someSource string
	//go:embed letters.lua
	lettersSource string
)

// None is sent again by rueidis, though all may be: add's caller must know whether a copy may have run, and rueidis 1.0.79
// recycles the memory of a command that it sent again while the writer of the broken connection may still read it.
var (
	addScript      = script.New(mergeSource + lossSource + addSource)
	claimScript    = script.New(claimSource)
	readScript     = script.New(readSource)
	extendScript   = script.New(extendSource)
	excludeScript  = script.New(excludeSource)
	ackScript      = script.New(mergeSource + ackSource)
	regressScript  = script.New(lossSource + regressSource)
	replayScript   = script.New(mergeSource + replaySource)
	registerScript = script.New(registerSource)
	statsScript    = script.New(statsSource)
	pendingScript  = script.New(pendingSource)
	someScript     = script.New(someSource)
	lettersScript  = script.New(lettersSource)
)
