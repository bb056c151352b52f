-- Adds to buckets of one or more series, in all resolutions that still keep them.
-- KEYS for each operation, one key per resolution, the finest first
-- ARGV the number of resolutions; then blocks of operations on buckets of the same kind and time:
--   the kind and how many operations; for each resolution the field and when the key expires, in ms; the operations:
--   'c': n  |  's': count sum least greatest  |  'd': m member...  |  't': size m (member n)...
-- Returns the server's time in seconds and microseconds; then, for each operation that failed, its number and why.
-- Invariant: a key is never without an expiry, which is never moved; one that lies in the past creates and deletes nothing.
-- An operation is done in all resolutions or in none, but for 'd' and 't' on keys that are not ours or by a user who may not use a command. Counts are exact: Lua does not
-- calculate them.
local KEYS, ARGV, call, pcall = KEYS, ARGV, redis.call, redis.pcall
local levels = tonumber(ARGV[1])
local t = call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local reply = {tonumber(t[1]), tonumber(t[2])}
local keys = 0 -- before those of the operation
local live, field, expiry -- which resolutions a block is for; the field and expiry of each

-- open.lua has used both commands; a user who has lost them since fails operation by operation.
local function expire(r)
	local v = pcall('PTTL', KEYS[keys + r])
	if v == -1 then v = pcall('PEXPIREAT', KEYS[keys + r], expiry[r]) end
	if type(v) == 'table' then return v.err end
end

local function undo(n, last)
	local back = string.sub(n, 1, 1) == '-' and string.sub(n, 2) or '-' .. n
	for u = 1, last do
		local r = live[u]
		if pcall('HINCRBY', KEYS[keys + r], field[r], back) == 0 then pcall('HDEL', KEYS[keys + r], field[r]) end
	end
end

local function count(n)
	local new = tonumber(n)
	for u = 1, #live do
		local r = live[u]
		local v = pcall('HINCRBY', KEYS[keys + r], field[r], n)
		local failed, done = nil, u
		if v == new then -- else the field was there, and the key has its expiry
			failed = expire(r)
		elseif type(v) == 'table' then
			failed, done = v.err, u - 1
		end
		if failed then
			undo(n, done)
			return failed
		end
	end
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

local function parse(s)
	if string.sub(s, 1, 1) == 'b' then
		if not struct or #s ~= 33 then return end
		return struct.unpack('<dddd', s, 2)
	end
	local c, sum, least, greatest = string.match(s, '^(%S+) (%S+) (%S+) (%S+)$')
	return tonumber(c), tonumber(sum), tonumber(least), tonumber(greatest)
end

local function observe(count, sum, least, greatest)
	local packed = {}
	for _, r in ipairs(live) do
		local old = pcall('HGET', KEYS[keys + r], field[r])
		if type(old) == 'table' then return old.err end
		local c, s, l, g = count, sum, least, greatest
		if old then
			local oc, os, ol, og = parse(old)
			if not (oc and os and ol and og) then return 'ERR the bucket holds something else' end
			c, s, l, g = oc + c, os + s, math.min(ol, l), math.max(og, g)
		end
		if s - s ~= 0 or c >= 2 ^ 53 then return 'ERR overflow' end
		packed[r] = pack(c, s, l, g)
	end
	for _, r in ipairs(live) do
		local v = pcall('HSET', KEYS[keys + r], field[r], packed[r])
		if type(v) == 'table' then return v.err end -- only the first can fail
		local failed = v == 1 and expire(r)
		if failed then
			pcall('HDEL', KEYS[keys + r], field[r])
			return failed
		end
	end
end

local function distinct(from, to)
	for _, r in ipairs(live) do
		local v = pcall('PFADD', KEYS[keys + r], unpack(ARGV, from, to))
		if type(v) == 'table' then return v.err end
		local failed = v == 1 and expire(r)
		if failed then return failed end
	end
end

-- Space-Saving (Metwally, Agrawal and El Abbadi, 2005): a new member takes the place, and the count, of the smallest.
local function top(size, from, to)
	for _, r in ipairs(live) do
		local key = KEYS[keys + r]
		local card = pcall('ZCARD', key)
		if type(card) == 'table' then return card.err end
		local failed
		for i = from, to, 2 do
			local base = pcall('ZSCORE', key, ARGV[i])
			if type(base) == 'table' then failed = base.err break end
			if not base then
				base = 0
				if card >= size then
					local least = pcall('ZPOPMIN', key)
					if least.err then failed = least.err break end
					base = least[2]
				else
					card = card + 1
				end
			end
			local v = pcall('ZADD', key, string.format('%.0f', math.min(base + ARGV[i + 1], 2 ^ 53)), ARGV[i])
			if type(v) == 'table' then failed = v.err break end
		end
		failed = expire(r) or failed
		if failed then return failed end
	end
end

local i, number = 2, 0
while i <= #ARGV do
	local kind, operations = ARGV[i], tonumber(ARGV[i + 1])
	live, field, expiry = {}, {}, {}
	for r = 1, levels do
		field[r], expiry[r] = ARGV[i + 2 * r], ARGV[i + 2 * r + 1]
		if tonumber(expiry[r]) > now then live[#live + 1] = r end
	end
	i = i + 2 + 2 * levels
	for _ = 1, operations do
		local failed
		if kind == 'c' then
			failed = count(ARGV[i])
			i = i + 1
		elseif kind == 's' then
			failed = observe(tonumber(ARGV[i]), tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2]), tonumber(ARGV[i + 3]))
			i = i + 4
		elseif kind == 'd' then
			local last = i + ARGV[i]
			failed = distinct(i + 1, last)
			i = last + 1
		else
			local last = i + 1 + 2 * ARGV[i + 1]
			failed = top(tonumber(ARGV[i]), i + 2, last)
			i = last + 1
		end
		if #live == 0 then failed = 'LATE' end
		if failed then
			reply[#reply + 1] = number
			reply[#reply + 1] = failed
		end
		number = number + 1
		keys = keys + levels
	end
end
return reply
