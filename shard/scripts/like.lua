-- Rule 10: the states of likes. A state is written as 1 (liked) or 0 and the microseconds when it was set; for one
-- that was set again, a colon and those since when it has been so; for a like of a pair that was never set before, as far as
-- ledger and shard know, a plus, which is for the ledger alone.
--
-- Membership is the memory of the last hours, so that a like is seldom looked up in the ledger, and a viral key's
-- likers do not pile up. A pair is in one bucket at most, or what one bucket knows would come back when another is
-- evicted. The name of a bucket has the moment when a rollback was last noticed: what was noted before may
-- not be what the ledger has. A bucket has all likes of the windows above the one in its field SINCE, but for those that
-- went to the bucket of another hour.
local SINCE = 'since' -- no field of a like begins so
local NEW = '+'
local HOUR = 3600000
local MEMBERSHIP_MARGIN = 600000 -- swept before it expires, since to sweep blocks nobody

-- membership_hours returns the names of the hours in whose buckets a pair may be, the current one first, and when the
-- bucket of the current one is no longer read.
local function membership_hours(now, length)
  local hour = math.floor(now / HOUR)
  local hours = {integer(hour), integer(hour - 1)}
  -- Another host's clock may have been ahead by up to a window.
  if (now + length) / HOUR >= hour + 1 then hours[3] = integer(hour + 1) end
  return hours, (hour + 2) * HOUR
end

-- membership_stem is what the names of a shard's buckets begin with, before the hour.
local function membership_stem(prefix, lost) return prefix .. 'likes:' .. (lost or '0') .. ':' end

-- key_of returns the key in a field of a like.
local function key_of(field) return string.sub(field, 2, string.find(field, '\0', 1, true) - 1) end

-- look_up_states notes the states that the hash has of the n fields from ARGV[first] on, unless one is known, and where
-- they are, by position. It returns how many it has noted.
local function look_up_states(hash_key, first, n, states, places)
  local found = 0
  for from = 0, n - 1, CHUNK do
    local values = call('HMGET', hash_key, unpack(ARGV, first + from, first + math.min(n, from + CHUNK) - 1))
    for i = 1, #values do
      if values[i] and not states[from + i] then
        states[from + i], places[from + i] = values[i], hash_key
        found = found + 1
      end
    end
  end
  return found
end

-- find_states returns the states that are known here of the n fields from ARGV[first] on, the hashes that they are in, by
-- position, SINCE of the current bucket, and the window above which that has all likes: of those that came later, and of the
-- hour of the bucket, whichever host's clock they are by. There is none if some may have gone to the bucket of the next hour.
-- Membership, where it has a pair, has its last state. Windows matter where it was evicted: not if the current bucket has all
-- that is in them.
local function find_states(prefix, lost, hours, length, first, n)
  local states, places, left = {}, {}, n
  local stem = membership_stem(prefix, lost)
  local since, covered = call('HGET', stem .. hours[1], SINCE), nil
  if since and not hours[3] then covered = math.max(since, hours[1] * HOUR + 2 * length - 1) end
  for h = 1, #hours do
    -- To ask whether there is a bucket takes less than to look into it.
    if h == 1 or call('EXISTS', stem .. hours[h]) == 1 then
      left = left - look_up_states(stem .. hours[h], first, n, states, places)
      if left == 0 then return states, places, since, covered end
    end
  end
  if covered then
    local oldest = call('LINDEX', prefix .. 'windows', 0)
    if not oldest or oldest - covered > 0 then return states, places, since, covered end
  end
  local windows = call('LRANGE', prefix .. 'windows', 0, -1)
  for w = #windows, 1, -1 do
    left = left - look_up_states(prefix .. 'w:' .. windows[w], first, n, states, places)
    if left == 0 then break end
  end
  return states, places, since, covered
end

-- parse_state returns whether it is liked, when it was set and since when it has been so.
local function parse_state(state)
  local at, since = string.match(state, '^.(%d+):?(%d*)')
  at = tonumber(at)
  return string.sub(state, 1, 1) == '1', at, tonumber(since) or at
end

local function format_state(liked, at, since)
  local state = (liked and '1' or '0') .. integer(at)
  if since == at then return state end
  return state .. ':' .. integer(since)
end
