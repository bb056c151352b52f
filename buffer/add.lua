-- Merges rows into the shard's current generation, once, however often it is sent.
-- KEYS cur, writer, meta
-- ARGV seq, max fields, ttl ms, the last seq that Redis has confirmed and must know, bytes beyond what most fields have (see
-- claim.lua); then per row: number of fields, and field and value of each
-- Returns what was refused: "row " for a row that the shard is too full for, "row.field " for a field that would
-- overflow, counted from 0. The writer's key has the last seq and what was returned for it.
local seq = tonumber(ARGV[1])
-- The first write: on a full server it fails, and nothing has happened; after it all others pass.
local last = redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[3], 'GET')
local known = 0
if last then
  local n, refused = string.match(last, '^(%d+) ?(.*)$')
  known = tonumber(n)
  if known >= seq then
    redis.call('SET', KEYS[2], last, 'PX', ARGV[3])
    return refused
  end
end
-- See ack.lua.
if known < tonumber(ARGV[4]) and lost(KEYS[3]) then redis.call('HSET', KEYS[3], 'untold', 1) end
local size = redis.call('HLEN', KEYS[1])
if size == 0 then
  local t = redis.call('TIME')
  local now = string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000))
  redis.call('HSET', KEYS[3], 'since', now)
  -- Not only at the first claim: a state from before it must not come back with an epoch that is newer than the ledger's.
  redis.call('HSETNX', KEYS[3], 'epoch', now)
end
local full = size >= tonumber(ARGV[2])
local refused = ''
if ARGV[5] ~= '0' then redis.call('HINCRBY', KEYS[3], 'excess', ARGV[5]) end
local i, row = 6, 0
while i <= #ARGV do
  local n = tonumber(ARGV[i])
  local fits = true
  if full then -- fields that are there already cost nothing
    for j = i + 1, i + 2 * n, 2 do
      fits = fits and redis.call('HEXISTS', KEYS[1], ARGV[j]) == 1
    end
  end
  if not fits then
    refused = refused .. row .. ' '
  else
    for j = 0, n - 1 do
      if not merge(KEYS[1], ARGV[i + 1 + 2 * j], ARGV[i + 2 + 2 * j]) then
        refused = refused .. row .. '.' .. j .. ' '
      end
    end
  end
  i = i + 1 + 2 * n
  row = row + 1
end
if refused ~= '' then redis.call('SET', KEYS[2], ARGV[1] .. ' ' .. refused, 'PX', ARGV[3]) end
return refused
