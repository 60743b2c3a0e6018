#!lua flags=allow-oom
-- Rules 2 and 6: start a round of the flush. The watermark of the ledger is always a window that was sealed
-- here, and whose end is recorded in fin or still to come; where Redis knows nothing of it, Redis went back in
-- time. The token tells apart two copies of a window, of which an older one was sealed again.
--
-- KEYS: the meta key.
-- ARGV: watermark, its token, a fresh token and generation, window length, most windows to return.
-- Returns {now, rolled back, restore due, number of windows, more, sealed windows, their tokens}: the oldest sealed
-- windows, and whether there are more.
local now = milliseconds()
local prefix = prefix_of(KEYS[1])
local watermark, token, fresh = tonumber(ARGV[1]), ARGV[2], ARGV[3]
local length, most = tonumber(ARGV[4]), tonumber(ARGV[5])
local meta = redis.call('HMGET', KEYS[1], 'sealed', 'fin', 'restore')
local sealed, fin = tonumber(meta[1] or 0), tonumber(meta[2] or 0)
local windows = redis.call('LRANGE', prefix .. 'windows', 0, -1)
local tokens_key = prefix .. 'tokens'

-- A watermark below fin was read before another worker went on, and proves nothing.
local applied = windows[1] and tonumber(windows[1]) <= watermark
local rolled_back = watermark > fin and not applied
  or watermark > 0 and watermark >= fin and redis.call('HGET', tokens_key, ARGV[1]) ~= token
local first = 1
if rolled_back then
  -- What is here of windows that the ledger has are stale copies (rule 5). They go at once: the worker that applied
  -- one of them may be about to begin, and would find the token in place.
  while windows[first] and tonumber(windows[first]) <= watermark do
    redis.call('UNLINK', prefix .. 'w:' .. windows[first])
    first = first + 1
  end
  redis.call('LTRIM', prefix .. 'windows', first - 1, -1)
  change_meta(KEYS[1], 'fin', integer(watermark), 'gen', fresh, 'lost', integer(now), 'restore', '1')
  redis.call('HSET', tokens_key, ARGV[1], token)
end
-- Nothing more may be written to a window that the ledger has.
local newest, due, tokens, more = math.max(sealed, watermark), {}, {}, 0
for i = first, #windows do
  local window = tonumber(windows[i])
  if now - window >= length then
    newest = math.max(newest, window)
    redis.call('HSETNX', tokens_key, windows[i], fresh)
    if #due < most then
      due[#due + 1] = window
      tokens[#tokens + 1] = redis.call('HGET', tokens_key, windows[i])
    else
      more = 1
    end
  end
end
if newest > sealed then change_meta(KEYS[1], 'sealed', integer(newest)) end
for _, window in ipairs(redis.call('HKEYS', tokens_key)) do
  if tonumber(window) < math.min(watermark, fin) then redis.call('HDEL', tokens_key, window) end
end
return {now, rolled_back and 1 or 0, (rolled_back or meta[3]) and 1 or 0, #windows - first + 1, more, due, tokens}
