-- KEYS: the states, each another one. ARGV: for each, its algorithm, the three numbers of its limit, and n.
-- Returns, of each, what call.lua returns; if one was not admitted, none was, and 1 says that a call would be alone.
-- Invariant: either n units are taken from each, or nothing is written.
local states, reply, pass = {}, {}, true
for i = 1, #KEYS do
	local base = i * 5 - 4
	local open = ({f = fixed, s = sliding, a = approximate, b = bucket})[ARGV[base]]
	local state = open(redis.call('GET', KEYS[i]), base)
	local _, left, wait, reset = state.take(tonumber(ARGV[base + 4]), 0)
	local r = #reply
	reply[r + 1], reply[r + 2], reply[r + 3], reply[r + 4] = wait > 0 and 0 or 1, left, wait, reset
	states[i], pass = state, pass and wait == 0
end
if pass then
	for i, state in ipairs(states) do
		local r = i * 4
		reply[r - 3], reply[r - 2], reply[r - 1], reply[r] = state.take(tonumber(ARGV[i * 5]), 1)
		store(KEYS[i], state)
	end
end
return reply
