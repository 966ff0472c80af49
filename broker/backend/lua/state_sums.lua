#!lua flags=no-writes
--[[
Sum up one page of the full-state hash by key range, as it is: what a digest of the hash is made of.
A field that HSCAN names twice is counted twice.

KEYS  1 state hash
ARGV  1 cursor, '0' to begin   2 about how many fields
returns {next cursor ('0': that was the last page), fields, range, high, low, range, high, low ...};
        high and low are sums of the halves of the 64-bit entry hashes, as text
cost  O(fields), two SHA-1 each
]]
local state, cursor, count = KEYS[1], ARGV[1], ARGV[2]
local HEAD_BYTES = 12

local page = redis.call('HSCAN', state, cursor, 'COUNT', count)
local fields = page[2]
local high, low = {}, {}
for n = 1, #fields, 2 do
  local name = redis.sha1hex(fields[n])
  local entry = redis.sha1hex(name .. string.sub(fields[n + 1], HEAD_BYTES + 1))
  local range = string.sub(name, 1, 2)
  high[range] = (high[range] or 0) + tonumber(string.sub(entry, 1, 8), 16)
  low[range] = (low[range] or 0) + tonumber(string.sub(entry, 9, 16), 16)
end
local reply = {page[1], #fields / 2}
for range, sum in pairs(high) do
  reply[#reply + 1] = tonumber(range, 16)
  reply[#reply + 1] = string.format('%.0f', sum)
  reply[#reply + 1] = string.format('%.0f', low[range])
end
return reply
