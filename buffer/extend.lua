-- Extends the lease of a live batch, or gives it up with 0 ms.
-- KEYS meta
-- ARGV owner, nonce, ms
-- Returns 1, or 0 if the batch is not the owner's any more.
redis.call('HDEL', KEYS[1], '') -- see claim.lua
local m = redis.call('HMGET', KEYS[1], 'owner', 'nonce')
if m[1] ~= ARGV[1] or m[2] ~= ARGV[2] then return 0 end
local t = redis.call('TIME')
redis.call('HSET', KEYS[1], 'expires', string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000) + tonumber(ARGV[3])))
return 1
