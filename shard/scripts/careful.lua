-- The third part of write.lua: what batches with likes or big deltas need beside. Here are deltas that could leave int64.
local RESET = 'r'

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

-- careful_window checks that no total of the shard's entries can overflow, and finds the window that can take them.
local function careful_window(s, extra)
  local prefix, shard, full = extra[SHARD], shards[s], false
  local windows, gen, deltas = call('LRANGE', prefix .. 'windows', 0, -1), call('HGET', KEYS[s], 'gen') or '0', {}
  extra[WINDOWS], extra[GEN], extra[DELTAS] = windows, gen, deltas
  local at = shard[FIRST]
  for i = 1, extra[ENTRIES] do
    local key, delta = ARGV[at], '1'
    if i > shard[ONES] then
      delta = ARGV[at + 1]
      if delta == RESET then
        delta = reset_of(prefix, gen, windows, key)
        ARGV[at + 1] = delta or '0'
      end
      at = at + 1
    end
    at = at + 1
    deltas[key] = delta
    local high, low = add(0, 0, delta or '0', 1)
    if not delta or overflows(prefix, gen, windows, key, high, low) then
      local k = #overflowing
      overflowing[k + 1], overflowing[k + 2] = s - 1, i - 1
    elseif not shard[UNOPENED] then
      full = full or overfills(prefix, shard[WINDOW], key, high, low)
    end
  end
  -- The total fits and the sum pending in this window would not: a new window takes it.
  if full then shard[WINDOW], shard[UNOPENED] = next_window(now, shard[WINDOW]), true end
end

for s, extra in pairs(special) do
  if extra[CAREFUL] then careful_window(s, extra) end
end
