-- Rule 1: apply a batch to one or more shards, whole or not at all, but for single likes (rule 10). Everything is
-- decided before the first write, since Redis does not roll back a script that fails half-way.
--
-- KEYS: the meta keys of the shards.
-- ARGV: batch id, made, lifetime, window length, dedupe window, early, confirm, then for each shard:
--   careful (1: a delta is big, or a reset)
--   n, n times key, delta (RESET: what brings the increments of the key on the shard to 0)
--   n, n times position, marker      (the markers that the sender knows)
--   n, n times a claim group: kind, bucket, oldest, newest, period, current, n, n times field, value
--   n, n times a like: its field of a window, what it is (1 liked or 0, DATED more if it has a moment; source of the
--     state that the sender knows; the marker that the sender knows if there is one), position of its claim (empty: none),
--     and from source LOADED that state, an @ and the watermark; if it is dated, then a > and the moment
-- Returns {status, time in microseconds, known, moved, aged, overflowing, likes}; the lists are flat, positions count
-- from 0, and a like's follow those of its shard's entries. The last is a string with a byte for each like: what
-- became of it.
local APPLIED, REFUSED, LATE = 0, 1, 2
local TIMED, OPAQUE, ONCE = '0', '1', '2'
local LOADED, SUPPOSED = '1', '2'
local CHANGED, UNCHANGED, UNKNOWN, OVERFLOWS = '1', '0', '?', 'o'
local LIKE_COLUMNS = 4
local RESET = 'r'
local DATED = 2
local BATCH_BUCKET, TIMED_BUCKET, MARGIN = 60000, 60000, 60000

local call = redis.call
local time = microseconds()
local now = math.floor(time / 1000)
local id, made, lifetime = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local length, dedupe, early = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local confirm = ARGV[7] == '1' -- replicas are waited for: even an answer without effect must be a write
local opaque_bucket = dedupe + early

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
local p = 8

-- hmget looks up the fields at ARGV[first], ARGV[first + 2], … up to last. Its list is used again and again: one that grows
-- from nothing costs as much as the command.
local list = {}
local function hmget(hash_key, first, last)
  local n = 0
  for i = first, last, 2 do
    n = n + 1
    list[n] = ARGV[i]
  end
  return call('HMGET', hash_key, unpack(list, 1, n)), n
end

-- look_up notes those of the fields at ARGV[first], ARGV[first + 2], … that the bucket holds.
local function look_up(bucket_key, first, n, s, g)
  for from = 0, n - 1, CHUNK do
    local values, m = hmget(bucket_key, first + 2 * from, first + 2 * math.min(n, from + CHUNK) - 2)
    for i = 1, m do
      if values[i] then
        local k = #known
        known[k + 1], known[k + 2], known[k + 3], known[k + 4] = s - 1, g, from + i - 1, values[i]
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
  local base = redis.call('GET', prefix .. 'base:' .. gen .. ':' .. key)
  if not base then return nil end
  local total, likes = split_base(base)
  local high, low = add(0, 0, total, -1)
  high, low = add(high, low, likes, 1)
  for w = 1, #windows do
    local pending = redis.call('HMGET', prefix .. 'w:' .. windows[w], key, LIKE_SUM .. key)
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

-- note_moved notes the keys, of which marker_of tells what marker the sender knows, that have another one.
local function note_moved(prefix, s, keys, first, marker_of)
  for from = 1, #keys, CHUNK do
    local values = call('HMGET', prefix .. 'spread', unpack(keys, from, math.min(#keys, from + CHUNK - 1)))
    for i = 1, #values do
      local position = from + i - 2
      if (values[i] or '0') ~= marker_of(position) then
        local k = #moved
        moved[k + 1], moved[k + 2], moved[k + 3] = s - 1, first + position, values[i] or '0'
      end
    end
  end
end

-- any_marker reports whether the sender knows the marker of a like's key.
local function any_marker(shard)
  for i = 1, shard.likes do
    if #ARGV[shard.first_like + LIKE_COLUMNS * (i - 1) + 1] > 2 then return true end
  end
  return false
end

for s = 1, #KEYS do
  local prefix = prefix_of(KEYS[s])
  local meta = call('HMGET', KEYS[s], 'sealed', 'fin', 'lost', 'big', 'hot', 'open', 'held', 'timed')
  local lost, fin = tonumber(meta[3] or 0), tonumber(meta[2] or 0)
  if made <= lost then return {LATE, time, {}, {}, {}, {}, ''} end
  local window, add_window = current_window(prefix, meta[6], tonumber(meta[1] or 0), fin, now, length)
  local careful = ARGV[p] == '1' or meta[4] or tonumber(meta[7] or 0) > BIG_WINDOWS
  local entries = tonumber(ARGV[p + 1])
  local first = p + 2
  -- With all its fields from the start, as a table that grows costs more than what it holds.
  local shard = {
    prefix = prefix, big = meta[4], fin = fin, lost = meta[3] or '0', open = meta[6], timed = meta[8], careful = careful,
    first = first, last = first + 2 * entries - 2, groups = {}, window = 0, add_window = false, likes = 0, first_like = 0,
  }
  shards[s] = shard
  if careful then
    local windows, full = call('LRANGE', prefix .. 'windows', 0, -1), false
    shard.windows, shard.gen = windows, call('HGET', KEYS[s], 'gen') or '0'
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
      elseif not add_window then
        full = full or overfills(prefix, window, ARGV[i], high, low)
      end
    end
    -- The total fits and the sum pending in this window would not: a new window takes it.
    if full then window, add_window = next_window(now, window), true end
  end
  shard.window, shard.add_window = window, add_window
  p = first + 2 * entries

  -- Rule 9: the sender must know the markers of all keys that it writes here.
  local declared = tonumber(ARGV[p])
  if meta[5] or declared > 0 then
    local markers, keys = {}, {}
    for i = 1, declared do markers[tonumber(ARGV[p + 2 * i - 1])] = ARGV[p + 2 * i] end
    for i = first, shard.last, 2 do keys[#keys + 1] = ARGV[i] end
    note_moved(prefix, s, keys, 0, function(position) return markers[position] or '0' end)
  end
  p = p + 1 + 2 * declared

  local groups = tonumber(ARGV[p])
  p = p + 1
  for g = 0, groups - 1 do
    local kind, bucket, oldest, newest = ARGV[p], ARGV[p + 1], tonumber(ARGV[p + 2]), tonumber(ARGV[p + 3])
    local period, current, n = tonumber(ARGV[p + 4]), ARGV[p + 5] == '1', tonumber(ARGV[p + 6])
    local fields, name, expires, old = p + 7, nil, nil, nil
    if kind == TIMED then
      name, expires = 'id:' .. bucket, tonumber(bucket) + TIMED_BUCKET + dedupe + MARGIN
      old = oldest < now - dedupe or newest > now + early or oldest <= lost
    elseif kind == OPAQUE then
      local number = math.floor(now / opaque_bucket)
      name, expires = 'any:' .. integer(number), (number + 2) * opaque_bucket + MARGIN
      old = lost > 0 and now <= lost + opaque_bucket
      look_up(prefix .. 'any:' .. integer(number - 1), fields, n, s, g)
      -- Another host's clock may have been ahead by up to a window.
      if (now + length) / opaque_bucket >= number + 1 then
        look_up(prefix .. 'any:' .. integer(number + 1), fields, n, s, g)
      end
    else
      name = 'once:' .. integer(period) .. ':' .. bucket
      expires = tonumber(bucket) + period + dedupe + early + MARGIN
      old = current and now - now % period ~= tonumber(bucket)
    end
    if old then
      local k = #aged
      aged[k + 1], aged[k + 2], aged[k + 3] = s - 1, g, lost
    end
    look_up(prefix .. name, fields, n, s, g)
    shard.groups[g + 1] = {name = name, expires = expires, first = fields, last = fields + 2 * n - 1, timed = kind == TIMED}
    p = fields + 2 * n
  end

  shard.likes, shard.first_like = tonumber(ARGV[p]), p + 1
  if meta[5] or shard.likes > 0 and any_marker(shard) then
    local keys = {}
    for i = 1, shard.likes do keys[i] = key_of(ARGV[shard.first_like + LIKE_COLUMNS * (i - 1)]) end
    note_moved(prefix, s, keys, entries, function(position)
      local marker = string.sub(ARGV[shard.first_like + LIKE_COLUMNS * position + 1], 3)
      return marker == '' and '0' or marker
    end)
  end
  p = p + 1 + LIKE_COLUMNS * shard.likes
end

if #known + #moved + #aged + #overflowing > 0 then
  -- A claim that another copy of a request left must have reached the replicas before it is answered.
  if confirm then call('HSET', KEYS[1], 'confirmed', integer(now)) end
  return {REFUSED, time, known, moved, aged, overflowing, ''}
end

-- known_state returns the state of a like: as it is known here, or else as the sender knows it, if that may still be
-- so. What is supposed is the opposite of what is wanted.
local function known_state(shard, state, wanted, source, known)
  if state then return parse_state(state) end
  if source == LOADED then
    local loaded = shard.loaded[known]
    if not loaded then
      local text, watermark = string.match(known, '^(.*)@(%d+)$')
      loaded = {tonumber(watermark), parse_state(text)}
      shard.loaded[known] = loaded
    end
    if shard.fin <= loaded[1] then return loaded[2], loaded[3], loaded[4] end
  elseif source == SUPPOSED then
    return not wanted, 0, 0
  end
  return nil
end

-- settle_claim notes with the claim of a like what became of it. One that was not done leaves no claim.
local function settle_claim(shard, position, result)
  for g = 1, #shard.groups do
    local group = shard.groups[g]
    local n = (group.last - group.first + 1) / 2
    if position < n then
      local field = group.first + 2 * position
      if result == CHANGED or result == UNCHANGED then
        ARGV[field + 1] = ARGV[field + 1] .. result
      else
        group.undone = group.undone or {}
        group.undone[field] = true
      end
      return
    end
    position = position - n
  end
end

-- record_repeats records the repeats of likes that the batch does not change, unless the window has a record of the
-- like already: the change that is repeated must not be forgotten.
local function record_repeats(shard, repeats)
  local fields, there = {}, {}
  for i = 1, #repeats do
    if not shard.records[repeats[i].field] then fields[#fields + 1] = repeats[i].field end
  end
  if #fields > 0 and not shard.add_window then
    look_up_states(shard.prefix .. 'w:' .. integer(shard.window), fields, there, {})
  end
  for _, r in ipairs(repeats) do
    local state = there[r.field]
    if not shard.records[r.field] and not (state and string.sub(state, 1, 1) == (r.liked and '1' or '0')) then
      shard.records[r.field] = format_state(r.liked, r.moment or math.max(time, r.set + 1), r.since)
    end
  end
end

-- like_overflows reports whether the total of a key would leave int64 with the sum of its likes, or what the batch
-- adds to it, which a window of its own must be able to hold.
local function like_overflows(shard, key, sum)
  local high, low = add(0, sum, shard.entry_deltas[key] or '0', 1)
  return edge(high, low) ~= nil or overflows(shard.prefix, shard.gen, shard.windows, key, high, low)
end

-- begin_likes looks up the states of a shard's likes.
local function begin_likes(shard)
  local seen, fields = {}, {}
  for i = 1, shard.likes do
    local field = ARGV[shard.first_like + LIKE_COLUMNS * (i - 1)]
    if not seen[field] then
      seen[field] = true
      fields[#fields + 1] = field
    end
  end
  shard.entry_deltas = {}
  if shard.careful then
    for i = shard.first, shard.last, 2 do shard.entry_deltas[ARGV[i]] = ARGV[i + 1] end
  end
  shard.buckets, shard.forget = membership_buckets(shard.prefix, shard.lost, now, length)
  shard.states, shard.places = find_states(shard.prefix, shard.buckets, fields)
  shard.fields, shard.records, shard.keys, shard.sums, shard.loaded = fields, {}, {}, {}, {}
end

-- split_moment splits what is known of a dated like from its moment.
local function split_moment(known)
  local state, moment = string.match(known, '^(.*)>(%d+)$')
  return state, tonumber(moment)
end

-- decide_likes decides the likes of a shard one after the other, and returns a byte for each.
local function decide_likes(shard)
  begin_likes(shard)
  local states, records, sums = shard.states, shard.records, shard.sums
  local results, repeats, repeated = {}, {}, {}
  local now_liked, now_unliked = '1' .. integer(time), '0' .. integer(time)
  for i = 1, shard.likes do
    local at = shard.first_like + LIKE_COLUMNS * (i - 1)
    local field, what = ARGV[at], ARGV[at + 1]
    local flags, known, moment = string.byte(what) - 48, ARGV[at + 3], nil
    local wanted = flags % DATED == 1
    if flags >= DATED then known, moment = split_moment(known) end
    local liked, set, since = known_state(shard, states[field], wanted, string.sub(what, 2, 2), known)
    local result = UNKNOWN
    if liked ~= nil and moment and set >= moment then
      result = UNCHANGED
    elseif liked == wanted then
      result = UNCHANGED
      if not records[field] and not repeated[field] then
        repeated[field] = true
        repeats[#repeats + 1] = {field = field, liked = wanted, set = set, since = since, moment = moment}
      end
    elseif liked ~= nil then
      local key = key_of(field)
      local sum = (sums[key] or 0) + (wanted and 1 or -1)
      if shard.careful and like_overflows(shard, key, sum) then
        result = OVERFLOWS
      else
        result = CHANGED
        if not sums[key] then shard.keys[#shard.keys + 1] = key end
        sums[key] = sum
        if moment then
          states[field] = format_state(wanted, moment, moment)
        elseif set < time then
          states[field] = wanted and now_liked or now_unliked
        else
          states[field] = format_state(wanted, set + 1, set + 1)
        end
        records[field] = states[field]
      end
    end
    results[i] = result
    if ARGV[at + 2] ~= '' then settle_claim(shard, tonumber(ARGV[at + 2]), result) end
  end
  if shard.careful and not shard.add_window then
    for _, key in ipairs(shard.keys) do
      local high, low = add(0, sums[key], shard.entry_deltas[key] or '0', 1)
      if overfills(shard.prefix, shard.window, key, high, low) then
        shard.window, shard.add_window = next_window(now, shard.window), true
        break
      end
    end
  end
  record_repeats(shard, repeats)
  return table.concat(results)
end

local likes = ''
for s = 1, #KEYS do
  if shards[s].likes > 0 then likes = likes .. decide_likes(shards[s]) end
end

-- set_likes writes what decide_likes has decided. It reports whether a delta has become big.
local function set_likes(shard, meta_key, window_key)
  local records, gone, big = {}, {}, false
  for _, field in ipairs(shard.fields) do
    local state, place = shard.records[field], shard.places[field]
    if state then
      records[#records + 1], records[#records + 2] = field, state
      if place and place ~= shard.buckets[1] then
        gone[place] = gone[place] or {}
        table.insert(gone[place], field)
      end
    end
  end
  if #records == 0 then return false end
  for from = 1, #records, 2 * CHUNK do
    local to = math.min(#records, from + 2 * CHUNK - 1)
    call('HSET', window_key, unpack(records, from, to))
    call('HSET', shard.buckets[1], unpack(records, from, to))
  end
  for b = 2, #shard.buckets do
    local fields = gone[shard.buckets[b]] or {}
    for from = 1, #fields, CHUNK do
      call('HDEL', shard.buckets[b], unpack(fields, from, math.min(#fields, from + CHUNK - 1)))
    end
  end
  call('PEXPIRE', shard.buckets[1], integer(shard.forget + MEMBERSHIP_MARGIN - now))
  call('ZADD', shard.prefix .. 'claims', integer(shard.forget), string.sub(shard.buckets[1], #shard.prefix + 1))
  for _, key in ipairs(shard.keys) do
    if is_big(call('HINCRBY', window_key, key, shard.sums[key])) then big = true end
    call('HINCRBY', window_key, LIKE_SUM .. key, shard.sums[key])
  end
  call('HSETNX', meta_key, 'likes', '1')
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
  if group.undone then
    args = {}
    for i = group.first, group.last, 2 do
      if not group.undone[i] then args[#args + 1], args[#args + 2] = ARGV[i], ARGV[i + 1] end
    end
    first, last = 1, #args
    if last == 0 then return end
  end
  for from = first, last, 2 * CHUNK do
    call('HSET', shard.prefix .. group.name, unpack(args, from, math.min(last, from + 2 * CHUNK - 1)))
  end
  if shard.timed == group.name then return end
  call('ZADD', shard.prefix .. 'claims', integer(group.expires), group.name)
  if group.timed then
    shard.timed = group.name
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
  local prefix = shard.prefix
  local window_key = prefix .. 'w:' .. (not shard.add_window and shard.open or integer(shard.window))
  local used = shard.last >= shard.first or (shard.likes > 0 and next(shard.records) ~= nil)
  if shard.add_window and used then open_window(KEYS[s], prefix, shard.window) end
  local big = add_deltas(shard, window_key)
  if shard.likes > 0 and set_likes(shard, KEYS[s], window_key) then big = true end
  if shard.add_window and used then make_table(window_key) end
  if big and not shard.big then call('HSET', KEYS[s], 'big', '1') end
  for g = 1, #shard.groups do claim(shard, KEYS[s], shard.groups[g]) end
end
return {APPLIED, time, {}, {}, {}, {}, likes}
