-- What opens windows and marks keys. Plain batches, which are nearly all, do without: see write.lua.

-- current_window: rule 1. The second result says that the window must still be opened. Open is the window that was
-- opened last; if it has left the list since, it is not above sealed or not above fin. (To add 0 makes a number of a
-- decimal for less than half of what tonumber takes.)
local function current_window(prefix, open, sealed, fin, now, length)
  local last = (open or call('LINDEX', prefix .. 'windows', -1) or 0) + 0
  if last > sealed and last > fin and now - last < length then return last, false end
  return math.max(now, last + 1, sealed + 1, fin + 1), true
end

-- make_table has a hash that holds something kept as a hash table, by a value that is too long for a listpack: in
-- that, each command would search through all fields before its own.
local function make_table(hash_key)
  call('HSET', hash_key, '\4', string.rep(' ', 65))
  call('HDEL', hash_key, '\4')
end

-- open_window adds a window to the list. Each write reads most fields of meta, which may have been loaded from a snapshot
-- as a listpack since.
local function open_window(meta_key, prefix, window)
  local held = call('RPUSH', prefix .. 'windows', integer(window))
  change_meta(meta_key, 'open', integer(window), 'held', held)
  make_table(meta_key)
end

-- note_marked notes that markers were added, and which window was the newest: if there is none, the last that was finished.
local function note_marked(meta_key, prefix)
  local newest = call('LINDEX', prefix .. 'windows', -1) or call('HGET', meta_key, 'fin') or '0'
  change_meta(meta_key, 'hot', '1', 'marked', newest)
end

-- next_window is a window after the given one, which is left as it is.
local function next_window(now, window) return math.max(now, window + 1) end
