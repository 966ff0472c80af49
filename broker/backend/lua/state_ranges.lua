#!lua flags=no-writes
--[[
Read those fields of one page of the full-state hash that are in certain key ranges: only what somebody
has to look at leaves the server.

KEYS  1 state hash
ARGV  1 cursor, '0' to begin   2 about how many fields to look at
      3 the ranges: two hexadecimal digits each, small letters, joined by blanks
returns {next cursor ('0': that was the last page), key, field, key, field ...}
cost  O(bytes of the keys looked at), about 0.1 µs each
]]
local state, cursor, count = KEYS[1], ARGV[1], ARGV[2]

-- The range of a key is the upper byte of its CRC-32.
local CRC = {}
for n = 0, 255 do
  local c = n
  for _ = 1, 8 do
    local half = bit.rshift(c, 1)
    c = c % 2 == 0 and half or bit.bxor(half, 0xedb88320)
  end
  CRC[n] = c
end

local function range_of(key)
  local c = -1
  for n = 1, #key do
    c = bit.bxor(CRC[bit.band(bit.bxor(c, string.byte(key, n)), 255)], bit.rshift(c, 8))
  end
  return bit.tohex(bit.rshift(bit.bnot(c), 24), 2)
end

local wanted = {}
for range in string.gmatch(ARGV[3], '%x%x') do
  wanted[range] = true
end
local page = redis.call('HSCAN', state, cursor, 'COUNT', count)
local fields = page[2]
local reply = {page[1]}
for n = 1, #fields, 2 do
  if wanted[range_of(fields[n])] then
    reply[#reply + 1] = fields[n]
    reply[#reply + 1] = fields[n + 1]
  end
end
return reply
