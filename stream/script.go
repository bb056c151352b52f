package stream

import (
	_ "embed"

	"github.com/redispatterns/redispatterns/internal/script"
)

// What each script does is said at its beginning.
var (
	//go:embed entry.lua
	entrySource string
	//go:embed claim.lua
	claimSource string
	//go:embed adopt.lua
	adoptSource string
	//go:embed renew.lua
	renewSource string
	//go:embed begin.lua
	beginSource string
	//go:embed release.lua
	releaseSource string
	//go:embed dead.lua
	deadSource string
	//go:embed redrive.lua
	redriveSource string
	//go:embed ack.lua
	ackSource string
	//go:embed publish.lua
	publishSource string
	//go:embed due.lua
	dueSource string
	//go:embed trim.lua
	trimSource string
	//go:embed reap.lua
	reapSource string
	//go:embed leave.lua
	leaveSource string
)

var (
	claimScript   = script.New(entrySource + claimSource)
	adoptScript   = script.New(entrySource + adoptSource)
	renewScript   = script.New(renewSource)
	beginScript   = script.New(beginSource)
	releaseScript = script.New(releaseSource)
	deadScript    = script.New(deadSource)
	redriveScript = script.New(redriveSource)
	ackScript     = script.New(ackSource)
	publishScript = script.New(publishSource) // with a delay alone
	onceScript    = script.NewRetryable(publishSource)
	dueScript     = script.New(dueSource)
	trimScript    = script.New(trimSource)
	reapScript    = script.New(reapSource)
	leaveScript   = script.New(leaveSource)
)
