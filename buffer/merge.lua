-- Comes before the scripts that add to fields. A field's name begins with its operation: + sum, . sum of doubles,
-- > max, < min, @ last. Values of the latter three begin with 16 hexadecimal digits that sort as the numbers they stand
-- for: Lua's own numbers are exact up to 2^53 only.

-- later: a has the later event time or, where these are equal, the larger bytes. Not a > b: that would go by locale.
local function later(a, b)
  local x, y = string.sub(a, 1, 16), string.sub(b, 1, 16)
  if x ~= y then return x > y end
  for i = 17, math.min(#a, #b) do
    x, y = string.byte(a, i), string.byte(b, i)
    if x ~= y then return x > y end
  end
  return #a > #b
end

-- merge returns whether the value was merged into the field: if the sum would overflow, nothing changes.
local function merge(key, field, value)
  local op = string.sub(field, 1, 1)
  if op == '+' then
    return type(redis.pcall('HINCRBY', key, field, value)) == 'number'
  end
  local old = redis.call('HGET', key, field)
  if op == '.' then
    local sum = tonumber(value) + tonumber(old or '0')
    if sum - sum ~= 0 then return false end
    value = string.format('%.17g', sum)
  elseif old and (op == '<' and value >= old or op == '>' and value <= old or op == '@' and not later(value, old)) then
    return true
  end
  redis.call('HSET', key, field, value)
  return true
end
