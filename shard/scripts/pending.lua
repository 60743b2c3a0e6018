-- What a shard has pending.
--
-- KEYS: the meta key.
-- Returns {time in microseconds, the oldest window, the newest, 1 if there ever was a like}, 0 where there is none.
local prefix = prefix_of(KEYS[1])
local windows = prefix .. 'windows'
return {
  microseconds(), tonumber(redis.call('LINDEX', windows, 0) or 0), tonumber(redis.call('LINDEX', windows, -1) or 0),
  tonumber(redis.call('HGET', KEYS[1], 'likes') or 0),
}
