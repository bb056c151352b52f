-- KEYS control
-- ARGV version
-- Returns the live version or '', and the state of the version or ''. It comes after writes, in one pipeline with them.
return {redis.call('HGET', KEYS[1], 'live') or '', redis.call('HGET', KEYS[1], 'v:' .. ARGV[1]) or ''}
