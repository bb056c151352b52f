-- Reads a portion of the dead letters, some 500, or less if they have more than 1 MiB. A script, since a client may send
-- commands that only read to replicas.
-- KEYS dead, reasons
-- ARGV cursor
-- Returns {next cursor, {field, value, reason, ...}}.
local cursor, letters, bytes = ARGV[1], {}, 0
for _ = 1, 50 do
  local page = redis.call('HSCAN', KEYS[1], cursor, 'COUNT', 10)
  cursor = page[1]
  for i = 1, #page[2], 2 do
    local field = page[2][i]
    -- Without the digits that ack.lua has put after the first byte.
    local reason = redis.call('HGET', KEYS[2], string.sub(field, 1, 1) .. string.match(field, '^.%d*(.*)$'))
    letters[#letters + 1] = field
    letters[#letters + 1] = page[2][i + 1]
    letters[#letters + 1] = reason or ''
    bytes = bytes + #field + #page[2][i + 1]
  end
  if cursor == '0' or bytes > 1048576 then break end
end
return {cursor, letters}
