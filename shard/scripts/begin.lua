#!lua flags=allow-oom
-- Rule 4, begin: fin is set before anything is moved, so that a base loaded from an older snapshot of the
-- ledger is refused (rule 8).
--
-- KEYS: the meta key.  ARGV: window, watermark before it, a fresh generation.
-- Returns 1 if it noticed a rollback.
local prefix = prefix_of(KEYS[1])
local window, previous = tonumber(ARGV[1]), tonumber(ARGV[2])
local meta = redis.call('HMGET', KEYS[1], 'fin', 'sealed')
local fin, sealed = tonumber(meta[1] or 0), tonumber(meta[2] or 0)
if fin == window or not redis.call('LPOS', prefix .. 'windows', ARGV[1]) then return 0 end
-- The window was sealed before it was read. Where Redis knows nothing of that, the window is an older copy of
-- what the ledger applied: a base that is loaded now would not fit what is moved (rule 5).
local stale = window > sealed
local rolled_back = stale or fin ~= previous
if stale then
  redis.call('LREM', prefix .. 'windows', 0, ARGV[1])
  redis.call('UNLINK', prefix .. 'w:' .. ARGV[1])
  redis.call('HSET', KEYS[1], 'sealed', ARGV[1])
end
if rolled_back then
  redis.call('HSET', KEYS[1], 'gen', ARGV[3], 'lost', integer(milliseconds()), 'restore', '1')
end
redis.call('HSET', KEYS[1], 'fin', integer(math.max(fin, window)))
return rolled_back and 1 or 0
