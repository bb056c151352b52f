-- Takes a lock that is free, or queues for it. Running it again with the same token asks again: it is how a lost reply is
-- recovered, how a waiter says that it is alive, and how a grant is noticed that was not heard.
--
-- ARGV  1 token, 2 ttl ms, 3 meta, 4 inboxes' prefix, 5 'wait', 'hello' (wait, and send a message to my inbox) or '',
--       6 alive ms, 7 window ms, 8 unheard ms
-- returns {1, fence, now µs, whether others wait} or {0, now µs, ms left, holder's token, holder's meta}
local token, ttl, meta, inboxes, mode = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local owner, last, rest = read()
local now = micros()
if owner == token then
	redis.call('PEXPIRE', LOCK, ttl, 'GT')
	return {1, last, now, redis.call('EXISTS', QUEUE)}
end
if not owner or owner == '' then
	-- A lock that was released has no queue. One that expired, or was deleted, may have one, and then it is its turn.
	local to = not owner and redis.call('EXISTS', QUEUE) == 1 and grant(last, inboxes, token)
	if not to or to == token then
		local fence = math.max(now, last + 1)
		redis.call('SET', LOCK, token .. '|' .. digits(fence) .. '|' .. meta, 'PX', ttl)
		return {1, fence, now, to and redis.call('EXISTS', QUEUE) or 0}
	end
	owner, last, rest = read()
end
if mode ~= '' then
	enqueue(token, now, ARGV[6], ARGV[7], ARGV[8], meta)
	if mode == 'hello' then tell(inboxes, token, 'hello %s ') end
end
return {0, now, redis.call('PTTL', LOCK), owner, rest}
