-- The last part of write.lua: likes (rule 10), and what becomes of a batch that has some, or big deltas.
local LOADED, SUPPOSED = 1, 2
local CHANGED, UNCHANGED, UNKNOWN, OVERFLOWS = '1', '0', '?', 'o'
local DATED, SOURCE = 2, 4

-- Extra is what special has of a shard.

-- Of the shard whose likes are decided: what find_states returns; where its pairs with several likes have their record, by the
-- first of them; the repeats that the batch may have to record, and whether a pair is among them. A table that was not used
-- serves the next shard.
local states, places, recorded, repeats, repeated = nil, nil, {}, {}, {}

-- check_like_markers notes the likes of a shard whose keys have other markers than the sender knows.
local function check_like_markers(s, extra)
  local first, keys, marked = extra[FIRST_KEY], extra[LIKED_KEYS], shards[s][HOT]
  for i = first + keys, first + 2 * keys - 1 do marked = marked or ARGV[i] ~= '0' end
  if not marked or extra[LIKES] == 0 then return end
  local found = {}
  look_up_markers(extra[SHARD], first, keys, 1, found)
  local position, q = extra[ENTRIES], extra[RUNS] + 2
  for _ = 1, numbers[extra[RUNS]] do
    local k, count = numbers[q + 1], numbers[q + 4]
    if found[k] ~= ARGV[first + keys + k - 1] then
      for i = position, position + count - 1 do note_moved(s, i, found[k]) end
    end
    position, q = position + count, q + RUN_NUMBERS
  end
end

for s, extra in pairs(special) do check_like_markers(s, extra) end
if #known + #moved + #aged + #overflowing > 0 then return refuse() end

-- What the sender knows of likes, as read once: of many it is that they were never changed.
local loaded_states = {}
local function load_state(known)
  local at = string.find(known, '@', 1, true)
  loaded_states[known] = {string.sub(known, at + 1) + 0, parse_state(string.sub(known, 1, at - 1))}
  return loaded_states[known]
end

-- The records of likes, field and state by turns, those of each shard in one piece.
local records, last_record = {}, 0

-- record notes the state to which the like at a position is set, in place of the record that its pair has.
local function record(extra, position, first_of_pair, state)
  local at = recorded[first_of_pair]
  if at then
    records[at] = state
    return
  end
  local field, place = ARGV[extra[FIRST_FIELD] + position - 1], places[position]
  records[last_record + 1], records[last_record + 2] = field, state
  last_record = last_record + 2
  if first_of_pair > 0 then recorded[first_of_pair] = last_record end
  if place and place ~= extra[BUCKET] then
    local gone = extra[GONE] or {}
    extra[GONE], gone[place] = gone, gone[place] or {}
    table.insert(gone[place], field)
  end
end

-- record_repeats records the repeats of likes that the batch does not change, unless the window has a record of the
-- like already: the change that is repeated must not be forgotten.
local function record_repeats(extra)
  local there = {}
  if not shards[extra[NUMBER]][UNOPENED] then
    look_up_states(extra[SHARD] .. 'w:' .. integer(shards[extra[NUMBER]][WINDOW]), extra[FIRST_FIELD], extra[LIKES], there, {})
  end
  for _, r in ipairs(repeats) do
    local state = there[r.position]
    if not recorded[r.first_of_pair] and not (state and string.sub(state, 1, 1) == (r.liked and '1' or '0')) then
      record(extra, r.position, r.first_of_pair, format_state(r.liked, r.moment or math.max(time, r.set + 1), r.since))
    end
  end
end

-- like_overflows reports whether the total of a key would leave int64 with the sum of its likes, or what the batch
-- adds to it, which a window of its own must be able to hold.
local function like_overflows(extra, key, sum)
  local high, low = add(0, sum, extra[DELTAS][key] or '0', 1)
  return edge(high, low) ~= nil or overflows(extra[SHARD], extra[GEN], extra[WINDOWS], key, high, low)
end

-- split_moment splits what is known of a dated like from its moment.
local function split_moment(known)
  local state, moment = string.match(known, '^(.*)>(%d+)$')
  return state, tonumber(moment)
end

local hours, forget = nil, nil
local now_liked, now_unliked, now_new = nil, nil, nil

-- begin_likes looks up the states of a shard's likes.
local function begin_likes(extra)
  if not hours then
    hours, forget = membership_hours(now, length)
    now_liked, now_unliked = format_state(true, time, time), format_state(false, time, time)
    now_new = now_liked .. NEW
  end
  extra[BUCKET_STEM] = membership_stem(extra[SHARD], extra[LOST])
  extra[BUCKET] = extra[BUCKET_STEM] .. hours[1]
  states, places, extra[BUCKET_SINCE], extra[COVERED] =
    find_states(extra[SHARD], extra[LOST], hours, length, extra[FIRST_FIELD], extra[LIKES])
  extra[SUMS], extra[FIRST_RECORD] = {}, last_record + 1
  if next(recorded) then recorded = {} end
end

-- settle_claim notes with the claim of a like what became of it, if it is not CHANGED, as which it was sent.
local function settle_claim(at, result)
  if result == UNCHANGED then
    ARGV[at + 1] = string.sub(ARGV[at + 1], 1, -2) .. UNCHANGED
  else
    undone[at], any_undone = true, true
  end
end

-- known_state returns the state of a like, as the sender knows it, if that may still be so: if all windows above the watermark of
-- what was loaded are here, or the current bucket has all their likes. What is supposed is the opposite of what is wanted.
local function known_state(extra, wanted, source, known)
  if source == LOADED then
    local loaded = loaded_states[known] or load_state(known)
    if extra[FIN] <= loaded[1] or extra[COVERED] and extra[COVERED] <= loaded[1] then return loaded[2], loaded[3], loaded[4] end
  elseif source == SUPPOSED then
    return not wanted, 0, 0
  end
  return nil
end

-- is_new reports whether a like that changes something is of a pair that was never set: Redis has no state, and the ledger none.
local function is_new(wanted, source, set) return wanted and set == 0 and source == LOADED end

-- new_state returns the state to which a run sets each of its likes that Redis does not know, or nil if they cannot be decided
-- together.
local function new_state(extra, what, known, first_of_pair)
  if what % SOURCE >= DATED or first_of_pair > 0 or extra[CAREFUL] then return nil end
  local wanted, source = what % DATED == 1, math.floor(what / SOURCE)
  local liked, set = known_state(extra, wanted, source, known)
  if liked == nil or liked == wanted or set >= time then return nil end
  if is_new(wanted, source, set) then return now_new end
  return wanted and now_liked or now_unliked
end

-- change_like decides a like that changes something, of the key with the number k.
local function change_like(extra, position, first_of_pair, k, wanted, set, moment, source)
  local sum = (extra[SUMS][k] or 0) + (wanted and 1 or -1)
  if extra[CAREFUL] and like_overflows(extra, ARGV[extra[FIRST_KEY] + k - 1], sum) then return OVERFLOWS end
  extra[SUMS][k] = sum
  local state = wanted and now_liked or now_unliked
  if moment then
    state = format_state(wanted, moment, moment)
  elseif set >= time then
    state = format_state(wanted, set + 1, set + 1)
  end
  if is_new(wanted, source, set) then state = state .. NEW end
  if first_of_pair > 0 then states[first_of_pair] = state end
  record(extra, position, first_of_pair, state)
  return CHANGED
end

-- decide_like decides the like at a position.
local function decide_like(extra, position, what, k, known, first_of_pair)
  local wanted, source, moment = what % DATED == 1, math.floor(what / SOURCE), nil
  if what % SOURCE >= DATED then known, moment = split_moment(known) end
  local pair = first_of_pair > 0 and first_of_pair or position
  local liked, set, since
  if states[pair] then
    liked, set, since = parse_state(states[pair])
  else
    liked, set, since = known_state(extra, wanted, source, known)
  end
  if liked == nil then return UNKNOWN end
  if moment and set >= moment then return UNCHANGED end
  if liked ~= wanted then return change_like(extra, position, first_of_pair, k, wanted, set, moment, source) end
  if not recorded[first_of_pair] and not repeated[pair] then
    repeated[pair] = true
    repeats[#repeats + 1] =
      {position = position, first_of_pair = first_of_pair, liked = wanted, set = set, since = since, moment = moment}
  end
  return UNCHANGED
end

local results, decided = {}, 0 -- of all likes

-- decide_likes decides the likes of a shard one after the other.
local function decide_likes(extra)
  begin_likes(extra)
  local q = extra[RUNS]
  local runs, position = numbers[q], 0
  local fields, known_states, claims = extra[FIRST_FIELD] - 1, extra[FIRST_FIELD] + extra[LIKES] - 1, q + 1 + RUN_NUMBERS * runs
  q = q + 2
  for _ = 1, runs do
    local what, k, known, first_of_pair = numbers[q], numbers[q + 1], ARGV[known_states + numbers[q + 2]], numbers[q + 3]
    local last, state, changed = position + numbers[q + 4], new_state(extra, what, known, first_of_pair), 0
    q = q + RUN_NUMBERS
    for i = position + 1, last do
      local result = CHANGED
      if state and not states[i] then
        records[last_record + 1], records[last_record + 2] = ARGV[fields + i], state
        last_record, changed = last_record + 2, changed + 1
      else
        result = decide_like(extra, i, what, k, known, first_of_pair)
        local claim_at = numbers[claims + i]
        if result ~= CHANGED and claim_at > 0 then settle_claim(claim_at, result) end
      end
      results[decided + i] = result
    end
    if changed > 0 then extra[SUMS][k] = (extra[SUMS][k] or 0) + (what % DATED == 1 and changed or -changed) end
    position = last
  end
  decided = decided + position
  local shard = shards[extra[NUMBER]]
  if extra[CAREFUL] and not shard[UNOPENED] then
    for k, sum in pairs(extra[SUMS]) do
      local key = ARGV[extra[FIRST_KEY] + k - 1]
      local high, low = add(0, sum, extra[DELTAS][key] or '0', 1)
      if overfills(extra[SHARD], shard[WINDOW], key, high, low) then
        shard[WINDOW], shard[UNOPENED] = next_window(now, shard[WINDOW]), true
        break
      end
    end
  end
  if #repeats > 0 then
    record_repeats(extra)
    repeats, repeated = {}, {}
  end
  extra[LAST_RECORD] = last_record
end

-- set_likes writes what decide_likes has decided. It reports whether a delta has become big.
set_likes = function(extra, meta_key, window_key)
  for from = extra[FIRST_RECORD], extra[LAST_RECORD], 2 * CHUNK do
    local to = math.min(extra[LAST_RECORD], from + 2 * CHUNK - 1)
    call('HSET', window_key, unpack(records, from, to))
    call('HSET', extra[BUCKET], unpack(records, from, to))
  end
  for h = 2, extra[GONE] and #hours or 0 do
    local bucket = extra[BUCKET_STEM] .. hours[h]
    local fields = extra[GONE][bucket] or {}
    for from = 1, #fields, CHUNK do
      call('HDEL', bucket, unpack(fields, from, math.min(#fields, from + CHUNK - 1)))
    end
  end
  if not extra[BUCKET_SINCE] then
    local shard = shards[extra[NUMBER]]
    make_table(extra[BUCKET])
    call('HSET', extra[BUCKET], SINCE, integer(shard[WINDOW] - (shard[UNOPENED] and 1 or 0)))
    call('PEXPIRE', extra[BUCKET], integer(forget + MEMBERSHIP_MARGIN - now))
    call('ZADD', extra[SHARD] .. 'claims', integer(forget), string.sub(extra[BUCKET], #extra[SHARD] + 1))
    call('HSETNX', meta_key, 'likes', '1')
  end
  local big = false
  for k = 1, extra[LIKED_KEYS] do
    if extra[SUMS][k] then
      local key, sum = ARGV[extra[FIRST_KEY] + k - 1], integer(extra[SUMS][k])
      if is_big(call('HINCRBY', window_key, key, sum)) then big = true end
      call('HINCRBY', window_key, LIKE_SUM .. key, sum)
    end
  end
  return big
end

for s = 1, #KEYS do
  if special[s] and special[s][LIKES] > 0 then decide_likes(special[s]) end
end
return apply(table.concat(results))
