-- Rule 8: cache bases that were read from the ledger together with its watermark. The totals hold what
-- the ledger applied of windows up to the watermark: what still sits in those is taken away again.
--
-- KEYS: the meta key.  ARGV: watermark, then per key: key, total, likes, time to live, marker (IMPLIED: that of now).
-- Returns 0 and changes nothing if a window above the watermark is being moved into the bases.
local IMPLIED = '1'

local prefix = prefix_of(KEYS[1])
local meta = redis.call('HMGET', KEYS[1], 'fin', 'gen', 'big')
local watermark, big = tonumber(ARGV[1]), meta[3]
if tonumber(meta[1] or 0) > watermark then return 0 end
local applied = applied_windows(prefix, watermark)
for i = 2, #ARGV, 5 do
  local key, marker = ARGV[i], ARGV[i + 4]
  local base_key = prefix .. 'base:' .. (meta[2] or '0') .. ':' .. key
  if redis.call('EXISTS', base_key) == 0 then
    local base = base_of(prefix, applied, key, ARGV[i + 1], ARGV[i + 2])
    redis.call('SET', base_key, base, 'PX', ARGV[i + 3])
    if not big and is_big(tonumber((split_base(base)))) then
      change_meta(KEYS[1], 'big', '1')
      big = true
    end
  end
  if marker ~= '0' then
    if marker == IMPLIED then marker = integer(milliseconds()) end
    if redis.call('HSETNX', prefix .. 'spread', key, marker) == 1 then note_marked(KEYS[1], prefix) end
  end
end
return 1
