#!lua flags=allow-oom
--[[
Write one page of net changes into the state hash or the tables hash, and the hash's digest with them, if the
lease is still held and the write that began is still the one under way, with all its pages so far.
Each field carries the offset up to which it was folded, so pages need not be atomic together.

KEYS  1 state hash, or tables hash   2 lease string   3 meta hash
ARGV  1 holder name   2 fencing number   3 time to live of the lease in ms, from now
      4 mark that the step before left: that of snapshot_begin; of a page the first 8 bytes of the SHA-1 of
      its own
      5 'digest' or 'tables_digest': which the hash has   6 it, after this page
      7 key, field, key, field ... to set   8 keys to delete; in both, MessagePack str of any bytes, one
      behind the other
returns {'OK'} or {'FENCED'} or {'REWRITTEN'} (the server lost the mark: it
        came back with less, maybe without the page before)
cost  O(fields)
]]
local state, lease, meta = KEYS[1], KEYS[2], KEYS[3]
local holder, fence, ttl, mark = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local which, digest, sets, deletes = ARGV[5], ARGV[6], ARGV[7], ARGV[8]
-- An even number, and no more than Lua can pass to one call.
local STEP = 4000

local function set(next, ...)
  redis.call('HSET', state, ...)
  return next
end

local function remove(next, ...)
  redis.call('HDEL', state, ...)
  return next
end

if redis.call('GET', lease) ~= fence .. ' ' .. holder then
  return {'FENCED'}
end
if redis.call('HGET', meta, 'fold') ~= mark then
  return {'REWRITTEN'}
end
redis.call('PEXPIRE', lease, ttl)
-- Two arguments instead of thousands: half the work of server and scheduler.
local at = #sets > 0 and 0 or -1
while at >= 0 do
  at = set(cmsgpack.unpack_limit(sets, STEP, at))
end
at = #deletes > 0 and 0 or -1
while at >= 0 do
  at = remove(cmsgpack.unpack_limit(deletes, STEP, at))
end
-- The next mark is the first 8 bytes of the SHA-1 of this one. A server that loses a page loses it too.
local next_mark = string.gsub(string.sub(redis.sha1hex(mark), 1, 16), '%x%x', function(byte)
  return string.char(tonumber(byte, 16))
end)
redis.call('HSET', meta, which, digest, 'fold', next_mark)
return {'OK'}
