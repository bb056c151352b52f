-- fixed opens the state of a window that begins with the first call in it and admits limit units.
-- Numbers: limit, window (microseconds). Stored: the window's end (7 bytes), the units used (6).
-- Invariant: used is never raised above limit, and an end is never moved.
local function fixed(raw, base)
	local limit, window = tonumber(ARGV[base + 1]), tonumber(ARGV[base + 2])
	local ends, used = now + window, 0
	if raw and #raw == 13 then
		local e, u = struct.unpack('<I7I6', raw)
		if e > now then
			ends, used = e, u
		end
	end
	return {
		take = function(n, count)
			local k = math.max(0, math.min(count, math.floor((limit - used) / n)))
			used = used + k * n
			local wait = used + n > limit and ends - now or 0
			return k, math.max(0, limit - used), wait, used > 0 and ends - now or 0
		end,
		give = function(n)
			n = math.min(n, used)
			used = used - n
			return n
		end,
		save = function()
			if used == 0 then
				return nil
			end
			return struct.pack('<I7I6', ends, used), ends - now
		end,
	}
end
