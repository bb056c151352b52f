-- Lets locks live on, each for its ttl from now, never for less than it has.
--
-- KEYS  a lock and its queue, for each
-- ARGV  its token and ttl ms, for each
-- returns {now µs, then for each: 0 the token does not have the lock, 1 it has, 2 it has and others wait}
local time = redis.call('TIME')
local result = {time[1] * 1000000 + time[2]}
for i = 1, #KEYS, 2 do
	local token, state = ARGV[i], 0
	local v = redis.call('GET', KEYS[i])
	if v and string.sub(v, 1, #token + 1) == token .. '|' then
		redis.call('PEXPIRE', KEYS[i], ARGV[i + 1], 'GT')
		state = 1 + redis.call('EXISTS', KEYS[i + 1])
	end
	result[#result + 1] = state
end
return result
