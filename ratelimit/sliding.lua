-- A window that ends now, at each instant, and admits limit units.
-- Numbers: limit, window, step (microseconds). Stored: 1, for this format (1 byte); all units (6); the newest entry: its
-- time (7) and its units (6); then the other entries, oldest first. Times are rounded up to the next multiple of step, so
-- that there are at most window/step + 2 entries, and units are counted for longer than the window, never for less.
-- Invariant: the units of all entries younger than window add up to limit at most.
-- What most calls need is at the beginning: all but the first in a step read 33 bytes and write 20.

--- open
local limit, window, step = tonumber(ARGV[base + 1]), tonumber(ARGV[base + 2]), tonumber(ARGV[base + 3])
local raw = redis.pcall('GETRANGE', key, 0, 32)
local used, newest, units = 0, 0, 0
local first, last, isWhole = 21, 20, true -- bytes of raw with the older entries that count; whether they are all there
if type(raw) == 'string' and (#raw == 20 or #raw == 33) and string.byte(raw) == 1 then
	used, newest, units = struct.unpack('<I6I7I6', raw, 2)
	if newest + window <= now then
		used, units = 0, 0
	elseif #raw == 33 then
		isWhole = false
		if struct.unpack('<I7', raw, first) + window <= now then
			raw, isWhole = redis.call('GET', key), true
			last = #raw
			repeat
				used, first = used - struct.unpack('<I6', raw, first + 7), first + 13
			until first > last or struct.unpack('<I7', raw, first) + window > now
		end
	end
else
	raw = ''
end
local stored, begun = newest, '' -- the newest entry before, and what has become of it

--- take
if used + n * count <= limit then
	k = count
else
	k = math.max(0, math.floor((limit - used) / n))
end
if k > 0 then
	local at = math.ceil(now / step) * step
	if at > newest then -- else the server's clock was set back, and has not caught up
		if units > 0 then
			begun = struct.pack('<I7I6', newest, units)
		end
		newest, units = at, 0
	end
	units, used, mark = units + k * n, used + k * n, newest
end
left = math.max(0, limit - used)
if used + n > limit then
	if not isWhole then
		raw, isWhole = redis.call('GET', key), true
		last = #raw
	end
	local need, i, older, at = used + n - limit, first, string.sub(raw, 1, last) .. begun, newest
	while need > 0 and i < #older do
		local u
		at, u = struct.unpack('<I7I6', older, i)
		need, i = need - u, i + 13
	end
	wait = (need > 0 and newest or at) + window - now
end
full = used > 0 and newest + window - now or 0

--- give
if not isWhole then
	raw, isWhole = redis.call('GET', key), true
	last = #raw
end
given = math.min(n, used)
if to == newest then
	given = math.min(n, units)
elseif to then
	given = 0
	for i = first, last - 12, 13 do
		local at, u = struct.unpack('<I7I6', raw, i)
		if at == to then
			given = math.min(n, u)
			local rest = u > given and struct.pack('<I7I6', at, u - given) or ''
			raw = string.sub(raw, 1, i - 1) .. rest .. string.sub(raw, i + 13)
			last = last - 13 + #rest
			break
		end
	end
end
used = used - given
n = (not to or to == newest) and given or 0
while n > 0 and n >= units and used > 0 do -- what was taken last goes first: the newest entry is gone, the one before is the newest
	n = n - units
	if begun ~= '' then
		newest, units = struct.unpack('<I7I6', begun)
		begun = ''
	else
		newest, units = struct.unpack('<I7I6', raw, last - 12)
		last = last - 13
	end
end
units = math.max(0, units - n)
full = used > 0 and newest + window - now or 0

--- save
local head = struct.pack('<I1I6I7I6', 1, used, newest, units)
if full == 0 then
	redis.call('DEL', key)
elseif newest == stored and not isWhole then -- the TTL is right as it is
	redis.call('SETRANGE', key, 0, head)
else
	if not isWhole then
		raw = redis.call('GET', key)
		last = #raw
	end
	redis.call('SET', key, head .. string.sub(raw, first, last) .. begun, 'PX', math.ceil(full / 1000) + 1)
end
