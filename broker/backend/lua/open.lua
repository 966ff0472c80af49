--[[
Let a process take a node name in a shard, fencing the one that held it; or let the holder say from
where it goes on, after Redis lost what it had accepted.

KEYS  1 meta hash   2 writers hash
ARGV  1 node   2 incarnation ('' for a new one)   3 token, random, tells two claims of the same number apart
      4 chunk number that counts as accepted (0 for a new incarnation)   5 deltas up to that chunk
      6 epoch to use if this shard has none, 8 bytes
returns {'OPEN', incarnation, epoch, max age in ms, max count}
        {'FENCED', incarnation that holds the name}
        {'FENCED', greatest incarnation that was forgotten as idle, 1}
A record that cannot be read is of nobody: it is replaced. One without a record may go on, unless such
incarnations were forgotten: what they sent may be in the history, and nothing would recognise it.
refuses with the error DAMAGED, the key and the field, before it writes, what it cannot read
cost  O(1)
]]
local meta, writers = KEYS[1], KEYS[2]
local node, incarnation, token = ARGV[1], ARGV[2], ARGV[3]
local chunk, deltas, new_epoch = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]

-- A number as it is written here; nil for whatever else others may have put there.
local function whole(text)
  local n = tonumber(text)
  return n and n >= 0 and n <= 9007199254740992 and n % 1 == 0 and n or nil
end

local m = redis.call('HMGET', meta, 'epoch', 'max_age', 'max_count', 'forgotten')
local epoch, max_age, max_count = m[1], whole(m[2] or 50), whole(m[3] or 1000)
if epoch and #epoch ~= 8 or not max_age or not max_count then
  return redis.error_reply('DAMAGED ' .. meta .. ' '
    .. (not max_age and 'max_age' or not max_count and 'max_count' or 'epoch'))
end
local record = redis.call('HGET', writers, node)
if not epoch then
  epoch = new_epoch
  redis.call('HSET', meta, 'epoch', epoch)
end

local forgotten = whole(m[4] or 0) or 0
local held, held_token, last, total = 0, '', 0, 0
if record then
  -- One whose holder is asked whether it lives is as good as before.
  record = string.gsub(record, "^idle %S+ ", "")
  local number, text, chunks, sum = string.match(record, '^(%d+) (%S+) (%d+) (%d+)$')
  if whole(number) and whole(chunks) and whole(sum) then
    held, held_token, last, total = whole(number), text, whole(chunks), whole(sum)
  end
end

if incarnation == '' then
  -- The clock only keeps numbers from being used again after Redis lost the record; it orders nothing.
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  incarnation = string.format('%.0f', math.max(held + 1, forgotten + 1, now))
else
  local own = held == tonumber(incarnation) and held_token == token
  if held > tonumber(incarnation) or (held == tonumber(incarnation) and not own) then
    return {'FENCED', held}
  end
  if held == 0 and tonumber(incarnation) <= forgotten then
    return {'FENCED', forgotten, 1}
  end
  if own and last >= chunk then
    -- A repeat that comes late must not make accepted chunks be taken again.
    chunk, deltas = last, total
  end
end
redis.call('HSET', writers, node,
  incarnation .. ' ' .. token .. ' ' .. string.format('%.0f %.0f', chunk, deltas))
return {'OPEN', tonumber(incarnation), epoch, max_age, max_count}
