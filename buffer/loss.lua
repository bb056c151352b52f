-- Comes before the scripts that find out that Redis has lost writes: several processes do, and the ledger may too.
-- lossAt, in a shard's meta, is when that was last noticed. A process knows the one that it saw in its last round trip: if Redis
-- has lost that trip and has a later lossAt, somebody has noticed since, for a state with that lossAt and without the trip is
-- one in which the loss had happened.

-- noticed sets lossAt, to later than it was or than the given one, and returns it.
local function noticed(meta, before)
  local t = redis.call('TIME')
  before = before or redis.call('HGET', meta, 'lossAt') or '0'
  local at = string.format('%.0f', math.max(t[1] * 1000 + math.floor(t[2] / 1000), tonumber(before) + 1))
  redis.call('HSET', meta, 'lossAt', at)
  return at
end
