#!lua flags=allow-oom
--[[
Publish what is due as one batch: the longest prefix of the queue that is due and fits.
Due by count: everything up to the append that crossed a node's threshold. Due by age: everything.
Publishes first, then logs, then trims and moves the offset: a script that fails keeps what it wrote,
and a batch published twice under two ids is noticed by every replica, while a lost one would not be.
Bulk chunks, those of 65536 bytes or more, are neither joined nor copied: each is published by itself
before its batch, which holds a stand-in for it, and is a field of its own in the log.

KEYS  1 meta hash   2 intake hash   3 queue list   4 log stream
ARGV  1 channel   2 channel of bulk chunks   3 'PUBLISH' or 'SPUBLISH'   4 shard
      5 batch id, 8 random bytes   6 limit of a batch in bytes   7 limit of a batch in chunks
      8 limit of the log in bytes
returns {'IDLE', ms until something is due, -1 if nothing is pending}
        {'LOGFULL', log bytes}   the scheduler does not keep up; nothing was done
        {'BATCH', offset, trigger (1 count, 2 age), deltas, chunks, bytes, ms since its oldest chunk
          was accepted, ms until the next is due (-1 nothing pending), elements passed over}
refuses with the error DAMAGED, the key and the field, before it writes, what it cannot read
A head of the intake hash that cannot be read is none: nothing is due until a heartbeat made it anew.
An element of the queue that is neither a chunk before its entry nor an entry behind its chunk is passed
over, and counts as missing.
publishes the batch, to the channel and to the log under the id offset-0 (b: the batch, t: bytes
          logged so far, n: the node of each chunk, joined by blanks, c1, c2 ...: its bulk chunks)
cost  O(chunks); the bytes three times, those of bulk chunks twice
]]
local meta, intake, queue, log = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local channel, bulk_channel, publish, shard = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local id, max_bytes, max_chunks, log_limit = ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local NUMBERS = {'covered', 'published', 'published_at', 'log_bytes', 'logged', 'bytes', 'by_count', 'by_age', 'missing'}
-- In the reply that has them after epoch, offset and id.
local FIRST_NUMBER = 3
local LONGEST_MS = 86400000
local INTAKE_HEAD_BYTES, ENTRY_BYTES, MAX_NAME_BYTES, MAX_NUMBER = 56, 22, 64, 9007199254740992
local BULK_BYTES, FACE_BYTES = 65536, 96
-- What a batch adds to its chunks, if more stays pending, to each of them, and to each bulk chunk.
local HEAD_BYTES, SINCE_BYTES, FRAME_BYTES, STAND_IN_BYTES = 89, 23, 5, 8 + FACE_BYTES
-- Of an expression; Lua nests no deeper than 200.
local MAX_TERMS = 129
-- Below this the copy takes less than the expression.
local COMPILE_BYTES = 16384

-- A number as it is written here; nil for whatever else others may have put there.
local function whole(text)
  local n = tonumber(text)
  return n and n >= 0 and n <= MAX_NUMBER and n % 1 == 0 and n or nil
end

local function damaged(key, field)
  return redis.error_reply('DAMAGED ' .. key .. ' ' .. field)
end

-- Run a command that fails on what others may have put there: its reply, or nil where the error says so.
local function attempt(expected, call)
  local is_run, reply = pcall(call)
  if is_run then
    return reply
  end
  local text = type(reply) == "table" and reply.err or reply
  if not string.find(text, expected) and not string.find(text, 'WRONGTYPE') then
    error(reply)
  end
  return nil
end

local function number(n)
  return string.format('%.0f', n)
end

-- Long strings are copied and hashed byte by byte each time that Lua makes one: table.concat does so twice,
-- one expression that names all of them once, but has to be compiled.
local function joined(parts, bytes)
  if #parts > MAX_TERMS or bytes < COMPILE_BYTES then
    return table.concat(parts)
  end
  local terms = {}
  for n = 1, #parts do
    terms[n] = 'p[' .. n .. ']'
  end
  return loadstring('local p = ... return ' .. table.concat(terms, '..'))(parts)
end

local m = redis.call('HMGET', meta, 'epoch', 'offset', 'id', unpack(NUMBERS))
local stored = attempt('WRONGTYPE', function()
  return redis.call('HGET', intake, ':head')
end)
if not stored or #stored ~= INTAKE_HEAD_BYTES then
  return {'IDLE', -1}
end
local epoch, appends, accepted, pending_bytes, head_due, count_due, known_covered =
  struct.unpack('>c8I8I8I8I8I8I8', stored)
if head_due == 0 and #redis.call('LRANGE', queue, 0, 0) == 0 then
  return {'IDLE', -1}
end
-- The numbers, before anything is written: a script that fails half-way keeps what it wrote.
local n = {}
for at, name in ipairs(NUMBERS) do
  n[name] = whole(m[FIRST_NUMBER + at] or 0)
  if not n[name] then
    return damaged(meta, name)
  end
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local offset, id_before = whole(m[2] or 0), m[3]
if m[1] and #m[1] ~= 8 then
  return damaged(meta, 'epoch')
elseif not offset or offset > n.by_count + n.by_age then
  -- Each batch was due by one of the two.
  return damaged(meta, 'offset')
elseif (id_before and #id_before ~= 8) or (offset > 0 and not id_before) then
  return damaged(meta, 'id')
elseif n.covered > appends and n.covered > 1000 * (now + LONGEST_MS) then
  return damaged(meta, 'covered')
elseif m[1] and epoch ~= m[1] or known_covered ~= n.covered or appends < n.covered or count_due > appends
  or appends > 1000 * (now + LONGEST_MS) and appends > n.covered + redis.call('LLEN', queue)
  or appends > MAX_NUMBER or accepted > MAX_NUMBER or pending_bytes > MAX_NUMBER then
  return {'IDLE', -1}
end
local covered, due = n.covered, head_due > 0 and head_due or now
-- A clock that was set back must not make anything wait for its old time to come again, nor what cannot
-- be meant.
if now < n.published_at or due > now + LONGEST_MS then
  due = now
end
local trigger, last
if count_due > covered then
  trigger, last = 1, count_due
elseif now >= due then
  trigger, last = 2, math.huge
else
  return {'IDLE', due - now}
end

-- Elements of the queue, read from its beginning on; `is_whole` once there are no more.
local elements, is_whole = {}, false
local function read(pairs_more)
  local had = #elements
  local page = redis.call('LRANGE', queue, had, had + 2 * pairs_more - 1)
  is_whole = #page < 2 * pairs_more
  if had == 0 then
    elements = page
    return
  end
  for at = 1, #page do
    elements[had + at] = page[at]
  end
end

-- When an entry is due, its append number, when that was in ms, its deltas and its node; nil for a chunk.
local is_name = {}
-- Looked up once: what follows is done for each chunk.
local byte, sub, unpacked = string.byte, string.sub, struct.unpack
local function entry_of(element)
  if not element or byte(element) ~= 1 or #element <= ENTRY_BYTES then
    return nil
  end
  local node = sub(element, ENTRY_BYTES + 1)
  local is_valid = is_name[node]
  if is_valid == nil then
    is_valid = #node <= MAX_NAME_BYTES and not string.find(node, '[^%w_.-]')
    is_name[node] = is_valid
  end
  if not is_valid then
    return nil
  end
  local entry_due, append, deltas = unpacked('>I8I8I4', element, 3)
  local accepted_at = (append - append % 1000) / 1000
  return entry_due, append, accepted_at < now and accepted_at or now, deltas, node
end

-- In portions where more is pending than a batch holds: chunks would be copied that stay.
local portion = max_chunks + 1
if pending_bytes > max_bytes then
  local average = 2 * pending_bytes / math.max(2, redis.call('LLEN', queue))
  portion = math.min(portion, math.max(1, math.ceil(max_bytes / average)))
end

-- How far does the batch go? A chunk and its entry count as one; so does what is neither.
local taken, count, deltas, bytes, frames, oldest, cut = 0, 0, 0, 0, HEAD_BYTES, now, false
local chunks, names, chunk_count, missing = {}, {}, 0, 0
while count < max_chunks do
  if not is_whole and taken + 2 > #elements then
    read(portion)
  end
  local element = elements[taken + 1]
  if not element then
    break
  end
  local entry_due, append, accepted_at, entry_deltas, node = entry_of(elements[taken + 2])
  if entry_due and not entry_of(element) then
    if append > last and taken > 0 then
      break
    end
    if chunk_count > 0 and bytes + #element > max_bytes then
      cut = true
      break
    end
    chunk_count = chunk_count + 1
    chunks[chunk_count], names[chunk_count] = element, node
    deltas, bytes = deltas + entry_deltas, bytes + #element
    frames = frames + (#element < BULK_BYTES and FRAME_BYTES or STAND_IN_BYTES)
    append = append < appends and append or appends
    covered = append > covered and append or covered
    oldest = accepted_at < oldest and accepted_at or oldest
    taken = taken + 2
  else
    missing = missing + 1
    taken = taken + 1
  end
  count = count + 1
end
if taken == 0 then
  -- The queue is gone although something is said to be due: nothing can be published of it.
  redis.call('HSET', intake, ':head', struct.pack('>c8I8I8I8I8I8I8', epoch, appends, accepted, 0, 0, 0, covered))
  return {'IDLE', -1}
end
-- What stays, read before the first write: a list that is emptied is gone, and where its slot is on
-- its way to another node a Cluster refuses any further look at it, in the middle of the script.
local is_rest_read = not cut and count_due <= covered and pending_bytes - bytes <= max_bytes
if not is_whole and (is_rest_read or taken + 2 > #elements) then
  read(is_rest_read and max_chunks or 1)
end
-- The first entry that stays, or what is there in place of one.
local next_at = taken + 1
while elements[next_at] and not entry_of(elements[next_at]) do
  next_at = next_at + 1
end
-- What stays pending is in no replica: none of them is current as of a later moment than this.
local additions = '\128'
if elements[next_at] then
  local _, _, accepted_at = entry_of(elements[next_at])
  additions = '\129\173pending_since\207' .. struct.pack('>I8', accepted_at)
  frames = frames + SINCE_BYTES
end
local log_bytes = n.log_bytes
if log_bytes > 0 and log_bytes + frames + bytes > log_limit then
  return {'LOGFULL', log_bytes}
end

-- The chunks as they were packed, in the order in which they were accepted. Each is framed here, so
-- that a damaged one cannot damage its neighbours.
local parts, part_count, bulk, size, frame_of = {''}, 1, {}, 0, {}
for _, chunk in ipairs(chunks) do
  local chunk_bytes = #chunk
  if chunk_bytes < BULK_BYTES then
    -- Many have one size.
    local frame = frame_of[chunk_bytes]
    if not frame then
      frame = struct.pack('>BI4', 0xc6, chunk_bytes)
      frame_of[chunk_bytes] = frame
    end
    parts[part_count + 1], parts[part_count + 2] = frame, chunk
    part_count = part_count + 2
  else
    -- By its face a reader tells it from another one of the same size.
    part_count = part_count + 1
    parts[part_count] = struct.pack('>BBB', 0x92, 0xc4, FACE_BYTES) .. sub(chunk, 1, FACE_BYTES)
      .. struct.pack('>BI4', 0xce, chunk_bytes)
    bulk[#bulk + 1] = chunk
    size = size + chunk_bytes
  end
end
offset = offset + 1
local previous = id_before or string.rep('\0', 8)
local head = struct.pack('>BBBBI2BBc8BI8BBc8BBc8BI8BI8BBI8BI4',
  0x9f, 3, 1, 0xcd, shard, 0xc4, 8, epoch, 0xcf, offset, 0xc4, 8, id, 0xc4, 8, previous,
  0xcf, now, 0xcf, covered, trigger, 0xcf, oldest, 0xce, deltas) .. additions
-- Chunks have check sums of their own: the head is all that has to be read here.
local check = tonumber(string.sub(redis.sha1hex(head), 1, 8), 16)
parts[1] = head .. struct.pack('>BI4BI4', 0xce, check, 0xdd, chunk_count)
local batch = joined(parts, bytes - size)
size = size + #batch

local logged = n.logged + size
local fields = {'b', batch, 't', number(logged), 'n', table.concat(names, ' ')}
for at, chunk in ipairs(bulk) do
  redis.call(publish, bulk_channel, chunk)
  fields[#fields + 1] = 'c' .. at
  fields[#fields + 1] = chunk
end
redis.call(publish, channel, batch)
local logged_as = attempt('XADD', function()
  return redis.call('XADD', log, number(offset) .. '-0', unpack(fields))
end)
if not logged_as then
  -- The log is no stream, or beyond this offset already.
  return damaged(log, number(offset))
end
redis.call('LTRIM', queue, taken, -1)

-- When is the rest due? Entries that only the byte limit left behind are due now.
local wait = -1
if cut or count_due > covered then
  wait = 0
elseif #elements == taken then
  due, count_due = 0, 0
elseif not is_rest_read or not is_whole then
  -- There may be more, and earlier ones. The old deadline is early enough for all of them.
  wait = math.max(0, due - now)
else
  -- What is no entry waits for nothing: it is passed over with the next batch.
  local earliest
  for at = taken + 1, #elements do
    local entry_due, append = entry_of(elements[at])
    if entry_due then
      -- The clock may have been set back since: nothing is further away than its own age.
      entry_due = math.min(entry_due, now + entry_due - math.floor(append / 1000), now + LONGEST_MS)
      entry_due = math.max(1, entry_due)
      earliest = math.min(earliest or entry_due, entry_due)
    end
  end
  due = earliest or now
  wait = math.max(0, due - now)
end
-- Nothing pending is no bytes, whatever an entry had claimed.
pending_bytes = wait < 0 and 0 or math.max(0, pending_bytes - bytes)
local by = trigger == 1 and {'by_count', number(n.by_count + 1)} or {'by_age', number(n.by_age + 1)}
redis.call('HSET', meta, 'epoch', epoch, 'offset', number(offset), 'id', id, 'previous', previous,
  'covered', number(covered), 'published', number(math.min(MAX_NUMBER, n.published + deltas)),
  'published_at', number(now), 'log_bytes', number(log_bytes + size), 'logged', number(logged),
  'bytes', number(n.bytes + size), 'missing', number(n.missing + missing), by[1], by[2])
redis.call('HSET', intake, ':head',
  struct.pack('>c8I8I8I8I8I8I8', epoch, appends, accepted, pending_bytes, due, count_due, covered))
return {'BATCH', offset, trigger, deltas, chunk_count, size, now - oldest, wait, missing}
