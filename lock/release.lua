-- Gives up a token: releases the lock if it has it, and hands it to the first who waits, or takes it out of the queue. With
-- a next token, that one is queued in the same step, behind those who wait already. Running it again changes nothing.
--
-- ARGV  1 token, 2 highest fence used, and with a next token: 3 that, 4 ttl ms, 5 meta, 6 "alive window", each in ms
-- returns 0 it had nothing, 1 released, or 2 it was in the queue; with a next token, after a release,
--         {1, fence, now µs, whether others wait} if that has the lock, or {0, now µs, ms left, holder's token, holder's meta}
local token, following = ARGV[1], ARGV[3]
local value = redis.call('GET', KEYS[1])
local fence = value and string.sub(value, 1, #token) == token and string.match(value, '^|(%d+)', #token + 1)
if fence and tonumber(ARGV[2]) > tonumber(fence) then fence = ARGV[2] end
if fence and not following and redis.call('EXISTS', KEYS[2]) == 0 then
	-- Where memory is full only the key goes.
	if redis.pcall('SET', KEYS[1], '|' .. fence .. '|' .. token, 'PX', 5000).err then redis.call('DEL', KEYS[1]) end
	return 1
end
--common
if not fence then
	local owner, _, rest = read(value)
	if leave(token) then return 2 end
	return owner == '' and rest == token and 1 or 0
end
local last = tonumber(fence)
if not following then
	if not grant(last) then free(last, token) end
	return 1
end
local now = micros()
local alive, window = string.match(ARGV[6], '(%d+) (%d+)')
enqueue(following, now, alive, window, ARGV[5])
local to = grant(last, following)
if to ~= following then
	local _, _, rest = read(redis.call('GET', LOCK))
	return {0, now, redis.call('PTTL', LOCK), to or '', rest}
end
local fence = math.max(now, last + 1)
redis.call('SET', LOCK, following .. '|' .. digits(fence) .. '|' .. ARGV[5], 'PX', ARGV[4])
return {1, fence, now, redis.call('EXISTS', QUEUE)}
