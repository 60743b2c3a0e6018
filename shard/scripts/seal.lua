#!lua flags=allow-oom
-- Rules 2 and 6: start a round of the flush. The watermark of the ledger is always the id of a window that was
-- sealed and whose end is recorded in fin; where Redis knows nothing of it, Redis went back in time.
--
-- KEYS: the meta key.  ARGV: watermark, a fresh generation, window length, most windows to return.
-- Returns {now, rolled back, restore due, number of windows, more, sealed windows}: the oldest sealed windows, and whether
-- there are more.
local now = milliseconds()
local prefix = prefix_of(KEYS[1])
local watermark, gen, length, most = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local meta = redis.call('HMGET', KEYS[1], 'sealed', 'fin', 'restore')
local sealed, fin = tonumber(meta[1] or 0), tonumber(meta[2] or 0)
local windows = redis.call('LRANGE', prefix .. 'windows', 0, -1)

-- The watermark was sealed here before it was applied.
local rolled_back, applied, due, more = watermark > sealed, false, {}, 0
local newest = math.max(sealed, watermark)
for i = 1, #windows do
  local window = tonumber(windows[i])
  if window <= watermark then applied = true end
  if now - window >= length then
    newest = math.max(newest, window)
    if #due < most then due[#due + 1] = window else more = 1 end
  end
end
if watermark > fin and not applied then
  rolled_back = true
  redis.call('HSET', KEYS[1], 'fin', integer(watermark), 'gen', gen)
end
if rolled_back then redis.call('HSET', KEYS[1], 'lost', integer(now), 'restore', '1') end
-- Nor may anything more be written to a window that the ledger has.
if newest > sealed then redis.call('HSET', KEYS[1], 'sealed', integer(newest)) end
return {now, rolled_back and 1 or 0, (rolled_back or meta[3]) and 1 or 0, #windows, more, due}
