-- Rule 1: apply a batch to one or more shards, whole or not at all, but for single likes (rule 10). Everything is
-- decided before the first write, since Redis does not roll back a script that fails half-way.
--
-- This is the first part of the script. It ends here for a plain batch, which has deltas alone, if its shards are ready for one
-- (lib.lua says when): to make the functions that such a batch does not need, and to look at all of meta, costs as much as a
-- fifth of its changes. claims.lua, careful.lua and write_likes.lua follow.
--
-- KEYS: the meta keys of the shards.
-- ARGV[1]: numbers, as an array in MessagePack, which takes a fifth of what as many arguments do:
--   made, lifetime, window length, dedupe window, early, confirm, plain (1: the batch is); for each shard how many entries,
--   and how many of them, which are the first, have a delta of 1; then, unless the batch is plain, for each shard:
--   careful (1: a delta is big, or a reset); how many markers, claim groups, keys of likes, and likes
--   for each marker the position of its entry
--   for each claim group: kind, oldest, newest, period, current, how many claims
--   if there are likes, how many runs of likes that have all of the following in common, and how many states that senders know;
--     for each run: what its likes are (LIKED, DATED, and SOURCE times the source of the state that the sender knows, summed);
--     which of the keys they have; which of the states, 0 for none; if the shard has several likes of the pair, which is the
--     first of them, else 0; how many likes the run has: one, if the pair has several or it is dated
--     for each like where in ARGV its claim is, 0 if it has none
-- ARGV[2]: the batch's id. From ARGV[3] on, for each shard:
--   the key of each entry whose delta is 1; for each other one: key, delta (RESET: what brings the increments of the key on
--   the shard to 0)
--   the markers that the sender knows
--   for each claim group: bucket, and for each claim field, value; of a like's claim, the value if the like is CHANGED
--   the keys of likes; their markers that the sender knows, 0 if none
--   the likes' fields of a window; then the states that senders know: from source LOADED the state, an @ and the watermark; if
--     the like is dated, then a > and the moment
-- Returns {APPLIED, time in microseconds, likes}, {REFUSED, time, known, moved, aged, overflowing} or {LATE, time}. Likes is a
-- string with a byte for each like: what became of it. The lists are flat, positions in them count from 0, and a like's follow
-- those of its shard's entries. All other positions count from 1.
local APPLIED, REFUSED, LATE = 0, 1, 2
local PLAIN, SHARDS = 7, 8 -- where numbers have them
local BATCH_BUCKET, MARGIN = 60000, 60000

local ARGV = ARGV -- a name that is global takes longer to look up
local numbers = cmsgpack.unpack(ARGV[1])
local time = microseconds()
local now = math.floor(time / 1000)
local made, lifetime, length, dedupe, early = numbers[1], numbers[2], numbers[3], numbers[4], numbers[5]
local confirm = numbers[6] == 1 -- replicas are waited for: even an answer without effect must be a write
local id = ARGV[2]

local batch_time = math.floor(made / BATCH_BUCKET)
local batch_bucket = 'batch:' .. integer(batch_time)
local batch_key = prefix_of(KEYS[1]) .. batch_bucket
local late = now > made + lifetime or now < made - lifetime

-- note_batch_bucket adds the bucket of the batch's claim to claims, unless it is the one that was added last.
local function note_batch_bucket(last)
  if last == batch_bucket then return end
  call('ZADD', prefix_of(KEYS[1]) .. 'claims', integer((batch_time + 1) * BATCH_BUCKET + lifetime + MARGIN), batch_bucket)
  call('HSET', KEYS[1], 'batch', batch_bucket)
end

-- add_deltas adds the deltas at ARGV[first] to ARGV[last] to a window, of which each but the first ones is a pair of key and
-- delta. It reports whether a pending delta has become big. In a hash table one HINCRBY for each costs less than to read, add
-- up and write them all here.
local function add_deltas(window_key, first, ones, last)
  local big = false
  for i = first, first + ones - 1 do
    if call('HINCRBY', window_key, ARGV[i], '1') >= BIG then big = true end
  end
  for i = first + ones, last, 2 do
    if is_big(call('HINCRBY', window_key, ARGV[i], ARGV[i + 1])) then big = true end
  end
  return big
end

if numbers[PLAIN] == 1 and not late then
  local windows, last_bucket = {}, nil
  for s = 1, #KEYS do
    local ready
    if s == 1 then
      local meta = call('HMGET', KEYS[s], 'ready', 'batch')
      ready, last_bucket = meta[1], meta[2]
    else
      ready = call('HGET', KEYS[s], 'ready')
    end
    if not is_ready(ready, made, now, length) then break end
    windows[s] = ready
  end
  -- The last that can keep it from being applied is that it was before.
  if #windows == #KEYS and call('HSETNX', batch_key, id, '') == 1 then
    note_batch_bucket(last_bucket)
    local p, q = 3, SHARDS
    for s = 1, #KEYS do
      local entries, ones = numbers[q], numbers[q + 1]
      local first = p
      p, q = p + 2 * entries - ones, q + 2
      if add_deltas(prefix_of(KEYS[s]) .. 'w:' .. windows[s], first, ones, p - 1) then change_meta(KEYS[s], 'big', '1') end
    end
    return {APPLIED, time, ''}
  end
end

local earlier = call('HGET', batch_key, id)
if earlier then
  if confirm then call('HSET', batch_key, id, earlier) end
  return {APPLIED, time, earlier}
end
-- The claim of a batch is kept for as long as a copy of the batch can pass this check.
if late then return {LATE, time} end
