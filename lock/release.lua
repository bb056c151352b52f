-- Gives up a token: releases the lock if it has it, and hands it to the first who waits, or takes it out of the queue. With
-- a next token, that one is queued in the same step, behind those who wait already. Running it again changes nothing.
--
-- ARGV  1 token, 2 highest fence used, 3 ms to keep it, 4 inboxes' prefix, and with a next token: 5 that, 6 ttl ms, 7 meta,
--       8 alive ms, 9 window ms, 10 unheard ms
-- returns {state}: 0 it had nothing, 1 released, 2 it was in the queue;
--         and for the next token {1, 1, fence, now µs, whether others wait} or {1, 0, now µs, ms left}
local token, retain, inboxes, following = ARGV[1], ARGV[3], ARGV[4], ARGV[5]
local owner, last, rest = read()
if owner ~= token then
	if leave(token) then return {2} end
	return {owner == '' and rest == token and 1 or 0}
end
last = math.max(last, tonumber(ARGV[2]))
if not following then
	if not grant(last, inboxes) then free(last, token, retain) end
	return {1}
end
local now = micros()
enqueue(following, now, ARGV[8], ARGV[9], ARGV[10], ARGV[7])
if grant(last, inboxes, following) ~= following then return {1, 0, now, redis.call('PTTL', LOCK)} end
local fence = math.max(now, last + 1)
redis.call('SET', LOCK, following .. '|' .. digits(fence) .. '|' .. ARGV[7], 'PX', ARGV[6])
return {1, 1, fence, now, redis.call('EXISTS', QUEUE)}
