package ratelimit

import (
	_ "embed"

	"github.com/redispatterns/redispatterns/internal/script"
)

//go:embed head.lua
var headSource string

//go:embed store.lua
var storeSource string

//go:embed fixed.lua
var fixedSource string

//go:embed sliding.lua
var slidingSource string

//go:embed approximate.lua
var approximateSource string

//go:embed bucket.lua
var bucketSource string

//go:embed call.lua
var callSource string

//go:embed all.lua
var allSource string

// algorithm is one of the ways to limit. None of the scripts may be sent again when a reply was lost: it may have run.
type algorithm struct {
	letter string // in keys, and for all.lua
	call   *script.Script
}

func newAlgorithm(letter, name, source string) algorithm {
	return algorithm{letter, script.New(headSource + storeSource + source + "local open = " + name + "\n" + callSource)}
}

var (
	fixedWindow       = newAlgorithm("f", "fixed", fixedSource)
	slidingWindow     = newAlgorithm("s", "sliding", slidingSource)
	approximateWindow = newAlgorithm("a", "approximate", approximateSource)
	tokenBucket       = newAlgorithm("b", "bucket", bucketSource)

	allScript = script.New(headSource + storeSource + fixedSource + slidingSource + approximateSource + bucketSource + allSource)
)
