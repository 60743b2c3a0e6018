-- Whether the ledger has all that homes know of likes whose pairs have left them.
--
-- KEYS: the meta keys of the homes.  ARGV: for each home n, n keys.
-- Returns for each home {drained, markers}. Drained is 1 if all windows that there were when a key was last marked have ended:
-- since then the home takes no like of a pair that its marker sends elsewhere. It stays a question for each time, as a
-- home that went back in time may have lost a marker. Markers are in the order of the keys.
local answer, p = {}, 1
for s = 1, #KEYS do
  local n = tonumber(ARGV[p])
  local prefix, marked = prefix_of(KEYS[s]), call('HGET', KEYS[s], 'marked')
  local oldest = call('LINDEX', prefix .. 'windows', 0)
  local drained = marked and (not oldest or tonumber(oldest) > tonumber(marked))
  answer[s] = {drained and 1 or 0, call('HMGET', prefix .. 'spread', unpack(ARGV, p + 1, p + n))}
  p = p + 1 + n
end
return answer
