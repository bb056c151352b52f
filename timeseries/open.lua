-- Agrees on how many buckets the chunks of a store have.
-- KEYS layout
-- ARGV its TTL in ms; buckets to propose, 0 for none
-- Returns the server's time, in seconds and microseconds, and the buckets, 0 if nobody has proposed any yet.
-- The first proposal stands for as long as anybody uses the store and a chunk may live after that.
local t = redis.call('TIME')
local buckets = redis.call('GET', KEYS[1])
if not buckets and ARGV[2] ~= '0' then
	buckets = ARGV[2]
	redis.call('SET', KEYS[1], buckets, 'PX', ARGV[1])
elseif buckets then
	redis.call('PEXPIRE', KEYS[1], ARGV[1])
end
return {tonumber(t[1]), tonumber(t[2]), tonumber(buckets) or 0}
