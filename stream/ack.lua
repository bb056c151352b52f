-- Acknowledges entries and deletes them, unless there is a second group, which may not have had them.
-- KEYS: stream. ARGV: group, id...
-- Returns {how many were acknowledged, 1 if deleted}.
local acked = redis.call('XACK', KEYS[1], unpack(ARGV))
if acked > 0 and #redis.call('XINFO', 'GROUPS', KEYS[1]) > 1 then return {acked, 0} end
if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('XDEL', KEYS[1], unpack(ARGV, 2)) end
return {acked, 1}
