#!lua flags=allow-oom
-- Rule 4, move: what the ledger applied leaves the window and enters the base, in one step for each key.
--
-- KEYS: the meta key.  ARGV: window, n, n times key, delta, then the keys of markers.
local prefix = prefix_of(KEYS[1])
local meta = redis.call('HMGET', KEYS[1], 'fin', 'gen', 'big')
if meta[1] ~= ARGV[1] or not redis.call('LPOS', prefix .. 'windows', ARGV[1]) then return 0 end
local window_key, base_prefix = prefix .. 'w:' .. ARGV[1], prefix .. 'base:' .. (meta[2] or '0') .. ':'
local big = meta[3]
local markers = 3 + 2 * tonumber(ARGV[2])
for i = 3, markers - 1, 2 do
  local base_key = base_prefix .. ARGV[i]
  if redis.call('HDEL', window_key, ARGV[i]) == 1 and redis.call('EXISTS', base_key) == 1 then
    local high, low = add(0, 0, redis.call('GET', base_key), 1)
    high, low = add(high, low, ARGV[i + 1], 1)
    local total = saturated(high, low)
    redis.call('SET', base_key, total, 'KEEPTTL')
    if not big and is_big(tonumber(total)) then
      redis.call('HSET', KEYS[1], 'big', '1')
      big = true
    end
  end
end
for i = markers, #ARGV do redis.call('HDEL', window_key, MARKER .. ARGV[i]) end
return 1
