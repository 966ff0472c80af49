#!lua flags=allow-oom
--[[
Take or renew the right to write a shard's full state. Every new holder gets a higher fencing number.

KEYS  1 lease string   2 meta hash   3 workers hash
ARGV  1 holder name   2 time to live in ms   3 why the holder is red ('' = it is green)
A lease that cannot be read is nobody's; a fencing number that cannot be read goes on from the clock.
returns {fencing number, 'holder name'} ; the number is 0 if another one holds it
cost  O(1)
]]
local lease, meta, workers = KEYS[1], KEYS[2], KEYS[3]
local holder, ttl = ARGV[1], ARGV[2]

local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
local red = ARGV[3] or ''
local is_noted, why = pcall(function()
  redis.call('HSET', workers, holder, 'schedule ' .. now .. (red ~= '' and ' ' .. red or ''))
end)
if not is_noted and not string.find(type(why) == "table" and why.err or why, 'WRONGTYPE') then
  error(why)
end
local held = redis.call('GET', lease)
if held then
  local fence, name = string.match(held, '^(%d+) (.*)$')
  if name and name ~= holder then
    return {0, name}
  end
  if name then
    redis.call('PEXPIRE', lease, ttl)
    return {tonumber(fence), holder}
  end
end
local is_number, fence = pcall(function()
  return redis.call('HINCRBY', meta, 'fence', 1)
end)
if not is_number then
  local text = type(fence) == "table" and fence.err or fence
  if not string.find(text, "integer") and not string.find(text, "overflow") then
    error(fence)
  end
  fence = tonumber(now)
  redis.call('HSET', meta, 'fence', now)
end
redis.call('SET', lease, string.format('%.0f %s', fence, holder), 'PX', ttl)
return {fence, holder}
