-- Moves dead letters back to where they came from.
-- KEYS meta, cur, dead, reasons
-- ARGV fields, as in dead
-- Returns how many were moved: one whose sum overflows that of its field stays.
redis.call('HDEL', KEYS[1], '') -- see claim.lua
if redis.call('EXISTS', KEYS[2]) == 0 then
  local t = redis.call('TIME')
  redis.call('HSET', KEYS[1], 'since', string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000)))
end
local moved = 0
for _, stored in ipairs(ARGV) do
  local value = redis.call('HGET', KEYS[3], stored)
  local op, n, rest = string.match(stored, '^(.)(%d+)(.*)$')
  if value and merge(KEYS[2], op .. rest, value) then
    redis.call('HDEL', KEYS[3], stored)
    if n == '0' then redis.call('HDEL', KEYS[4], op .. rest) end
    moved = moved + 1
  end
end
return moved
