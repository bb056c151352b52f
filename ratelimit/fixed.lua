-- A window that begins with the first call in it and admits limit units.
-- Numbers: limit, window (microseconds). Stored: the units used, an integer; its TTL is the window's.
-- Invariant: the units are never raised above limit, and a TTL is never changed. A lost one is set anew by the next call,
-- also by one that is refused, but not by a question.

--- open
local limit, window = tonumber(ARGV[base + 1]), tonumber(ARGV[base + 2])
local raw = redis.pcall('GET', key)
-- What INCRBY does not take, or takes for more than any limit, is foreign.
local stored = type(raw) == 'string' and #raw < 16 and string.find(raw, '^[1-9]%d*$') and tonumber(raw) or 0
local used, ttl, lost = stored, window / 1000, false
if stored > 0 then
	ttl = redis.call('PTTL', key)
	if ttl < 0 then
		ttl, lost = window / 1000, true
	end
end
local reset = (ttl + 1) * 1000 -- Redis deletes a key when a millisecond more than its TTL has passed

--- take
if lost and count > 0 then
	redis.call('PEXPIRE', key, ttl)
end
if used + n * count <= limit then
	k = count
else
	k = math.max(0, math.floor((limit - used) / n))
end
used = used + k * n
left = math.max(0, limit - used)
if used + n > limit then
	wait = reset
end
full = used > 0 and reset or 0

--- give
if lost then
	redis.call('PEXPIRE', key, ttl)
end
given = math.min(n, used)
used = used - given

--- save
if used == 0 then
	redis.call('DEL', key)
elseif stored == 0 then
	redis.call('SET', key, used, 'PX', ttl)
else
	redis.call('INCRBY', key, used - stored)
end
