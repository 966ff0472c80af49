#!lua flags=allow-oom
--[[
Tell how far a node's chunks are here, by a write that changes nothing: on whatever replica or disk it
is, everything before it is too. WAIT and WAITAOF after it, on the same connection, say where it is.

KEYS  1 intake hash
ARGV  1 node   2 incarnation   3 token
returns {'HELD', last chunk number that is here}
        {'FENCED', incarnation that holds the name}
        {'MISSING'} if nothing of this incarnation is here
refuses with the error DAMAGED, the key and the field, what it cannot read
cost  O(1)
]]
local intake = KEYS[1]
local node, incarnation, token = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local RECORD_BYTES, MAX_NUMBER = 60, 9007199254740992

local record = redis.call('HGET', intake, node)
if not record then
  return {'MISSING'}
end
local held, held_token, last
if #record == RECORD_BYTES then
  held, held_token, last = struct.unpack('>I8c8I8', record)
end
if not held or held > MAX_NUMBER then
  return redis.error_reply('DAMAGED ' .. intake .. ' ' .. node)
end
if held > incarnation or (held == incarnation and held_token ~= token) then
  return {'FENCED', held}
end
if held < incarnation then
  return {'MISSING'}
end
redis.call('HSET', intake, node, record)
return {'HELD', last}
