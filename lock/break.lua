-- Takes a lock away from whoever has it, tells them, and hands it to the first who waits.
--
-- ARGV  1 ms to keep the last fence, 2 inboxes' prefix
-- returns the token that it had, or ''
--common
local token, last = read(redis.call('GET', LOCK))
if not token or token == '' then return '' end
tell(ARGV[2], token, 'break %s ')
last = math.max(last, micros()) -- in its process it may have been passed on, under fences up to now
if not grant(last, ARGV[2]) then free(last, '', ARGV[1]) end
return token
