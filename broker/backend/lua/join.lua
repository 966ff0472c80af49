--[[
Make a namespace if it does not exist, and say how it was made. Written once, checked by everybody.

KEYS  1 config hash
ARGV  1 protocol version of the caller   2 shard count the caller wants (1..4096)
      3 feature words the caller wants, in alphabetical order, with one space between ('' = none)
returns {protocol version, shard count, created in ms of the Redis clock, feature words}, all as strings
cost  O(1)
]]
local config = KEYS[1]
local protocol, shards, features = ARGV[1], ARGV[2], ARGV[3]

local found = redis.call('HMGET', config, 'protocol', 'shards', 'created', 'features')
-- One of the two alone is a namespace that was damaged, not a new one.
if found[1] or found[2] then
  return {found[1] or '', found[2] or '', found[3] or '', found[4] or ''}
end
local time = redis.call('TIME')
local created = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
redis.call('HSET', config, 'protocol', protocol, 'shards', shards, 'created', created, 'features', features)
return {protocol, shards, created, features}
