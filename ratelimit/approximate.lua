-- Two counters: of the window that began with a first call, and of the one before, which counts by the part of it that
-- the window ending now overlaps. Numbers: limit, window (microseconds).
-- Stored: the window's start (7 bytes), the units of the window before (6) and of this one (6).
-- Invariant: the weighed sum is never raised above limit; so less than 2 * limit units are in any window.

--- open
local limit, window = tonumber(ARGV[base + 1]), tonumber(ARGV[base + 2])
local raw = redis.pcall('GET', key)
local start, before, units = now, 0, 0
if type(raw) == 'string' and #raw == 19 then
	local s, b, u = struct.unpack('<I7I6I6', raw)
	if now < s + window then
		start, before, units = s, b, u
	elseif now < s + 2 * window then
		start, before = s + window, u
	end
end
local function weight(u, elapsed)
	return math.ceil(u * (window - elapsed) / window)
end
-- A server whose clock was set back stands still until it has caught up.
local weighed = weight(before, math.max(0, now - start))

--- take
if weighed + units + n * count <= limit then
	k = count
else
	k = math.max(0, math.floor((limit - weighed - units) / n))
end
units, mark = units + k * n, start
left = math.max(0, limit - weighed - units)
if weighed + units + n > limit then
	-- In this window when the one before weighs little enough, else in the next when this one does.
	local begins, u, most = start, before, limit - units - n
	if most < 0 then
		begins, u, most = start + window, units, limit - n
	end
	local elapsed = 0
	if u > most then
		elapsed = math.max(0, math.floor(window - window * most / u) - 1)
		while weight(u, elapsed) > most do
			elapsed = elapsed + 1
		end
	end
	wait = begins + elapsed - now
end
if units > 0 then
	full = start + 2 * window - now
elseif before > 0 then
	full = start + window - now
end

--- give
local u = math.min(n, units)
given = math.min(n, units + before)
if to and to == start then
	given = u
elseif to then
	u, given = 0, to + window == start and math.min(n, before) or 0
end
units, before = units - u, before - given + u
weighed = weight(before, math.max(0, now - start))
if units > 0 then
	full = start + 2 * window - now
elseif before > 0 then
	full = start + window - now
end

--- save
if full == 0 then
	redis.call('DEL', key)
else
	redis.call('SET', key, struct.pack('<I7I6I6', start, before, units), 'PX', math.ceil(full / 1000) + 1)
end
