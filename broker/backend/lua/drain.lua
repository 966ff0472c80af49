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
refuses with the error DAMAGED, the key and the field, before it writes, what it cannot read
An entry of the order list that cannot be read counts as a chunk that is not found.
publishes the batch, to the channel and to the log under the id offset-0 (b: the batch, t: bytes
          logged so far, n: the node of each chunk, joined by blanks, c1, c2 ...: its bulk chunks)
cost  O(chunks); the bytes three times, those of bulk chunks twice
]]
local meta, order, log = KEYS[1], KEYS[2], KEYS[3]
local channel, bulk_channel, publish, shard = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local id, max_bytes, max_chunks, log_limit = ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local FIRST_LIST, FIRST_NODE = 4, 9
local NUMBERS = {'covered', 'count_due', 'appends', 'pending_bytes', 'published', 'published_at', 'log_bytes',
  'logged', 'bytes', 'by_count', 'by_age', 'missing'}
-- In the reply that has them after epoch, offset, id and due.
local FIRST_NUMBER = 4
local LONGEST_MS = 86400000
local ENTRY_BYTES, MOST_CHUNK_BYTES, MOST_NAME_BYTES = 32, 4194304, 64
local BULK_BYTES, FACE_BYTES = 65536, 96
-- What a batch adds to its chunks, if more stays pending, to each of them, and to each bulk chunk.
local HEAD_BYTES, SINCE_BYTES, FRAME_BYTES, STAND_IN_BYTES = 89, 23, 5, 8 + FACE_BYTES
-- Of an expression; Lua nests no deeper than 200.
local MOST_TERMS = 129

-- A number as it is written here; nil for whatever else others may have put there.
local function whole(text)
  local n = tonumber(text)
  return n and n >= 0 and n <= 9007199254740992 and n % 1 == 0 and n or nil
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

local m = redis.call('HMGET', meta, 'epoch', 'offset', 'id', 'due', unpack(NUMBERS))
if not m[1] then
  return {'IDLE', -1}
end
if not m[4] and #redis.call('LRANGE', order, 0, 0) == 0 then
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
local offset, id_before = whole(m[2] or 0), m[3]
if #m[1] ~= 8 then
  return damaged(meta, 'epoch')
elseif not offset or offset > n.by_count + n.by_age then
  -- Each batch was due by one of the two.
  return damaged(meta, 'offset')
elseif (id_before and #id_before ~= 8) or (offset > 0 and not id_before) then
  return damaged(meta, 'id')
elseif n.covered > n.appends then
  return damaged(meta, 'covered')
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local covered, count_due = n.covered, n.count_due
local due = whole(m[4]) or now
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

local list_of = {}
for at = FIRST_NODE, #ARGV do
  list_of[ARGV[at]] = KEYS[FIRST_LIST + at - FIRST_NODE]
end

-- How far does the batch go, and whose chunks does it hold?
local entries = redis.call('LRANGE', order, 0, max_chunks - 1)
local taken, deltas, bytes, frames, oldest, cut = 0, 0, 0, HEAD_BYTES, now, false
local nodes, count_of, deltas_of, undeclared = {}, {}, {}, {}
local node_at = {}
for at, entry in ipairs(entries) do
  local node = string.sub(entry, ENTRY_BYTES + 1)
  -- What is not an entry is passed over; it has no chunk, and so counts as one that is not found.
  if count_of[node] or (node ~= '' and #node <= MOST_NAME_BYTES and not string.find(node, '[^%w_.-]')) then
    local _, accepted_at, append, entry_deltas, entry_bytes = struct.unpack('>I8I8I8I4I4', entry)
    -- What an entry claims beyond any chunk must not fill the log.
    entry_bytes = math.min(entry_bytes, MOST_CHUNK_BYTES)
    if append > last then
      break
    end
    if taken > 0 and bytes + entry_bytes > max_bytes then
      cut = true
      break
    end
    if not count_of[node] then
      count_of[node], deltas_of[node] = 0, 0
      nodes[#nodes + 1] = node
      if not list_of[node] then
        undeclared[#undeclared + 1] = node
      end
    end
    node_at[at] = node
    count_of[node] = count_of[node] + 1
    deltas_of[node] = deltas_of[node] + entry_deltas
    deltas, bytes = deltas + entry_deltas, bytes + entry_bytes
    frames = frames + (entry_bytes < BULK_BYTES and FRAME_BYTES or STAND_IN_BYTES)
    covered = math.min(append, n.appends)
    oldest = math.min(oldest, accepted_at)
  end
  taken = at
end
if #undeclared > 0 then
  return {'NODES', unpack(nodes)}
end
if taken == 0 then
  -- The order list is gone although something is said to be due: nothing can be published of it.
  redis.call('HDEL', meta, 'due', 'count_due')
  redis.call('HSET', meta, 'pending_bytes', '0')
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
local additions = '\128'
if next_entry and #next_entry >= ENTRY_BYTES then
  local _, accepted_at = struct.unpack('>I8I8', next_entry)
  additions = '\129\173pending_since\207' .. struct.pack('>I8', math.min(now, accepted_at))
  frames = frames + SINCE_BYTES
end
local log_bytes = n.log_bytes
if log_bytes > 0 and log_bytes + frames + bytes > log_limit then
  return {'LOGFULL', log_bytes}
end

-- The chunks as they were packed, in the order in which they were accepted. Each is framed here, so
-- that a damaged one cannot damage its neighbours.
local chunks_of, next_of = {}, {}
for _, node in ipairs(nodes) do
  -- A key that is no list has no chunks, and must not stop those of the others.
  chunks_of[node] = attempt('WRONGTYPE', function()
    return redis.call('LRANGE', list_of[node], 0, count_of[node] - 1)
  end) or {}
  next_of[node] = 0
end
local parts, names, bulk, size, missing = {''}, {}, {}, 0, 0
for at = 1, taken do
  local node, chunk = node_at[at], nil
  if node then
    next_of[node] = next_of[node] + 1
    chunk = chunks_of[node][next_of[node]]
  end
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
offset = offset + 1
local previous = id_before or string.rep('\0', 8)
local head = struct.pack('>BBBBI2BBc8BI8BBc8BBc8BI8BI8BBI8BI4',
  0x9f, 3, 1, 0xcd, shard, 0xc4, 8, m[1], 0xcf, offset, 0xc4, 8, id, 0xc4, 8, previous,
  0xcf, now, 0xcf, covered, trigger, 0xcf, oldest, 0xce, deltas) .. additions
-- Chunks have check sums of their own: the head is all that has to be read here.
local check = tonumber(string.sub(redis.sha1hex(head), 1, 8), 16)
parts[1] = head .. struct.pack('>BI4BI4', 0xce, check, 0xdd, chunk_count)
local batch = joined(parts)
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
if not cut and count_due <= covered and #rest == 0 then
  -- Nothing stays: two commands for all nodes.
  local lists, counters = {}, {}
  for at, node in ipairs(nodes) do
    counters[at] = 'n:' .. node
    if #chunks_of[node] > 0 then
      lists[#lists + 1] = list_of[node]
    end
  end
  if #lists > 0 then
    redis.call('DEL', unpack(lists))
  end
  if #counters > 0 then
    redis.call('HDEL', meta, unpack(counters))
  end
else
  for _, node in ipairs(nodes) do
    if #chunks_of[node] > 0 then
      redis.call('LTRIM', list_of[node], count_of[node], -1)
    end
    -- Not -deltas, which is -0 where chunks only define ids, and that is no integer to Redis.
    local left = attempt("integer", function()
      return redis.call('HINCRBY', meta, 'n:' .. node, 0 - deltas_of[node])
    end)
    if not left or left <= 0 then
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
    local entry_due, accepted_at = now, now
    if #entry >= ENTRY_BYTES then
      entry_due, accepted_at = struct.unpack('>I8I8', entry)
    end
    entry_due = math.min(entry_due, now + entry_due - accepted_at, now + LONGEST_MS)
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
-- Nothing pending is no bytes, whatever an entry had claimed.
local pending_bytes = wait < 0 and 0 or math.max(0, n.pending_bytes - bytes)
local by = trigger == 1 and {'by_count', number(n.by_count + 1)} or {'by_age', number(n.by_age + 1)}
redis.call('HSET', meta, 'offset', number(offset), 'id', id, 'previous', previous,
  'covered', number(covered), 'published', number(n.published + deltas),
  'published_at', number(now), 'pending_bytes', number(pending_bytes),
  'log_bytes', number(log_bytes + size), 'logged', number(logged),
  'bytes', number(n.bytes + size), 'missing', number(n.missing + missing), by[1], by[2])
if wait >= 0 then
  redis.call('HSET', meta, 'due', number(due))
end
return {'BATCH', offset, trigger, deltas, chunk_count, size, now - oldest, wait, missing}
