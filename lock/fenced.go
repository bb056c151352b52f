package lock

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strconv"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/internal/script"
)

//go:embed fenced.lua
var fencedSource string

var fencedScript = script.New(fencedSource)

// maxFence is what a script can compare exactly.
const maxFence = 1 << 53

// SetFenced writes value at key unless a holder with a higher fence has written there before: then it returns ErrStale and
// writes nothing. So a holder that lost its lock and does not know it yet cannot undo what its successor did. Writing
// again with the same fence replaces the value. One round trip.
//
// The key is a hash with the fields "value" and "fence", to be read with HGET. It has no TTL: once it is gone, any fence
// would be accepted. What is not in Redis is guarded in the same way: UPDATE … WHERE fence <= $1.
func SetFenced(ctx context.Context, client rueidis.Client, key string, fence int64, value string) error {
	if fence <= 0 || fence > maxFence {
		return errors.New("lock: set fenced: fence must be positive and at most 2^53, as what Lock.Fence returns is")
	}
	call := fencedScript.Call([]string{key}, strconv.FormatInt(fence, 10), value)
	written, err := script.Do(ctx, client, call).AsInt64()
	if err != nil {
		return fmt.Errorf("lock: set fenced: %w", err)
	}
	if written == 0 {
		return ErrStale
	}
	return nil
}
