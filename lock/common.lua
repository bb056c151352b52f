-- What the scripts about one lock share. It is put before each of them, and behind what each of them does first: making
-- these functions costs more than locking a free lock.
--
-- KEYS  1 the lock, 2 its queue, 3 its waiters
-- lock     string "token|fence|meta" while held; "|fence|token" for some seconds after that token released it. The fence
--          is the highest that may be in use; a token is "locker.number"
-- queue    list of tokens that wait, the first to come first
-- waiters  hash token -> "alive|window|meta": until when it counts as alive, in µs of the server's clock, and how many ms
--          it has to claim a grant
--
-- Invariant: the lock has one token at a time, and each grant's fence is above all that were in use before.
local LOCK, QUEUE, WAITERS = KEYS[1], KEYS[2], KEYS[3]

local function micros()
	local t = redis.call('TIME')
	return t[1] * 1000000 + t[2]
end

local function digits(n) return string.format('%.0f', n) end

-- read returns nil if there is nothing, and '' as the token of a lock that was released.
local function read(v)
	if not v then return nil, 0, '' end
	local token, fence, rest = string.match(v, '^([^|]*)|(%d+)|(.*)$')
	if not token then error({err = 'NOTALOCK the key holds something else'}) end
	return token, tonumber(fence), rest
end

-- tell sends a message to the inbox of token's locker, and returns how many connections of this server got it. Whoever has
-- no right to publish makes waiters poll, and no more.
local function tell(token, kind, words)
	local dot = string.find(token, '.', 1, true)
	local inbox = string.match(LOCK, '^[^{]*') .. 'inbox:' .. string.sub(token, 1, dot - 1)
	local n = redis.pcall('PUBLISH', inbox, kind .. ' ' .. string.sub(token, dot + 1) .. ' ' .. words .. LOCK)
	return type(n) == 'number' and n or 0
end

-- grant gives the lock to the first of the queue that is alive, and tells it and the one after it, who will see whether it
-- claims the grant. It returns the token, or nil if nobody waits; if that is me, the lock is still to be set.
local function grant(last, me)
	local token, now = redis.call('LPOP', QUEUE)
	while token do
		local waiter = redis.call('HGET', WAITERS, token)
		if waiter then
			redis.call('HDEL', WAITERS, token)
			if token == me then return token end
			now = now or micros()
			local alive, window, meta = string.match(waiter, '^(%d+)|(%d+)|(.*)$')
			if tonumber(alive) > now then
				local clock = digits(now)
				local fence = now > last and clock or digits(last + 1)
				local set = redis.pcall('SET', LOCK, token .. '|' .. fence .. '|' .. meta, 'PX', window)
				if set.err then return nil end -- out of memory: it asks again
				local waiting = redis.call('LRANGE', QUEUE, 0, 2)
				tell(token, 'grant', fence .. ' ' .. clock .. ' ' .. window .. ' ' .. #waiting .. ' ')
				for _, other in ipairs(waiting) do tell(other, 'next', window .. ' ') end
				return token
			end
		end
		token = redis.call('LPOP', QUEUE)
	end
end

-- enqueue puts a token at the end of the queue, unless it is there, and in any case says that it is alive.
local function enqueue(token, now, alive, window, meta)
	local entry = digits(now + alive * 1000) .. '|' .. window .. '|' .. meta
	-- LPOS: the queue may have been lost, and the waiters not.
	if redis.call('HSET', WAITERS, token, entry) == 1 or not redis.call('LPOS', QUEUE, token) then
		redis.call('RPUSH', QUEUE, token)
	end
	for _, key in ipairs({QUEUE, WAITERS}) do -- as long as the most patient needs
		if redis.call('PEXPIRE', key, alive, 'GT') == 0 then redis.call('PEXPIRE', key, alive, 'NX') end
	end
end

-- leave takes a token out of the queue.
local function leave(token)
	if redis.call('HDEL', WAITERS, token) == 0 then return false end
	redis.call('LREM', QUEUE, 1, token)
	return true
end

-- free leaves behind a released lock's last fence, and who released it, for 5s. Where memory is full only the key goes.
local function free(last, token)
	if redis.pcall('SET', LOCK, '|' .. digits(last) .. '|' .. token, 'PX', 5000).err then redis.call('DEL', LOCK) end
end
