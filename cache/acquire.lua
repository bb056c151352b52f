-- acquire.lua: look at an entry once more and, if it is still the one that was rejected, take its lease.
-- KEYS[1]  the entry      prefix:version:segment:{id}
-- KEYS[2]  its lease      prefix:version:segment:{id}:l
-- ARGV[1]  header (32 bytes) of the entry the caller rejected, "" if there was none
-- ARGV[2]  lease token: the segment's stamp (8 bytes) and 8 random bytes
-- ARGV[3]  lease time, milliseconds
-- ARGV[4]  the stamp again, if the caller has seen it: leases under another one are void. "" if it guesses
-- returns  the entry, if it is not the rejected one | 1 leased to the caller | 0 leased to someone else
-- invariant: a lease has one owner and always expires. Sending the same call again changes nothing.
local entry = redis.pcall('GET', KEYS[1]) -- pcall: a foreign type under a key counts as nothing
if type(entry) == 'string' and string.sub(entry, 1, 32) ~= ARGV[1] then
  return entry
end
local owner = redis.pcall('GET', KEYS[2])
local valid = type(owner) == 'string' and (ARGV[4] == '' or string.sub(owner, 1, 8) == ARGV[4])
if valid and owner ~= ARGV[2] then
  return 0
end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
return 1
