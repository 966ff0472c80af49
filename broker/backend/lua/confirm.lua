--[[
Tell how far a node's chunks are here, by a write that changes nothing: on whatever replica or disk it
is, everything before it is too. WAIT and WAITAOF after it, on the same connection, say where it is.

KEYS  1 writers hash
ARGV  1 node   2 incarnation   3 token
returns {'HELD', last chunk number that is here}
        {'FENCED', incarnation that holds the name}
        {'MISSING'} if nothing of this incarnation is here
refuses with the error DAMAGED, the key and the field, what it cannot read
cost  O(1)
]]
local writers = KEYS[1]
local node, incarnation, token = ARGV[1], tonumber(ARGV[2]), ARGV[3]

local record = redis.call('HGET', writers, node)
if not record then
  return {'MISSING'}
end
local held, held_token, last = string.match(record, '^(%d+) (%S+) (%d+) %d+$')
held = tonumber(held)
if not held then
  return redis.error_reply('DAMAGED ' .. writers .. ' ' .. node)
end
if held > incarnation or (held == incarnation and held_token ~= token) then
  return {'FENCED', held}
end
if held < incarnation then
  return {'MISSING'}
end
redis.call('HSET', writers, node, record)
return {'HELD', tonumber(last)}
