-- What homes say of likes whose pairs have left them.
--
-- KEYS: the meta keys of the homes.  ARGV: for each home n, n keys.
-- Returns for each home {marked, markers}: the newest window, finished or not, when a key was last marked, nil if that is not known,
-- and the markers in the order of the keys. In the windows after it the home takes no like of a pair that its marker of the key
-- sends elsewhere.
local answer, p = {}, 1
for s = 1, #KEYS do
  local n = tonumber(ARGV[p])
  answer[s] = {call('HGET', KEYS[s], 'marked'), call('HMGET', prefix_of(KEYS[s]) .. 'spread', unpack(ARGV, p + 1, p + n))}
  p = p + 1 + n
end
return answer
