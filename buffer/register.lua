-- Remembers the largest number of shards that any process uses.
-- KEYS shards
-- ARGV shards
-- Returns the largest.
local n = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), tonumber(ARGV[1]))
redis.call('SET', KEYS[1], n)
return n
