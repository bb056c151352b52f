-- The server's time in microseconds, whole and below 2^53 and so exact, and Redis' library to pack numbers.
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local struct = rawget(_G, 'struct')
if not struct then -- a test server like miniredis: this much of it will do there
	struct = {
		pack = function(format, ...)
			local out, numbers, i = '', {...}, 0
			for size in string.gmatch(format, '%d') do
				i = i + 1
				local x = numbers[i]
				for _ = 1, tonumber(size) do
					out = out .. string.char(x % 256)
					x = math.floor(x / 256)
				end
			end
			return out
		end,
		unpack = function(format, s, at)
			local numbers = {}
			at = at or 1
			for size in string.gmatch(format, '%d') do
				local x = 0
				for i = at + size - 1, at, -1 do
					x = x * 256 + string.byte(s, i)
				end
				numbers[#numbers + 1] = x
				at = at + size
			end
			return unpack(numbers)
		end,
	}
end
