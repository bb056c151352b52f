-- alone(group) returns whether stream KEYS[1] has that group and no other, and how many others.
local function alone(group)
  if redis.call('EXISTS', KEYS[1]) == 0 then return false, 0 end
  local found, others = false, 0
  for _, flat in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    for i = 1, #flat, 2 do
      if flat[i] == 'name' and flat[i + 1] == group then found = true
      elseif flat[i] == 'name' then others = others + 1 end
    end
  end
  return found and others == 0, others
end
