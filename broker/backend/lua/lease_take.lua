--[[
Take or renew the right to write a shard's full state. Every new holder gets a higher fencing number.

KEYS  1 lease string   2 meta hash   3 workers hash
ARGV  1 holder name   2 time to live in ms   3 why the holder is red ('' = it is green)
returns {fencing number, 'holder name'} ; the number is 0 if another one holds it
cost  O(1)
]]
local lease, meta, workers = KEYS[1], KEYS[2], KEYS[3]
local holder, ttl = ARGV[1], ARGV[2]

local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
local red = ARGV[3] or ''
redis.call('HSET', workers, holder, 'schedule ' .. now .. (red ~= '' and ' ' .. red or ''))
local held = redis.call('GET', lease)
if held then
  local fence, name = string.match(held, '^(%d+) (.*)$')
  if name ~= holder then
    return {0, name}
  end
  redis.call('PEXPIRE', lease, ttl)
  return {tonumber(fence), holder}
end
local fence = redis.call('HINCRBY', meta, 'fence', 1)
redis.call('SET', lease, string.format('%.0f %s', fence, holder), 'PX', ttl)
return {fence, holder}
