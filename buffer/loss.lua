-- Comes before the scripts that find out that Redis has lost writes: several processes do, and the ledger may too.

-- lost returns true to the first that notices it, in this life of the server and of the shard's meta.
local function lost(meta)
  local info = redis.pcall('INFO', 'replication')
  local life = type(info) == 'string' and string.match(info, 'master_replid:(%w+)') or '' -- a user may not be allowed INFO
  if redis.call('HGET', meta, 'lossOf') == life then return false end
  redis.call('HSET', meta, 'lossOf', life)
  return true
end
