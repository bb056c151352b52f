-- Makes an entry a dead letter.
-- KEYS: stream, dead letters. ARGV: group, consumer, id, reason, attempts.
-- Returns 1, 0 if the consumer does not have the entry, or -1 if it was deleted.
-- Invariant: acknowledged if and only if it is a dead letter or was deleted. Redis may refuse XADD when it is full, so it comes first.
if not redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2])[1] then return 0 end
local found = redis.call('XRANGE', KEYS[1], ARGV[3], ARGV[3])[1]
if found then
  redis.call('XADD', KEYS[2], '*', '_id', ARGV[3], '_reason', ARGV[4], '_attempts', ARGV[5], unpack(found[2]))
end
redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
return found and 1 or -1
