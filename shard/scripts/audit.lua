-- Compare the cached bases of keys with what they must be, by what the ledger holds together with its watermark. It
-- only reads.
--
-- KEYS: the meta key.  ARGV: watermark, then per key: key, total, likes.
-- Returns {fits, windows up to the watermark that are still here, bases compared, gen, differing}. Differing is a flat
-- list: position from 0, the base, what it must be. Fits is 0, and nothing was compared, if a window above the
-- watermark is being moved into the bases.
local prefix = prefix_of(KEYS[1])
local meta = redis.call('HMGET', KEYS[1], 'fin', 'gen')
local watermark, gen = tonumber(ARGV[1]), meta[2] or '0'
if tonumber(meta[1] or 0) > watermark then return {0, 0, 0, gen, {}} end
local applied = applied_windows(prefix, watermark)
local compared, differing = 0, {}
for i = 2, #ARGV, 3 do
  local base = redis.call('GET', prefix .. 'base:' .. gen .. ':' .. ARGV[i])
  if base then
    compared = compared + 1
    local wanted = base_of(prefix, applied, ARGV[i], ARGV[i + 1], ARGV[i + 2])
    if base ~= wanted then
      local n = #differing
      differing[n + 1], differing[n + 2], differing[n + 3] = integer((i - 2) / 3), base, wanted
    end
  end
end
return {1, #applied, compared, gen, differing}
