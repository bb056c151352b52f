-- Ends the live batch, of which the sink has applied the given version: fields marked by then become dead letters, those
-- marked later were applied.
-- KEYS meta, batch, marks, dead, reasons
-- ARGV nonce, version
-- Returns 1, or 2 if Redis has lost writes since the last batch, which add.lua noticed and the ledger did not, or that version
-- is one that Redis does not know of: which fields it left out is lost. 0 if the batch is not live (any more).
redis.call('HDEL', KEYS[1], '') -- see claim.lua
if redis.call('HGET', KEYS[1], 'nonce') ~= ARGV[1] then return 0 end
if tonumber(redis.call('HGET', KEYS[1], 'version')) < tonumber(ARGV[2]) then
  noticed(KEYS[1])
  redis.call('HSET', KEYS[1], 'untold', 1)
end
local marks = redis.call('HGETALL', KEYS[3])
for i = 1, #marks, 2 do
  local version, reason = string.match(marks[i + 1], '^(%d+) (.*)$')
  local value = redis.call('HGET', KEYS[2], marks[i])
  if value and tonumber(version) <= tonumber(ARGV[2]) then
    -- A sum that grows too large for one field goes on in the next.
    local n = 0
    local field = string.sub(marks[i], 1, 1) .. n .. string.sub(marks[i], 2)
    while not merge(KEYS[4], field, value) do
      n = n + 1
      field = string.sub(marks[i], 1, 1) .. n .. string.sub(marks[i], 2)
    end
    redis.call('HSET', KEYS[5], marks[i], reason)
  end
end
redis.call('UNLINK', KEYS[2], KEYS[3])
redis.call('HDEL', KEYS[1], 'nonce', 'owner', 'expires', 'lease', 'version', 'attempt', 'batchSince', 'park')
if redis.call('HDEL', KEYS[1], 'untold') == 0 then return 1 end
redis.call('HINCRBY', KEYS[1], 'regressions', 1)
return 2
