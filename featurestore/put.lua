-- Writes one row, unless a later one is there.
-- KEYS row
-- ARGV codec ('fields', 'packed' or 'feast'), field that has the row's time, event time in microseconds, TTL in milliseconds or 0,
--      whether to look at the time ('1' or '0'), known schemas or '', how many pairs are expected, and how many to set,
--      then pairs that are expected (field, '=' and its value, or ''), pairs to set, fields to delete
-- Returns 1 applied, 0 older, 2 applied to a row of the same time, -1 the row is of an unknown schema, -2 it is not as expected.
-- A row is written as a whole or not at all, and what is refused changes nothing. The key lives for the longest TTL of all that is
-- in it. Running it twice is running it once.
local key, codec, expected, sets = KEYS[1], ARGV[1], tonumber(ARGV[7]), tonumber(ARGV[8])
local raw = redis.call('HGET', key, ARGV[2])
local stored
if raw and ARGV[5] == '1' then
  if codec == 'fields' then
    stored = tonumber(string.match(raw, '^%d+'))
    local schema = string.match(raw, '^%d+ (%x+)')
    if schema and not string.find(ARGV[6], schema, 1, true) then return -1 end
  elseif codec == 'packed' and #raw > 10 then
    stored = 0
    for i = 5, 11 do stored = stored * 256 + string.byte(raw, i) end
  elseif codec == 'feast' then
    local i, number = 1, {[8] = 0, [16] = 0} -- varints behind tags: seconds, nanoseconds
    while i < #raw do
      local tag, n, unit, byte = string.byte(raw, i), 0, 1, 128
      while byte and byte >= 128 do
        i = i + 1
        byte = string.byte(raw, i)
        if byte then n, unit = n + byte % 128 * unit, unit * 128 end
      end
      number[tag], i = n, i + 1
    end
    stored = number[8] * 1000000 + math.floor(number[16] / 1000)
  end
end
local at = tonumber(ARGV[3])
if stored and stored > at then return 0 end
local first = 9
for i = first, first + expected * 2 - 1, 2 do
  local value = redis.call('HGET', key, ARGV[i])
  if ARGV[i + 1] ~= (value and '=' .. value or '') then return -2 end
end
first = first + expected * 2
local new = not raw and redis.call('EXISTS', key) == 0
redis.call('HSET', key, unpack(ARGV, first, first + sets * 2 - 1))
first = first + sets * 2
if ARGV[first] then redis.call('HDEL', key, unpack(ARGV, first)) end
if ARGV[4] == '0' then
  redis.call('PERSIST', key)
elseif new then
  redis.call('PEXPIRE', key, ARGV[4])
else
  redis.call('PEXPIRE', key, ARGV[4], 'GT')
end
return stored == at and 2 or 1
