-- KEYS: the state. ARGV: the three numbers of the limit; then, in order of arrival, pairs of n and count:
-- count calls of n units each; or, with count 0, the question whether one would pass; or, with -1, n units given back.
-- Returns, of each pair but those given back: how many of its calls were admitted, the units that are left, and how many
-- microseconds it takes until another such call passes, and until the limit is whole again.
-- Invariant: each call is decided as if it had come alone. Nothing is written unless something was taken or given.
local state = open(redis.call('GET', KEYS[1]), 0)
local reply, changed = {}, false
for i = 4, #ARGV, 2 do
	local n, count = tonumber(ARGV[i]), tonumber(ARGV[i + 1])
	if count < 0 then
		changed = state.give(n) > 0 or changed
	else
		local k, left, wait, reset = state.take(n, count)
		changed = changed or k > 0
		local r = #reply
		reply[r + 1], reply[r + 2], reply[r + 3], reply[r + 4] = k, left, wait, reset
	end
end
if changed then
	store(KEYS[1], state)
end
return reply
