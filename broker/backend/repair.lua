--[[
Mend what others wrote into a shard: write again what can be derived from the log and the queue, and forget
what cannot. Chunks that are pending, published or folded are not touched.
A log that is no chain of batches any more is numbered anew, under a new epoch: subscribers load again.

Content that cannot be read is removed in the same step: a scheduler that looked in between would take what
is left for all there was.

KEYS  1 meta hash   2 queue list   3 log stream   4 state hash   5 tables hash   6 intake hash
ARGV  1 epoch and 2 batch id to use where there is none, 8 random bytes each
      3 greatest offset of a field of the full-state hash   4 1 to begin a new epoch in any case, else 0
      5 how many removals   6.. for each 'DEL' or 'HDEL', which of KEYS, and the field ('' for DEL)
returns {line ...}: what was done, for people
cost  O(pending chunks); O(log) where the log is numbered anew
]]
local meta, queue, log, intake = KEYS[1], KEYS[2], KEYS[3], KEYS[6]
local new_epoch, new_id, greatest, is_new = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local HEAD_BYTES, ENTRY_BYTES, MAX_NAME_BYTES, DIGEST_BYTES = 56, 22, 64, 2048
local FIRST_REMOVAL, REMOVAL = 6, 3
local BEHIND_REMOVALS = FIRST_REMOVAL + REMOVAL * tonumber(ARGV[5])
local NO_ID = string.rep('\0', 8)
local LONGEST_MS, MAX_NUMBER = 3600000, 9007199254740992
local told = {}

local function tell(...)
  told[#told + 1] = string.format(...)
end

-- A number as it is written here; nil for whatever else others may have put there.
local function whole(text)
  local n = tonumber(text)
  return n and n >= 0 and n <= MAX_NUMBER and n % 1 == 0 and n or nil
end

local function digits(n)
  return string.format('%.0f', n)
end

for at = FIRST_REMOVAL, BEHIND_REMOVALS - 1, REMOVAL do
  local key = KEYS[tonumber(ARGV[at + 1])]
  if ARGV[at] == 'DEL' then
    redis.call('DEL', key)
  else
    redis.call('HDEL', key, ARGV[at + 2])
  end
end

local m, numbers_of = {}, redis.call('HGETALL', meta)
for at = 1, #numbers_of, 2 do
  m[numbers_of[at]] = numbers_of[at + 1]
end

local function put(field, value)
  if m[field] ~= value then
    tell('%s is written anew', field)
    m[field] = value
    redis.call('HSET', meta, field, value)
  end
end

local function drop(field)
  if m[field] then
    m[field] = nil
    redis.call('HDEL', meta, field)
  end
end

-- The check of a batch, as it stands behind the bytes that it is made of.
local function check_of(head)
  return struct.pack('>BI4', 0xce, tonumber(string.sub(redis.sha1hex(head), 1, 8), 16))
end

-- How many bytes a batch has before its check: the additions are none, or `pending_since`.
local function head_size(b)
  return string.sub(b, 79, 79) == '\128' and 79 or 102
end

-- What a log entry holds, by the fixed places of a batch as `drain` writes it; nil if it is none.
local function batch_of(entry)
  local found = {size = 0}
  local fields = entry[2]
  for at = 1, #fields, 2 do
    if fields[at] == 'b' then
      found.b = fields[at + 1]
    elseif fields[at] == 't' then
      found.t = at + 1
    end
    if fields[at] == 'b' or string.find(fields[at], '^c%d+$') then
      found.size = found.size + #fields[at + 1]
    end
  end
  local b = found.b
  if not b or #b < 89 or string.sub(b, 2, 4) ~= '\3\1\205' or string.sub(b, 7, 8) ~= '\196\8' then
    return nil
  end
  -- What no reader believes.
  local head = head_size(b)
  if string.sub(b, head + 1, head + 5) ~= check_of(string.sub(b, 1, head)) then
    return nil
  end
  found.epoch, found.id, found.previous = string.sub(b, 9, 16), string.sub(b, 28, 35), string.sub(b, 38, 45)
  found.offset, found.covered = struct.unpack('>I8', b, 18), struct.unpack('>I8', b, 56)
  return found
end

-- -- the log: is it a chain of batches, each under its offset? ----------------------------------------------
local is_chain, count, lost = is_new == 0, 0, 0
local first, last
local after = '-'
repeat
  local page = redis.call('XRANGE', log, after, '+', 'COUNT', 64)
  for _, entry in ipairs(page) do
    local one = batch_of(entry)
    after = '(' .. entry[1]
    if not one then
      is_chain, lost = false, lost + 1
    else
      if entry[1] ~= digits(one.offset) .. '-0' or last and (one.epoch ~= last.epoch
        or one.offset ~= last.offset + 1 or one.previous ~= last.id) then
        is_chain = false
      end
      first = first or one
      last, count = one, count + 1
    end
  end
until #page == 0

local snapshot = whole(m.snap_offset or 0)
if last and snapshot and snapshot < first.offset - 1 then
  -- Else replicas that have what is lost here would differ for good from those that load.
  is_chain = false
  tell('the log begins at offset %s: what was published after %s is lost where the full state lacks it',
    digits(first.offset), digits(snapshot))
end
is_chain = is_chain and not (last and greatest > last.offset)
local epoch, offset, id, previous
if last and is_chain then
  epoch, offset, id, previous = last.epoch, last.offset, last.id, last.previous
elseif last then
  -- Numbered anew from the first, as far as they can be read; and behind all that the full state has, for
  -- they are newer where a history began again.
  epoch, offset, id = new_epoch, first.offset - 1, first.previous
  if greatest > last.offset then
    offset, id = greatest, new_id
    first.offset, first.previous = greatest + 1, new_id
  end
  local entries = redis.call('XRANGE', log, '-', '+')
  redis.call('DEL', log)
  local logged = 0
  for _, entry in ipairs(entries) do
    local one = batch_of(entry)
    if one then
      previous, offset, id = id, offset + 1, one.id
      logged = logged + one.size
      local b = string.sub(one.b, 1, 8) .. epoch .. string.sub(one.b, 17, 17) .. struct.pack('>I8', offset)
        .. string.sub(one.b, 26, 37) .. previous .. string.sub(one.b, 46)
      local head = head_size(b)
      b = string.sub(b, 1, head) .. check_of(string.sub(b, 1, head)) .. string.sub(b, head + 6)
      local fields = entry[2]
      for at = 1, #fields, 2 do
        fields[at + 1] = fields[at] == 'b' and b or fields[at] == 't' and digits(logged) or fields[at + 1]
      end
      redis.call('XADD', log, digits(offset) .. '-0', unpack(fields))
    end
  end
  put('logged', digits(logged))
  put('log_bytes', digits(logged))
  tell('%d of the %d entries of the log are numbered anew, under a new epoch', count, count + lost)
  if lost > 0 then
    tell('%d entries of the log could not be read: what they held is lost, write it again', lost)
  end
else
  epoch, offset, id, previous = m.epoch, whole(m.offset or 0), m.id or NO_ID, m.previous or NO_ID
  if lost > 0 then
    redis.call('DEL', log)
    tell('%d entries of the log could not be read: what they held is lost, write it again', lost)
  end
  local snap_offset = whole(m.snap_offset or 0)
  if is_new == 1 or not (epoch and #epoch == 8 and offset and #id == 8 and #previous == 8 and snap_offset == offset
    and (offset == 0 or m.id and m.snap_id == id) and greatest <= offset) then
    local known = math.max(offset or 0, (whole(m.by_count or 0) or 0) + (whole(m.by_age or 0) or 0), greatest)
    if known > (snap_offset or 0) and is_new == 0 then
      tell('the log is gone: what was published after offset %s is lost where the full state lacks it',
        digits(snap_offset or 0))
    end
    epoch, offset, id, previous = new_epoch, known, known > 0 and new_id or NO_ID, NO_ID
  end
end
-- A shard that nobody wrote to has none yet.
if m.epoch or offset > 0 then
  put('epoch', epoch)
end

-- -- the position, and the numbers that follow from it ------------------------------------------------------
if offset > 0 then
  put('offset', digits(offset))
  put('id', id)
  put('previous', previous)
else
  drop('offset')
  drop('id')
  drop('previous')
end
local batches = (whole(m.by_count or 0) or 0) + (whole(m.by_age or 0) or 0)
if not whole(m.by_count or 0) or not whole(m.by_age or 0) or batches < offset then
  put('by_count', digits(offset))
  put('by_age', '0')
end

local snap_offset, snap_id = whole(m.snap_offset or 0), m.snap_id or NO_ID
if last then
  local at = is_chain and snap_offset and snap_offset >= first.offset and snap_offset <= offset
    and redis.call('XRANGE', log, digits(snap_offset) .. '-0', digits(snap_offset) .. '-0')[1]
  local is_there = at and batch_of(at).id == snap_id
    or is_chain and snap_offset == first.offset - 1 and snap_id == first.previous
  if not is_there then
    -- The log begins where a full state ended: from there on everything is in it.
    snap_offset, snap_id = first.offset - 1, first.previous
    put('snap_offset', digits(snap_offset))
    put('snap_id', snap_id)
  end
elseif snap_offset ~= offset or snap_id ~= id then
  put('snap_offset', digits(offset))
  put('snap_id', id)
end
local fold_to = whole(m.fold_to or 0)
if not fold_to or fold_to > offset or fold_to < greatest then
  put('fold_to', digits(math.min(offset, math.max(greatest, snap_offset or 0))))
end
-- They are computed, or begun, anew. Where nothing was mended they still tell what others altered.
if #told > 0 or m.digest and #m.digest ~= DIGEST_BYTES or m.tables_digest and #m.tables_digest ~= DIGEST_BYTES then
  drop('digest')
  drop('tables_digest')
end
drop('fold')

-- -- what is pending ---------------------------------------------------------------------------------------
local time = redis.call('TIME')
local now, micros = time[1] * 1000 + math.floor(time[2] / 1000), time[1] * 1000000 + time[2]
local pending_bytes, pending_deltas, first_append, last_append = 0, 0, nil, 0
local garbage = {}
local function entry_of(element)
  local node = element and string.byte(element) == 1 and string.sub(element, ENTRY_BYTES + 1) or ''
  if node == '' or #node > MAX_NAME_BYTES or string.find(node, '[^%w_.-]') then
    return nil
  end
  local append, deltas = struct.unpack('>I8I4', element, 11)
  return append <= MAX_NUMBER and node or nil, append, deltas
end

local latest = math.max(micros, whole(m.covered or 0) or 0)
local elements, at = redis.call('LRANGE', queue, 0, -1), 1
while at <= #elements do
  local node, append, deltas = entry_of(elements[at + 1])
  if node and not entry_of(elements[at]) then
    pending_bytes, pending_deltas = pending_bytes + #elements[at], pending_deltas + deltas
    -- One from far ahead would raise the numbers of all that come.
    append = math.min(append, latest)
    first_append, last_append = first_append or append, math.max(last_append, append)
    at = at + 2
  else
    garbage[#garbage + 1] = at - 1
    at = at + 1
  end
end
for _, place in ipairs(garbage) do
  redis.call('LSET', queue, place, new_epoch)
end
if #garbage > 0 then
  redis.call('LREM', queue, #garbage, new_epoch)
  tell('%d elements of the queue that belong to no chunk are deleted', #garbage)
end
-- What producers and workers write about it together; of a head that cannot be read nothing counts.
local head, appends, accepted = redis.call('HGET', intake, ':head'), nil, nil
if head and #head == HEAD_BYTES then
  appends, accepted = struct.unpack('>I8I8', head, 9)
  appends, accepted = appends <= MAX_NUMBER and appends or nil, accepted <= MAX_NUMBER and accepted or nil
end
local covered = whole(m.covered or 0)
if last then
  covered = math.max(last.covered, covered and appends and covered <= appends and covered or 0)
elseif not covered or appends and covered > appends then
  covered = first_append and first_append - 1 or appends or micros
end
if not appends or appends < covered or appends < last_append then
  appends = math.max(covered, last_append)
end
put('covered', digits(covered))

-- -- counters and thresholds -------------------------------------------------------------------------------
for _, field in ipairs({'bytes', 'missing', 'dead', 'logged', 'log_bytes', 'snap_at', 'published_at', 'records_lost'}) do
  if not whole(m[field] or 0) then
    put(field, '0')
  end
end
-- What is accepted is published or pending. Both counters only grow: of two that do not agree, one began again.
local published = whole(m.published or 0)
local most_published = math.max(published or 0, (accepted or 0) - pending_deltas)
if published ~= most_published then
  put('published', digits(most_published))
end
if not head and appends > 0 then
  -- Records up to here are gone, and what they counted is not.
  put('records_lost', digits(appends))
end
if m.epoch or head then
  local due = first_append and now or 0
  local mended = struct.pack('>c8I8I8I8I8I8I8', m.epoch or string.sub(head .. NO_ID, 1, 8), appends,
    most_published + pending_deltas, pending_bytes, due, 0, covered)
  -- When something is due is told to nobody.
  if not head or #head ~= HEAD_BYTES or string.sub(head, 1, 32) ~= string.sub(mended, 1, 32)
    or string.sub(head, 49) ~= string.sub(mended, 49) then
    tell('the head of the intake hash is written anew')
  end
  redis.call('HSET', intake, ':head', mended)
end
if not whole(m.fence or 0) then
  put('fence', digits(now))
end
local max_age, max_count = whole(m.max_age or 0), whole(m.max_count or 1)
if not max_age or max_age > LONGEST_MS then
  drop('max_age')
  tell('max_age is the default again')
end
if not max_count or max_count == 0 then
  drop('max_count')
  tell('max_count is the default again')
end
return told
