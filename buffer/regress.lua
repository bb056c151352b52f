-- Redis and the sink's ledger are not of one history: gives the live batch, and all that come, a place after the ledger's.
-- KEYS meta, cur, gen
-- ARGV nonce, the ledger's epoch, 1 if what is pending must not be applied if it may have been already
-- Returns {epoch, seq, 1 if the batch must not be applied, 1 if the shard was behind the ledger, 1 if this call found out}, or {}
-- if the batch is not live.
redis.call('HDEL', KEYS[1], '') -- see claim.lua
if redis.call('HGET', KEYS[1], 'nonce') ~= ARGV[1] then return {} end
local have = redis.call('HMGET', KEYS[1], 'epoch', 'seq', 'follows', 'park')
local ledger = tonumber(ARGV[2])
-- Another flusher of this batch has done so already, or an earlier copy of this call: with one number more the batch would be
-- applied twice.
if tonumber(have[3] or '-1') >= ledger then return {have[1], have[2], have[4], '0', '0'} end
local behind = tonumber(have[1]) <= ledger
if behind then
  local t = redis.call('TIME')
  have[1] = string.format('%.0f', math.max(t[1] * 1000 + math.floor(t[2] / 1000), ledger + 1))
  have[2] = '1'
  redis.call('HSET', KEYS[1], 'epoch', have[1], 'seq', have[2])
  if ARGV[3] == '1' then
    have[4] = '1'
    redis.call('HSET', KEYS[1], 'park', 1, 'suspect', redis.call('EXISTS', KEYS[2]) + redis.call('EXISTS', KEYS[3]))
  end
end
redis.call('HSET', KEYS[1], 'follows', ARGV[2])
redis.call('HINCRBY', KEYS[1], 'regressions', 1)
-- What add.lua notices, or has noticed, is the same loss.
lost(KEYS[1])
redis.call('HDEL', KEYS[1], 'untold')
return {have[1], have[2], have[4], behind and '1' or '0', '1'}
