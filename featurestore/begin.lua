-- Begins a version, or goes on with one that was begun.
-- KEYS control
-- ARGV version
-- Returns {1, the live version or ''}, or {0, ''} if the version is complete already or being deleted.
local state = redis.call('HGET', KEYS[1], 'v:' .. ARGV[1])
if state and state ~= 'loading' then return {0, ''} end
redis.call('HSET', KEYS[1], 'v:' .. ARGV[1], 'loading')
return {1, redis.call('HGET', KEYS[1], 'live') or ''}
