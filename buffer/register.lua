-- Remembers the largest number of shards that any process uses.
-- KEYS shards
-- ARGV shards
-- Returns the largest.
redis.call('PERSIST', KEYS[1]) -- a write that a full server allows: after it, it allows the others
local n = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), tonumber(ARGV[1]))
redis.call('SET', KEYS[1], n)
return n
