-- A bucket of limit tokens that rate new ones drip into in each period, evenly.
-- Numbers: limit, rate, period (microseconds; rate / period is in lowest terms). Stored: when it was filled last
-- (7 bytes), how many whole tokens it lacks (6), what there is of the next one in parts of 1/period (6), period (6).
-- Invariant: tokens + part / period is exactly what rate has brought, without rounding. What is lacking is stored, and
-- not what is there, so that what was taken counts for another limit on the key too, however many tokens that has.

--- open
local limit, rate, period = tonumber(ARGV[base + 1]), tonumber(ARGV[base + 2]), tonumber(ARGV[base + 3])

-- muldiv returns a * b / c and the remainder, exactly, for a and b below 2^50 and c below 2^46.
local function muldiv(a, b, c)
	local product = a * b
	if product < 4503599627370496 then -- 2^52: neither this nor the quotient is rounded
		local rest = product % c
		return (product - rest) / c, rest
	end
	local a1 = a % c
	local whole = (a - a1) / c * b
	local digits = {} -- of b, in base 64, lowest first
	while b > 0 do
		digits[#digits + 1] = b % 64
		b = math.floor(b / 64)
	end
	local q, r = 0, 0
	for i = #digits, 1, -1 do
		local x = r * 64 + a1 * digits[i]
		r = x % c
		q = q * 64 + (x - r) / c
	end
	return whole + q, r
end

local at, tokens, part = now, limit, 0
local raw = redis.pcall('GET', key)
if type(raw) == 'string' and #raw == 25 then
	local parts
	at, tokens, part, parts = struct.unpack('<I7I6I6I6', raw)
	tokens = limit - tokens -- below 0 if more was taken under a limit with more tokens
	if parts ~= period then
		part = 0
	end
	if now > at then -- else the server's clock was set back, and brings nothing until it has caught up
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

-- till is how long it takes until there are n tokens, of which some are missing; at most 2^52, 142 years, which a slow
-- rate takes for what was taken under a fast one.
local function till(n)
	local whole, rest = muldiv(n - tokens, period, rate)
	return math.min(4503599627370496, at - now + whole + math.ceil((rest - part) / rate))
end

--- take
if n * count <= tokens then
	k = count
else
	k = math.max(0, math.floor(tokens / n))
end
tokens, mark = tokens - k * n, at
left = math.max(0, tokens)
wait = tokens < n and till(n) or 0
full = tokens < limit and till(limit) or 0

--- give
-- To a mark no more is given than what has not dripped in since. So much, no bucket that was full without the call can
-- have lost meanwhile; what others took, or were given back, does not matter.
local rest = 0
if to then
	local whole = n
	if at >= to then
		whole, rest = muldiv(at - to, rate, period)
	end
	n = n - whole
end
given = math.min(n, limit - tokens)
if given > 0 then
	tokens, part = tokens + given, part - rest
	if part < 0 then
		tokens, part = tokens - 1, part + period
	end
end
if tokens == limit then
	part = 0
else
	full = till(limit)
end

--- save
if full == 0 then
	redis.call('DEL', key)
else
	redis.call('SET', key, struct.pack('<I7I6I6I6', at, limit - tokens, part, period), 'PX', math.ceil(full / 1000) + 1)
end
