#!lua flags=allow-oom
--[[
Publish what is due as one batch: the longest prefix of the order of acceptance that is due and fits.
Due by count: everything up to the append that crossed a node's threshold. Due by age: everything.
Publishes first, then logs, then trims and moves the offset: a script that fails keeps what it wrote,
and a batch published twice under two ids is noticed by every replica, while a lost one would not be.
Bulk chunks, those of 65536 bytes or more, are neither joined nor copied: each is published by itself
before its batch, which holds a stand-in for it, and is a field of its own in the log.

KEYS  1 meta hash   2 order list   3 log stream   4.. pending lists of the nodes in ARGV[9..]
ARGV  1 channel   2 channel of bulk chunks   3 'PUBLISH' or 'SPUBLISH'   4 shard
      5 batch id, 8 random bytes   6 limit of a batch in bytes   7 limit of a batch in chunks
      8 limit of the log in bytes   9.. nodes whose pending lists are in KEYS[4..], in the same order
returns {'IDLE', ms until something is due, -1 if nothing is pending}
        {'NODES', node ...}   these have to be declared; nothing was done
        {'LOGFULL', log bytes}   the scheduler does not keep up; nothing was done
        {'BATCH', offset, trigger (1 count, 2 age), deltas, chunks, bytes, ms since its oldest chunk
          was accepted, ms until the next is due (-1 nothing pending), chunks not found}
publishes the batch, to the channel and to the log under the id offset-0 (b: the batch, t: bytes
          logged so far, n: the node of each chunk, joined by blanks, c1, c2 ...: its bulk chunks)
cost  O(chunks); the bytes three times, those of bulk chunks twice
]]
local meta, order, log = KEYS[1], KEYS[2], KEYS[3]
local channel, bulk_channel, publish, shard = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local id, max_bytes, max_chunks, log_limit = ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local FIRST_LIST, FIRST_NODE = 4, 9
local BULK_BYTES, FACE_BYTES = 65536, 96
-- What a batch adds to its chunks, if more stays pending, to each of them, and to each bulk chunk.
local HEAD_BYTES, TAIL_BYTES, FRAME_BYTES, STAND_IN_BYTES = 83, 24, 5, 8 + FACE_BYTES
-- Of an expression; Lua nests no deeper than 200.
local MOST_TERMS = 129

local function number(n)
  return string.format('%.0f', n)
end

-- Long strings are copied and hashed byte by byte each time that Lua makes one: table.concat does so twice,
-- one expression that names all of them once.
local function joined(parts)
  if #parts > MOST_TERMS then
    return table.concat(parts)
  end
  local terms = {}
  for n = 1, #parts do
    terms[n] = 'p[' .. n .. ']'
  end
  return loadstring('local p = ... return ' .. table.concat(terms, '..'))(parts)
end

local m = redis.call('HMGET', meta, 'epoch', 'offset', 'id', 'covered', 'count_due', 'due',
  'pending_bytes', 'published', 'log_bytes', 'logged', 'bytes', 'by_count', 'by_age', 'missing',
  'published_at')
local due = tonumber(m[6])
if not m[1] or not due then
  return {'IDLE', -1}
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local covered, count_due = tonumber(m[4] or 0), tonumber(m[5] or 0)
-- A clock that was set back must not make anything wait for its old time to come again.
if now < tonumber(m[15] or 0) then
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

local list_of = {}
for n = FIRST_NODE, #ARGV do
  list_of[ARGV[n]] = KEYS[FIRST_LIST + n - FIRST_NODE]
end

-- How far does the batch go, and whose chunks does it hold?
local entries = redis.call('LRANGE', order, 0, max_chunks - 1)
local taken, deltas, bytes, frames, oldest, cut = 0, 0, 0, HEAD_BYTES, now, false
local nodes, count_of, deltas_of, undeclared = {}, {}, {}, {}
local node_at = {}
for n, entry in ipairs(entries) do
  local _, accepted_at, append, entry_deltas, entry_bytes = struct.unpack('>I8I8I8I4I4', entry)
  if append > last then
    break
  end
  if taken > 0 and bytes + entry_bytes > max_bytes then
    cut = true
    break
  end
  local node = string.sub(entry, 33)
  if not count_of[node] then
    count_of[node], deltas_of[node] = 0, 0
    nodes[#nodes + 1] = node
    if not list_of[node] then
      undeclared[#undeclared + 1] = node
    end
  end
  node_at[n] = node
  count_of[node] = count_of[node] + 1
  deltas_of[node] = deltas_of[node] + entry_deltas
  taken, deltas, bytes = n, deltas + entry_deltas, bytes + entry_bytes
  frames = frames + (entry_bytes < BULK_BYTES and FRAME_BYTES or STAND_IN_BYTES)
  covered = append
  oldest = math.min(oldest, accepted_at)
end
if #undeclared > 0 then
  return {'NODES', unpack(nodes)}
end
if taken == 0 then
  -- The order list is gone although something is said to be due: nothing can be published of it.
  redis.call('HDEL', meta, 'due', 'count_due')
  return {'IDLE', -1}
end
-- What stays, read before the first write: a list that is emptied is gone, and where its slot is on
-- its way to another node a Cluster refuses any further look at it, in the middle of the script.
local rest, next_entry = {}, entries[taken + 1]
if not cut and count_due <= covered then
  rest = redis.call('LRANGE', order, taken, taken + max_chunks - 1)
  next_entry = rest[1]
elseif not next_entry then
  next_entry = redis.call('LRANGE', order, taken, taken)[1]
end
-- What stays pending is in no replica: none of them is current as of a later moment than this.
local tail = ''
if next_entry then
  local _, accepted_at = struct.unpack('>I8I8', next_entry)
  tail = '\129\173pending_since\207' .. struct.pack('>I8', math.min(now, accepted_at))
  frames = frames + TAIL_BYTES
end
local log_bytes = tonumber(m[9] or 0)
if log_bytes > 0 and log_bytes + frames + bytes > log_limit then
  return {'LOGFULL', log_bytes}
end

-- The chunks as they were packed, in the order in which they were accepted. Each is framed here, so
-- that a damaged one cannot damage its neighbours.
local chunks_of, next_of = {}, {}
for _, node in ipairs(nodes) do
  chunks_of[node] = redis.call('LRANGE', list_of[node], 0, count_of[node] - 1)
  next_of[node] = 0
end
local parts, names, bulk, size, missing = {''}, {}, {}, 0, 0
for n = 1, taken do
  local node = node_at[n]
  next_of[node] = next_of[node] + 1
  local chunk = chunks_of[node][next_of[node]]
  if chunk then
    names[#names + 1] = node
    if #chunk < BULK_BYTES then
      parts[#parts + 1] = struct.pack('>BI4', 0xc6, #chunk)
      parts[#parts + 1] = chunk
    else
      -- By its face a reader tells it from another one of the same size.
      parts[#parts + 1] = struct.pack('>BBB', 0x92, 0xc4, FACE_BYTES) .. string.sub(chunk, 1, FACE_BYTES)
        .. struct.pack('>BI4', 0xce, #chunk)
      bulk[#bulk + 1] = chunk
      size = size + #chunk
    end
  else
    missing = missing + 1
  end
end
local chunk_count = taken - missing
local offset = tonumber(m[2] or 0) + 1
local previous = m[3] or string.rep('\0', 8)
parts[1] = struct.pack('>BBBBI2BBc8BI8BBc8BBc8BI8BI8BBI8BI4BI4',
  next_entry and 0x9e or 0x9d, 2, 1, 0xcd, shard, 0xc4, 8, m[1], 0xcf, offset, 0xc4, 8, id, 0xc4, 8, previous,
  0xcf, now, 0xcf, covered, trigger, 0xcf, oldest, 0xce, deltas, 0xdd, chunk_count)
parts[#parts + 1] = tail
local batch = joined(parts)
size = size + #batch

local logged = tonumber(m[10] or 0) + size
local fields = {'b', batch, 't', number(logged), 'n', table.concat(names, ' ')}
for n, chunk in ipairs(bulk) do
  redis.call(publish, bulk_channel, chunk)
  fields[#fields + 1] = 'c' .. n
  fields[#fields + 1] = chunk
end
redis.call(publish, channel, batch)
redis.call('XADD', log, number(offset) .. '-0', unpack(fields))
if not cut and count_due <= covered and #rest == 0 then
  -- Nothing stays: two commands for all nodes.
  local lists, counters = {}, {}
  for n, node in ipairs(nodes) do
    counters[n] = 'n:' .. node
    if #chunks_of[node] > 0 then
      lists[#lists + 1] = list_of[node]
    end
  end
  if #lists > 0 then
    redis.call('DEL', unpack(lists))
  end
  redis.call('HDEL', meta, unpack(counters))
else
  for _, node in ipairs(nodes) do
    redis.call('LTRIM', list_of[node], count_of[node], -1)
    -- Not -deltas, which is -0 where chunks only define ids, and that is no integer to Redis.
    if redis.call('HINCRBY', meta, 'n:' .. node, 0 - deltas_of[node]) <= 0 then
      redis.call('HDEL', meta, 'n:' .. node)
    end
  end
end
redis.call('LTRIM', order, taken, -1)

-- When is the rest due? Entries that only the byte limit left behind are due now.
local wait = -1
if cut or count_due > covered then
  wait = 0
else
  local earliest
  for _, entry in ipairs(rest) do
    -- The clock may have been set back since: nothing is further away than its own age.
    local entry_due, accepted_at = struct.unpack('>I8I8', entry)
    entry_due = math.min(entry_due, now + entry_due - accepted_at)
    earliest = math.min(earliest or entry_due, entry_due)
  end
  if #rest == max_chunks then
    -- There may be more, and earlier ones. The old deadline is early enough for all of them.
    wait = math.max(0, due - now)
  elseif earliest then
    due, wait = earliest, math.max(0, earliest - now)
  else
    redis.call('HDEL', meta, 'due', 'count_due')
  end
end
local by = trigger == 1 and {'by_count', number((m[12] or 0) + 1)} or {'by_age', number((m[13] or 0) + 1)}
redis.call('HSET', meta, 'offset', number(offset), 'id', id, 'previous', previous,
  'covered', number(covered), 'published', number((m[8] or 0) + deltas),
  'published_at', number(now), 'pending_bytes', number(math.max(0, (m[7] or 0) - bytes)),
  'log_bytes', number(log_bytes + size), 'logged', number(logged),
  'bytes', number((m[11] or 0) + size), 'missing', number((m[14] or 0) + missing), by[1], by[2])
if wait >= 0 then
  redis.call('HSET', meta, 'due', number(due))
end
return {'BATCH', offset, trigger, deltas, chunk_count, size, now - oldest, wait, missing}
