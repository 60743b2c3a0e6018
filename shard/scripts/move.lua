#!lua flags=allow-oom
-- Rule 4, move: what the ledger applied leaves the window and enters the base, in one step for each key. Where the
-- ledger applied something else than the window holds, the base goes: whether it was loaded before or after that,
-- and so whether it lacks what the ledger applied or what the window held, nobody knows.
--
-- KEYS: the meta key.
-- ARGV: window, number of deltas, number of likes, then for each delta key, delta, part of it from likes, reload;
--   the fields of the likes, and the keys of the markers.
local prefix = prefix_of(KEYS[1])
local meta = redis.call('HMGET', KEYS[1], 'fin', 'gen', 'big')
if meta[1] ~= ARGV[1] or not redis.call('LPOS', prefix .. 'windows', ARGV[1]) then return 0 end
local window_key, base_prefix = prefix .. 'w:' .. ARGV[1], prefix .. 'base:' .. (meta[2] or '0') .. ':'
local big = meta[3]
local likes = 4 + 4 * tonumber(ARGV[2])
local markers = likes + tonumber(ARGV[3])

-- sum adds two decimals.
local function sum(a, b)
  local high, low = add(0, 0, a, 1)
  high, low = add(high, low, b, 1)
  return saturated(high, low)
end

for i = 4, likes - 1, 4 do
  local key, likes_delta = ARGV[i], ARGV[i + 2]
  local base_key = base_prefix .. key
  -- A like part of 0 may be there as well, but not without the delta.
  local there = redis.call('HDEL', window_key, key, LIKE_SUM .. key) > 0
  if ARGV[i + 3] == '1' then
    redis.call('DEL', base_key) -- also without a delta: the window may have taken all likes of the key for repeats
  elseif there and redis.call('EXISTS', base_key) == 1 then
    local total, from_likes = split_base(redis.call('GET', base_key))
    total = sum(total, ARGV[i + 1])
    redis.call('SET', base_key, join_base(total, sum(from_likes, likes_delta)), 'KEEPTTL')
    if not big and is_big(tonumber(total)) then
      redis.call('HSET', KEYS[1], 'big', '1')
      big = true
    end
  end
end
for from = likes, markers - 1, CHUNK do
  redis.call('HDEL', window_key, unpack(ARGV, from, math.min(markers - 1, from + CHUNK - 1)))
end
for i = markers, #ARGV do redis.call('HDEL', window_key, MARKER .. ARGV[i]) end
return 1
