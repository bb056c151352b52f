-- Deletes one row.
-- KEYS row
-- ARGV field that has the row's time, whether to delete nothing where that is not ('1' or '0'), how many fields to delete, then those,
--      and pairs of other schemas (mark, names of fields, with spaces between them)
-- Returns how many fields there were.
-- Of other schemas' fields, those of the schemas that the row names go. Running it twice is running it once.
local raw, fields = redis.call('HGET', KEYS[1], ARGV[1]), tonumber(ARGV[3])
if not raw and ARGV[2] == '1' then return 0 end
local gone = {}
for i = 4, fields + 3 do gone[#gone + 1] = ARGV[i] end
for mark in string.gmatch(raw and string.match(raw, '^%d+ ([%x+]*)') or '', '%x+') do
  for i = fields + 4, #ARGV, 2 do
    if ARGV[i] == mark then
      for name in string.gmatch(ARGV[i + 1], '%S+') do gone[#gone + 1] = name end
    end
  end
end
local n = 0
for i = 1, #gone, 1000 do n = n + redis.call('HDEL', KEYS[1], unpack(gone, i, math.min(i + 999, #gone))) end
return n
