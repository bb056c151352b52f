-- A window that begins with the first call in it and admits limit units.
-- Numbers: limit, window (microseconds). Stored: the units used, an integer; it expires when the window ends.
-- Invariant: the units are never raised above limit, and a TTL is never changed. A lost one is set anew by the next call,
-- also by one that is refused, but not by a question.

--- open
local limit, window = tonumber(ARGV[base + 1]), tonumber(ARGV[base + 2])
local raw = redis.pcall('GET', key)
-- What INCRBY does not take, or takes for more than any limit, is foreign.
local stored = type(raw) == 'string' and #raw < 16 and string.find(raw, '^[1-9]%d*$') and tonumber(raw) or 0
local ms = math.floor(now / 1000)
local used, ends, lost = stored, ms + window / 1000, false
if stored > 0 then
	local expires = redis.call('PEXPIRETIME', key)
	if expires < 0 then
		lost = true
	else
		ends = expires
	end
end
local reset = math.max(1, ends - ms + 1) * 1000 -- Redis deletes a key when a millisecond more than its TTL has passed

--- take
if lost and count > 0 then
	redis.call('PEXPIREAT', key, ends)
end
if used + n * count <= limit then
	k = count
else
	k = math.max(0, math.floor((limit - used) / n))
end
used, mark = used + k * n, ends
left = math.max(0, limit - used)
if used + n > limit then
	wait = reset
end
full = used > 0 and reset or 0

--- give
if lost then
	redis.call('PEXPIREAT', key, ends)
end
given = math.min(n, used)
if to and to ~= ends then
	given = 0
end
used = used - given

--- save
if used == 0 then
	redis.call('DEL', key)
elseif stored == 0 then
	redis.call('SET', key, used, 'PXAT', ends)
else
	redis.call('INCRBY', key, used - stored)
end
