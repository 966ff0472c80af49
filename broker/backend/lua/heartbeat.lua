#!lua flags=allow-oom
--[[
Tell the head of a shard if nothing was published for an interval, and since when something is pending;
one a shard, however many workers ask. Starts the shard's first epoch, notes that the worker lives and how
it is, and keeps the namespace's thresholds and the shortest interval. Looks at one entry of the workers
hash, any one, and drops it if unseen for 10 minutes.

KEYS  1 meta hash   2 workers hash   3 order list (without it, what is pending is not told)
ARGV  1 channel   2 'PUBLISH' or 'SPUBLISH'   3 shard   4 interval in ms
      5 epoch to use if this shard has none, 8 bytes   6 worker name   7 role
      8 max age in ms, 9 max count ('' = leave as they are)   10 why the worker is red ('' = it is green)
refuses with the error DAMAGED, the key and the field, when it has noted the worker, what it cannot read
returns {ms until the next heartbeat is due, ms until something pending is due (-1 nothing pending)}
publishes a heartbeat, if due
cost  O(1)
]]
local meta, workers, order = KEYS[1], KEYS[2], KEYS[3]
local channel, publish, shard, interval = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local new_epoch, worker, role, max_age, max_count = ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9]
local red = ARGV[10] or ''
local forget_ms = 600000
local ENTRY_BYTES = 32
local LONGEST_MS = 86400000

-- A number as it is written here; nil for whatever else others may have put there.
local function whole(text)
  local n = tonumber(text)
  return n and n >= 0 and n <= 9007199254740992 and n % 1 == 0 and n or nil
end

local m = redis.call('HMGET', meta, 'epoch', 'offset', 'id', 'previous', 'covered', 'published_at',
  'due', 'count_due', 'max_age', 'max_count', 'by_count', 'by_age', 'appends', 'heartbeat')
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local stamp = string.format('%.0f', now)
local is_noted, why = pcall(function()
  redis.call('HSET', workers, worker, role .. ' ' .. stamp .. (red ~= '' and ' ' .. red or ''))
end)
if not is_noted then
  if not string.find(type(why) == "table" and why.err or why, 'WRONGTYPE') then
    error(why)
  end
  -- The shard's work goes on without a note of who does it.
else
  local any = redis.call('HRANDFIELD', workers, 1, 'WITHVALUES')
  local seen = tonumber(string.match(any[2], '^%S+ (%d+)') or 0)
  -- One from far ahead is of a clock that was set back.
  if math.abs(now - seen) > forget_ms then
    redis.call('HDEL', workers, any[1])
  end
end

local offset, covered, appends = whole(m[2] or 0), whole(m[5] or 0), whole(m[13] or 0)
local batches = (whole(m[11] or 0) or math.huge) + (whole(m[12] or 0) or math.huge)
local unread = m[1] and #m[1] ~= 8 and 'epoch'
  or (not offset or offset > batches) and 'offset'
  or (m[3] and #m[3] ~= 8 or not m[3] and offset > 0) and 'id' or m[4] and #m[4] ~= 8 and 'previous'
  or (not covered or appends and covered > appends) and 'covered'
if unread then
  return redis.error_reply('DAMAGED ' .. meta .. ' ' .. unread)
end
local epoch = m[1] or new_epoch
local changes = {}
if not m[1] then
  changes = {'epoch', epoch}
end
if max_age ~= '' and max_age ~= m[9] then
  changes[#changes + 1] = 'max_age'
  changes[#changes + 1] = max_age
end
if max_count ~= '' and max_count ~= m[10] then
  changes[#changes + 1] = 'max_count'
  changes[#changes + 1] = max_count
end

local published_at = whole(m[6] or 0) or 0
local known = whole(m[14])
local wait = published_at + interval - now
-- A clock that was set back must not silence the shard.
if wait <= 0 or wait > interval then
  local none = string.rep('\0', 8)
  local first, fields, since = order and redis.call('LRANGE', order, 0, 0)[1], 0x99, ''
  if first and #first >= ENTRY_BYTES then
    -- What is pending is in no replica: none of them is current as of a later moment than this.
    local _, accepted_at = struct.unpack('>I8I8', first)
    fields, since = 0x9a, '\129\173pending_since\207' .. struct.pack('>I8', math.min(now, accepted_at))
  end
  redis.call(publish, channel, struct.pack('>BBBBI2BBc8BI8BBc8BBc8BI8BI8',
    fields, 3, 2, 0xcd, shard, 0xc4, 8, epoch, 0xcf, offset, 0xc4, 8, m[3] or none,
    0xc4, 8, m[4] or none, 0xcf, now, 0xcf, covered) .. since)
  changes[#changes + 1] = 'published_at'
  changes[#changes + 1] = stamp
  wait, known = interval, known == interval and known
end
-- Who publishes has the shortest; and where batches are published all the time, the shortest is kept.
if not known or interval < known then
  changes[#changes + 1] = 'heartbeat'
  changes[#changes + 1] = ARGV[4]
end
if #changes > 0 then
  redis.call('HSET', meta, unpack(changes))
end
local due = m[7] and (whole(m[7]) or 0)
if due and (now < published_at or due > now + LONGEST_MS) then
  -- The clock was set back, or this is nonsense: what is pending must not wait for it.
  due = now
  redis.call('HSET', meta, 'due', stamp)
end
if (whole(m[8] or 0) or 0) > covered then
  return {wait, 0}
end
return {wait, due and math.max(0, due - now) or -1}
