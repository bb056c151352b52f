-- store.lua: write or drop an entry and end every load of it that is under way.
-- KEYS[1]  the entry      prefix:version:segment:{id}
-- KEYS[2]  its lease      prefix:version:segment:{id}:l
-- ARGV[1]  token that must hold the lease, "" to write whoever holds it
-- ARGV[2]  the entry, "" to delete it    ARGV[3]  its time to live, milliseconds
-- returns  1 written | 0 refused: the lease was lost to a delete, a set, an expiry or another loader
-- invariant: a token writes at most once, and never over a later delete or set.
if ARGV[1] ~= '' and redis.call('GET', KEYS[2]) ~= ARGV[1] then
  return 0
end
if ARGV[2] == '' then
  redis.call('DEL', KEYS[1], KEYS[2])
else
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
  redis.call('DEL', KEYS[2])
end
return 1
