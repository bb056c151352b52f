-- An algorithm as a function, for all.lua.
local function --[[name]](key, base)
	local k, left, wait, full, mark
	--[[open]]
	return function(n, count)
		k, left, wait, full, mark = 0, 0, 0, 0, 0
		--[[take]]
		return k, left, wait, full, mark
	end, function()
		--[[save]]
	end
end
