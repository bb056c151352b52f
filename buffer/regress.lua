-- Redis is behind the sink's ledger: gives the live batch, and all that come, numbers that the ledger has not seen.
-- KEYS meta, cur, gen
-- ARGV nonce, the ledger's epoch, 1 if what is pending now must not be applied
-- Returns {epoch, seq}, or {} if the batch is not live.
redis.call('HDEL', KEYS[1], '') -- see claim.lua
if redis.call('HGET', KEYS[1], 'nonce') ~= ARGV[1] then return {} end
-- Another flusher of this batch has done so already, or an earlier copy of this call: with one number more the batch would be
-- applied twice.
local have = redis.call('HMGET', KEYS[1], 'epoch', 'seq')
if tonumber(have[1]) > tonumber(ARGV[2]) then return have end
local t = redis.call('TIME')
local epoch = math.max(t[1] * 1000 + math.floor(t[2] / 1000), tonumber(ARGV[2]) + 1)
redis.call('HSET', KEYS[1], 'epoch', string.format('%.0f', epoch), 'seq', 1)
redis.call('HINCRBY', KEYS[1], 'regressions', 1)
if ARGV[3] == '1' then
  redis.call('HSET', KEYS[1], 'park', 1, 'suspect', redis.call('EXISTS', KEYS[2]) + redis.call('EXISTS', KEYS[3]))
end
return {string.format('%.0f', epoch), '1'}
