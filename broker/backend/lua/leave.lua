--[[
Forget a node whose process closed in order and whose name nobody will take again. What it appended
stays; only the record that recognises its repeats goes.

KEYS  1 intake hash
ARGV  1 node   2 incarnation   3 token
returns 1 if the record was this process' own and went, else 0
cost  O(1)
]]
local intake = KEYS[1]
local node, incarnation, token = ARGV[1], tonumber(ARGV[2]), ARGV[3]

local record = redis.call('HGET', intake, node)
local own = struct.pack('>I8c8', incarnation, token)
if not record or string.sub(record, 1, #own) ~= own then
  return 0
end
return redis.call('HDEL', intake, node)
