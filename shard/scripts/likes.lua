-- What shards know of likes.
--
-- KEYS: the meta keys of the shards.  ARGV: window length, then for each shard n, n fields of likes.
-- Returns for each shard {states, markers}, in the order of the pairs: a state is empty if it is not known here, and
-- markers is empty if the shard has none.
local length = tonumber(ARGV[1])
local hours = membership_hours(milliseconds(), length)
local answer = {}
local p = 2
for s = 1, #KEYS do
  local prefix = prefix_of(KEYS[s])
  local n = tonumber(ARGV[p])
  local meta = call('HMGET', KEYS[s], 'lost', 'hot')
  local states = find_states(prefix, meta[1], hours, length, p + 1, n)
  for i = 1, n do states[i] = states[i] or '' end
  answer[s] = {states, {}}
  if meta[2] then
    local keys, markers = {}, {}
    for i = 1, n do keys[i] = key_of(ARGV[p + i]) end
    for from = 1, n, CHUNK do
      for _, marker in ipairs(call('HMGET', prefix .. 'spread', unpack(keys, from, math.min(n, from + CHUNK - 1)))) do
        markers[#markers + 1] = marker
      end
    end
    answer[s][2] = markers
  end
  p = p + 1 + n
end
return answer
