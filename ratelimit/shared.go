package ratelimit

import (
	"context"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/internal/deadline"
)

// shared is what limiters of different limits for the same keys have in common.
type shared struct {
	client    rueidis.Client
	alg       *algorithm
	base      Limit // of the first limiter; With makes the others
	opts      Options
	cluster   bool
	deadlines *deadline.Shared
	breakers  breakers

	waiting table[*batch] // of lanes with a round trip under way: the calls for the next one, or nil
	lines   table[*line]  // of keys that callers of Wait wait for
	denied  denyCache
	local   localLimiters

	derived      sync.Map // of With: *Limiter by Limit
	derivedCount atomic.Int64
}

func newShared(client rueidis.Client, alg *algorithm, limit Limit, opts Options) *shared {
	s := &shared{
		client:    client,
		alg:       alg,
		base:      limit,
		opts:      opts,
		cluster:   client.Mode() == rueidis.ClientModeCluster,
		deadlines: deadline.New(opts.Timeout),
		waiting:   newTable[*batch](),
		lines:     newTable[*line](),
		denied:    newDenyCache(opts.DenyCacheSize, opts.DenyCacheMaxAge),
		local:     localLimiters{newTable[*localState]()},
	}
	s.breakers = newBreakers(1, opts.Timeout)
	if s.cluster {
		s.breakers = newBreakers(slotRanges, opts.Timeout)
	}
	return s
}

// subject is a key under a limit. Limiters of one limit are the same, however many With has made.
type subject struct {
	limit Limit
	key   string
}

// table is a map by subject in parts, so that few callers wait for each other.
type table[V any] struct {
	seed  maphash.Seed
	parts [tableParts]tablePart[V]
}

const tableParts = 64

type tablePart[V any] struct {
	sync.RWMutex
	entries map[subject]V
	size    atomic.Int32  // of entries; kept up by denyCache alone, which reads it without the lock
	dropped time.Duration // when denyCache last dropped a key, since epoch
}

func newTable[V any]() table[V] { return table[V]{seed: maphash.MakeSeed()} }

func (t *table[V]) part(key string) *tablePart[V] { return t.partOf(key, tableParts) }

// partOf returns one of the first few parts.
func (t *table[V]) partOf(key string, few uint64) *tablePart[V] {
	return &t.parts[maphash.String(t.seed, key)%few]
}

// set puts an entry into a locked part.
func (p *tablePart[V]) set(s subject, v V) {
	if p.entries == nil {
		p.entries = make(map[subject]V)
	}
	p.entries[s] = v
}

// epoch is the origin of the package's monotonic clock.
var epoch = time.Now()

func sinceEpoch() time.Duration { return time.Since(epoch) }

// detach returns a context with ctx's values that does not end with it.
func detach(ctx context.Context) context.Context {
	if ctx.Done() == nil {
		return ctx
	}
	return context.WithoutCancel(ctx)
}
