#!lua flags=allow-oom
--[[
Begin to write a full state: check that the position up to which it was folded is in the shard's
history, and leave a mark that the first page asks for. A server that comes back with less than it
had has the mark only if it still has the position: whatever it kept it kept in order.

KEYS  1 meta hash   2 lease string   3 log stream
ARGV  1 holder name   2 fencing number   3 time to live of the lease in ms, from now
      4 epoch   5 offset   6 batch id   7 mark (random bytes)
returns {'OK', digest of the state hash, digest of the tables hash (each false: not known)} or {'FENCED'}
        or {'REWRITTEN'} (the position is not in the history)
refuses with the error DAMAGED, the key and the field, before it writes, what it cannot read
cost  O(1), and one log entry read where the head has moved on
]]
local meta, lease, log = KEYS[1], KEYS[2], KEYS[3]
local holder, fence, ttl = ARGV[1], ARGV[2], ARGV[3]
local epoch, offset, id, mark = ARGV[4], tonumber(ARGV[5]), ARGV[6], ARGV[7]

if redis.call('GET', lease) ~= fence .. ' ' .. holder then
  return {'FENCED'}
end
-- A number as it is written here; nil for whatever else others may have put there.
local function whole(text)
  local n = tonumber(text)
  return n and n >= 0 and n <= 9007199254740992 and n % 1 == 0 and n or nil
end

local m = redis.call('HMGET', meta, 'epoch', 'offset', 'id', 'snap_offset', 'snap_id', 'fold_to', 'digest',
  'tables_digest')
local head, snap_offset, fold_to = whole(m[2] or 0), whole(m[4] or 0), whole(m[6] or 0)
if not (head and snap_offset and fold_to) then
  return redis.error_reply('DAMAGED ' .. meta .. ' '
    .. (not head and 'offset' or not snap_offset and 'snap_offset' or 'fold_to'))
end
if m[1] ~= epoch or head < offset or (head == offset and offset > 0 and m[3] ~= id) then
  return {'REWRITTEN'}
end
if head > offset and offset > 0 and not (snap_offset == offset and m[5] == id) then
  -- The log never ends before a snapshot that is not committed yet, so its batch must be there.
  local at = string.format('%.0f-0', offset)
  local entry = redis.call('XRANGE', log, at, at)[1]
  if not entry or string.sub(entry[2][2], 28, 35) ~= id then
    return {'REWRITTEN'}
  end
end
redis.call('PEXPIRE', lease, ttl)
redis.call('HSET', meta, 'fold', mark, 'fold_to', string.format('%.0f', math.max(offset, fold_to)))
return {'OK', m[7], m[8]}
