--[[
Give the lease back, if it is still held; the next scheduler need not wait for it to expire.

KEYS  1 lease string   2 workers hash
ARGV  1 holder name   2 fencing number
returns 1 if it was given back, 0 if another one holds it or it had expired
cost  O(1)
]]
local lease, workers = KEYS[1], KEYS[2]
local holder, fence = ARGV[1], ARGV[2]

redis.call('HDEL', workers, holder)
if redis.call('GET', lease) ~= fence .. ' ' .. holder then
  return 0
end
return redis.call('DEL', lease)
