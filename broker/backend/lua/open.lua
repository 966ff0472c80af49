--[[
Let a process take a node name in a shard, fencing the one that held it; or let the holder say from
where it goes on, after Redis lost what it had accepted.

KEYS  1 meta hash   2 writers hash
ARGV  1 node   2 incarnation ('' for a new one)   3 token, random, tells two claims of the same number apart
      4 chunk number that counts as accepted (0 for a new incarnation)   5 deltas up to that chunk
      6 epoch to use if this shard has none, 8 bytes
returns {'OPEN', incarnation, epoch, max age in ms, max count}
        {'FENCED', incarnation that holds the name}
cost  O(1)
]]
local meta, writers = KEYS[1], KEYS[2]
local node, incarnation, token = ARGV[1], ARGV[2], ARGV[3]
local chunk, deltas, new_epoch = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]

local m = redis.call('HMGET', meta, 'epoch', 'max_age', 'max_count')
local epoch = m[1]
if not epoch then
  epoch = new_epoch
  redis.call('HSET', meta, 'epoch', epoch)
end

local held, held_token, last, total = 0, '', 0, 0
local record = redis.call('HGET', writers, node)
if record then
  local number, text, chunks, sum = string.match(record, '^(%d+) (%S+) (%d+) (%d+)$')
  held, held_token, last, total = tonumber(number), text, tonumber(chunks), tonumber(sum)
end

if incarnation == '' then
  -- The clock only keeps numbers from being used again after Redis lost the record; it orders nothing.
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  incarnation = string.format('%.0f', math.max(held + 1, now))
else
  local own = held == tonumber(incarnation) and held_token == token
  if held > tonumber(incarnation) or (held == tonumber(incarnation) and not own) then
    return {'FENCED', held}
  end
  if own and last >= chunk then
    -- A repeat that comes late must not make accepted chunks be taken again.
    chunk, deltas = last, total
  end
end
redis.call('HSET', writers, node,
  incarnation .. ' ' .. token .. ' ' .. string.format('%.0f %.0f', chunk, deltas))
return {'OPEN', tonumber(incarnation), epoch, tonumber(m[2] or 50), tonumber(m[3] or 1000)}
