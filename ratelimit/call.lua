-- KEYS: the states. ARGV: the numbers of the limit; then, for each key, n and count: count calls of n units each, one
-- after the other; or, with count 0, the question whether one would pass; or, with -1, n units given back; or, with
-- -mark, n units given back to just what calls with that mark took from, as far as it is still there and counts. Without
-- them it is one call of one unit for each key. A key that is there twice is dealt with twice.
-- Returns, for each key: how many of its calls were admitted, the units that are left, how many microseconds it takes
-- until another such call passes, and until the limit is whole again, and the mark: a time that says what was taken from.
-- Invariant: each call is decided as if it had come alone. Nothing is written unless something was taken or given.
-- No value of a key is an error: what is foreign is no state, and is replaced.
-- What is in brackets stands for a section of an algorithm's file, or its count of numbers.
local base, reply = 0, {}
for j, key in ipairs(KEYS) do
	local n, count = tonumber(ARGV[--[[numbers]] + 2 * j - 1] or 1), tonumber(ARGV[--[[numbers]] + 2 * j] or 1)
	local k, left, wait, full, given, mark = 0, 0, 0, 0, 0, 0
	--[[open]]
	if count < 0 then
		local to = count < -1 and -count
		--[[give]]
	else
		--[[take]]
	end
	if k + given > 0 then
		--[[save]]
	end
	local r = 5 * j
	reply[r - 4], reply[r - 3], reply[r - 2], reply[r - 1], reply[r] = k, left, wait, full, mark
end
return reply
