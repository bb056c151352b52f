-- KEYS: the state. ARGV: the numbers of the limit; then, in order of arrival, pairs of n and count: count calls of n units
-- each; or, with count 0, the question whether one would pass; or, with -1, n units given back. No pairs: one call of one.
-- Returns, of each pair: how many of its calls were admitted, the units that are left, and how many microseconds it takes
-- until another such call passes, and until the limit is whole again.
-- Invariant: each call is decided as if it had come alone. Nothing is written unless something was taken or given.
-- What is in brackets stands for a section of an algorithm's file, or its count of numbers.
local key, base = KEYS[1], 0
--[[open]]
local k, left, wait, full
local reply, r, i, changed = {0, 0, 0, 0}, 0, --[[numbers]] + 1, false
repeat
	local n, count = tonumber(ARGV[i] or 1), tonumber(ARGV[i + 1] or 1)
	k, left, wait, full = 0, 0, 0, 0
	if count < 0 then
		local given
		--[[give]]
		changed = changed or given > 0
	else
		--[[take]]
		changed = changed or k > 0
	end
	reply[r + 1], reply[r + 2], reply[r + 3], reply[r + 4] = k, left, wait, full
	r, i = r + 4, i + 2
until not ARGV[i]
if changed then
	--[[save]]
end
return reply
