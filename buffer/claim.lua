-- Gives the caller the shard's live batch, or makes one of the oldest generation. There is at most one live batch.
-- KEYS meta, cur, gen, batch
-- ARGV owner, lease ms, max fields, nonce for a new batch, whether cur may become the generation to flush (1 or 0), max bytes
-- of names and values, bytes that most fields have at most
-- Bytes are counted only where some fields have more than that: excess is what these have beyond it, or more, since a field
-- that is added to again is counted again.
-- Returns {} if there is nothing; {ms} if another owner's lease lasts that long; else
-- {nonce, epoch, seq, version, attempt, ms since its oldest field, the epoch that its epoch follows, 1 if suspect,
-- 1 if cur became gen}.
redis.call('HDEL', KEYS[1], '') -- a write that a full server allows: after it, it allows the others
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local lease = string.format('%.0f', now + tonumber(ARGV[2]))
local opened = 0
local m = redis.call('HMGET', KEYS[1], 'nonce', 'owner', 'expires', 'lease')
if m[1] then
  -- A lease with longer to go than it ever had is from before the clock was set back: its owner may be dead. If not, one of them
  -- works in vain, once. Not the caller's lease counts but the owner's: with a shorter one it would take a living owner's.
  local rest = tonumber(m[3]) - now
  if m[2] ~= ARGV[1] and rest > 0 and rest <= tonumber(m[4] or rest) then return {string.format('%.0f', rest)} end
  redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'expires', lease, 'lease', ARGV[2])
else
  if redis.call('EXISTS', KEYS[3]) == 0 then
    if ARGV[5] ~= '1' or redis.call('EXISTS', KEYS[2]) == 0 then return {} end
    redis.call('RENAME', KEYS[2], KEYS[3])
    redis.call('HSET', KEYS[1], 'genSince', redis.call('HGET', KEYS[1], 'since') or string.format('%.0f', now),
      'genExcess', redis.call('HGET', KEYS[1], 'excess') or '0')
    redis.call('HDEL', KEYS[1], 'excess')
    opened = 1
  end
  local left, bytes = tonumber(ARGV[3]), tonumber(ARGV[6])
  local size = redis.call('HLEN', KEYS[3])
  local excess = tonumber(redis.call('HGET', KEYS[1], 'genExcess') or '0')
  if size <= left and (excess == 0 or size * tonumber(ARGV[7]) + excess <= bytes) then
    redis.call('RENAME', KEYS[3], KEYS[4])
  else
    -- Portions of which a script may have a few in memory.
    local portion = excess > 0 and 100 or 1000
    while left > 0 and bytes > 0 do
      local kv = redis.call('HRANDFIELD', KEYS[3], math.min(left, portion), 'WITHVALUES')
      local fields, n = {}, 0
      while n < #kv and bytes > 0 do
        fields[#fields + 1] = kv[n + 1]
        bytes = bytes - #kv[n + 1] - #kv[n + 2]
        n = n + 2
      end
      if n == 0 then break end
      redis.call('HSET', KEYS[4], unpack(kv, 1, n))
      redis.call('HDEL', KEYS[3], unpack(fields))
      left = left - n / 2
    end
  end
  local suspect = tonumber(redis.call('HGET', KEYS[1], 'suspect') or '0')
  if suspect > 0 and redis.call('EXISTS', KEYS[3]) == 0 then redis.call('HINCRBY', KEYS[1], 'suspect', -1) end
  redis.call('HSETNX', KEYS[1], 'epoch', string.format('%.0f', now))
  redis.call('HINCRBY', KEYS[1], 'seq', 1)
  redis.call('HSET', KEYS[1], 'nonce', ARGV[4], 'owner', ARGV[1], 'expires', lease, 'lease', ARGV[2],
    'version', 0, 'attempt', 0, 'batchSince', redis.call('HGET', KEYS[1], 'genSince') or string.format('%.0f', now),
    'park', suspect > 0 and 1 or 0)
end
redis.call('HINCRBY', KEYS[1], 'attempt', 1)
local r = redis.call('HMGET', KEYS[1], 'nonce', 'epoch', 'seq', 'version', 'attempt', 'batchSince', 'follows', 'park')
r[6] = string.format('%.0f', math.max(0, now - tonumber(r[6])))
r[7] = r[7] or '0'
r[9] = tostring(opened)
return r
