-- Fetches entries that were delivered to this consumer in a reply that it never saw.
-- KEYS: stream. ARGV: group, consumer, id...
-- Returns {entry...}, as of entry.lua, of those that are still this consumer's; their leases begin anew.
local out = {}
for i = 3, #ARGV do
  local e = entry(ARGV[i])
  if e then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'JUSTID')
    out[#out + 1] = e
  end
end
return out
