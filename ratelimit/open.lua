-- An algorithm as a function, for all.lua.
local function --[[name]](key, base)
	local k, left, wait, full
	--[[open]]
	return function(n, count)
		k, left, wait, full = 0, 0, 0, 0
		--[[take]]
		return k, left, wait, full
	end, function()
		--[[save]]
	end
end
