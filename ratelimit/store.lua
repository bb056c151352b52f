-- store writes a state, with a TTL that ends when it no longer says anything. Redis' clock for that is in milliseconds,
-- rounded down, hence the one more.
local function store(key, state)
	local raw, ttl = state.save()
	if raw then
		redis.call('SET', key, raw, 'PX', math.ceil(ttl / 1000) + 1)
	else
		redis.call('DEL', key)
	end
end
