-- Adds an entry, once per idempotency key, now or later.
-- KEYS: stream, then if there is an idempotency key what it stands for, then if there is a delay the waiting entries and when each is due.
-- ARGV: 1 if there is an idempotency key, its milliseconds, milliseconds of delay, trimming to this length or 0, name, value...
-- Returns the id, which is empty if the entry waits.
local once = ARGV[1] == '1' and KEYS[2]
if once then
  local id = redis.call('GET', once)
  if id then return id end
end
local id = ''
local delay = tonumber(ARGV[3])
if delay > 0 then
  local t = redis.call('TIME')
  local now = t[1] * 1000 + math.floor(t[2] / 1000)
  local waiting = redis.call('XADD', KEYS[#KEYS - 1], '*', unpack(ARGV, 5))
  -- Members of equal scores come in the order of their bytes, -10 before -2, so the sequence is the score's fraction. The time is
  -- the id's for that, unless the clock was set back: then ids go on from where it was.
  local ms, seq = waiting:match('^(%d+)-(%d+)$')
  if ms - now < 1000 then now = tonumber(ms) end
  redis.call('ZADD', KEYS[#KEYS], now + delay + math.min(seq, 1023) / 1024, waiting)
elseif ARGV[4] ~= '0' then
  id = redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[4], '*', unpack(ARGV, 5))
else
  id = redis.call('XADD', KEYS[1], '*', unpack(ARGV, 5))
end
if once then redis.call('SET', once, id, 'PX', ARGV[2]) end
return id
