-- Rule 7: what shards hold of keys. Sums are left to the caller, whose integers are exact.
--
-- KEYS: the meta keys of the shards.  ARGV: for each shard n, n keys.
-- Returns for each shard {time in microseconds, bases, markers, likes, pending of the first window, of the second, …}, the
-- bases and each pending a list in the order of the keys, as markers is unless the shard has none. Likes is a
-- list of such lists, one a window, unless there never was a like.
local time = microseconds()
local answer = {}
local p = 1
for s = 1, #KEYS do
  local prefix = prefix_of(KEYS[s])
  local n = tonumber(ARGV[p])
  local meta = call('HMGET', KEYS[s], 'gen', 'hot', 'likes')
  local base_prefix = prefix .. 'base:' .. (meta[1] or '0') .. ':'
  local bases, sums = {}, {}
  for i = 1, n do
    bases[i] = base_prefix .. ARGV[p + i]
    if meta[3] then sums[i] = LIKE_SUM .. ARGV[p + i] end
  end
  local shard = {time, call('MGET', unpack(bases)), {}, {}}
  if meta[2] then shard[3] = call('HMGET', prefix .. 'spread', unpack(ARGV, p + 1, p + n)) end
  for _, window in ipairs(call('LRANGE', prefix .. 'windows', 0, -1)) do
    shard[#shard + 1] = call('HMGET', prefix .. 'w:' .. window, unpack(ARGV, p + 1, p + n))
    if meta[3] then shard[4][#shard[4] + 1] = call('HMGET', prefix .. 'w:' .. window, unpack(sums)) end
  end
  answer[s] = shard
  p = p + 1 + n
end
return answer
