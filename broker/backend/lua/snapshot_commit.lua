#!lua flags=allow-oom
--[[
Say that the full-state hash holds everything up to a position, cut the log behind it, and keep chunks
that could not be read for inspection. Only the holder of the lease can, for the write it began.

KEYS  1 meta hash   2 lease string   3 log stream   4 dead-letter list
ARGV  1 holder name   2 fencing number   3 channel   4 'PUBLISH' or 'SPUBLISH'   5 shard
      6 mark that the last page left (without pages: snapshot_begin)
      7 epoch   8 offset   9 batch id   10 batch id before it
      11 log entries at or below this offset may go (0 = none)   12 most dead letters to keep
      13.. dead letters, packed
returns {'OK', log bytes that stay} or {'FENCED'} or {'REWRITTEN'} (the server lost the mark)
publishes a notice
refuses with the error DAMAGED, the key and the field, before it writes, what it cannot read
cost  O(entries cut), and one log entry read
]]
local meta, lease, log, dead = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local holder, fence, channel, publish, shard = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local mark, epoch, offset, id, previous = ARGV[6], ARGV[7], tonumber(ARGV[8]), ARGV[9], ARGV[10]
local cut, most_dead = tonumber(ARGV[11]), tonumber(ARGV[12])
local FIRST_DEAD = 13
-- Of the fields of a log entry, behind b, t and n with their names.
local FIRST_BULK = 8

-- A number as it is written here; nil for whatever else others may have put there.
local function whole(text)
  local n = tonumber(text)
  return n and n >= 0 and n <= 9007199254740992 and n % 1 == 0 and n or nil
end

if redis.call('GET', lease) ~= fence .. ' ' .. holder then
  return {'FENCED'}
end
local m = redis.call('HMGET', meta, 'fold', 'covered', 'logged', 'offset', 'previous')
if m[1] ~= mark then
  return {'REWRITTEN'}
end
if tonumber(m[4] or 0) == offset then
  -- Who only cuts the log has not read what came before.
  previous = m[5] and #m[5] == 8 and m[5] or previous
end
local covered, logged = whole(m[2] or 0), whole(m[3] or 0)
if not (covered and logged) then
  return redis.error_reply('DAMAGED ' .. meta .. ' ' .. (covered and 'logged' or 'covered'))
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local log_bytes = 0
if cut > 0 then
  redis.call('XTRIM', log, 'MINID', string.format('%.0f-0', math.min(cut, offset) + 1))
end
local first = redis.call('XRANGE', log, '-', '+', 'COUNT', 1)[1]
if first then
  local fields = first[2]
  log_bytes = logged - (whole(fields[4]) or logged) + #fields[2]
  for n = FIRST_BULK, #fields, 2 do
    log_bytes = log_bytes + #fields[n]
  end
end
redis.call('HSET', meta, 'snap_offset', ARGV[8], 'snap_id', id, 'snap_at', string.format('%.0f', now),
  'log_bytes', string.format('%.0f', math.max(0, log_bytes)))
if #ARGV >= FIRST_DEAD then
  -- Dead letters are for information only: what others put in their place must not stop the full state.
  pcall(function()
    for n = FIRST_DEAD, #ARGV do
      redis.call('RPUSH', dead, ARGV[n])
    end
    redis.call('LTRIM', dead, -most_dead, -1)
    redis.call('HINCRBY', meta, 'dead', #ARGV - FIRST_DEAD + 1)
  end)
end
redis.call(publish, channel, struct.pack('>BBBBI2BBc8BI8BBc8BBc8BI8BI8',
  0x99, 3, 3, 0xcd, shard, 0xc4, 8, epoch, 0xcf, offset, 0xc4, 8, id, 0xc4, 8, previous,
  0xcf, now, 0xcf, covered))
return {'OK', log_bytes}
