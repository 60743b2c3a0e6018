#!lua flags=allow-oom
-- After a rollback: put back the markers that the ledger holds. Ids made before are no longer accepted:
-- without the markers they may have been routed elsewhere than they would be from now on.
--
-- KEYS: the meta key.  ARGV: key, marker, …
local prefix = prefix_of(KEYS[1])
for i = 1, #ARGV, 2 do redis.call('HSETNX', prefix .. 'spread', ARGV[i], ARGV[i + 1]) end
if #ARGV > 0 then note_marked(KEYS[1], prefix) end
change_meta(KEYS[1], 'lost', integer(milliseconds()))
redis.call('HDEL', KEYS[1], 'restore')
return 1
