-- Removes a consumer, unless it has entries pending, which would be lost.
-- KEYS: stream. ARGV: group, consumer. Returns 1 if it did.
if redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2])[1] then return 0 end
redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
return 1
