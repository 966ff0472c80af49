#!lua flags=allow-oom
--[[
Tell the head of a shard if nothing was published for an interval, and since when something is pending;
one a shard, however many workers ask. Starts the shard's first epoch, notes that the worker lives and how
it is, and keeps the namespace's thresholds and the shortest interval. Makes anew what producers may have
damaged: a head of the intake hash that cannot be read, from meta and the queue; a due time that cannot be
meant; limits that differ, with a mark once meta says that the state is full; an intake that is no hash and a queue that is no list. Looks at one entry of the
workers hash, any one, and drops it if unseen for 10 minutes.

KEYS  1 meta hash   2 intake hash   3 queue list   4 workers hash
ARGV  1 channel   2 'PUBLISH' or 'SPUBLISH'   3 shard   4 interval in ms
      5 epoch to use if this shard has none, 8 bytes   6 worker name   7 role
      8 max age in ms, 9 max count ('' = leave as they are)   10 why the worker is red ('' = it is green)
refuses with the error DAMAGED, the key and the field, when it has noted the worker, what it cannot read
returns {ms until the next heartbeat is due, ms until something pending is due (-1 nothing pending)}
publishes a heartbeat, if due
cost  O(1); O(pending chunks) where the head is made anew
]]
local meta, intake, queue, workers = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local channel, publish, shard, interval = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local new_epoch, worker, role, max_age, max_count = ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9]
local red = ARGV[10] or ''
local forget_ms = 600000
local HEAD_BYTES, ENTRY_BYTES, MAX_NAME_BYTES, MAX_LOOKED_AT, PAGE = 56, 22, 64, 8, 256
local LONGEST_MS, LONGEST_AGE_MS, MAX_NUMBER = 86400000, 3600000, 9007199254740992

-- A number as it is written here; nil for whatever else others may have put there.
local function whole(text)
  local n = tonumber(text)
  return n and n >= 0 and n <= MAX_NUMBER and n % 1 == 0 and n or nil
end

-- Whether a reply says that a key holds another type.
local function is_other_type(reply)
  local said = type(reply) == "table" and reply.err
  if said and not string.find(said, 'WRONGTYPE') then
    error(reply)
  end
  return said
end

-- When an entry is due, its append number and deltas; nil for whatever else may be in the queue.
local function entry_of(element)
  if not element or string.byte(element) ~= 1 or #element <= ENTRY_BYTES or #element > ENTRY_BYTES + MAX_NAME_BYTES
    or string.find(element, '[^%w_.-]', ENTRY_BYTES + 1) then
    return nil
  end
  return struct.unpack('>I8I8I4', element, 3)
end

local m = redis.call('HMGET', meta, 'epoch', 'offset', 'id', 'previous', 'covered', 'published_at', 'published',
  'max_age', 'max_count', 'by_count', 'by_age', 'heartbeat', 'full')
local time = redis.call('TIME')
local now, micros = time[1] * 1000 + math.floor(time[2] / 1000), time[1] * 1000000 + time[2]
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

local offset, covered, published = whole(m[2] or 0), whole(m[5] or 0), whole(m[7] or 0)
local batches = (whole(m[10] or 0) or math.huge) + (whole(m[11] or 0) or math.huge)
local found = redis.pcall('HMGET', intake, ':head', ':limits')
if is_other_type(found) then
  redis.call('DEL', intake)
  found = {}
end
local is_queue = not is_other_type(redis.pcall('LLEN', queue))
if not is_queue then
  redis.call('DEL', queue)
end
local head, limits = found[1], found[2]
local appends, accepted, pending_bytes, due, count_due, known_covered = 0, 0, 0, 0, 0, 0
local epoch = m[1]
local is_read = is_queue and head and #head == HEAD_BYTES
if is_read then
  local its_epoch
  its_epoch, appends, accepted, pending_bytes, due, count_due, known_covered =
    struct.unpack('>c8I8I8I8I8I8I8', head)
  epoch = epoch or its_epoch
  -- Append numbers are times, or one more than the last where the clock was set back.
  local is_possible = appends <= 1000 * (now + LONGEST_MS) or covered and appends <= covered + redis.call('LLEN', queue)
  is_read = its_epoch == epoch and is_possible and count_due <= appends and appends <= MAX_NUMBER and accepted <= MAX_NUMBER and pending_bytes <= MAX_NUMBER
end
local unread = m[1] and #m[1] ~= 8 and 'epoch'
  or (not offset or offset > batches) and 'offset'
  or (m[3] and #m[3] ~= 8 or not m[3] and offset > 0) and 'id' or m[4] and #m[4] ~= 8 and 'previous'
  or (not covered or covered > 1000 * (now + LONGEST_MS) and not (is_read and covered <= appends)) and 'covered'
  or not published and not (is_read and known_covered == covered) and 'published'
if unread then
  return redis.error_reply('DAMAGED ' .. meta .. ' ' .. unread)
end
epoch = epoch or new_epoch
is_read = is_read and appends >= covered and known_covered == covered
local changes = {}
if not m[1] then
  changes = {'epoch', epoch}
end

-- The entry of the oldest chunk that is pending is behind it; further behind if others put something there.
local first_due, first_append
for at = 1, MAX_LOOKED_AT do
  local element = redis.call('LRANGE', queue, at, at)[1]
  first_due, first_append = entry_of(element)
  if first_due or not element then
    break
  end
end

if not is_read then
  -- From meta and what is in the queue, all of which is due at once.
  appends, accepted, pending_bytes, due, count_due = covered, published, 0, 0, 0
  local at, before = 0, nil
  repeat
    local page = redis.call('LRANGE', queue, at, at + PAGE - 1)
    for _, element in ipairs(page) do
      local entry_due, append, deltas = entry_of(element)
      if entry_due and before then
        pending_bytes, accepted, due = pending_bytes + #before, accepted + deltas, now
        appends = math.max(appends, math.min(append, math.max(covered, micros)))
      end
      before = not entry_due and element or nil
    end
    at = at + PAGE
  until #page < PAGE
elseif first_due and (due == 0 or due > now + LONGEST_MS or due > first_due) then
  due = math.max(1, math.min(first_due, now + LONGEST_AGE_MS))
elseif due > now and not first_due then
  -- Nothing is there to wait for: the next drain finds out, and forgets what the head says of it.
  due = now
end
local published_at = whole(m[6] or 0) or 0
if due > 0 and (now < published_at or due > now + LONGEST_MS) then
  -- The clock was set back, or this is nonsense: what is pending must not wait for it.
  due = now
end
if not head and m[1] and appends > 0 then
  -- The hash was deleted or of another type: records up to here are gone, and what they counted is not.
  changes[#changes + 1] = 'records_lost'
  changes[#changes + 1] = string.format('%.0f', appends)
end
local mended = struct.pack('>c8I8I8I8I8I8I8', epoch, appends, accepted, pending_bytes, due, count_due, covered)
if head ~= mended then
  redis.call('HSET', intake, ':head', mended)
end

if max_age ~= '' and max_age ~= m[8] then
  changes[#changes + 1] = 'max_age'
  changes[#changes + 1] = max_age
end
if max_count ~= '' and max_count ~= m[9] then
  changes[#changes + 1] = 'max_count'
  changes[#changes + 1] = max_count
end
local age = whole(max_age ~= '' and max_age or m[8] or 50)
local count = whole(max_count ~= '' and max_count or m[9] or 1000)
age, count = age and age <= LONGEST_AGE_MS and age or 50, count and count > 0 and count <= 4294967295 and count or 1000
local wanted = struct.pack('>I4I4', age, count)
if m[13] and (string.find(m[13], '^keys %d+ %d+$') or string.find(m[13], '^bytes %d+ %d+$')) then
  wanted = wanted .. '\1'
end
if limits ~= wanted then
  redis.call('HSET', intake, ':limits', wanted)
end

local known = whole(m[12])
local wait = published_at + interval - now
-- A clock that was set back must not silence the shard.
if wait <= 0 or wait > interval then
  local none = string.rep('\0', 8)
  local fields, since = 0x99, ''
  if first_append then
    -- What is pending is in no replica: none of them is current as of a later moment than this.
    local accepted_at = math.floor(first_append / 1000)
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
if count_due > covered and due > 0 then
  return {wait, 0}
end
return {wait, due > 0 and math.max(0, due - now) or -1}
