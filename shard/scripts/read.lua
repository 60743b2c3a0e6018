-- Rule 7: what shards hold of keys. Sums are left to the caller, whose integers are exact.
--
-- KEYS: the meta keys of the shards.
-- ARGV[1]: how many keys each shard is asked for, as an array in MessagePack; below 0 where it has no markers of its keys, as
-- it is the home of none. Then the keys, shard by shard.
-- Returns one array in MessagePack, which takes less than as many values of the protocol, here and where it is read: time in
-- microseconds, the bases of all keys, and for each shard {markers, pending of the first window, of the second, …}, or false if
-- it has no markers and no windows. All but the time are lists in the order of the keys, of decimals, or false where there is
-- none; markers are false if there are none at all. If the shard ever had a like, pending has another value for each
-- key, behind those of all keys: the part of it that is supposed to come from likes.
local GEN, HOT, LIKES = 1, 2, 3
local MOST = 2 * CHUNK -- words of one command, well below what Lua can unpack

local ARGV, KEYS = ARGV, KEYS

-- ask_in_parts returns what a command tells of list[from], …, list[to], which are more than that.
local function ask_in_parts(command, key, list, from, to)
  local all = {}
  for first = from, to, MOST do
    local words = {unpack(list, first, math.min(to, first + MOST - 1))}
    if key then table.insert(words, 1, key) end
    for _, value in ipairs(call(command, unpack(words))) do all[#all + 1] = value end
  end
  return all
end

local counts = cmsgpack.unpack(ARGV[1])
local answer = {microseconds(), false}
local fields = {}
local first = 2
for s = 1, #KEYS do
  local n, prefix = counts[s], prefix_of(KEYS[s])
  local windows = call('LRANGE', prefix .. 'windows', '0', '-1')
  local meta, markers = nil, false
  if windows[1] then
    meta = call('HMGET', KEYS[s], 'gen', 'hot', 'likes')
  else
    meta = call('HMGET', KEYS[s], 'gen', 'hot')
  end
  if n < 0 then
    n = -n
  elseif meta[HOT] then
    markers = call('HMGET', prefix .. 'spread', unpack(ARGV, first, first + n - 1))
  end
  local last, shard = first + n - 1, false
  if windows[1] or markers then
    shard = {markers}
    local list, from, to = ARGV, first, last
    if meta[LIKES] then
      for i = 1, n do
        local key = ARGV[first + i - 1]
        fields[i], fields[n + i] = key, LIKE_SUM .. key
      end
      list, from, to = fields, 1, 2 * n
    end
    for w = 1, #windows do
      local window_key = prefix .. 'w:' .. windows[w]
      if to - from < MOST then
        shard[w + 1] = call('HMGET', window_key, unpack(list, from, to))
      else
        shard[w + 1] = ask_in_parts('HMGET', window_key, list, from, to)
      end
    end
  end
  answer[s + 2] = shard
  -- From here on ARGV has the names of the bases, all of which are then asked for at once.
  local base_prefix = prefix .. 'base:' .. (meta[GEN] or '0') .. ':'
  for i = first, last do ARGV[i] = base_prefix .. ARGV[i] end
  first = last + 1
end
answer[2] = #ARGV <= MOST and call('MGET', unpack(ARGV, 2)) or ask_in_parts('MGET', nil, ARGV, 2, #ARGV)
return cmsgpack.pack(answer)
