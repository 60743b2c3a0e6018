-- Rule 1: apply a batch to one or more shards, whole or not at all, but for single likes (rule 10). Everything is
-- decided before the first write, since Redis does not roll back a script that fails half-way.
--
-- This is the first part of the script. It ends here for a batch without likes and big deltas, as nearly all are: to make
-- the functions that such a batch does not need costs as much as a twentieth of its changes. careful.lua and
-- write_likes.lua follow.
--
-- KEYS: the meta keys of the shards.
-- ARGV[1]: numbers, as an array in MessagePack, which takes a fifth of what as many arguments do:
--   made, lifetime, window length, dedupe window, early, confirm, then for each shard:
--   careful (1: a delta is big, or a reset); how many entries, how many of them, which are the first, have a delta of 1; how
--   many markers, claim groups, keys of likes, and likes
--   for each marker the position of its entry
--   for each claim group: kind, oldest, newest, period, current, how many claims
--   for each like: what it is (LIKED, DATED, and SOURCE times the source of the state that the sender knows, summed);
--     which of the keys it has; if the shard has several likes of the pair, which is the first of them, else 0; where in
--     ARGV its claim is, 0 if it has none
-- ARGV[2]: the batch's id. From ARGV[3] on, for each shard:
--   the key of each entry whose delta is 1; for each other one: key, delta (RESET: what brings the increments of the key on
--   the shard to 0)
--   the markers that the sender knows
--   for each claim group: bucket, and for each claim field, value; of a like's claim, the value if the like is CHANGED
--   the keys of likes; their markers that the sender knows, 0 if none
--   the likes' fields of a window; then for each like what the sender knows: from source LOADED the state, an @ and the
--     watermark; if it is dated, then a > and the moment
-- Returns {status, time in microseconds, known, moved, aged, overflowing, likes}; the lists are flat, positions count
-- from 0, and a like's follow those of its shard's entries. The last is a string with a byte for each like: what
-- became of it. All other positions count from 1.
local APPLIED, REFUSED, LATE = 0, 1, 2
local TIMED, OPAQUE = 0, 1
local LIKE_NUMBERS = 4
-- Where a shard's meta has them.
local OPEN, SEALED, FIN, LOST, IS_BIG, HOT, HELD, TIMED_NAME, BATCH_NAME = 1, 2, 3, 4, 5, 6, 7, 8, 9
local BATCH_BUCKET, TIMED_BUCKET, MARGIN = 60000, 60000, 60000

local ARGV = ARGV -- a name that is global takes longer to look up
local numbers = cmsgpack.unpack(ARGV[1])
local time = microseconds()
local now = math.floor(time / 1000)
local made, lifetime, length, dedupe, early = numbers[1], numbers[2], numbers[3], numbers[4], numbers[5]
local confirm = numbers[6] == 1 -- replicas are waited for: even an answer without effect must be a write
local opaque_bucket = dedupe + early
local id = ARGV[2]

local batch_time = math.floor(made / BATCH_BUCKET)
local batch_bucket = 'batch:' .. integer(batch_time)
local batch_key = prefix_of(KEYS[1]) .. batch_bucket
local earlier = call('HGET', batch_key, id)
if earlier then
  if confirm then call('HSET', batch_key, id, earlier) end
  return {APPLIED, time, {}, {}, {}, {}, earlier}
end
-- The claim of a batch is kept for as long as a copy of the batch can pass this check.
if now > made + lifetime or now < made - lifetime then return {LATE, time, {}, {}, {}, {}, ''} end

local known, moved, aged, overflowing = {}, {}, {}, {}
-- The shards, each a list of what PREFIX to LAST say, as one with names costs four times as much: what its keys begin with,
-- its meta, the window to write to, whether that must be opened, where in ARGV its entries begin, how many of them have a
-- delta of 1, and where the last one begins.
local PREFIX, META, WINDOW, UNOPENED, FIRST, ONES, LAST = 1, 2, 3, 4, 5, 6, 7
local shards = {}
local claim_groups = {} -- none if a shard has no claims
local special = {} -- of a shard with likes or big deltas: see below
local any_special = false

-- look_up notes those of the fields at ARGV[first], ARGV[first + 2], … that the bucket holds. The list is used again and
-- again: one that grows from nothing costs as much as the command.
local list = {}
local function look_up(bucket_key, first, n, s, g)
  for from = 0, n - 1, CHUNK do
    local m = math.min(n - from, CHUNK)
    local at = first + 2 * from - 2
    for i = 1, m do list[i] = ARGV[at + 2 * i] end
    local values = call('HMGET', bucket_key, unpack(list, 1, m))
    for i = 1, m do
      if values[i] then
        local k = #known
        known[k + 1], known[k + 2], known[k + 3], known[k + 4] = s - 1, g - 1, from + i - 1, values[i]
      end
    end
  end
end

local function note_moved(s, position, marker)
  local k = #moved
  moved[k + 1], moved[k + 2], moved[k + 3] = s - 1, position, marker
end

-- look_up_markers adds to found the markers of the n keys at ARGV[first], ARGV[first + step], …: 0 if a key has none.
local function look_up_markers(prefix, first, n, step, found)
  for from = 0, n - 1, CHUNK do
    local keys = {}
    for i = from, math.min(n, from + CHUNK) - 1 do keys[#keys + 1] = ARGV[first + step * i] end
    for _, marker in ipairs(call('HMGET', prefix .. 'spread', unpack(keys))) do found[#found + 1] = marker or '0' end
  end
end

-- check_markers notes the entries of a shard whose markers are others than the sender knows, the markers at ARGV[at], and
-- at numbers[q] which entries they are of.
local function check_markers(s, entries, markers, at, q)
  local shard, sent, found = shards[s], {}, {}
  for i = 1, markers do sent[numbers[q + i - 1]] = ARGV[at + i - 1] end
  look_up_markers(shard[PREFIX], shard[FIRST], shard[ONES], 1, found)
  look_up_markers(shard[PREFIX], shard[FIRST] + shard[ONES], entries - shard[ONES], 2, found)
  for i = 1, entries do
    if found[i] ~= (sent[i] or '0') then note_moved(s, i - 1, found[i]) end
  end
end

-- look_up_claims looks up a group of claims, whose numbers are at numbers[q] and whose claims begin at ARGV[p + 1]. It
-- returns what it takes to write them.
local function look_up_claims(s, g, prefix, lost, p, q)
  local kind, oldest, newest, period, current, n =
    numbers[q], numbers[q + 1], numbers[q + 2], numbers[q + 3], numbers[q + 4] == 1, numbers[q + 5]
  local bucket, name, expires, old = ARGV[p], nil, nil, nil
  if kind == TIMED then
    name, expires = 'id:' .. bucket, bucket + TIMED_BUCKET + dedupe + MARGIN
    old = oldest < now - dedupe or newest > now + early or oldest <= lost
  elseif kind == OPAQUE then
    local number = math.floor(now / opaque_bucket)
    name, expires = 'any:' .. integer(number), (number + 2) * opaque_bucket + MARGIN
    old = lost > 0 and now <= lost + opaque_bucket
    look_up(prefix .. 'any:' .. integer(number - 1), p + 1, n, s, g)
    -- Another host's clock may have been ahead by up to a window.
    if (now + length) / opaque_bucket >= number + 1 then
      look_up(prefix .. 'any:' .. integer(number + 1), p + 1, n, s, g)
    end
  else
    name = 'once:' .. integer(period) .. ':' .. bucket
    expires = bucket + period + dedupe + early + MARGIN
    old = current and now - now % period ~= bucket + 0
  end
  if old then
    local k = #aged
    aged[k + 1], aged[k + 2], aged[k + 3] = s - 1, g - 1, lost
  end
  look_up(prefix .. name, p + 1, n, s, g)
  return {name = name, expires = expires, first = p + 1, last = p + 2 * n, timed = kind == TIMED}
end

-- add_deltas adds the deltas of a shard's entries to its window. It reports whether a pending delta has become big. In a
-- hash table one HINCRBY for each costs less than to read, add up and write them all here.
local function add_deltas(shard, window_key)
  local big, pairs_from = false, shard[FIRST] + shard[ONES]
  for i = shard[FIRST], pairs_from - 1 do
    if call('HINCRBY', window_key, ARGV[i], '1') >= BIG then big = true end
  end
  for i = pairs_from, shard[LAST], 2 do
    local sum = call('HINCRBY', window_key, ARGV[i], ARGV[i + 1])
    if sum >= BIG or sum <= -BIG then big = true end
  end
  return big
end

-- The claims of likes that were not done are not written: by where in ARGV they are.
local undone, any_undone = {}, false

-- claim writes the claims of a group.
local function claim(s, group)
  local prefix, meta = shards[s][PREFIX], shards[s][META]
  local first, last, args = group.first, group.last, ARGV
  if any_undone then
    args = {}
    for i = group.first, group.last, 2 do
      if not undone[i] then args[#args + 1], args[#args + 2] = ARGV[i], ARGV[i + 1] end
    end
    first, last = 1, #args
    if last == 0 then return end
  end
  for from = first, last, 2 * CHUNK do
    call('HSET', prefix .. group.name, unpack(args, from, math.min(last, from + 2 * CHUNK - 1)))
  end
  if meta[TIMED_NAME] == group.name then return end
  call('ZADD', prefix .. 'claims', integer(group.expires), group.name)
  if group.timed then
    meta[TIMED_NAME] = group.name
    make_table(prefix .. group.name)
    call('HSET', KEYS[s], 'timed', group.name)
  end
end

local set_likes = nil -- see write_likes.lua

-- apply writes what was decided, and the results of likes with the batch's claim. None of the writes can fail.
local function apply(likes)
  call('HSET', batch_key, id, likes)
  if shards[1][META][BATCH_NAME] ~= batch_bucket then
    call('ZADD', shards[1][PREFIX] .. 'claims', integer((batch_time + 1) * BATCH_BUCKET + lifetime + MARGIN), batch_bucket)
    call('HSET', KEYS[1], 'batch', batch_bucket)
  end
  for s = 1, #KEYS do
    local shard, extra = shards[s], special[s]
    local prefix, meta, window, opens = shard[PREFIX], shard[META], shard[WINDOW], shard[UNOPENED]
    local has_records = extra and extra.last_record >= extra.first_record
    local window_key = prefix .. 'w:' .. (not opens and meta[OPEN] or integer(window))
    opens = opens and (shard[LAST] >= shard[FIRST] or has_records)
    if opens then open_window(KEYS[s], prefix, window) end
    local big = add_deltas(shard, window_key)
    if has_records and set_likes(extra, KEYS[s], window_key) then big = true end
    if opens then make_table(window_key) end
    if big and not meta[IS_BIG] then call('HSET', KEYS[s], 'big', '1') end
    if claim_groups[s] then
      for g = 1, #claim_groups[s] do claim(s, claim_groups[s][g]) end
    end
  end
  return {APPLIED, time, {}, {}, {}, {}, likes}
end

-- refuse answers why nothing was changed.
local function refuse()
  -- A claim that another copy of a request left must have reached the replicas before it is answered.
  if confirm then call('HSET', KEYS[1], 'confirmed', integer(now)) end
  return {REFUSED, time, known, moved, aged, overflowing, ''}
end

local p, q = 3, 7 -- where ARGV and the numbers of the next shard begin
for s = 1, #KEYS do
  local prefix, meta = prefix_of(KEYS[s]), nil
  local entries, markers, groups, keys, likes = numbers[q + 1], numbers[q + 3], numbers[q + 4], numbers[q + 5], numbers[q + 6]
  if s == 1 then
    meta = call('HMGET', KEYS[s], 'open', 'sealed', 'fin', 'lost', 'big', 'hot', 'held', 'timed', 'batch')
  elseif groups > 0 then
    meta = call('HMGET', KEYS[s], 'open', 'sealed', 'fin', 'lost', 'big', 'hot', 'held', 'timed')
  else
    meta = call('HMGET', KEYS[s], 'open', 'sealed', 'fin', 'lost', 'big', 'hot', 'held')
  end
  local fin, lost = (meta[FIN] or 0) + 0, (meta[LOST] or 0) + 0
  if made <= lost then return {LATE, time, {}, {}, {}, {}, ''} end
  local ones, first = numbers[q + 2], p
  local window, unopened = current_window(prefix, meta[OPEN], (meta[SEALED] or 0) + 0, fin, now, length)
  p = p + 2 * entries - ones
  shards[s] = {prefix, meta, window, unopened, first, ones, p - (entries > ones and 2 or 1)}
  local careful = numbers[q] == 1 or meta[IS_BIG] or (meta[HELD] or 0) + 0 > BIG_WINDOWS
  q = q + 7

  -- Rule 9: the sender must know the markers of all keys that it writes here.
  if meta[HOT] or markers > 0 then check_markers(s, entries, markers, p, q) end
  p, q = p + markers, q + markers

  if groups > 0 then
    local list_of_groups = {}
    for g = 1, groups do
      local group = look_up_claims(s, g, prefix, lost, p, q)
      list_of_groups[g] = group
      p, q = group.last + 1, q + 6
    end
    claim_groups[s] = list_of_groups
  end
  if careful or likes > 0 then
    special[s] = {
      number = s, prefix = prefix, lost = meta[LOST], fin = fin, careful = careful, entries = entries, likes = likes, keys = keys,
      like_numbers = q, first_key = p, first_field = p + 2 * keys, first_record = 1, last_record = 0,
    }
    any_special = true
    p, q = p + 2 * keys + 2 * likes, q + LIKE_NUMBERS * likes
  end
end

if not any_special then
  if #known + #moved + #aged > 0 then return refuse() end
  return apply('')
end
