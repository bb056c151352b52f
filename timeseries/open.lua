-- Agrees on how many buckets the chunks of a store have.
-- KEYS layout
-- ARGV its TTL in ms; buckets to propose, 0 for none
-- Returns the server's time, in seconds and microseconds, and the buckets, 0 if nobody has proposed any yet.
-- The first proposal stands for as long as anybody uses the store and a chunk may live after that: the TTL only grows. What is not
-- 16 to 120 is replaced. All of PTTL and PEXPIREAT run each time: who may not use them could not write either.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local text = redis.call('GET', KEYS[1])
local buckets = text and tonumber(text)
if not (buckets and buckets >= 16 and buckets <= 120 and buckets % 1 == 0) then
	buckets = tonumber(ARGV[2])
	if buckets > 0 then redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[1]) end
end
local ttl = math.max(redis.call('PTTL', KEYS[1]), tonumber(ARGV[1]))
redis.call('PEXPIREAT', KEYS[1], string.format('%.0f', now + ttl))
return {tonumber(t[1]), tonumber(t[2]), buckets}
