-- Puts a dead letter back at the end of the stream, for one group.
-- KEYS: stream, dead letters. ARGV: group, id of the dead letter.
-- Returns 1, or 0 if there is no such dead letter.
-- Invariant: there is a dead letter or an entry of the stream, never both and never neither.
local found = redis.call('XRANGE', KEYS[2], ARGV[2], ARGV[2])[1]
if not found then return 0 end
local first = 7 -- after _id, _reason and _attempts
if found[2][7] == '_redrive' then first = 9 end
redis.call('XADD', KEYS[1], '*', '_redrive', ARGV[1], unpack(found[2], first))
redis.call('XDEL', KEYS[2], ARGV[2])
return 1
