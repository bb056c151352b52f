-- Adds to the buckets of one or more series, in all resolutions that still keep them.
-- KEYS for each operation, one key per resolution, the finest first
-- ARGV the number of resolutions; then, for each operation,
--   'c' n  |  's' count sum least greatest  |  'd' m member...  |  't' size m (member n)...
--   and for each resolution the field and when the key expires, in ms
-- Returns the server's time in seconds and microseconds; then, for each operation that failed, its number and why.
-- Invariant: a key is never without an expiry, which is never moved; one that lies in the past creates and deletes nothing.
-- An operation is done in all resolutions or in none, but for 'd' and 't' on keys that are not ours. Counts are exact: Lua does not
-- calculate them.
local levels = tonumber(ARGV[1])
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local reply = {tonumber(t[1]), tonumber(t[2])}
local keys, fields = 0, 0 -- before those of the operation

local function live(r) return tonumber(ARGV[fields + 2 * r]) > now end

local function expire(r)
	if redis.call('PTTL', KEYS[keys + r]) < 0 then redis.call('PEXPIREAT', KEYS[keys + r], ARGV[fields + 2 * r]) end
end

local function count(n)
	local expected, done = tonumber(n), false
	for r = 1, levels do
		if live(r) then
			local v = redis.pcall('HINCRBY', KEYS[keys + r], ARGV[fields + 2 * r - 1], n)
			if type(v) == 'table' then
				for u = 1, r - 1 do
					if live(u) then
						local back = string.sub(n, 1, 1) == '-' and string.sub(n, 2) or '-' .. n
						if redis.call('HINCRBY', KEYS[keys + u], ARGV[fields + 2 * u - 1], back) == 0 then
							redis.call('HDEL', KEYS[keys + u], ARGV[fields + 2 * u - 1])
						end
					end
				end
				return v.err
			end
			if v == expected then expire(r) end -- else the field was there, and the key has its expiry
			done = true
		end
	end
	return not done and 'LATE'
end

-- The shortest text that is the same number.
local function text(x)
	for digits = 15, 16 do
		local s = string.format('%.' .. digits .. 'g', x)
		if tonumber(s) == x then return s end
	end
	return string.format('%.17g', x)
end

-- A value of more than 64 bytes would make the server spread the whole hash.
local struct = rawget(_G, 'struct')
local function pack(count, sum, least, greatest)
	local s = string.format('%.0f', count) .. ' ' .. text(sum) .. ' ' .. text(least) .. ' ' .. text(greatest)
	if #s > 64 and struct then return 'b' .. struct.pack('<dddd', count, sum, least, greatest) end
	return s
end

local function unpackStats(s)
	if string.sub(s, 1, 1) == 'b' then return struct.unpack('<dddd', s, 2) end
	local c, sum, least, greatest = string.match(s, '^(%S+) (%S+) (%S+) (%S+)$')
	return tonumber(c), tonumber(sum), tonumber(least), tonumber(greatest)
end

local function observe(count, sum, least, greatest)
	local packed, done = {}, false
	for r = 1, levels do
		if live(r) then
			local old = redis.pcall('HGET', KEYS[keys + r], ARGV[fields + 2 * r - 1])
			if type(old) == 'table' then return old.err end
			local c, s, l, g = count, sum, least, greatest
			if old then
				local oc, os, ol, og = unpackStats(old)
				if not og then return 'a bucket holds something else' end
				c, s, l, g = oc + c, os + s, math.min(ol, l), math.max(og, g)
			end
			if s - s ~= 0 or c > 2 ^ 53 then return 'overflow' end
			packed[r] = pack(c, s, l, g)
		end
	end
	for r = 1, levels do
		if packed[r] then
			local v = redis.pcall('HSET', KEYS[keys + r], ARGV[fields + 2 * r - 1], packed[r])
			if type(v) == 'table' then return v.err end -- only the first can fail
			if v == 1 then expire(r) end
			done = true
		end
	end
	return not done and 'LATE'
end

local function distinct(from, to)
	local done = false
	for r = 1, levels do
		if live(r) then
			local v = redis.pcall('PFADD', KEYS[keys + r], unpack(ARGV, from, to))
			if type(v) == 'table' then return v.err end
			if v == 1 then expire(r) end
			done = true
		end
	end
	return not done and 'LATE'
end

-- Space-Saving (Metwally, Agrawal and El Abbadi, 2005): a new member takes the place, and the count, of the smallest.
local function top(size, from, to)
	local done = false
	for r = 1, levels do
		if live(r) then
			local key = KEYS[keys + r]
			local card = redis.pcall('ZCARD', key)
			if type(card) == 'table' then return card.err end
			for i = from, to, 2 do
				local base = redis.call('ZSCORE', key, ARGV[i])
				if not base then
					base = 0
					if card >= size then base = redis.call('ZPOPMIN', key)[2] else card = card + 1 end
				end
				local v = redis.pcall('ZADD', key, string.format('%.0f', math.min(base + ARGV[i + 1], 2 ^ 53)), ARGV[i])
				if type(v) == 'table' then return v.err end
			end
			expire(r)
			done = true
		end
	end
	return not done and 'LATE'
end

local i, number = 2, 0
while i <= #ARGV do
	local kind, failed = ARGV[i]
	if kind == 'c' then
		fields = i + 1
		failed = count(ARGV[i + 1])
	elseif kind == 's' then
		fields = i + 4
		failed = observe(tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2]), tonumber(ARGV[i + 3]), tonumber(ARGV[i + 4]))
	elseif kind == 'd' then
		fields = i + 1 + ARGV[i + 1]
		failed = distinct(i + 2, fields)
	else
		fields = i + 2 + 2 * ARGV[i + 2]
		failed = top(tonumber(ARGV[i + 1]), i + 3, fields)
	end
	if failed then
		reply[#reply + 1] = number
		reply[#reply + 1] = failed
	end
	number = number + 1
	keys = keys + levels
	i = fields + 2 * levels + 1
end
return reply
