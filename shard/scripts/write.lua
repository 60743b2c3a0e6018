-- Rule 1: apply a batch to one or more shards, whole or not at all, but for single likes (rule 10). Everything is
-- decided before the first write, since Redis does not roll back a script that fails half-way.
--
-- KEYS: the meta keys of the shards.
-- ARGV[1]: numbers, as an array in MessagePack, which takes a fifth of what as many arguments do:
--   made, lifetime, window length, dedupe window, early, confirm, then for each shard:
--   careful (1: a delta is big, or a reset); how many entries, markers, claim groups, keys of likes, and likes
--   for each marker the position of its entry
--   for each claim group: kind, oldest, newest, period, current, how many claims
--   for each like: what it is (LIKED, DATED, and SOURCE times the source of the state that the sender knows, summed);
--     which of the keys it has; if the shard has several likes of the pair, which is the first of them, else 0; where in
--     ARGV its claim is, 0 if it has none
-- ARGV[2]: the batch's id. From ARGV[3] on, for each shard:
--   for each entry: key, delta (RESET: what brings the increments of the key on the shard to 0)
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
local LOADED, SUPPOSED = 1, 2
local CHANGED, UNCHANGED, UNKNOWN, OVERFLOWS = '1', '0', '?', 'o'
local LIKE_NUMBERS, DATED, SOURCE = 4, 2, 4
local RESET = 'r'
local OPEN, LOST, IS_BIG, TIMED_NAME = 1, 4, 5, 8 -- where a shard's meta has them
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
local shards = {}

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

-- overflows reports whether base, pending deltas and the sum that is given together leave int64.
local function overflows(prefix, gen, windows, key, high, low)
  local base = call('GET', prefix .. 'base:' .. gen .. ':' .. key)
  if base then high, low = add(high, low, split_base(base), 1) end
  for w = 1, #windows do
    local pending = call('HGET', prefix .. 'w:' .. windows[w], key)
    if pending then high, low = add(high, low, pending, 1) end
  end
  return edge(high, low) ~= nil
end

-- reset_of is the delta that brings the increments of a key to 0, stopped at the edge of int64, or nil if the base is not
-- cached.
local function reset_of(prefix, gen, windows, key)
  local base = call('GET', prefix .. 'base:' .. gen .. ':' .. key)
  if not base then return nil end
  local total, likes = split_base(base)
  local high, low = add(0, 0, total, -1)
  high, low = add(high, low, likes, 1)
  for w = 1, #windows do
    local pending = call('HMGET', prefix .. 'w:' .. windows[w], key, LIKE_SUM .. key)
    if pending[1] then high, low = add(high, low, pending[1], -1) end
    if pending[2] then high, low = add(high, low, pending[2], 1) end
  end
  return saturated(high, low)
end

-- overfills reports whether the sum would leave int64 with what the window holds of the key.
local function overfills(prefix, window, key, high, low)
  local pending = call('HGET', prefix .. 'w:' .. integer(window), key)
  return pending and edge(add(high, low, pending, 1)) ~= nil
end

-- each_marker calls f with the position, from 0, and the marker of each of the keys at ARGV[first], ARGV[first + step], …
local function each_marker(prefix, first, n, step, f)
  for from = 0, n - 1, CHUNK do
    local keys = {}
    for i = from, math.min(n, from + CHUNK) - 1 do keys[#keys + 1] = ARGV[first + step * i] end
    local values = call('HMGET', prefix .. 'spread', unpack(keys))
    for i = 1, #values do f(from + i - 1, values[i] or '0') end
  end
end

local function note_moved(s, position, marker)
  local k = #moved
  moved[k + 1], moved[k + 2], moved[k + 3] = s - 1, position, marker
end

-- careful_window checks that no total of the shard's entries can overflow, and returns the window that can take them.
local function careful_window(s, meta_key, shard)
  local prefix, first, window = shard.prefix, shard.first, shard.window
  local windows, full = call('LRANGE', prefix .. 'windows', 0, -1), false
  shard.windows, shard.gen = windows, call('HGET', meta_key, 'gen') or '0'
  for i = first, shard.last, 2 do
    local delta = ARGV[i + 1]
    if delta == RESET then
      delta = reset_of(prefix, shard.gen, windows, ARGV[i])
      ARGV[i + 1] = delta or '0'
    end
    local high, low = add(0, 0, ARGV[i + 1], 1)
    if not delta or overflows(prefix, shard.gen, windows, ARGV[i], high, low) then
      local k = #overflowing
      overflowing[k + 1], overflowing[k + 2] = s - 1, (i - first) / 2
    elseif not shard.add_window then
      full = full or overfills(prefix, window, ARGV[i], high, low)
    end
  end
  -- The total fits and the sum pending in this window would not: a new window takes it.
  if full then return next_window(now, window), true end
  return window, shard.add_window
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

local p, q = 3, 7 -- where ARGV and the numbers of the next shard begin
for s = 1, #KEYS do
  local prefix = prefix_of(KEYS[s])
  local meta = call('HMGET', KEYS[s], 'open', 'sealed', 'fin', 'lost', 'big', 'hot', 'held', 'timed')
  local fin, lost = (meta[3] or 0) + 0, (meta[4] or 0) + 0
  if made <= lost then return {LATE, time, {}, {}, {}, {}, ''} end
  local entries, markers, groups, keys, likes = numbers[q + 1], numbers[q + 2], numbers[q + 3], numbers[q + 4], numbers[q + 5]
  local careful = numbers[q] == 1 or meta[5] or (meta[7] or 0) + 0 > BIG_WINDOWS
  local window, add_window = current_window(prefix, meta[1], (meta[2] or 0) + 0, fin, now, length)
  local shard = {
    prefix = prefix, meta = meta, careful = careful, window = window, add_window = add_window,
    first = p, last = p + 2 * entries - 2, groups = {},
  }
  shards[s] = shard
  if careful then shard.window, shard.add_window = careful_window(s, KEYS[s], shard) end
  q = q + 6

  -- Rule 9: the sender must know the markers of all keys that it writes here.
  local first_marker = p + 2 * entries
  if meta[6] or markers > 0 then
    local sent = {}
    for i = 1, markers do sent[numbers[q + i - 1]] = ARGV[first_marker + i - 1] end
    each_marker(prefix, p, entries, 2, function(i, marker)
      if marker ~= (sent[i + 1] or '0') then note_moved(s, i, marker) end
    end)
  end
  p, q = first_marker + markers, q + markers

  for g = 1, groups do
    local group = look_up_claims(s, g, prefix, lost, p, q)
    shard.groups[g] = group
    p, q = group.last + 1, q + 6
  end

  if likes > 0 then
    shard.likes, shard.keys, shard.fin = likes, keys, fin
    shard.like_numbers, shard.first_key, shard.first_field = q, p, p + 2 * keys
    local marked = meta[6]
    for i = p + keys, p + 2 * keys - 1 do marked = marked or ARGV[i] ~= '0' end
    if marked then
      local differing = {}
      each_marker(prefix, p, keys, 1, function(k, marker)
        if marker ~= ARGV[p + keys + k] then differing[k + 1] = marker end
      end)
      for i = 0, likes - 1 do
        local marker = differing[numbers[q + LIKE_NUMBERS * i + 1]]
        if marker then note_moved(s, entries + i, marker) end
      end
    end
    p, q = p + 2 * keys + 2 * likes, q + LIKE_NUMBERS * likes
  end
end

if #known + #moved + #aged + #overflowing > 0 then
  -- A claim that another copy of a request left must have reached the replicas before it is answered.
  if confirm then call('HSET', KEYS[1], 'confirmed', integer(now)) end
  return {REFUSED, time, known, moved, aged, overflowing, ''}
end

-- What the sender knows of likes, as read once: of many it is that they were never changed.
local loaded_states = {}
local function load_state(known)
  local state, watermark = string.match(known, '^(.*)@(%d+)$')
  loaded_states[known] = {tonumber(watermark), parse_state(state)}
  return loaded_states[known]
end

-- The records of likes, field and state by turns, those of each shard in one piece.
local records, last_record = {}, 0

-- record notes the state to which the like at a position is set, in place of the record that its pair has.
local function record(shard, position, first_of_pair, state)
  local at = shard.recorded[first_of_pair]
  if at then
    records[at] = state
    return
  end
  local field, place = ARGV[shard.first_field + position - 1], shard.places[position]
  records[last_record + 1], records[last_record + 2] = field, state
  last_record = last_record + 2
  if first_of_pair > 0 then shard.recorded[first_of_pair] = last_record end
  if place and place ~= shard.bucket then
    shard.gone[place] = shard.gone[place] or {}
    table.insert(shard.gone[place], field)
  end
end

-- record_repeats records the repeats of likes that the batch does not change, unless the window has a record of the
-- like already: the change that is repeated must not be forgotten.
local function record_repeats(shard, repeats)
  local there = {}
  if not shard.add_window then
    look_up_states(shard.prefix .. 'w:' .. integer(shard.window), shard.first_field, shard.likes, there, {})
  end
  for _, r in ipairs(repeats) do
    local state = there[r.position]
    if not shard.recorded[r.first_of_pair] and not (state and string.sub(state, 1, 1) == (r.liked and '1' or '0')) then
      record(shard, r.position, r.first_of_pair, format_state(r.liked, r.moment or math.max(time, r.set + 1), r.since))
    end
  end
end

-- like_overflows reports whether the total of a key would leave int64 with the sum of its likes, or what the batch
-- adds to it, which a window of its own must be able to hold.
local function like_overflows(shard, key, sum)
  local high, low = add(0, sum, shard.entry_deltas[key] or '0', 1)
  return edge(high, low) ~= nil or overflows(shard.prefix, shard.gen, shard.windows, key, high, low)
end

-- split_moment splits what is known of a dated like from its moment.
local function split_moment(known)
  local state, moment = string.match(known, '^(.*)>(%d+)$')
  return state, tonumber(moment)
end

local hours, forget = nil, nil
local now_liked, now_unliked = nil, nil

-- begin_likes looks up the states of a shard's likes.
local function begin_likes(shard)
  if not hours then
    hours, forget = membership_hours(now, length)
    now_liked, now_unliked = format_state(true, time, time), format_state(false, time, time)
  end
  local lost = shard.meta[LOST]
  shard.entry_deltas = {}
  if shard.careful then
    for i = shard.first, shard.last, 2 do shard.entry_deltas[ARGV[i]] = ARGV[i + 1] end
  end
  shard.stem = membership_stem(shard.prefix, lost)
  shard.bucket = shard.stem .. hours[1]
  shard.states, shard.places = find_states(shard.prefix, lost, hours, shard.first_field, shard.likes)
  shard.recorded, shard.gone, shard.sums, shard.first_record = {}, {}, {}, last_record + 1
end

-- What is not done leaves no claim.
local undone, any_undone = {}, false

-- settle_claim notes with the claim of a like what became of it. It was sent as that of one that is changed.
local function settle_claim(at, result)
  if result == UNCHANGED then
    ARGV[at + 1] = string.sub(ARGV[at + 1], 1, -2) .. UNCHANGED
  elseif result ~= CHANGED then
    undone[at], any_undone = true, true
  end
end

-- known_state returns the state of a like, as the sender knows it, if that may still be so. What is supposed is the
-- opposite of what is wanted.
local function known_state(shard, wanted, source, known)
  if source == LOADED then
    local loaded = loaded_states[known] or load_state(known)
    if shard.fin <= loaded[1] then return loaded[2], loaded[3], loaded[4] end
  elseif source == SUPPOSED then
    return not wanted, 0, 0
  end
  return nil
end

-- change_like decides a like that changes something, of the key with the number k.
local function change_like(shard, position, first_of_pair, k, wanted, set, moment)
  local sum = (shard.sums[k] or 0) + (wanted and 1 or -1)
  if shard.careful and like_overflows(shard, ARGV[shard.first_key + k - 1], sum) then return OVERFLOWS end
  shard.sums[k] = sum
  local state = wanted and now_liked or now_unliked
  if moment then
    state = format_state(wanted, moment, moment)
  elseif set >= time then
    state = format_state(wanted, set + 1, set + 1)
  end
  if first_of_pair > 0 then shard.states[first_of_pair] = state end
  record(shard, position, first_of_pair, state)
  return CHANGED
end

local results, decided = {}, 0 -- of all likes

-- decide_likes decides the likes of a shard one after the other.
local function decide_likes(shard)
  begin_likes(shard)
  local states, repeats, repeated = shard.states, {}, {}
  local q, before_known = shard.like_numbers, shard.first_field + shard.likes - 1
  for i = 1, shard.likes do
    local what, k, first_of_pair, claim_at = numbers[q], numbers[q + 1], numbers[q + 2], numbers[q + 3]
    q = q + LIKE_NUMBERS
    local wanted, known, moment = what % DATED == 1, ARGV[before_known + i], nil
    if what % SOURCE >= DATED then known, moment = split_moment(known) end
    local pair = first_of_pair > 0 and first_of_pair or i
    local liked, set, since
    if states[pair] then
      liked, set, since = parse_state(states[pair])
    else
      liked, set, since = known_state(shard, wanted, math.floor(what / SOURCE), known)
    end
    local result = UNKNOWN
    if liked ~= nil and moment and set >= moment then
      result = UNCHANGED
    elseif liked == wanted then
      result = UNCHANGED
      if not shard.recorded[first_of_pair] and not repeated[pair] then
        repeated[pair] = true
        repeats[#repeats + 1] =
          {position = i, first_of_pair = first_of_pair, liked = wanted, set = set, since = since, moment = moment}
      end
    elseif liked ~= nil then
      result = change_like(shard, i, first_of_pair, k, wanted, set, moment)
    end
    decided = decided + 1
    results[decided] = result
    if claim_at > 0 then settle_claim(claim_at, result) end
  end
  if shard.careful and not shard.add_window then
    for k, sum in pairs(shard.sums) do
      local key = ARGV[shard.first_key + k - 1]
      local high, low = add(0, sum, shard.entry_deltas[key] or '0', 1)
      if overfills(shard.prefix, shard.window, key, high, low) then
        shard.window, shard.add_window = next_window(now, shard.window), true
        break
      end
    end
  end
  if #repeats > 0 then record_repeats(shard, repeats) end
  shard.last_record = last_record
end

for s = 1, #KEYS do
  if shards[s].likes then decide_likes(shards[s]) end
end
local likes = table.concat(results)

-- set_likes writes what decide_likes has decided. It reports whether a delta has become big.
local function set_likes(shard, meta_key, window_key)
  if shard.last_record < shard.first_record then return false end
  local new = call('EXISTS', shard.bucket) == 0
  for from = shard.first_record, shard.last_record, 2 * CHUNK do
    local to = math.min(shard.last_record, from + 2 * CHUNK - 1)
    call('HSET', window_key, unpack(records, from, to))
    call('HSET', shard.bucket, unpack(records, from, to))
  end
  for h = 2, #hours do
    local bucket = shard.stem .. hours[h]
    local fields = shard.gone[bucket] or {}
    for from = 1, #fields, CHUNK do
      call('HDEL', bucket, unpack(fields, from, math.min(#fields, from + CHUNK - 1)))
    end
  end
  if new then
    make_table(shard.bucket)
    call('PEXPIRE', shard.bucket, integer(forget + MEMBERSHIP_MARGIN - now))
    call('ZADD', shard.prefix .. 'claims', integer(forget), string.sub(shard.bucket, #shard.prefix + 1))
    call('HSETNX', meta_key, 'likes', '1')
  end
  local big = false
  for k = 1, shard.keys do
    if shard.sums[k] then
      local key, sum = ARGV[shard.first_key + k - 1], integer(shard.sums[k])
      if is_big(call('HINCRBY', window_key, key, sum)) then big = true end
      call('HINCRBY', window_key, LIKE_SUM .. key, sum)
    end
  end
  return big
end

-- add_deltas adds the deltas of a shard's entries to its window. It reports whether a pending delta has become big. In a
-- hash table one HINCRBY for each costs less than to read, add up and write them all here.
local function add_deltas(shard, window_key)
  local big = false
  for i = shard.first, shard.last, 2 do
    local sum = call('HINCRBY', window_key, ARGV[i], ARGV[i + 1])
    if sum >= BIG or sum <= -BIG then big = true end
  end
  return big
end

-- claim writes the claims of a group, but for those of likes that were not done.
local function claim(shard, meta_key, group)
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
    call('HSET', shard.prefix .. group.name, unpack(args, from, math.min(last, from + 2 * CHUNK - 1)))
  end
  if shard.meta[TIMED_NAME] == group.name then return end
  call('ZADD', shard.prefix .. 'claims', integer(group.expires), group.name)
  if group.timed then
    shard.meta[TIMED_NAME] = group.name
    make_table(shard.prefix .. group.name)
    call('HSET', meta_key, 'timed', group.name)
  end
end

-- Decided: from here on there are only writes, none of which can fail.
local batch_expires = (batch_time + 1) * BATCH_BUCKET + lifetime + MARGIN
call('HSET', batch_key, id, likes)
if call('HGET', KEYS[1], 'batch') ~= batch_bucket then
  call('ZADD', shards[1].prefix .. 'claims', integer(batch_expires), batch_bucket)
  call('HSET', KEYS[1], 'batch', batch_bucket)
end
for s = 1, #KEYS do
  local shard = shards[s]
  local add_window = shard.add_window and (shard.last >= shard.first or shard.likes and shard.last_record >= shard.first_record)
  local window_key = shard.prefix .. 'w:' .. (not shard.add_window and shard.meta[OPEN] or integer(shard.window))
  if add_window then open_window(KEYS[s], shard.prefix, shard.window) end
  local big = add_deltas(shard, window_key)
  if shard.likes and set_likes(shard, KEYS[s], window_key) then big = true end
  if add_window then make_table(window_key) end
  if big and not shard.meta[IS_BIG] then call('HSET', KEYS[s], 'big', '1') end
  for g = 1, #shard.groups do claim(shard, KEYS[s], shard.groups[g]) end
end
return {APPLIED, time, {}, {}, {}, {}, likes}
