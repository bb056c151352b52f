-- acquire.lua: look at an entry once more and, if it is still the one that was rejected, take its lease.
-- KEYS[1]  the entry      prefix:version:segment:{id}
-- KEYS[2]  its lease      prefix:version:segment:{id}:l
-- ARGV[1]  header (32 bytes) of the entry the caller rejected, "" if there was none
-- ARGV[2]  lease token: the segment's stamp (8 bytes) and 8 random bytes
-- ARGV[3]  lease time, milliseconds
-- ARGV[4]  token of the lease that the caller rejected, because its stamp is no longer the segment's, or ""
-- returns  the entry, if it is not the rejected one | 1 leased to the caller | the token (16 bytes) of who else has it
-- invariant: a lease has one owner and always expires. Sending the same call again changes nothing.
local entry = redis.pcall('GET', KEYS[1]) -- pcall: a foreign type under a key counts as nothing
if type(entry) == 'string' and #entry >= 32 and string.sub(entry, 1, 32) ~= ARGV[1] then
  return entry
end
local owner = redis.pcall('GET', KEYS[2])
if type(owner) == 'string' and #owner == 16 and owner ~= ARGV[2] and owner ~= ARGV[4] then
  return owner
end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
return 1
