--[[
Let a process take a node name in a shard, fencing the one that held it; or let the holder say from
where it goes on, after Redis lost what it had accepted.

KEYS  1 intake hash   2 stage list of the node
ARGV  1 node   2 incarnation ('' for a new one)   3 token, 8 random bytes, tells two claims of the same number apart
      4 chunk number that counts as accepted (0 for a new incarnation)   5 deltas up to that chunk
      6 epoch of the shard as meta has it; 8 random bytes if it has none
returns {'OPEN', incarnation, epoch, max age in ms, max count, 1 if the state is above a bound, else 0}
        {'FENCED', incarnation that holds the name}
        {'FENCED', greatest incarnation that was forgotten as idle, 1}
A record that cannot be read is of nobody: it is replaced. One without a record may go on, unless such
incarnations were forgotten: what they sent may be in the history, and nothing would recognise it.
Who may not write to the node's stage is refused by the server: users can be bound to a name. What a process
before may have left there is deleted.
refuses with the error DAMAGED, the key and the field, before it writes, what it cannot read
cost  O(1)
]]
local intake, stage = KEYS[1], KEYS[2]
local node, incarnation, token = ARGV[1], ARGV[2], ARGV[3]
local chunk, deltas, new_epoch = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]
local HEAD_BYTES, RECORD_BYTES, LIMITS_BYTES, MAX_NUMBER = 56, 60, 8, 9007199254740992
local LONGEST_MS = 3600000

-- A number as it is written here; nil for whatever else others may have put there.
local function whole(text)
  local n = tonumber(text)
  return n and n >= 0 and n <= MAX_NUMBER and n % 1 == 0 and n or nil
end

local m = redis.call('HMGET', intake, node, ':head', ':limits', ':forgotten')
local record, head, limits, forgotten = m[1], m[2], m[3], whole(m[4] or 0) or 0
if head and #head ~= HEAD_BYTES then
  return redis.error_reply('DAMAGED ' .. intake .. ' :head')
end
local epoch = head and string.sub(head, 1, 8) or new_epoch
local max_age, max_count, full = 50, 1000, 0
if limits and #limits == LIMITS_BYTES then
  max_age, max_count = struct.unpack('>I4I4', limits)
elseif limits and #limits == LIMITS_BYTES + 1 then
  max_age, max_count, full = struct.unpack('>I4I4B', limits)
end
-- What cannot be read or meant is the default.
max_age, max_count = max_age <= LONGEST_MS and max_age or 50, max_count ~= 0 and max_count or 1000

local held, held_token, last, total, append, count, edge, bytes = 0, '', 0, 0, 0, 0, 0, 0
if record then
  -- One whose holder is asked whether it lives is as good as before.
  record = string.gsub(record, "^idle %S+ ", "")
  if #record == RECORD_BYTES then
    held, held_token, last, total, append, count, edge, bytes = struct.unpack('>I8c8I8I8I8I4I8I8', record)
    if held > MAX_NUMBER or last > MAX_NUMBER or total > MAX_NUMBER then
      held, held_token, last, total, append, count, edge, bytes = 0, '', 0, 0, 0, 0, 0, 0
    end
  end
end

if incarnation == '' then
  -- The clock only keeps numbers from being used again after Redis lost the record; it orders nothing.
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  incarnation = math.max(held + 1, forgotten + 1, now)
else
  incarnation = tonumber(incarnation)
  local own = held == incarnation and held_token == token
  if held > incarnation or (held == incarnation and not own) then
    return {'FENCED', held}
  end
  if held == 0 and incarnation <= forgotten then
    return {'FENCED', forgotten, 1}
  end
  if own and last >= chunk then
    -- A repeat that comes late must not make accepted chunks be taken again.
    chunk, deltas = last, total
  end
end
-- What is pending of the node, whoever appended it, stays counted.
redis.call('HSET', intake, node,
  struct.pack('>I8c8I8I8I8I4I8I8', incarnation, token, chunk, deltas, append, count, edge, bytes))
if not head then
  redis.call('HSET', intake, ':head', struct.pack('>c8I8I8I8I8I8I8', epoch, 0, 0, 0, 0, 0, 0))
end
-- Not before: a script that has written is not refused for lack of memory.
redis.call('DEL', stage)
return {'OPEN', incarnation, epoch, max_age, max_count, full}
