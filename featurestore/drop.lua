-- Marks a version for deletion.
-- KEYS control
-- ARGV version
-- Returns -1 if it is live, or else for how many seconds it has not been. If the clock was set back since, that begins anew.
-- A version so marked cannot become live again.
local control, version = KEYS[1], ARGV[1]
if (redis.call('HGET', control, 'live') or '') == version then return -1 end
redis.call('HDEL', control, 'v:' .. version) -- a script that has written may go on where memory is full
redis.call('HSET', control, 'v:' .. version, 'dropping')
local now, left = tonumber(redis.call('TIME')[1]), tonumber(redis.call('HGET', control, 'left:' .. version) or '0')
if left > now then
  redis.call('HSET', control, 'left:' .. version, now)
  return 0
end
return now - left
