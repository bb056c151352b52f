-- Removes entries that all groups have acknowledged.
-- KEYS: stream. ARGV: how many at most, about.
-- Returns {how many, 1 if there may be more}.
-- Invariant: what a group has pending, or has not been delivered, stays. So does the last entry delivered.
local function less(a, b)
  local am, as = a:match('^(%d+)-(%d+)$')
  local bm, bs = b:match('^(%d+)-(%d+)$')
  if am == bm then am, bm = as, bs end
  if #am ~= #bm then return #am < #bm end
  return am < bm
end
if redis.call('EXISTS', KEYS[1]) == 0 then return {0, 0} end
local keep
for _, flat in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local group = {}
  for i = 1, #flat, 2 do group[flat[i]] = flat[i + 1] end
  local from = group['last-delivered-id']
  local oldest = redis.call('XPENDING', KEYS[1], group.name)[2]
  if oldest and less(oldest, from) then from = oldest end
  if not keep or less(from, keep) then keep = from end
end
if not keep then return {0, 0} end
local n = redis.call('XTRIM', KEYS[1], 'MINID', '~', keep, 'LIMIT', ARGV[1])
if n > 0 then return {n, 1} end
return {redis.call('XTRIM', KEYS[1], 'MINID', '=', keep), 0}
