-- Looks at a lock and changes nothing.
--
-- returns {token, '' if not held, fence, ms left, how many wait, meta}
--common
local token, fence, rest = read(redis.call('GET', LOCK))
if not token or token == '' then return {'', fence, 0, redis.call('LLEN', QUEUE), ''} end
return {token, fence, redis.call('PTTL', LOCK), redis.call('LLEN', QUEUE), rest}
