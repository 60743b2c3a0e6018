#!lua flags=allow-oom
-- Rule 4, move: what the ledger applied leaves the window and enters the base, in one step for each key. Where the
-- ledger applied something else than the window holds, the base goes: whether it was loaded before or after that,
-- and so whether it lacks what the ledger applied or what the window held, nobody knows.
--
-- KEYS: the meta key.
-- ARGV: window, number of deltas, then for each delta key, delta, part of it from likes, reload; and the keys of the markers.
local prefix = prefix_of(KEYS[1])
local meta = redis.call('HMGET', KEYS[1], 'fin', 'gen', 'big', 'likes')
if meta[1] ~= ARGV[1] or not redis.call('LPOS', prefix .. 'windows', ARGV[1]) then return 0 end
local window_key, base_prefix = prefix .. 'w:' .. ARGV[1], prefix .. 'base:' .. (meta[2] or '0') .. ':'
local big, any_likes = meta[3], meta[4]
local markers = 3 + 4 * tonumber(ARGV[2])

-- sum adds two decimals.
local function sum(a, b)
  local high, low = add(0, 0, a, 1)
  high, low = add(high, low, b, 1)
  return saturated(high, low)
end

local function add_to_base(base_key, base, delta, likes_delta)
  local total, from_likes = split_base(base)
  total = sum(total, delta)
  redis.call('SET', base_key, join_base(total, sum(from_likes, likes_delta)), 'KEEPTTL')
  if not big and is_big(tonumber(total)) then
    change_meta(KEYS[1], 'big', '1')
    big = true
  end
end

-- move_deltas takes on so many at once that a call into Redis costs little for each.
local function move_deltas(first, last)
  local keys, bases, sums = {}, {}, {}
  local n = 0
  for i = first, last, 4 do
    n = n + 1
    keys[n], bases[n] = ARGV[i], base_prefix .. ARGV[i]
    if any_likes then sums[n] = LIKE_SUM .. ARGV[i] end
  end
  local held, cached = redis.call('HMGET', window_key, unpack(keys)), redis.call('MGET', unpack(bases))
  redis.call('HDEL', window_key, unpack(keys))
  -- A like part of 0 may be there as well, but not without the delta.
  if any_likes then redis.call('HDEL', window_key, unpack(sums)) end
  for k = 1, n do
    local i = first + 4 * (k - 1)
    if ARGV[i + 3] == '1' then
      redis.call('DEL', bases[k]) -- also without a delta: the window may have taken all likes of the key for repeats
    elseif held[k] and cached[k] then
      add_to_base(bases[k], cached[k], ARGV[i + 1], ARGV[i + 2])
    end
  end
end

for first = 3, markers - 1, 4 * CHUNK do move_deltas(first, math.min(markers - 1, first + 4 * CHUNK - 1)) end
for i = markers, #ARGV do redis.call('HDEL', window_key, MARKER .. ARGV[i]) end
return 1
