-- Reads a portion of the dead letters. A script, since a client may send commands that only read to replicas.
-- KEYS dead, reasons
-- ARGV cursor
-- Returns {next cursor, {field, value, reason, ...}}.
local page = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', 500)
local letters = {}
for i = 1, #page[2], 2 do
  local field = page[2][i]
  -- Without the digits that ack.lua has put after the first byte.
  local reason = redis.call('HGET', KEYS[2], string.sub(field, 1, 1) .. string.match(field, '^.%d*(.*)$'))
  letters[#letters + 1] = field
  letters[#letters + 1] = page[2][i + 1]
  letters[#letters + 1] = reason or ''
end
return {page[1], letters}
