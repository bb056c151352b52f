-- Writes down that an attempt begins, before it does, so that one that kills the process counts.
-- KEYS: stream. ARGV: group, consumer, id, number of the attempt.
-- Returns 1 if it may begin, 0 if another consumer has the entry, -1 if nobody has, since it was acknowledged or deleted.
local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1)[1]
if not pending then return -1 end
if pending[2] ~= ARGV[2] then return 0 end
if not redis.call('XRANGE', KEYS[1], ARGV[3], ARGV[3])[1] then
  redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
  return -1
end
redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[3], 'RETRYCOUNT', ARGV[4], 'JUSTID')
return 1
