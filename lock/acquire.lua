-- Takes a lock that is free, or queues for it. Running it again with the same token asks again: it is how a lost reply is
-- recovered, how a waiter says that it is alive, and how a grant is noticed that was not heard.
--
-- ARGV  1 token, 2 ttl ms, 3 meta, 4 'wait', 'hello' (wait, and send a message to my inbox) or '',
--       5 "alive window", each in ms
-- returns the fence, if nobody waits, {1, fence, now µs, whether others wait},
--         or {0, now µs, ms left, holder's token, holder's meta}
local value = redis.call('GET', KEYS[1])
local time = redis.call('TIME')
local released = value and string.byte(value) == 124
if released and string.sub(value, -#ARGV[1]) == ARGV[1] then -- it comes late: that token is no more
	return {0, time[1] * 1000000 + time[2], 0, '', ''}
end
if released or not value and redis.call('EXISTS', KEYS[2]) == 0 then
	-- Free: one that was released has no queue; one that expired, or was deleted, may have one, and then it is its turn.
	local fence = string.format('%s%06d', time[1], time[2])
	local last = value and string.match(value, '%d+')
	if last and last >= fence then -- of as many digits until the year 2286: the clock was set back
		fence = string.format('%.0f', tonumber(last) + 1)
	end
	redis.call('SET', KEYS[1], ARGV[1] .. '|' .. fence .. '|' .. ARGV[3], 'PX', ARGV[2])
	return fence
end
--common
local now = time[1] * 1000000 + time[2]
local token, ttl, meta, mode = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local owner, last, rest = read(value)
if owner == token then
	if redis.call('PEXPIRE', LOCK, ttl, 'GT') == 0 then
		redis.call('PEXPIREAT', LOCK, redis.call('PEXPIRETIME', LOCK)) -- WAIT waits for nothing after what has not written
	end
	return {1, last, now, redis.call('EXISTS', QUEUE)}
end
if not owner then
	local to = grant(last, token)
	if not to or to == token then
		redis.call('SET', LOCK, token .. '|' .. digits(now) .. '|' .. meta, 'PX', ttl)
		return {1, now, now, to and redis.call('EXISTS', QUEUE) or 0}
	end
	owner, last, rest = read(redis.call('GET', LOCK))
end
if mode ~= '' then
	local alive, window = string.match(ARGV[5], '(%d+) (%d+)')
	enqueue(token, now, alive, window, meta)
	if mode == 'hello' then tell(token, 'hello', '') end
end
return {0, now, redis.call('PTTL', LOCK), owner, rest}
