#!lua flags=allow-oom
-- Rule 5: delete a window that the ledger holds and that the caller did not apply itself: it may be a stale
-- copy, or half moved. No cached base can be trusted after it.
--
-- KEYS: the meta key.  ARGV: window, a fresh generation.
local prefix = prefix_of(KEYS[1])
if redis.call('LREM', prefix .. 'windows', 0, ARGV[1]) == 0 then return 0 end
redis.call('UNLINK', prefix .. 'w:' .. ARGV[1])
local fin = math.max(tonumber(redis.call('HGET', KEYS[1], 'fin') or 0), tonumber(ARGV[1]))
change_meta(KEYS[1], 'gen', ARGV[2], 'fin', integer(fin))
return 1
