-- approximate opens two counters: of the window that began with a first call, and of the one before, which counts by
-- the part of it that the window ending now overlaps. Numbers: limit, window (microseconds).
-- Stored: the window's start (7 bytes), the units of the window before (6) and of this one (6).
-- Invariant: the weighed sum is never raised above limit; so less than 2 * limit units are in any window.
local function approximate(raw, base)
	local limit, window = tonumber(ARGV[base + 1]), tonumber(ARGV[base + 2])
	local start, before, units = now, 0, 0
	if raw and #raw == 19 then
		local s, b, u = struct.unpack('<I7I6I6', raw)
		if now < s + window then
			start, before, units = s, b, u
		elseif now < s + 2 * window then
			start, before = s + window, u
		end
	end
	-- A server whose clock was set back stands still until it has caught up.
	local elapsed = math.max(0, now - start)

	local function weight(u, e)
		return math.ceil(u * (window - e) / window)
	end

	-- passes is the first instant of a window at which u units of the window before weigh at most most.
	local function passes(u, most)
		if u <= most then
			return 0
		end
		local e = math.max(0, math.floor(window - window * most / u) - 1)
		while weight(u, e) > most do
			e = e + 1
		end
		return e
	end

	local function wait(n)
		if units + n <= limit then
			return start + passes(before, limit - units - n) - now
		end
		return start + window + passes(units, limit - n) - now
	end

	return {
		take = function(n, count)
			local weighed = weight(before, elapsed)
			local k = math.max(0, math.min(count, math.floor((limit - weighed - units) / n)))
			units = units + k * n
			local reset = 0
			if units > 0 then
				reset = start + 2 * window - now
			elseif before > 0 then
				reset = start + window - now
			end
			return k, math.max(0, limit - weighed - units), weighed + units + n > limit and wait(n) or 0, reset
		end,
		give = function(n)
			local u = math.min(n, units)
			local b = math.min(n - u, before)
			units, before = units - u, before - b
			return u + b
		end,
		save = function()
			if units + before == 0 then
				return nil
			end
			return struct.pack('<I7I6I6', start, before, units), start + 2 * window - now
		end,
	}
end
