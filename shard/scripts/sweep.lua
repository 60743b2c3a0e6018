#!lua flags=allow-oom
-- Forget claim buckets that no accepted request can meet any more.
--
-- KEYS: the meta key.  ARGV: most buckets to forget.
-- Returns how many were forgotten.
local prefix = prefix_of(KEYS[1])
local buckets = redis.call('ZRANGEBYSCORE', prefix .. 'claims', '-inf', '(' .. integer(milliseconds()), 'LIMIT', 0, ARGV[1])
for i = 1, #buckets do
  redis.call('UNLINK', prefix .. buckets[i])
  redis.call('ZREM', prefix .. 'claims', buckets[i])
end
if #buckets > 0 then redis.call('HDEL', KEYS[1], 'timed', 'batch') end -- they may be among them
return #buckets
