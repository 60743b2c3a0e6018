-- Rule 10: the states of likes. A state is written as 1 (liked) or 0 and the microseconds when it was set; for one
-- that was set again, a colon and those since when it has been so.
--
-- Membership is the memory of the last hours, so that a like is seldom looked up in the ledger, and a viral key's
-- likers do not pile up. A pair is in one bucket at most, or what one bucket knows would come back when another is
-- evicted. The name of a bucket has the moment when a rollback was last noticed: what was noted before may
-- not be what the ledger has.
local HOUR = 3600000
local MEMBERSHIP_MARGIN = 600000 -- swept before it expires, since to sweep blocks nobody

-- membership_buckets returns the keys of the buckets in which a pair may be, the current one first, and when the
-- current one is no longer read.
local function membership_buckets(prefix, lost, now, length)
  local hour = math.floor(now / HOUR)
  local stem = prefix .. 'likes:' .. lost .. ':'
  local buckets = {stem .. integer(hour), stem .. integer(hour - 1)}
  -- Another host's clock may have been ahead by up to a window.
  if (now + length) / HOUR >= hour + 1 then buckets[3] = stem .. integer(hour + 1) end
  return buckets, (hour + 2) * HOUR
end

-- key_of returns the key in a field of a like.
local function key_of(field) return string.sub(field, 2, string.find(field, '\0', 1, true) - 1) end

-- look_up_states notes the states of those fields that the hash has, and where they are. It returns the others.
local function look_up_states(hash_key, fields, states, places)
  local left = {}
  for from = 1, #fields, CHUNK do
    local values = redis.call('HMGET', hash_key, unpack(fields, from, math.min(#fields, from + CHUNK - 1)))
    for i = 1, #values do
      local field = fields[from + i - 1]
      if values[i] then
        states[field], places[field] = values[i], hash_key
      else
        left[#left + 1] = field
      end
    end
  end
  return left
end

-- find_states returns the states of fields, which are distinct, that are known here, and the hashes that
-- they are in. Membership, where it has a pair, has its last state. Windows matter where it was evicted.
local function find_states(prefix, buckets, fields)
  local states, places = {}, {}
  for b = 1, #buckets do
    if #fields == 0 then return states, places end
    fields = look_up_states(buckets[b], fields, states, places)
  end
  if #fields == 0 then return states, places end
  local windows = redis.call('LRANGE', prefix .. 'windows', 0, -1)
  for w = #windows, 1, -1 do
    if #fields == 0 then break end
    fields = look_up_states(prefix .. 'w:' .. windows[w], fields, states, places)
  end
  return states, places
end

-- parse_state returns whether it is liked, when it was set and since when it has been so.
local function parse_state(state)
  local at, since = string.match(state, '^.(%d+):?(%d*)$')
  at = tonumber(at)
  return string.sub(state, 1, 1) == '1', at, tonumber(since) or at
end

local function format_state(liked, at, since)
  local state = (liked and '1' or '0') .. integer(at)
  if since == at then return state end
  return state .. ':' .. integer(since)
end
