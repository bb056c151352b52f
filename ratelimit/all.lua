-- KEYS: the states, each another one. ARGV: for each, its algorithm, the three numbers of its limit, and n.
-- Returns, of each, what call.lua returns; if one was not admitted, none was, and 1 says that a call would be alone.
-- Invariant: either n units are taken from each, or nothing is written.
local algorithms = {fixed = fixed, sliding = sliding, approximate = approximate, bucket = bucket}
local takes, saves, reply, pass = {}, {}, {}, true
for i, key in ipairs(KEYS) do
	local base = i * 5 - 4
	local take, save = algorithms[ARGV[base]](key, base)
	local _, left, wait, full = take(tonumber(ARGV[base + 4]), 0)
	local r = #reply
	reply[r + 1], reply[r + 2], reply[r + 3], reply[r + 4], reply[r + 5] = wait > 0 and 0 or 1, left, wait, full, 0
	takes[i], saves[i], pass = take, save, pass and wait == 0
end
if pass then
	for i, take in ipairs(takes) do
		local r = i * 5
		reply[r - 4], reply[r - 3], reply[r - 2], reply[r - 1], reply[r] = take(tonumber(ARGV[i * 5]), 1)
		saves[i]()
	end
end
return reply
