-- Moves delayed entries that are due to the end of the stream.
-- KEYS: stream, waiting entries, when each is due. ARGV: how many at most.
-- Returns the milliseconds until the next is due, rounded up, 0 if one is, or -1 if none waits.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now, 'LIMIT', 0, ARGV[1])) do
  local found = redis.call('XRANGE', KEYS[2], id, id)[1]
  if found then redis.call('XADD', KEYS[1], '*', unpack(found[2])) end
  redis.call('XDEL', KEYS[2], id)
  redis.call('ZREM', KEYS[3], id)
end
local next = redis.call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')
if not next[1] then return -1 end
return math.max(0, math.ceil(next[2] - now))
