-- Moves dead letters back to where they came from.
-- KEYS meta, cur, dead, reasons
-- ARGV bytes that most fields have at most (see claim.lua); then fields, as in dead
-- Returns how many were moved: one whose sum overflows that of its field stays.
redis.call('HDEL', KEYS[1], '') -- see claim.lua
if redis.call('EXISTS', KEYS[2]) == 0 then
  local t = redis.call('TIME')
  redis.call('HSET', KEYS[1], 'since', string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000)))
end
local moved, excess = 0, 0
for i = 2, #ARGV do
  local stored = ARGV[i]
  local value = redis.call('HGET', KEYS[3], stored)
  local op, n, rest = string.match(stored, '^(.)(%d+)(.*)$')
  if value and merge(KEYS[2], op .. rest, value) then
    redis.call('HDEL', KEYS[3], stored)
    if n == '0' then redis.call('HDEL', KEYS[4], op .. rest) end
    moved = moved + 1
    excess = excess + math.max(0, #stored + #value - tonumber(ARGV[1]))
  end
end
if excess > 0 then redis.call('HINCRBY', KEYS[1], 'excess', excess) end
return moved
