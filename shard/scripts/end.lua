#!lua flags=allow-oom
-- Rule 4, end: a window all of whose changes but its likes were moved. Those are in no base, and go with the window for less than
-- field by field.
--
-- KEYS: the meta key.  ARGV: window, how many likes it holds: nothing else may be left of it.
local prefix = prefix_of(KEYS[1])
local window_key = prefix .. 'w:' .. ARGV[1]
if redis.call('HGET', KEYS[1], 'fin') ~= ARGV[1] or redis.call('HLEN', window_key) ~= tonumber(ARGV[2]) then return 0 end
redis.call('UNLINK', window_key)
return redis.call('LREM', prefix .. 'windows', 0, ARGV[1])
