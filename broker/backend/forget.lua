--[[
Forget writers whose processes ended without saying so; for administrators, and no part of the protocol.
A record is noted when it is first seen with nothing pending. If it is the same an age later, its holder is
asked whether it lives, by a mark before the record: who lives writes it again within a second. A record
that still has the mark is forgotten, in the same step that looks again that nothing came meanwhile.

KEYS  1 intake hash   2 idle hash
ARGV  1 step: 'ask' or 'forget'   2 age in ms   3 text without spaces, the same for both steps of one command
      4.. nodes
returns a word for each node
      GONE       there is no record
      UNREAD     it cannot be read: that is damage
      BUSY       something is pending
      AHEAD      its number is from after now: the clock was set back, or it was invented
      NOTED      it was noted now: it is new, or has changed since
      WAITS      it was noted less than the age ago, or another command is asking
      ASKED      its holder has to write it again
      LIVES      its holder did
      FORGOTTEN  it is deleted, and who comes back with it is fenced
cost  O(nodes)
]]
local intake, idle = KEYS[1], KEYS[2]
local step, age, asking = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local FIRST, HEAD_BYTES, RECORD_BYTES, MAX_NUMBER = 4, 56, 60, 9007199254740992

-- A number as it is written here; nil for whatever else others may have put there.
local function whole(text)
  local n = tonumber(text)
  return n and n >= 0 and n <= MAX_NUMBER and n % 1 == 0 and n or nil
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function note(node, record)
  redis.call('HSET', idle, node, string.format('%.0f ', now) .. record)
end

-- Where the head cannot be read, everything may be pending.
local head = redis.call('HGET', intake, ':head')
local covered = head and #head == HEAD_BYTES and struct.unpack('>I8', head, 49) or -1

local function judge(node)
  local found = redis.call('HGET', intake, node)
  if not found then
    redis.call('HDEL', idle, node)
    return 'GONE'
  end
  local asked_by, record = string.match(found, '^idle (%S+) (.*)$')
  record = record or found
  if #record ~= RECORD_BYTES then
    return 'UNREAD'
  end
  local incarnation, _, append = struct.unpack('>I8c24I8', record)
  if incarnation > MAX_NUMBER then
    return 'UNREAD'
  end
  if append > covered then
    redis.call('HDEL', idle, node)
    return 'BUSY'
  end
  if incarnation > now then
    return 'AHEAD'
  end
  local noted_at, noted = string.match(redis.call('HGET', idle, node) or '', '^(%d+) (.*)$')
  noted_at = whole(noted_at)
  if not noted_at or noted ~= record or noted_at > now then
    note(node, record)
    return 'NOTED'
  end
  if now - noted_at < age then
    return 'WAITS'
  end
  if step == 'ask' then
    redis.call('HSET', intake, node, 'idle ' .. asking .. ' ' .. record)
    return 'ASKED'
  end
  if not asked_by then
    note(node, record)
    return 'LIVES'
  end
  if asked_by ~= asking then
    return 'WAITS'
  end
  redis.call('HDEL', intake, node)
  redis.call('HDEL', idle, node)
  local forgotten = whole(redis.call('HGET', intake, ':forgotten') or 0) or 0
  redis.call('HSET', intake, ':forgotten', string.format('%.0f', math.max(forgotten, incarnation)))
  return 'FORGOTTEN'
end

local told = {}
for at = FIRST, #ARGV do
  told[#told + 1] = judge(ARGV[at])
end
return told
