-- Rule 7: what shards hold of keys. Sums are left to the caller, whose integers are exact.
--
-- KEYS: the meta keys of the shards.  ARGV: for each shard n, n keys.
-- Returns for each shard {time in microseconds, bases, markers, pending of the first window, of the second, …}, each a list in the
-- order of the keys; markers is empty if the shard has none.
local time = microseconds()
local answer = {}
local p = 1
for s = 1, #KEYS do
  local prefix = prefix_of(KEYS[s])
  local n = tonumber(ARGV[p])
  local meta = redis.call('HMGET', KEYS[s], 'gen', 'hot')
  local base_prefix = prefix .. 'base:' .. (meta[1] or '0') .. ':'
  local bases = {}
  for i = 1, n do bases[i] = base_prefix .. ARGV[p + i] end
  local shard = {time, redis.call('MGET', unpack(bases)), {}}
  if meta[2] then shard[3] = redis.call('HMGET', prefix .. 'spread', unpack(ARGV, p + 1, p + n)) end
  for _, window in ipairs(redis.call('LRANGE', prefix .. 'windows', 0, -1)) do
    shard[#shard + 1] = redis.call('HMGET', prefix .. 'w:' .. window, unpack(ARGV, p + 1, p + n))
  end
  answer[s] = shard
  p = p + 1 + n
end
return answer
