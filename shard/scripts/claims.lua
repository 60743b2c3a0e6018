-- The second part of write.lua: the decision on any batch, and its claims.
local TIMED, OPAQUE = 0, 1
local RUN_NUMBERS = 5
local TIMED_BUCKET = 60000
local opaque_bucket = dedupe + early

local known, moved, aged, overflowing = {}, {}, {}, {}
-- The shards, each a list of what PREFIX to READY say, as one with names costs four times as much: what its keys begin with,
-- the window to write to, whether that must be opened, where in ARGV its entries begin, how many of them have a delta of 1, and
-- where the last one ends; whether there are markers, and anything is big; and whether the window will be ready for plain batches.
local PREFIX, WINDOW, UNOPENED, FIRST, ONES, LAST, HOT, IS_BIG, READY = 1, 2, 3, 4, 5, 6, 7, 8, 9
local shards = {}
-- The id: buckets that were added to the shards' claims last, and the batch: bucket to those of the first.
local last_timed, last_batch = {}, nil
local claim_groups = {} -- none if a shard has no claims
-- Of shards with likes or big deltas, likewise: the number, what its keys begin with, when a rollback was noticed, what is
-- finished, whether sums are checked; how many entries, likes, and keys of likes there are; where the numbers of the likes are,
-- and in ARGV their keys and fields; from where to where their records are. Then what is noted of a shard with likes:
-- its membership bucket, what the names of its buckets begin with, since when the bucket is, the fields that leave other buckets,
-- and what the likes add to their keys; of one whose sums are checked: windows, generation, deltas by key; and of one with likes
-- the window above which its bucket has them all.
local special = {}
local NUMBER, SHARD, LOST, FIN, CAREFUL, ENTRIES, LIKES, LIKED_KEYS, RUNS, FIRST_KEY, FIRST_FIELD = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11
local FIRST_RECORD, LAST_RECORD, BUCKET, BUCKET_STEM, BUCKET_SINCE, GONE, SUMS, WINDOWS, GEN, DELTAS = 12, 13, 14, 15, 16, 17, 18, 19, 20, 21
local COVERED = 22
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

-- The claims of likes that were not done are not written: by where in ARGV they are.
local undone, any_undone = {}, false

-- claim writes the claims of a group.
local function claim(s, group)
  local prefix = shards[s][PREFIX]
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
  if last_timed[s] == group.name then return end
  call('ZADD', prefix .. 'claims', integer(group.expires), group.name)
  if group.timed then
    last_timed[s] = group.name
    make_table(prefix .. group.name)
    call('HSET', KEYS[s], 'timed', group.name)
  end
end

local set_likes = nil -- see write_likes.lua

-- apply writes what was decided, and the results of likes with the batch's claim. None of the writes can fail.
local function apply(likes)
  call('HSET', batch_key, id, likes)
  note_batch_bucket(last_batch)
  for s = 1, #KEYS do
    local shard, extra = shards[s], special[s]
    local prefix, window, opens, last = shard[PREFIX], shard[WINDOW], shard[UNOPENED], shard[LAST]
    local has_records = extra and extra[LAST_RECORD] >= extra[FIRST_RECORD]
    local window_key = prefix .. 'w:' .. integer(window)
    local written = last >= shard[FIRST] or has_records
    if opens and written then open_window(KEYS[s], prefix, window) end
    local big = add_deltas(window_key, shard[FIRST], shard[ONES], last)
    if has_records and set_likes(extra, KEYS[s], window_key) then big = true end
    if opens and written then make_table(window_key) end
    if big and not shard[IS_BIG] then
      change_meta(KEYS[s], 'big', '1')
    elseif shard[READY] and (written or not opens) then
      call('HSET', KEYS[s], 'ready', integer(window))
    end
    if claim_groups[s] then
      for g = 1, #claim_groups[s] do claim(s, claim_groups[s][g]) end
    end
  end
  return {APPLIED, time, likes}
end

-- refuse answers why nothing was changed.
local function refuse()
  -- A claim that another copy of a request left must have reached the replicas before it is answered.
  if confirm then call('HSET', KEYS[1], 'confirmed', integer(now)) end
  return {REFUSED, time, known, moved, aged, overflowing}
end

local plain = numbers[PLAIN] == 1
local p, q = 3, SHARDS + 2 * #KEYS -- where ARGV and the numbers of the next shard begin
for s = 1, #KEYS do
  local prefix, meta, fields = prefix_of(KEYS[s]), nil, SHARDS + 2 * (s - 1)
  local entries, ones, first = numbers[fields], numbers[fields + 1], p
  local careful, markers, groups, keys, likes = 0, 0, 0, 0, 0
  if not plain then
    careful, markers, groups, keys, likes = numbers[q], numbers[q + 1], numbers[q + 2], numbers[q + 3], numbers[q + 4]
    q = q + 5
  end
  if s == 1 then
    meta = call('HMGET', KEYS[s], 'ready', 'lost', 'timed', 'fin', 'batch')
    last_batch = meta[5]
  else
    meta = call('HMGET', KEYS[s], 'ready', 'lost', 'timed', 'fin')
  end
  last_timed[s] = meta[3]
  local lost, fin = 0, 0
  if meta[2] then lost = meta[2] + 0 end
  if made <= lost then return {LATE, time} end
  p = p + 2 * entries - ones
  if is_ready(meta[1], made, now, length) then
    shards[s] = {prefix, meta[1] + 0, false, first, ones, p - 1, false, false, false}
    careful = careful == 1
    if likes > 0 then fin = (meta[4] or 0) + 0 end
  else
    fin = (meta[4] or 0) + 0
    local more = call('HMGET', KEYS[s], 'open', 'sealed', 'held', 'hot', 'big')
    local window, unopened = current_window(prefix, more[1], (more[2] or 0) + 0, fin, now, length)
    local held, hot, big = (more[3] or 0) + 0, more[4], more[5]
    shards[s] = {prefix, window, unopened, first, ones, p - 1, hot, big, not hot and not big and held < BIG_WINDOWS and window > lost}
    careful = careful == 1 or big or held > BIG_WINDOWS
  end

  -- Rule 9: the sender must know the markers of all keys that it writes here.
  if shards[s][HOT] or markers > 0 then check_markers(s, entries, markers, p, q) end
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
      s, prefix, meta[2], fin, careful, entries, likes, keys, q, p, p + 2 * keys, 1, 0, false, false, false, false, false,
    }
    any_special = true
    if likes > 0 then p, q = p + 2 * keys + likes + numbers[q + 1], q + 2 + RUN_NUMBERS * numbers[q] + likes end
  end
end

if not any_special then
  if #known + #moved + #aged > 0 then return refuse() end
  return apply('')
end
