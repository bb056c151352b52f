-- Makes a version live.
-- KEYS control
-- ARGV version or '', the state it must have, whether another one must be live ('1' or '0'), and which
-- Returns 1 if it is live now, 0 if it is not in that state, -1 if another version has become live meanwhile.
-- What was live until now is remembered with the time, so that it is not deleted while reads of it run. Twice is once.
local control, version = KEYS[1], ARGV[1]
local live = redis.call('HGET', control, 'live') or ''
if live == version then return 1 end
if version ~= '' and redis.call('HGET', control, 'v:' .. version) ~= ARGV[2] then return 0 end
if ARGV[3] == '1' and live ~= ARGV[4] then return -1 end
local now = redis.call('TIME')
redis.call('HSET', control, 'live', version, 'left:' .. live, now[1])
if version ~= '' then redis.call('HSET', control, 'v:' .. version, 'ready') end
return 1
