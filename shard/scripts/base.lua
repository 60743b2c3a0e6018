-- What a base must be, by what the ledger holds.

-- applied_windows returns the windows up to the watermark that are still here.
local function applied_windows(prefix, watermark)
  local applied = {}
  for _, window in ipairs(redis.call('LRANGE', prefix .. 'windows', 0, -1)) do
    if tonumber(window) > watermark then break end
    applied[#applied + 1] = window
  end
  return applied
end

-- base_of takes away from the ledger's totals what still sits in windows that it has applied.
local function base_of(prefix, applied, key, total, likes)
  local high, low = add(0, 0, total, 1)
  local likes_high, likes_low = add(0, 0, likes, 1)
  for w = 1, #applied do
    local pending = redis.call('HMGET', prefix .. 'w:' .. applied[w], key, LIKE_SUM .. key)
    if pending[1] then high, low = add(high, low, pending[1], -1) end
    if pending[2] then likes_high, likes_low = add(likes_high, likes_low, pending[2], -1) end
  end
  return join_base(saturated(high, low), saturated(likes_high, likes_low))
end
