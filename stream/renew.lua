-- Renews the leases of a consumer's entries.
-- KEYS: stream. ARGV: group, consumer, id...
-- Returns the ids that another consumer has.
-- Invariant: takes nothing from anybody, counts no attempt.
local mine, lost = {}, {}
for i = 3, #ARGV do
  local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1)[1]
  if pending and pending[2] == ARGV[2] then
    mine[#mine + 1] = ARGV[i]
  elseif pending then
    lost[#lost + 1] = ARGV[i]
  end
end
if #mine > 0 then
  mine[#mine + 1] = 'JUSTID'
  redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, unpack(mine))
end
return lost
