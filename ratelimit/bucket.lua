-- bucket opens a bucket of limit tokens that rate new ones drip into in each period, evenly.
-- Numbers: limit, rate, period (microseconds; rate / period is in lowest terms). Stored: when it was filled up to now
-- (7 bytes), the whole tokens (6), what there is of the next one in parts of 1/period (6), period (6).
-- Invariant: tokens + part / period is exactly what rate has brought, without rounding.
local function bucket(raw, base)
	local limit, rate, period = tonumber(ARGV[base + 1]), tonumber(ARGV[base + 2]), tonumber(ARGV[base + 3])

	-- muldiv returns a * b / c and the remainder, exactly, for a and b below 2^50 and c below 2^46.
	local function muldiv(a, b, c)
		local product = a * b
		if product < 4503599627370496 then -- 2^52: neither this nor the quotient is rounded
			local rest = product % c
			return (product - rest) / c, rest
		end
		local rest = a % c
		local quotient, a1 = (a - rest) / c * b, rest
		-- b's digits in base 64, highest first
		local digits = {}
		while b > 0 do
			digits[#digits + 1] = b % 64
			b = math.floor(b / 64)
		end
		local q, r = 0, 0
		for i = #digits, 1, -1 do
			r = r * 64 + a1 * digits[i]
			local rr = r % c
			q = q * 64 + (r - rr) / c
			r = rr
		end
		return quotient + q, r
	end

	local at, tokens, part = now, limit, 0
	if raw and #raw == 25 then
		local parts
		at, tokens, part, parts = struct.unpack('<I7I6I6I6', raw)
		if parts ~= period then
			part = 0
		end
		-- A server whose clock was set back brings no tokens until it has caught up.
		if now > at then
			local whole, rest = muldiv(now - at, rate, period)
			at, tokens, part = now, tokens + whole, part + rest
			if part >= period then
				tokens, part = tokens + 1, part - period
			end
		end
		if tokens >= limit then
			tokens, part = limit, 0
		end
	end

	-- wait is how long until there are n tokens.
	local function wait(n)
		if tokens >= n then
			return 0
		end
		local whole, rest = muldiv(n - tokens, period, rate)
		return at - now + whole + math.ceil((rest - part) / rate)
	end

	return {
		take = function(n, count)
			local k = math.min(count, math.floor(tokens / n))
			tokens = tokens - k * n
			return k, tokens, wait(n), wait(limit)
		end,
		give = function(n)
			n = math.min(n, limit - tokens)
			tokens = tokens + n
			if tokens == limit then
				part = 0
			end
			return n
		end,
		save = function()
			if tokens == limit then
				return nil
			end
			return struct.pack('<I7I6I6I6', at, tokens, part, period), wait(limit)
		end,
	}
end
