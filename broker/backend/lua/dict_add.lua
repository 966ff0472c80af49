--[[
Store a dictionary for compressed chunks, or write it again, as long as the lease is held; drop those with the
lowest numbers beyond so many. What is there under the number has the same content, or is damaged.

KEYS  1 dicts hash   2 intake hash   3 lease string
ARGV  1 holder name   2 fencing number   3 number of the dictionary   4 content: CRC-32 of number (as text) and
        dictionary, 4 bytes; dictionary   5 how many to keep (1 or more)
returns 1 if it was stored, 0 if the lease is not held
cost  O(number of dictionaries), and the copy of the content
]]
local dicts, intake, lease = KEYS[1], KEYS[2], KEYS[3]
local holder, fence, number, content, max_kept = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]

if redis.call('GET', lease) ~= fence .. ' ' .. holder then
  return 0
end
local stored = redis.pcall('HSET', dicts, number, content)
if type(stored) == "table" and stored.err then
  if not string.find(stored.err, 'WRONGTYPE') then
    -- As without memory: those that are there stay.
    return stored
  end
  -- Somebody put something else there.
  redis.call('DEL', dicts)
  redis.call('HSET', dicts, number, content)
end
local numbers = {}
for _, name in ipairs(redis.call('HKEYS', dicts)) do
  local one = tonumber(name)
  -- Another text of the same number would be a second entry, which nobody could remove.
  if one and one >= 1 and one <= 4294967295 and string.format('%.0f', one) == name then
    numbers[#numbers + 1] = one
  else
    redis.call('HDEL', dicts, name)
  end
end
table.sort(numbers)
while #numbers > tonumber(max_kept) do
  redis.call('HDEL', dicts, string.format('%.0f', table.remove(numbers, 1)))
end
local packed = {}
for n, one in ipairs(numbers) do
  packed[n] = struct.pack('>I4', one)
end
redis.call('HSET', intake, ':dicts', table.concat(packed))
return 1
