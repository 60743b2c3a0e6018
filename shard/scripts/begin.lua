#!lua flags=allow-oom
-- Rule 4, begin: fin is set before anything is moved, so that a base loaded from an older snapshot of the
-- ledger is refused (rule 8).
--
-- KEYS: the meta key.  ARGV: window, watermark before it, a fresh generation.
-- Returns 1 if it noticed a rollback.
local prefix = prefix_of(KEYS[1])
local window, previous = tonumber(ARGV[1]), tonumber(ARGV[2])
local fin = tonumber(redis.call('HGET', KEYS[1], 'fin') or 0)
if fin == window or not redis.call('LPOS', prefix .. 'windows', ARGV[1]) then return 0 end
local rolled_back = fin ~= previous
if rolled_back then
  redis.call('HSET', KEYS[1], 'gen', ARGV[3], 'lost', integer(milliseconds()), 'restore', '1')
end
redis.call('HSET', KEYS[1], 'fin', integer(math.max(fin, window)))
return rolled_back and 1 or 0
