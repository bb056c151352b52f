-- KEYS cur, gen, batch
-- ARGV fields
-- Returns the values of all fields in cur, then in gen, then in batch, read at one instant.
local values = {}
for k = 1, 3 do
  for _, value in ipairs(redis.call('HMGET', KEYS[k], unpack(ARGV))) do values[#values + 1] = value end
end
return values
