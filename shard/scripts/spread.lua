-- Rule 9: mark keys as spread, in Redis and through the window in the ledger, before any of their changes
-- goes to another shard.
--
-- KEYS: the meta key of the keys' home.
-- ARGV: window length, most spread keys, over how many shards the keys are spread (0: all), then the keys.
-- Returns the marker in force for each key, 0 where there is no room for another.
local MARKER_WIDTHS = 1024

local now = milliseconds()
local prefix = prefix_of(KEYS[1])
local meta = redis.call('HMGET', KEYS[1], 'sealed', 'fin', 'open')
local window, add_window = current_window(
  prefix, meta[3], tonumber(meta[1] or 0), tonumber(meta[2] or 0), now, tonumber(ARGV[1]))
local room = tonumber(ARGV[2]) - redis.call('HLEN', prefix .. 'spread')
local fresh, width = now, tonumber(ARGV[3])
if width > 0 then fresh = now * MARKER_WIDTHS + width end
local markers = {}
for i = 4, #ARGV do
  local marker = tonumber(redis.call('HGET', prefix .. 'spread', ARGV[i]) or 0)
  if marker == 0 and room > 0 then
    marker, room = fresh, room - 1
    redis.call('HSET', prefix .. 'spread', ARGV[i], integer(fresh))
    local window_key = prefix .. 'w:' .. integer(window)
    redis.call('HSETNX', window_key, MARKER .. ARGV[i], integer(fresh))
    if add_window then
      open_window(KEYS[1], prefix, window)
      make_table(window_key)
      add_window = false
    end
    note_marked(KEYS[1], prefix)
  end
  markers[#markers + 1] = marker
end
return markers
