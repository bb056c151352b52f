-- Marks fields of the live batch as not to be applied, which makes a new version of it. The batch itself stays as it is:
-- whoever read an earlier version may still apply that, and the sink's ledger then says so.
-- KEYS meta, marks
-- ARGV nonce; then field and reason of each
-- Returns the new version, or 0 if the batch is not live.
redis.call('HDEL', KEYS[1], '') -- see claim.lua
if redis.call('HGET', KEYS[1], 'nonce') ~= ARGV[1] then return 0 end
local version = redis.call('HINCRBY', KEYS[1], 'version', 1)
for i = 2, #ARGV, 2 do
  redis.call('HSETNX', KEYS[2], ARGV[i], version .. ' ' .. ARGV[i + 1])
end
return version
