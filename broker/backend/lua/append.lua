--[[
Accept one chunk of a node, exactly once, in the order of its numbers; wake a flush worker when the
shard becomes due earlier than it knew. The chunk is not looked into.

A large chunk need not come through Lua, which copies and hashes every byte: it may be pushed behind
the pending list right before, in the same transaction. Where it is not accepted it is taken back.

KEYS  1 meta hash   2 writers hash   3 order list   4 pending list of the node   5 ready list
ARGV  1 node   2 incarnation   3 token   4 chunk number (1..)   5 deltas in the chunk (0..)
      6 ms that its oldest delta waited in the producer
      7 max age in ms, 8 max count in deltas ('' = as the namespace says)
      9 limit of pending bytes in this shard   10 chunk
      11 bytes of a chunk that is pushed already; then ARGV[10] is '' (else this is)
returns {'OK' or 'DUPLICATE', append number, epoch, max age in ms, max count}
        {'FENCED', incarnation that holds the name}
        {'MISSING', first chunk number that is not here, deltas of this incarnation that are}
        {'BUSY', pending bytes}
refuses with the error DAMAGED, the key and the field, before it writes, what it cannot read
cost  O(1), and the copy of the chunk
]]
local meta, writers, order, pending, ready = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local node, incarnation, token, chunk = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local deltas, waited = tonumber(ARGV[5]), tonumber(ARGV[6])
local limit, data, pushed = tonumber(ARGV[9]), ARGV[10], tonumber(ARGV[11])
local bytes = pushed or #data
local is_placed
local LONGEST_MS = 3600000

-- Numbers into text and back are a sixth of an append. '%d' costs least, and is 32 bits wide on a server
-- of 32 bits; a number as it is would be written with 17 digits.
local function digits(n)
  return string.format(n < 2147483648 and '%d' or '%.0f', n)
end

-- A number as it is written here; nil for whatever else others may have put there.
local function whole(text)
  local n = tonumber(text)
  return n and n >= 0 and n <= 9007199254740992 and n % 1 == 0 and n or nil
end

local function damaged(key, field)
  return redis.error_reply('DAMAGED ' .. key .. ' ' .. field)
end

local function accept()
  if pushed then
    -- Where the key is no list, nothing was pushed: an error then.
    redis.call('LTRIM', pending, 0, -1)
    is_placed = true
  end
  local record = redis.pcall('HGET', writers, node)
  if not record then
    return {'MISSING', 1, 0}
  elseif type(record) == "table" then
    return string.find(record.err, 'WRONGTYPE') and damaged(writers, node) or record
  end
  local owner = incarnation .. ' ' .. token .. ' '
  if string.sub(record, 1, #owner) ~= owner then
    local held = whole(string.match(record, '^(%d+) %S+ %d+ %d+$'))
    if not held then
      return damaged(writers, node)
    end
    if held >= tonumber(incarnation) then
      return {'FENCED', held}
    end
    return {'MISSING', 1, 0}
  end
  local last, total = string.match(record, '^(%d+) (%d+)$', #owner + 1)
  last, total = whole(last), whole(total)
  if not last or not total then
    return damaged(writers, node)
  end
  if chunk > last + 1 then
    return {'MISSING', last + 1, total}
  end

  local waiting = 'n:' .. node
  local m = redis.call('HMGET', meta, 'epoch', 'appends', 'accepted', 'pending_bytes', 'due', waiting,
    'max_age', 'max_count')
  local epoch, appends, accepted = m[1], whole(m[2] or 0), whole(m[3] or 0)
  local pending_bytes, before = whole(m[4] or 0), whole(m[6] or 0)
  local max_age = whole(ARGV[7] ~= '' and ARGV[7] or m[7] or 50)
  local max_count = whole(ARGV[8] ~= '' and ARGV[8] or m[8] or 1000)
  local unread = epoch and #epoch ~= 8 and 'epoch' or not appends and 'appends'
    or not accepted and 'accepted' or not pending_bytes and 'pending_bytes' or not before and waiting
    or (not max_age or ARGV[7] == '' and max_age > LONGEST_MS) and 'max_age'
    or (not max_count or max_count == 0) and 'max_count'
  if unread then
    return damaged(meta, unread)
  end
  if chunk <= last then
    return {'DUPLICATE', appends, epoch, max_age, max_count}
  end
  if not epoch then
    return {'MISSING', 1, 0}
  end
  -- Without a deadline nothing is pending, whatever the counter says.
  if m[5] and pending_bytes > 0 and pending_bytes + bytes > limit then
    return {'BUSY', pending_bytes}
  end

  local time = redis.call('TIME')
  local seconds, micros = tonumber(time[1]), tonumber(time[2])
  local now = seconds * 1000 + math.floor(micros / 1000)
  local due = now + math.max(0, max_age - waited)
  local known_due = tonumber(m[5])
  local after = before + deltas
  -- The count threshold is crossed whenever the node's pending deltas pass a multiple of it.
  local full = math.floor(after / max_count) > math.floor(before / max_count)

  if not pushed then
    redis.call('RPUSH', pending, data)
    is_placed = true
  end
  -- From the clock, so that a number never comes again after Redis lost what it had accepted.
  appends = math.max(appends + 1, seconds * 1000000 + micros)
  redis.call('RPUSH', order, struct.pack('>I8I8I8I4I4', due, now, appends, deltas, bytes) .. node)
  redis.call('HSET', writers, node, owner .. digits(chunk) .. ' ' .. digits(total + deltas))
  redis.call('HSET', meta, 'appends', digits(appends), 'accepted', digits(accepted + deltas),
    'pending_bytes', digits(pending_bytes + bytes), waiting, digits(after))
  local earlier = not known_due or due < known_due
  if earlier then
    redis.call('HSET', meta, 'due', digits(due))
  end
  if full then
    redis.call('HSET', meta, 'count_due', digits(appends))
  end
  -- The chunk is accepted, whatever is under the key of the wake-ups.
  if full or earlier then
    pcall(function()
      if redis.call('LLEN', ready) == 0 then
        redis.call('RPUSH', ready, '1')
      end
    end)
  end
  return {'OK', appends, epoch, max_age, max_count}
end

local is_run, reply = pcall(accept)
if is_placed and not (is_run and reply[1] == 'OK') then
  redis.call('LTRIM', pending, 0, -2)
end
if not is_run then
  error(reply)
end
return reply
