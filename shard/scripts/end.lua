#!lua flags=allow-oom
-- Rule 4, end: a window all of whose changes were moved.
--
-- KEYS: the meta key.  ARGV: window.
local prefix = prefix_of(KEYS[1])
if redis.call('HGET', KEYS[1], 'fin') ~= ARGV[1] or redis.call('EXISTS', prefix .. 'w:' .. ARGV[1]) == 1 then return 0 end
return redis.call('LREM', prefix .. 'windows', 0, ARGV[1])
