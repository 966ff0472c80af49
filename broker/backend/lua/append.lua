--[[
Accept one chunk of a node, exactly once, in the order of its numbers; wake a flush worker when the
shard becomes due earlier than it knew. The chunk is not looked into.

A large chunk need not be an argument, which Redis would parse and copy: it may be pushed to the stage
of its node right before, in the same transaction, and is moved from there. Where it is not accepted the
stage is emptied.

KEYS  1 intake hash   2 queue list   3 ready list   4.. stage list of the node, for a chunk on it
ARGV  1 call: incarnation u64, token 8 bytes, chunk number u64 (1..), deltas in the chunk u32 (0..), ms that its
        oldest delta waited in the producer u32, max age in ms u32 (4294967295 = as the namespace says), max count
        in deltas u32 (0 = as the namespace says), limit of pending bytes in this shard u64, bytes of a chunk
        on the stage u32 (0 = it is in ARGV[2]), name of the node; big-endian
      2 chunk, or ''
      3 number of the dictionary that the chunk needs; absent if it needs none
returns what is accepted as one string of 32 bytes: append number u64, epoch 8 bytes, 1 if the state is above a
          bound, else 0, u64, max age in ms u32, max count u32
        {'DUPLICATE', such a string with the last append number}
        {'FENCED', incarnation that holds the name}
        {'MISSING', first chunk number that is not here, deltas of this incarnation that are}
        {'DICT'} if this shard does not have the dictionary
        {'BUSY', pending bytes, bytes of this node that count for its share}
          if it is for the share, all that is pending is due
refuses with the error DAMAGED, the key and the field, before it writes, what it cannot read
cost  O(1), and the copy of the chunk
]]
local FIRST_STAGE = 4
local stage = KEYS[FIRST_STAGE]

local function damaged(key, field)
  return redis.error_reply('DAMAGED ' .. key .. ' ' .. field)
end

-- The reply, and whether the chunk was accepted. All that it needs is local to it: each variable from outside
-- would cost a tenth of a command.
local function accept()
  local intake, queue, ready = KEYS[1], KEYS[2], KEYS[3]
  local call, data, dictionary = ARGV[1], ARGV[2], ARGV[3]
  local owner, chunk, deltas, waited, own_age, own_count, limit, pushed = struct.unpack('>c16I8I4I4I4I4I8I4', call)
  local node = string.sub(call, 53)
  local bytes = pushed > 0 and pushed or #data
  local HEAD_BYTES, RECORD_BYTES, LIMITS_BYTES, MAX_NUMBER = 56, 60, 8, 9007199254740992
  local LONGEST_MS, NAMESPACE_AGE, MAX_AHEAD_US = 3600000, 4294967295, 86400000000
  -- Half of a node's share is a 32nd of the limit, and not less than this.
  local MIN_HALF_BYTES = 262144
  local m = redis.pcall('HMGET', intake, node, ':head', ':limits')
  if m.err then
    return string.find(m.err, 'WRONGTYPE') and damaged(intake, node) or m
  end
  local record, head, limits = m[1], m[2], m[3]
  if not record then
    return {'MISSING', 1, 0}
  elseif #record ~= RECORD_BYTES then
    return damaged(intake, node)
  end
  -- Text made of numbers, or numbers of text, would be a sixth of an append.
  local holder, last, total, own_last, before, edge, own_bytes = struct.unpack('>c16I8I8I8I4I8I8', record)
  if holder ~= owner then
    local held = struct.unpack('>I8', record)
    if held > MAX_NUMBER then
      return damaged(intake, node)
    end
    if held >= struct.unpack('>I8', call) then
      return {'FENCED', held}
    end
    return {'MISSING', 1, 0}
  end
  if last > MAX_NUMBER or total > MAX_NUMBER then
    return damaged(intake, node)
  end
  if chunk > last + 1 then
    return {'MISSING', last + 1, total}
  end
  if not head then
    return {'MISSING', last + 1, total}
  elseif #head ~= HEAD_BYTES then
    return damaged(intake, ':head')
  end
  local epoch, appends, accepted, pending_bytes, known_due, count_due, covered =
    struct.unpack('>c8I8I8I8I8I8I8', head)
  if appends > MAX_NUMBER or appends < covered or accepted > MAX_NUMBER or pending_bytes > MAX_NUMBER then
    return damaged(intake, ':head')
  end

  local max_age, max_count, full = 50, 1000, 0
  if limits and #limits == LIMITS_BYTES then
    max_age, max_count = struct.unpack('>I4I4', limits)
  elseif limits and #limits == LIMITS_BYTES + 1 then
    max_age, max_count, full = struct.unpack('>I4I4B', limits)
  end
  -- What cannot be read or meant is the default.
  max_age = own_age ~= NAMESPACE_AGE and own_age or max_age <= LONGEST_MS and max_age or 50
  max_count = own_count ~= 0 and own_count or max_count ~= 0 and max_count or 1000
  if chunk <= last then
    return {'DUPLICATE', struct.pack('>I8c8I8I4I4', appends, epoch, full, max_age, max_count)}
  end
  if dictionary then
    -- Exactly those in the hash: who has lost one must not get a chunk that needs it.
    local numbers, is_there = redis.call('HGET', intake, ':dicts'), false
    for at = 1, numbers and #numbers - 3 or 0, 4 do
      is_there = is_there or struct.unpack('>I4', numbers, at) == tonumber(dictionary)
    end
    if not is_there then
      return {'DICT'}
    end
  end
  -- A node may append half of its share, and as much again only when all before that half is published.
  if covered >= edge or edge > appends then
    edge, own_bytes = own_last, 0
  end
  local used = own_bytes + bytes
  local is_share = used > MIN_HALF_BYTES and used > limit / 32 and own_bytes > 0
  -- Without a deadline nothing is pending, whatever the counter says.
  if known_due > 0 and pending_bytes > 0 and (is_share or pending_bytes + bytes > limit) then
    if is_share and count_due < appends then
      -- Who waits for room need not wait for an age, too.
      redis.call('HSET', intake, ':head', struct.pack('>c8I8I8I8I8I8I8', epoch, appends, accepted, pending_bytes,
        known_due, appends, covered))
      if redis.pcall('LLEN', ready) == 0 then
        redis.pcall('RPUSH', ready, '1')
      end
    end
    return {'BUSY', pending_bytes, own_bytes}
  end

  local time = redis.call('TIME')
  -- Once: each use of text as a number reads it anew.
  local now = time[1] * 1000000 + time[2]
  -- As the next heartbeat judges, which makes it anew.
  if appends > now + MAX_AHEAD_US and appends > covered + redis.call('LLEN', queue) then
    return damaged(intake, ':head')
  end
  local due = (now - now % 1000) / 1000 + (max_age > waited and max_age - waited or 0)
  -- From the clock, so that a number never comes again after Redis lost what it had accepted.
  appends = appends < now and now or appends + 1
  -- A node's deltas are counted from the first one while none of its is pending; each time that they pass a
  -- multiple of the count, all up to here is due.
  before = own_last > covered and before or 0
  local after = before + deltas
  local is_full = before % max_count + deltas >= max_count
  local is_earlier = due < known_due or known_due == 0

  local entry = struct.pack('>BBI8I8I4', 1, 0, due, appends, deltas) .. node
  if pushed == 0 then
    redis.call('RPUSH', queue, data, entry)
  elseif redis.call('LMOVE', stage, queue, 'RIGHT', 'RIGHT') then
    redis.call('RPUSH', queue, entry)
  else
    return damaged(stage, '(empty)')
  end
  redis.call('HSET', intake, ':head', struct.pack('>c8I8I8I8I8I8I8', epoch, appends, accepted + deltas,
    pending_bytes + bytes, is_earlier and due or known_due, is_full and appends or count_due, covered),
    node, struct.pack('>c24I8I8I4I8I8', call, total + deltas, appends, after, edge, used))
  -- The chunk is accepted, whatever is under the key of the wake-ups.
  if is_full or is_earlier then
    pcall(function()
      if redis.call('LLEN', ready) == 0 then
        redis.call('RPUSH', ready, '1')
      end
    end)
  end
  return struct.pack('>I8c8I8I4I4', appends, epoch, full, max_age, max_count), true
end

if not stage then
  return (accept())
end
local is_run, reply, is_accepted = pcall(accept)
if not is_accepted then
  redis.call('DEL', stage)
end
if not is_run then
  error(reply)
end
return reply
