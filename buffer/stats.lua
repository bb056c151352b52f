-- KEYS meta, cur, gen, batch, dead
-- Returns {fields pending, ms since the oldest, 1 if a batch is live, its attempt, dead letters, regressions, 1 if the server is
-- known to evict keys when its memory is full}.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local cur, gen, batch = redis.call('HLEN', KEYS[2]), redis.call('HLEN', KEYS[3]), redis.call('HLEN', KEYS[4])
local m = redis.call('HMGET', KEYS[1], 'since', 'genSince', 'batchSince', 'nonce', 'attempt', 'regressions')
local oldest = batch > 0 and m[3] or gen > 0 and m[2] or cur > 0 and m[1] or now
local info = redis.pcall('INFO', 'memory') -- a user may not be allowed it
local policy = type(info) == 'string' and string.match(info, 'maxmemory_policy:([%w-]+)')
local evicts = policy and policy ~= 'noeviction' and not string.find(info, 'maxmemory:0\r', 1, true)
return {cur + gen + batch, math.max(0, now - tonumber(oldest)), m[4] and 1 or 0, tonumber(m[5] or '0'),
  redis.call('HLEN', KEYS[5]), tonumber(m[6] or '0'), evicts and 1 or 0}
