-- Takes a lock away from whoever has it, tells them, and hands it to the first who waits.
--
-- returns the token that it had, or ''
--common
local token, last = read(redis.call('GET', LOCK))
if not token or token == '' then return '' end
last = math.max(last, micros()) -- in its process it may have been passed on, under fences up to now
if not grant(last) then free(last, '') end
tell(token, 'break', '') -- not before: it may be that it cannot be taken away
return token
