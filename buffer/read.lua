-- Reads the live batch. A script, since a client may send commands that only read to replicas.
-- KEYS meta, batch, marks
-- ARGV nonce
-- Returns {version, {field, value, ...}, {field, mark, ...}}, or {} if the batch is not live.
local m = redis.call('HMGET', KEYS[1], 'nonce', 'version')
if m[1] ~= ARGV[1] then return {} end
return {m[2], redis.call('HGETALL', KEYS[2]), redis.call('HGETALL', KEYS[3])}
