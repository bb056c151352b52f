-- Writes a value unless a higher fence has written before.
--
-- KEYS  1 a hash with the fields value and fence, without a TTL: with it the fence would be forgotten
-- ARGV  1 fence, 2 value
-- returns 1, or 0 if the fence is stale
local highest = redis.call('HGET', KEYS[1], 'fence')
if highest and tonumber(highest) > tonumber(ARGV[1]) then return 0 end
redis.call('HSET', KEYS[1], 'fence', ARGV[1], 'value', ARGV[2])
return 1
