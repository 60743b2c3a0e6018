-- Shared by the scripts below. A shard is named by its meta key, "plusone:{tag}:meta"; all its other keys
-- differ only in the last word. Times are Unix milliseconds; answers that a caller passes on have microseconds.
--
-- meta      hash: sealed, fin (window ids), gen (generation of the bases), lost (when a rollback was last
--           noticed), restore, hot, likes, big (flags, see where they are set), marked (the newest window when a marker
--           was last added, see homes.lua), open (the window that was added to
--           the list last), held (how many were in the list then), timed, batch (the id: and batch: buckets that
--           were added to claims last), ready (see is_ready)
-- windows   list of window ids, ascending
-- w:<id>    hash: key -> pending delta, "\1"key -> spread marker set in this window, "\2"key"\0"actor -> state that
--           the actor's like was set to (see like.lua), "\3"key -> the part of the delta that is supposed to come from likes
-- base:<gen>:<key>  what the ledger holds of the key for this shard: the total, and a colon and the part of it
--                   that comes from likes if there is one
-- spread    hash: key -> spread marker: since when the key is spread over all shards, or, over fewer of them, that times
--           1024 plus their number
-- tokens    hash: window id -> the token by which it was sealed
-- claims    sorted set: name of a claim or membership bucket -> when it may be forgotten
-- id:<t>, any:<t>, once:<period>:<t>, batch:<t>  claim buckets
-- likes:<lost>:<hour>  membership bucket: hash: "\2"key"\0"actor -> state that the actor's like was last set to in
--                      that hour; and since: see like.lua

local call = redis.call -- a name that is global takes longer to look up
local MARKER, LIKE_SUM = '\1', '\3'
-- Up to here Lua's numbers are exact. While every base and every pending delta of a shard is below it, and
-- there are fewer windows than BIG_WINDOWS, no sum of them can leave int64.
local BIG = 9007199254740992
local BIG_WINDOWS = 1000
local CHUNK = 2000 -- pairs per call, well below what Lua can unpack

local function microseconds()
  local time = call('TIME')
  return time[1] * 1000000 + time[2]
end

local function milliseconds() return math.floor(microseconds() / 1000) end

-- integer writes a whole number of up to 2^53: %d takes less than half as long as %.0f.
local function integer(n) return string.format('%d', n) end

local function prefix_of(meta_key) return string.sub(meta_key, 1, -5) end

local function is_big(n) return n >= BIG or n <= -BIG end

-- is_ready: rule 1, for the field ready of meta. It is the current window, and there while a plain batch need not look at the
-- rest of meta: there are no markers, nothing is big, few windows are held, and no rollback was noticed at or after the window's
-- time, so that a batch that was not made before that was made after the rollback.
local function is_ready(ready, made, now, length)
  if not ready then return false end
  ready = ready + 0
  return now - ready < length and made >= ready
end

-- change_meta sets fields of meta on which it depends whether the shard is ready. The next batch looks.
local function change_meta(meta_key, ...)
  call('HSET', meta_key, ...)
  call('HDEL', meta_key, 'ready')
end
