-- Makes an entry a dead letter.
-- KEYS: stream, dead letters. ARGV: group, consumer, id, reason, attempts, 1 to delete the entry unless there is another group.
-- Returns 1, 0 if the consumer does not have the entry, or -1 if it was deleted.
-- Invariant: acknowledged if and only if it is a dead letter or was deleted. Redis may refuse XADD when it is full, so it comes first.
-- Lua cannot pass on more than some 7,900 strings: beyond 7,100, those from the 7,001st are in one field, each after its length.
if not redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2])[1] then return 0 end
local found = redis.call('XRANGE', KEYS[1], ARGV[3], ARGV[3])[1]
if found then
  local fields, kept = found[2], 7000
  if #fields > 7100 then
    local more = {}
    for i = kept + 1, #fields do more[#more + 1] = #fields[i] .. ':' .. fields[i] end
    fields[kept + 1], fields[kept + 2] = '_more', table.concat(more)
    kept = kept + 2
  else
    kept = #fields
  end
  redis.call('XADD', KEYS[2], '*', '_id', ARGV[3], '_reason', ARGV[4], '_attempts', ARGV[5], unpack(fields, 1, kept))
end
redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
if found and ARGV[6] == '1' and alone(ARGV[1]) then redis.call('XDEL', KEYS[1], ARGV[3]) end
return found and 1 or -1
