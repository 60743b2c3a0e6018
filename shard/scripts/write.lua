-- Rule 1: apply a batch to one or more shards, whole or not at all. Everything is decided before the first
-- write, since Redis does not roll back a script that fails half-way.
--
-- KEYS: the meta keys of the shards.
-- ARGV: batch id, made, lifetime, window length, dedupe window, early, confirm, then for each shard:
--   careful (1: a delta is big)
--   n, n times key, delta
--   n, n times position, marker      (the markers that the sender knows)
--   n, n times a claim group: kind, bucket, oldest, newest, period, current, n, n times field, value
-- Returns {status, time in microseconds, known, moved, aged, overflowing}; the lists are flat, positions count from 0.
local APPLIED, REFUSED, LATE = 0, 1, 2
local TIMED, OPAQUE, ONCE = '0', '1', '2'
local BATCH_BUCKET, TIMED_BUCKET, MARGIN = 60000, 60000, 60000
local CHUNK = 2000 -- pairs per call, well below what Lua can unpack

local time = microseconds()
local now = math.floor(time / 1000)
local id, made, lifetime = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local length, dedupe, early = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local confirm = ARGV[7] == '1' -- replicas are waited for: even an answer without effect must be a write
local opaque_bucket = dedupe + early

local batch_time = math.floor(made / BATCH_BUCKET)
local batch_bucket = 'batch:' .. integer(batch_time)
local batch_key = prefix_of(KEYS[1]) .. batch_bucket
if redis.call('HEXISTS', batch_key, id) == 1 then
  if confirm then redis.call('HSET', batch_key, id, '') end
  return {APPLIED, time, {}, {}, {}, {}}
end
-- The claim of a batch is kept for as long as a copy of the batch can pass this check.
if now > made + lifetime or now < made - lifetime then return {LATE, time, {}, {}, {}, {}} end

local known, moved, aged, overflowing = {}, {}, {}, {}
local shards = {}
local p = 8

-- look_up notes those of the fields at ARGV[first], ARGV[first + 2], … that the bucket holds.
local function look_up(bucket_key, first, n, s, g)
  for from = 0, n - 1, CHUNK do
    local fields = {}
    for i = from, math.min(n, from + CHUNK) - 1 do fields[#fields + 1] = ARGV[first + 2 * i] end
    local values = redis.call('HMGET', bucket_key, unpack(fields))
    for i = 1, #values do
      if values[i] then
        local k = #known
        known[k + 1], known[k + 2], known[k + 3], known[k + 4] = s - 1, g, from + i - 1, values[i]
      end
    end
  end
end

-- overflows reports whether base, pending deltas and delta together leave int64.
local function overflows(prefix, gen, windows, key, delta)
  local high, low = add(0, 0, delta, 1)
  local base = redis.call('GET', prefix .. 'base:' .. gen .. ':' .. key)
  if base then high, low = add(high, low, base, 1) end
  for w = 1, #windows do
    local pending = redis.call('HGET', prefix .. 'w:' .. windows[w], key)
    if pending then high, low = add(high, low, pending, 1) end
  end
  return edge(high, low) ~= nil
end

for s = 1, #KEYS do
  local prefix = prefix_of(KEYS[s])
  local meta = redis.call('HMGET', KEYS[s], 'sealed', 'fin', 'lost', 'big', 'hot', 'gen')
  local lost = tonumber(meta[3] or 0)
  if made <= lost then return {LATE, time, {}, {}, {}, {}} end
  local window, add_window = current_window(prefix, tonumber(meta[1] or 0), tonumber(meta[2] or 0), now, length)
  local shard = {prefix = prefix, big = meta[4], groups = {}}
  shards[s] = shard

  local careful = ARGV[p] == '1' or meta[4] or redis.call('LLEN', prefix .. 'windows') > BIG_WINDOWS
  local entries = tonumber(ARGV[p + 1])
  local first = p + 2
  shard.first, shard.last = first, first + 2 * entries - 2
  if careful then
    local windows, gen = redis.call('LRANGE', prefix .. 'windows', 0, -1), meta[6] or '0'
    local full = false
    for i = first, shard.last, 2 do
      if overflows(prefix, gen, windows, ARGV[i], ARGV[i + 1]) then
        local k = #overflowing
        overflowing[k + 1], overflowing[k + 2] = s - 1, (i - first) / 2
      elseif not add_window then
        local pending = redis.call('HGET', prefix .. 'w:' .. integer(window), ARGV[i])
        if pending then
          local high, low = add(0, 0, pending, 1)
          full = full or edge(add(high, low, ARGV[i + 1], 1)) ~= nil
        end
      end
    end
    -- The total fits and the sum pending in this window would not: a new window takes it.
    if full then window, add_window = next_window(now, window), true end
  end
  shard.window, shard.add_window = integer(window), add_window
  p = first + 2 * entries

  -- Rule 9: the sender must know the markers of all keys that it writes here.
  local declared = tonumber(ARGV[p])
  if meta[5] or declared > 0 then
    local markers = {}
    for i = 1, declared do markers[tonumber(ARGV[p + 2 * i - 1])] = ARGV[p + 2 * i] end
    for from = 0, entries - 1, CHUNK do
      local keys = {}
      for i = from, math.min(entries, from + CHUNK) - 1 do keys[#keys + 1] = ARGV[first + 2 * i] end
      local values = redis.call('HMGET', prefix .. 'spread', unpack(keys))
      for i = 1, #values do
        local position = from + i - 1
        if (values[i] or '0') ~= (markers[position] or '0') then
          local k = #moved
          moved[k + 1], moved[k + 2], moved[k + 3] = s - 1, position, values[i] or '0'
        end
      end
    end
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
    shard.groups[g + 1] = {name = name, expires = expires, first = fields, last = fields + 2 * n - 1}
    p = fields + 2 * n
  end
end

if #known + #moved + #aged + #overflowing > 0 then
  -- A claim that another copy of a request left must have reached the replicas before it is answered.
  if confirm then redis.call('HSET', KEYS[1], 'confirmed', integer(now)) end
  return {REFUSED, time, known, moved, aged, overflowing}
end

-- Decided: from here on there are only writes, none of which can fail.
local batch_expires = (batch_time + 1) * BATCH_BUCKET + lifetime + MARGIN
redis.call('HSET', batch_key, id, '')
redis.call('ZADD', prefix_of(KEYS[1]) .. 'claims', integer(batch_expires), batch_bucket)
for s = 1, #KEYS do
  local shard = shards[s]
  local prefix = shard.prefix
  if shard.add_window then redis.call('RPUSH', prefix .. 'windows', shard.window) end
  local window_key = prefix .. 'w:' .. shard.window
  local big = false
  for i = shard.first, shard.last, 2 do
    if is_big(redis.call('HINCRBY', window_key, ARGV[i], ARGV[i + 1])) then big = true end
  end
  if big and not shard.big then redis.call('HSET', KEYS[s], 'big', '1') end
  for g = 1, #shard.groups do
    local group = shard.groups[g]
    for from = group.first, group.last, 2 * CHUNK do
      redis.call('HSET', prefix .. group.name, unpack(ARGV, from, math.min(group.last, from + 2 * CHUNK - 1)))
    end
    redis.call('ZADD', prefix .. 'claims', integer(group.expires), group.name)
  end
end
return {APPLIED, time, {}, {}, {}, {}}
