-- A script, since a client may send commands that only read to replicas.
-- KEYS cur, gen, batch
-- Returns how many of them are there.
return redis.call('EXISTS', unpack(KEYS))
