#!lua flags=allow-oom
-- Rule 4, begin: fin is set before anything is moved, so that a base loaded from an older snapshot of the
-- ledger is refused (rule 8).
--
-- KEYS: the meta key.  ARGV: window, its token, watermark before it, a fresh generation.
-- Returns 1 if it noticed a rollback.
local prefix = prefix_of(KEYS[1])
local window, previous = tonumber(ARGV[1]), tonumber(ARGV[3])
local fin = tonumber(redis.call('HGET', KEYS[1], 'fin') or 0)
if fin == window or not redis.call('LPOS', prefix .. 'windows', ARGV[1]) then return 0 end
-- Without the token, the window here is another copy of what the ledger applied: a base that is loaded now
-- would not fit what is moved (rule 5).
local stale = redis.call('HGET', prefix .. 'tokens', ARGV[1]) ~= ARGV[2]
local rolled_back = stale or fin ~= previous
if stale then
  redis.call('LREM', prefix .. 'windows', 0, ARGV[1])
  redis.call('UNLINK', prefix .. 'w:' .. ARGV[1])
  redis.call('HSET', prefix .. 'tokens', ARGV[1], ARGV[2])
  local sealed = tonumber(redis.call('HGET', KEYS[1], 'sealed') or 0)
  change_meta(KEYS[1], 'sealed', integer(math.max(sealed, window)))
end
if rolled_back then
  change_meta(KEYS[1], 'gen', ARGV[4], 'lost', integer(milliseconds()), 'restore', '1')
end
change_meta(KEYS[1], 'fin', integer(math.max(fin, window)))
return rolled_back and 1 or 0
