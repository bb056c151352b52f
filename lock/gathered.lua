-- Takes and releases locks, each as acquire.lua and release.lua do where nobody waits, and leaves the rest to those. One that
-- fails does not concern the others.
--
-- KEYS  a lock and its queue, for each
-- ARGV  1 ttl ms, 2 meta; then for each: token, and the highest fence used, or '' to take the lock
-- returns for each: the fence of a lock that was taken, 1 released, or 0 nothing was done
local time = redis.call('TIME')
local now = string.format('%s%06d', time[1], time[2])
local result = {}
for i = 1, #KEYS, 2 do
	local lock, queue, token, used = KEYS[i], KEYS[i + 1], ARGV[i + 2], ARGV[i + 3]
	local value, done = redis.pcall('GET', lock), 0
	local text = type(value) == 'string' and value
	if used == '' then
		local released = text and string.byte(text) == 124 and string.sub(text, -#token) ~= token -- else it comes late
		if released or not value and redis.call('EXISTS', queue) == 0 then
			local fence, last = now, text and string.match(text, '%d+')
			if last and last >= fence then fence = string.format('%.0f', tonumber(last) + 1) end
			local set = redis.pcall('SET', lock, token .. '|' .. fence .. '|' .. ARGV[2], 'PX', ARGV[1])
			if not set.err then done = tonumber(fence) end
		end
	elseif text and redis.call('EXISTS', queue) == 0 then
		local fence = string.match(text, '^|(%d+)', #token + 1)
		if fence and string.sub(text, 1, #token) == token then
			if tonumber(used) > tonumber(fence) then fence = used end
			local set = redis.pcall('SET', lock, '|' .. fence .. '|' .. token, 'PX', 5000)
			if set.err then set = redis.pcall('DEL', lock) end
			if type(set) == 'number' or not set.err then done = 1 end
		end
	end
	result[#result + 1] = done
end
return result
