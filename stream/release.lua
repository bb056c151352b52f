-- Hands entries over: whoever sweeps next may claim them.
-- KEYS: stream. ARGV: group, consumer, then for each entry id, idle milliseconds to pretend, attempts begun.
-- Returns how many were this consumer's.
local n = 0
for i = 3, #ARGV, 3 do
  if redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2])[1] then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'IDLE', ARGV[i + 1], 'RETRYCOUNT', ARGV[i + 2], 'JUSTID')
    n = n + 1
  end
end
return n
