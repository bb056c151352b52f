-- sliding opens the log of a window that ends now, at each instant, and admits limit units.
-- Numbers: limit, window, step (microseconds). Stored: the units in the log (6 bytes), then entries, oldest first: a
-- time (7) and the units admitted then (6). Times are rounded up to the next multiple of step, so that there are at
-- most window/step + 2 entries, and units are counted for longer than the window, never for less.
-- Invariant: the units of all entries younger than window add up to limit at most.
local function sliding(raw, base)
	local limit, window, step = tonumber(ARGV[base + 1]), tonumber(ARGV[base + 2]), tonumber(ARGV[base + 3])
	if not raw or #raw < 19 or #raw % 13 ~= 6 then
		raw = ''
	end
	local used = 0
	local first, last = 7, #raw - 13 -- of the bytes of all live entries but the newest
	local newest, units = 0, 0       -- the newest entry
	if raw ~= '' then
		used = struct.unpack('<I6', raw)
		newest, units = struct.unpack('<I7I6', raw, last + 1)
		while first < last do
			local at, u = struct.unpack('<I7I6', raw, first)
			if at + window > now then
				break
			end
			used = used - u
			first = first + 13
		end
		if newest + window <= now then
			used, units = 0, 0
			last = first - 1
		end
	end

	local begun = '' -- an older entry that is not in raw's part

	-- wait is how long until used has sunk by need.
	local function wait(need)
		local i = first
		while i < last do
			local at, u = struct.unpack('<I7I6', raw, i)
			need = need - u
			if need <= 0 then
				return at + window - now
			end
			i = i + 13
		end
		if begun ~= '' then
			local at, u = struct.unpack('<I7I6', begun)
			need = need - u
			if need <= 0 then
				return at + window - now
			end
		end
		return newest + window - now
	end

	return {
		take = function(n, count)
			local k = math.max(0, math.min(count, math.floor((limit - used) / n)))
			if k > 0 then
				-- A server whose clock was set back adds to the newest entry until it has caught up.
				local at = math.max(math.ceil(now / step) * step, newest)
				if at ~= newest then
					if units > 0 then
						begun = struct.pack('<I7I6', newest, units)
					end
					newest, units = at, 0
				end
				units = units + k * n
				used = used + k * n
			end
			return k, math.max(0, limit - used), used + n > limit and wait(used + n - limit) or 0,
				used > 0 and newest + window - now or 0
		end,
		-- What was taken last is given back first.
		give = function(n)
			n = math.min(n, used)
			used = used - n
			local left = n
			while left >= units and used > 0 do -- the newest entry is gone, and the one before takes its place
				left = left - units
				if begun ~= '' then
					newest, units = struct.unpack('<I7I6', begun)
					begun = ''
				else
					newest, units = struct.unpack('<I7I6', raw, last - 12)
					last = last - 13
				end
			end
			units = math.max(0, units - left)
			return n
		end,
		save = function()
			if used == 0 then
				return nil
			end
			return struct.pack('<I6', used) .. string.sub(raw, first, last) .. begun .. struct.pack('<I7I6', newest, units),
				newest + window - now
		end,
	}
end
