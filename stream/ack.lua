-- Acknowledges entries and deletes them, unless there is another group, which may not have had them.
-- KEYS: stream. ARGV: group, id...
-- Returns {how many were acknowledged, 0 if another group keeps them}.
-- Invariant: if it is sent again since a reply was lost, groups that have come meanwhile keep their entries.
local acked = redis.call('XACK', KEYS[1], unpack(ARGV))
local only, others = alone(ARGV[1])
if only then redis.call('XDEL', KEYS[1], unpack(ARGV, 2)) end
return {acked, others > 0 and 0 or 1}
