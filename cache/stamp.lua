-- stamp.lua: read a segment's stamp, make it if it is missing or not a stamp, and let it live on.
-- KEYS[1]  the stamp      prefix:segment:{tag}:s
-- ARGV[1]  a new stamp, 8 random bytes    ARGV[2]  time to live, milliseconds
-- returns  the stamp
-- invariant: a stamp never changes; it ends, and another one takes its place.
local stamp = redis.pcall('GET', KEYS[1])
if type(stamp) == 'string' and #stamp == 8 then
  redis.call('PEXPIRE', KEYS[1], ARGV[2], 'GT') -- never shorter: caches with other TTLs share it
  return stamp
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]
