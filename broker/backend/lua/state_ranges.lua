#!lua flags=no-writes
--[[
Read those fields of one page of the full-state hash that are in certain key ranges: only what somebody
has to look at leaves the server.

KEYS  1 state hash
ARGV  1 cursor, '0' to begin   2 about how many fields to look at
      3 the ranges: two hexadecimal digits each, small letters, joined by blanks
returns {next cursor ('0': that was the last page), key, field, key, field ...}
cost  O(fields looked at), one SHA-1 each
]]
local state, cursor, count = KEYS[1], ARGV[1], ARGV[2]

local wanted = {}
for range in string.gmatch(ARGV[3], '%x%x') do
  wanted[range] = true
end
local page = redis.call('HSCAN', state, cursor, 'COUNT', count)
local fields = page[2]
local reply = {page[1]}
for n = 1, #fields, 2 do
  if wanted[string.sub(redis.sha1hex(fields[n]), 1, 2)] then
    reply[#reply + 1] = fields[n]
    reply[#reply + 1] = fields[n + 1]
  end
end
return reply
