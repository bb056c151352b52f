-- entry(id) returns {id, attempts begun, fields} of an entry that ARGV[2] has pending in group ARGV[1] of stream KEYS[1], or nil.
-- What is pending but deleted is acknowledged: nobody can handle it any more.
local function entry(id)
  local pending = redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1, ARGV[2])[1]
  if not pending then return nil end
  local found = redis.call('XRANGE', KEYS[1], id, id)[1]
  if not found then
    redis.call('XACK', KEYS[1], ARGV[1], id)
    return nil
  end
  return {id, pending[4], found[2]}
end
