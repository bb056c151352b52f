-- Writes rows that have their hashes to themselves, each unless a later one is there.
-- KEYS rows
-- ARGV codec ('fields' or 'packed'), field that has the row's time, whether to look at the time ('1' or '0'),
--      then of each row: event time in microseconds, TTL in milliseconds or 0, the hash as DUMP has it
-- Returns of each row: 1 applied, 0 older, 2 applied to a row of the same time, -4 the key is of another type, -5 RESTORE was refused.
-- A row is replaced as a whole or not at all. A time that no writer can have is none. The key lives for the longer of the two TTLs.
-- Running it twice is running it once.
local codec, field, check = ARGV[1], ARGV[2], ARGV[3] == '1'
local works -- RESTORE, as far as is known
local function write(i, key)
  local at, ttl, stored = tonumber(ARGV[3 * i + 1]), ARGV[3 * i + 2], nil
  local raw = redis.pcall('HGET', key, field)
  if type(raw) == 'table' then return -4 end
  if raw and check and codec == 'fields' then
    stored = tonumber(string.match(raw, '^%d+'))
  elseif raw and check and #raw > 10 then
    stored = 0
    for j = 5, 11 do stored = stored * 256 + string.byte(raw, j) end
  end
  if stored and stored > 9007199254740991 then stored = nil end
  if stored and stored > at then return 0 end
  if ttl ~= '0' then
    local left = redis.call('PTTL', key)
    if left == -1 then ttl = 0 elseif left > tonumber(ttl) then ttl = left end
  end
  if works == false or redis.pcall('RESTORE', key, ttl, ARGV[3 * i + 3], 'REPLACE').err then return -5 end
  if works == nil then
    works = type(redis.pcall('HLEN', key)) == 'number'
    if not works then -- miniredis, for one, takes any payload for a string's
      redis.call('DEL', key)
      return -5
    end
  end
  return stored == at and 2 or 1
end
local codes = {}
for i, key in ipairs(KEYS) do codes[i] = write(i, key) end
return codes
