#!lua flags=allow-oom
--[[
Write one page of net changes into the full-state hash, and the digest of the hash with them, if the
lease is still held and the write that began is still the one under way, with all its pages so far.
Each field carries the offset up to which it was folded, so pages need not be atomic together.

KEYS  1 state hash, or tables hash   2 lease string   3 meta hash
ARGV  1 holder name   2 fencing number   3 time to live of the lease in ms, from now
      4 mark that the step before left: that of snapshot_begin; of a page the first 8 bytes of the SHA-1 of
      its own
      5 digest of the hash after this page   6 how many fields to set
      7.. key, field, key, field ...; then the keys to delete
returns {'OK'} or {'FENCED'} or {'REWRITTEN'} (the server lost the mark: it
        came back with less, maybe without the page before)
cost  O(fields)
]]
local state, lease, meta = KEYS[1], KEYS[2], KEYS[3]
local holder, fence, ttl, mark, digest, sets = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6])
local FIRST, STEP = 7, 4000

if redis.call('GET', lease) ~= fence .. ' ' .. holder then
  return {'FENCED'}
end
if redis.call('HGET', meta, 'fold') ~= mark then
  return {'REWRITTEN'}
end
redis.call('PEXPIRE', lease, ttl)
local first_delete = FIRST + 2 * sets
for n = FIRST, first_delete - 1, STEP do
  redis.call('HSET', state, unpack(ARGV, n, math.min(n + STEP - 1, first_delete - 1)))
end
for n = first_delete, #ARGV, STEP do
  redis.call('HDEL', state, unpack(ARGV, n, math.min(n + STEP - 1, #ARGV)))
end
-- The next mark is the first 8 bytes of the SHA-1 of this one. A server that loses a page loses it too.
local next_mark = string.gsub(string.sub(redis.sha1hex(mark), 1, 16), '%x%x', function(byte)
  return string.char(tonumber(byte, 16))
end)
redis.call('HSET', meta, 'digest', digest, 'fold', next_mark)
return {'OK'}
