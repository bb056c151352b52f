-- lease.lua: extend or give back a lease, if it is still the caller's.
-- KEYS[1]  the lease      prefix:version:segment:{id}:l
-- ARGV[1]  its token      ARGV[2]  new time to live, milliseconds; 0 gives it back
-- returns  1 done | 0 the lease is no longer the caller's
-- invariant: nobody else's lease is touched.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
if ARGV[2] == '0' then
  redis.call('DEL', KEYS[1])
else
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 1
