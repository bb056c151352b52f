package cache

import (
	"sync/atomic"
	"time"

	"github.com/redispatterns/redispatterns/internal/script"
)

// stampMemory is how long reads go on with a stamp, counted from before it was asked for. Invalidate waits as
// long before it returns, so that whoever begins to read after it has returned cannot use the old one. It is
// part of the protocol: all processes must agree on it. After stampRenewal one read asks for it again, while
// the others go on, so that a busy process hardly ever has forgotten it.
const (
	stampMemory  = 20 * time.Millisecond
	stampRenewal = 5 * time.Millisecond
)

// stampCalls returns the calls that read the stamps of some ranges of slots, or make them.
func (c *Cache[K, V]) stampCalls(parts []int) []script.Call {
	calls := make([]script.Call, len(parts))
	for j, part := range parts {
		calls[j] = stampScript.Call([]string{c.keys.stamp(c.stampTags[part])}, randomString(), millis(c.stampTTL))
	}
	return calls
}

// rememberedStamp is a stamp that reads may use until a time since epoch.
type rememberedStamp struct {
	stamp string
	until time.Duration
	renew atomic.Int64 // when the next read shall ask for it again, since epoch
}

// rememberedStamp returns the stamp that a read may use now, or "" if it has to ask for it.
func (c *Cache[K, V]) rememberedStamp(part int, now time.Duration) string {
	r := c.remembered[part].Load()
	if r == nil || now >= r.until {
		return ""
	}
	if due := r.renew.Load(); int64(now) >= due && r.renew.CompareAndSwap(due, int64(now+stampRenewal)) {
		return ""
	}
	return r.stamp
}

// remembers reports whether rememberedStamp would return a stamp, without taking on its renewal.
func (c *Cache[K, V]) remembers(part int, now time.Duration) bool {
	r := c.remembered[part].Load()
	return r != nil && r.stamp != "" && now < r.until && int64(now) < r.renew.Load()
}

func (c *Cache[K, V]) rememberStamp(part int, stamp string, asked time.Duration) {
	r := &rememberedStamp{stamp: stamp, until: asked + stampMemory}
	r.renew.Store(int64(asked + stampRenewal))
	c.remembered[part].Store(r)
}
