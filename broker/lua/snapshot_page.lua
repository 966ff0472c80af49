#!lua flags=allow-oom
--[[
Write one page of net changes into the full-state hash, if the lease is still held. Each field carries
the offset up to which it was folded, so pages need not be atomic together.

KEYS  1 state hash   2 lease string
ARGV  1 holder name   2 fencing number   3 how many fields to set
      4.. key, field, key, field ...; then the keys to delete
returns {'OK'} or {'FENCED'}
cost  O(fields)
]]
local state, lease = KEYS[1], KEYS[2]
local holder, fence, sets = ARGV[1], ARGV[2], tonumber(ARGV[3])
local FIRST, STEP = 4, 4000

if redis.call('GET', lease) ~= fence .. ' ' .. holder then
  return {'FENCED'}
end
local first_delete = FIRST + 2 * sets
for n = FIRST, first_delete - 1, STEP do
  redis.call('HSET', state, unpack(ARGV, n, math.min(n + STEP - 1, first_delete - 1)))
end
for n = first_delete, #ARGV, STEP do
  redis.call('HDEL', state, unpack(ARGV, n, math.min(n + STEP - 1, #ARGV)))
end
return {'OK'}
