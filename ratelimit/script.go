package ratelimit

import (
	_ "embed"
	"strconv"
	"strings"

	"github.com/redispatterns/redispatterns/internal/script"
)

//go:embed now.lua
var nowSource string

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

//go:embed open.lua
var openSource string

//go:embed all.lua
var allSource string

// algorithm is one of the ways to limit.
type algorithm struct {
	name    string // for all.lua; its first letter is in keys
	numbers int    // that say what a limit is
	call    *script.Script
	open    string // open.lua of it
}

// newAlgorithm puts the sections of an algorithm's file into call.lua, where they run as they are: functions would
// cost a third of the script's time.
func newAlgorithm(name string, numbers int, source string) algorithm {
	replacements := []string{"--[[name]]", name, "--[[numbers]]", strconv.Itoa(numbers)}
	_, sections, _ := strings.Cut(source, "\n--- ")
	for section := range strings.SplitSeq(sections, "\n--- ") {
		title, body, _ := strings.Cut(section, "\n")
		replacements = append(replacements, "--[["+title+"]]", strings.TrimSpace(body))
	}
	fill := strings.NewReplacer(replacements...).Replace
	return algorithm{name, numbers, script.New(nowSource + fill(callSource)), fill(openSource)}
}

// None of the scripts may be sent again when a reply was lost: it may have run.
var (
	fixedWindow       = newAlgorithm("fixed", 2, fixedSource)
	slidingWindow     = newAlgorithm("sliding", 3, slidingSource)
	approximateWindow = newAlgorithm("approximate", 2, approximateSource)
	tokenBucket       = newAlgorithm("bucket", 3, bucketSource)

	allScript = script.New(nowSource + fixedWindow.open + slidingWindow.open + approximateWindow.open + tokenBucket.open + allSource)
)
