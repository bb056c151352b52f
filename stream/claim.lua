-- Takes over entries that nobody has renewed for long.
-- KEYS: stream. ARGV: group, consumer, idle milliseconds, where to go on, how many at most, server's milliseconds after which it is too late.
-- Returns {server's milliseconds, where to go on, ids of deleted entries, entry...}, entries as of entry.lua.
-- Invariants: claiming does not count as an attempt; beginning one does. A claim that was held up claims nothing: while Redis
-- hung, nobody could renew.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
if now > tonumber(ARGV[6]) then return {now, ARGV[4], {}} end
local claimed = redis.call('XAUTOCLAIM', KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4], 'COUNT', ARGV[5], 'JUSTID')
local deleted = claimed[3] or {}
local out = {now, claimed[1], deleted}
for _, id in ipairs(claimed[2]) do
  local e = entry(id)
  if e then out[#out + 1] = e else deleted[#deleted + 1] = id end
end
return out
