package cache

import (
	"context"
	"crypto/sha1"
	_ "embed"
	"encoding/hex"

	"github.com/redis/rueidis"
)

//go:embed stamp.lua
var stampSource string

//go:embed acquire.lua
var acquireSource string

//go:embed store.lua
var storeSource string

//go:embed lease.lua
var leaseSource string

// The scripts may be sent again when a reply was lost: a token takes, holds and writes once.
var (
	stampScript   = newScript(stampSource)
	acquireScript = newScript(acquireSource)
	storeScript   = newScript(storeSource)
	leaseScript   = newScript(leaseSource)
)

// script is run by EVALSHA as part of a pipeline, which rueidis.Lua cannot do without a SCRIPT LOAD on
// every node before each pipeline.
type script struct{ source, sha string }

func newScript(source string) *script {
	sum := sha1.Sum([]byte(source))
	return &script{source, hex.EncodeToString(sum[:])}
}

// call is one run of a script, in a form that can be built twice.
type call struct {
	script     *script
	keys, args []string
}

func (c call) build(client rueidis.Client) rueidis.Completed {
	return client.B().Evalsha().Sha1(c.script.sha).Numkeys(int64(len(c.keys))).Key(c.keys...).Arg(c.args...).Build().ToRetryable()
}

func (c call) buildWithSource(client rueidis.Client) rueidis.Completed {
	return client.B().Eval().Script(c.script.source).Numkeys(int64(len(c.keys))).Key(c.keys...).Arg(c.args...).Build().ToRetryable()
}

// pipeline sends calls in one DoMulti and returns their results. Calls that a server did not know the script
// of are sent once more, with its source.
func pipeline(ctx context.Context, client rueidis.Client, calls []call) []rueidis.RedisResult {
	cmds := make([]rueidis.Completed, len(calls))
	for i, c := range calls {
		cmds[i] = c.build(client)
	}
	results := client.DoMulti(ctx, cmds...)

	var again []int
	for i, r := range results {
		if e, ok := rueidis.IsRedisErr(r.Error()); ok && e.IsNoScript() {
			again = append(again, i)
		}
	}
	if len(again) > 0 {
		cmds = cmds[:0]
		for _, i := range again {
			cmds = append(cmds, calls[i].buildWithSource(client))
		}
		for j, r := range client.DoMulti(ctx, cmds...) {
			results[again[j]] = r
		}
	}
	return results
}
