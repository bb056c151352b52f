// Package script runs Lua scripts as parts of pipelines, which rueidis.Lua cannot do without a SCRIPT LOAD on every
// node before each pipeline.
package script

import (
	"context"
	"crypto/sha1"
	"encoding/hex"
	"strconv"

	"github.com/redis/rueidis"
)

// Script is the source of a Lua script.
type Script struct {
	source, sha string
	retryable   bool
	bySource    bool
	last        bool
}

// New returns a script that is sent once: whether it ran is unknown if its reply is lost.
func New(source string) *Script {
	sum := sha1.Sum([]byte(source))
	return &Script{source: source, sha: hex.EncodeToString(sum[:])}
}

// NewRetryable returns a script that rueidis sends again when a reply is lost: running it twice must be running it once.
func NewRetryable(source string) *Script {
	s := New(source)
	s.retryable = true
	return s
}

// BySource makes s be sent with its source each time. That is for short scripts in pipelines to several nodes: if one
// node hangs, the others could not be told the source in time.
func (s *Script) BySource() *Script {
	s.bySource = true
	return s
}

// Last makes calls of s be sent again where another one before them in a pipeline has to be: what they say is to hold after it.
func (s *Script) Last() *Script {
	s.last = true
	return s
}

// Call is one run of a script, in a form that can be built twice.
type Call struct {
	Script     *Script
	Keys, Args []string
	// Aside takes a connection of the client's blocking pool, which is closed unless it answers in time: those that are
	// shared may have fallen silent.
	Aside bool
}

// Call returns a call of s, to be made by Do or DoMulti.
func (s *Script) Call(keys []string, args ...string) Call {
	return Call{Script: s, Keys: keys, Args: args}
}

func (c Call) build(client rueidis.Client, bySource bool) rueidis.Completed {
	var cmd rueidis.Completed
	n := int64(len(c.Keys))
	if c.Aside {
		name, script := "EVALSHA", c.Script.sha
		if bySource || c.Script.bySource {
			name, script = "EVAL", c.Script.source
		}
		return client.B().Arbitrary(name, script, strconv.FormatInt(n, 10)).Keys(c.Keys...).Args(c.Args...).Blocking()
	}
	if bySource || c.Script.bySource {
		cmd = client.B().Eval().Script(c.Script.source).Numkeys(n).Key(c.Keys...).Arg(c.Args...).Build()
	} else {
		cmd = client.B().Evalsha().Sha1(c.Script.sha).Numkeys(n).Key(c.Keys...).Arg(c.Args...).Build()
	}
	if c.Script.retryable {
		// Pinned: rueidis 1.0.79 may put a command that it sends again back into its pool, while the writer of the
		// connection that died still reads it.
		return cmd.ToRetryable().Pin()
	}
	return cmd
}

// Do makes one call. If the server does not know the script, it is sent once more, with its source.
func Do(ctx context.Context, client rueidis.Client, call Call) rueidis.RedisResult {
	r := client.Do(ctx, call.build(client, false))
	if unknown(r) {
		r = client.Do(ctx, call.build(client, true))
	}
	return r
}

// DoMulti sends calls in one pipeline and returns their results. Calls that a server did not know the script of are
// sent once more, with its source.
func DoMulti(ctx context.Context, client rueidis.Client, calls []Call) []rueidis.RedisResult {
	cmds := make([]rueidis.Completed, len(calls))
	for i, c := range calls {
		cmds[i] = c.build(client, false)
	}
	results := client.DoMulti(ctx, cmds...)

	var again []int
	for i, r := range results {
		if unknown(r) || calls[i].Script.last && len(again) > 0 {
			again = append(again, i)
		}
	}
	if len(again) > 0 {
		cmds = cmds[:0]
		for _, i := range again {
			cmds = append(cmds, calls[i].build(client, true))
		}
		for j, r := range client.DoMulti(ctx, cmds...) {
			results[again[j]] = r
		}
	}
	return results
}

func unknown(r rueidis.RedisResult) bool {
	e, ok := rueidis.IsRedisErr(r.Error())
	return ok && e.IsNoScript()
}
