package cache

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/internal/script"
)

func millis(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }

// randomString returns 64 random bits: a stamp or a token.
func randomString() string {
	var b [stampSize]byte
	for i, bits := 0, rand.Uint64(); i < stampSize; i, bits = i+1, bits>>8 {
		b[i] = byte(bits)
	}
	return string(b[:])
}

// lifetime returns how long Redis keeps a value that is stored now: TTL, shortened at random, and StaleTTL.
func (s *shared[K, V]) lifetime() time.Duration {
	ttl := s.opts.TTL
	if s.opts.Jitter > 0 {
		ttl -= time.Duration(s.opts.Jitter * rand.Float64() * float64(ttl))
	}
	return max(ttl, time.Millisecond) + s.opts.StaleTTL
}

func (c *Cache[K, V]) storeCall(w *want[K, V], token string, e []byte, ttl time.Duration) script.Call {
	return storeScript.Call([]string{w.entry, leaseKey(w.entry)}, token, rueidis.BinaryString(e), millis(ttl))
}

func (c *Cache[K, V]) set(ctx context.Context, values map[K]V) error {
	if err := c.begin(ctx); err != nil {
		return err
	}
	ws := make([]want[K, V], 0, len(values))
	entries := make([][]byte, 0, len(values))
	for k, v := range values {
		e, err := c.opts.Codec.Append(make([]byte, headerSize, 2*headerSize), v)
		if err != nil {
			return fmt.Errorf("encode: %w", err)
		}
		if n := len(e) - headerSize; n > c.opts.MaxBytes {
			return tooLarge(n, c.opts.MaxBytes)
		}
		ws, entries = append(ws, c.want(k)), append(entries, e)
	}
	defer c.forget(ws)
	for n := 0; n < len(ws); n += maxBatch {
		end := min(n+maxBatch, len(ws))
		if err := c.setChunk(ctx, ws[n:end], entries[n:end]); err != nil {
			return err
		}
	}
	return nil
}

func tooLarge(size, most int) error {
	return fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, size, most)
}

func (c *Cache[K, V]) setChunk(ctx context.Context, ws []want[K, V], entries [][]byte) error {
	var parts []int
	for i := range ws {
		parts = addPart(parts, ws[i].part)
	}
	results, _ := c.pipeline(ctx, c.stampCalls(parts))
	if err := firstError(results); err != nil {
		return err
	}
	calls := make([]script.Call, len(ws))
	for i := range ws {
		stamp := results[slices.Index(parts, ws[i].part)].text
		seal(entries[i], header{stamp: stamp, nonce: rand.Uint32(), stale: c.opts.StaleTTL})
		calls[i] = c.storeCall(&ws[i], "", entries[i], c.lifetime())
	}
	results, _ = c.pipeline(ctx, calls)
	return firstError(results)
}

func (c *Cache[K, V]) delete(ctx context.Context, ws []want[K, V]) error {
	if err := c.begin(ctx); err != nil {
		return err
	}
	defer c.forget(ws)
	for chunk := range slices.Chunk(ws, maxBatch) {
		var cmds []rueidis.Completed
		var keys []string
		for i := range chunk {
			keys = append(keys, chunk[i].entry, leaseKey(chunk[i].entry))
			if c.cluster || i == len(chunk)-1 {
				cmds = append(cmds, c.client.B().Unlink().Key(keys...).Build().ToRetryable().Pin())
				keys = keys[:0]
			}
		}
		if err := c.doAll(ctx, cmds); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cache[K, V]) invalidate(ctx context.Context) error {
	if err := c.begin(ctx); err != nil {
		return err
	}
	cmds := make([]rueidis.Completed, len(c.stampTags))
	for part, tag := range c.stampTags {
		cmds[part] = c.client.B().Unlink().Key(c.keys.stamp(tag)).Build().ToRetryable().Pin()
	}
	if err := c.doAll(ctx, cmds); err != nil {
		return err
	}
	// Until here readers, in any process, may have gone on with the stamp that they remember.
	timer := time.NewTimer(stampMemory)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *Cache[K, V]) doAll(ctx context.Context, cmds []rueidis.Completed) error {
	bound, cancel := c.deadlines.Bound(ctx, sinceEpoch())
	defer cancel()
	return firstError(replies(c.client.DoMulti(bound, cmds...)))
}

func firstError(results []reply) error {
	for _, r := range results {
		if r.err != nil {
			return r.err
		}
	}
	return nil
}

// forget keeps callers from now on from waiting for flights that a delete or set has overtaken. They would
// find out, but only after the load.
func (c *Cache[K, V]) forget(ws []want[K, V]) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range ws {
		delete(c.flying, ws[i].entry)
	}
}
