-- Writes one row, unless a later one is there.
-- KEYS row
-- ARGV codec ('fields', 'packed' or 'feast'), field that has the row's time, event time in microseconds, TTL in milliseconds or 0,
--      whether to look at the time ('1' or '0'), the writer's schema, whether rows of unknown schemas may be written over ('1' or '0'),
--      how many pairs are expected, how many to set, how many fields to delete,
--      then pairs that are expected (field, '=' and its value, or ''), pairs to set, fields to delete,
--      and pairs of other schemas (mark, names that the writer's has not, with spaces between them)
-- Returns 1 applied, 0 older, 2 applied to a row of the same time, -1 the row is of an unknown schema, -2 it is not as expected.
-- Nothing that can fail comes after the first write, and what is refused changes nothing. A time that no writer can have is none.
-- Of the row that is there, fields of its schemas go that the writer's has not. The key lives for the longest TTL of all that is in it.
-- Running it twice is running it once.
local key, codec, check, expected, sets, deletes = KEYS[1], ARGV[1], ARGV[5], tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
local raw = redis.call('HGET', key, ARGV[2])
local stored, marks
if raw and codec == 'fields' then
  local digits
  digits, marks = string.match(raw, '^(%d+) ?([%x+]*)')
  stored = digits and tonumber(digits)
elseif raw and codec == 'packed' and #raw > 10 then
  stored = 0
  for i = 5, 11 do stored = stored * 256 + string.byte(raw, i) end
elseif raw and codec == 'feast' then
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
if check ~= '1' or stored and stored > 9007199254740991 then stored = nil end
local at = tonumber(ARGV[3])
if stored and stored > at then return 0 end
local first = 11
for i = first, first + expected * 2 - 1, 2 do
  local value = redis.call('HGET', key, ARGV[i])
  if ARGV[i + 1] ~= (value and '=' .. value or '') then return -2 end
end
local set = first + expected * 2
local delete = set + sets * 2
local gone = {}
for i = delete, delete + deletes - 1 do gone[#gone + 1] = ARGV[i] end
for mark in string.gmatch(marks or '', '%x+') do
  local known = mark == ARGV[6] or ARGV[7] == '1'
  for i = delete + deletes, #ARGV, 2 do
    if ARGV[i] == mark then
      known = true
      for name in string.gmatch(ARGV[i + 1], '%S+') do gone[#gone + 1] = name end
    end
  end
  if not known then return -1 end
end
local new = not raw and redis.call('EXISTS', key) == 0
redis.call('HSET', key, unpack(ARGV, set, delete - 1))
for i = 1, #gone, 1000 do redis.call('HDEL', key, unpack(gone, i, math.min(i + 999, #gone))) end
if ARGV[4] == '0' then
  redis.call('PERSIST', key)
elseif new then
  redis.call('PEXPIRE', key, ARGV[4])
else
  redis.call('PEXPIRE', key, ARGV[4], 'GT')
end
return stored == at and 2 or 1
