-- Takes tokens for several requests, one after the other: each from all of its buckets, or from none. A bucket's key holds
-- the moment at which it will be full, and expires then.
--
-- KEYS: the buckets. ARGV: an array of numbers in MessagePack, which are read much sooner than as many arguments: how many
-- rates there are, and for each of them the time in which a token comes and that in which the bucket fills; for each bucket
-- which rate it has; then for each request how many buckets it has, and for each of those which one, and the cost.
-- Answer: for each request that is refused, its position, that of the bucket which lacks tokens for longest, and for how
-- long. Positions begin with 1. Times are microseconds. Moments are counted from a recent one, so that numbers have room
-- for fractions.
local CHUNK = 1000 -- keys per call, well below what Lua can unpack

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2] - 1700000000000000
local max, min, ceil = math.max, math.min, math.ceil
local numbers = cmsgpack.unpack(ARGV[1])
local buckets = #KEYS

local full = {}
for first = 1, buckets, CHUNK do
  local last = min(first + CHUNK - 1, buckets)
  local values = redis.call('MGET', unpack(KEYS, first, last))
  for i = first, last do
    local value = values[i - first + 1]
    full[i] = value and max(tonumber(value) or now, now) or now
  end
end

local rates = numbers[1]
local rate_of = 1 + 2 * rates -- what comes before the rate of the first bucket
local at = rate_of + buckets + 1
local changed, refused, request = {}, {}, 0
while at <= #numbers do
  request = request + 1
  local last = at + 2 * numbers[at]
  local lacking, wait = 0, 0.1 -- below which it is an error of rounding
  for p = at + 1, last, 2 do
    local i = numbers[p]
    local rate = 2 * numbers[rate_of + i]
    local token, fill = numbers[rate], numbers[rate + 1]
    local lacks = full[i] - now + min(numbers[p + 1] * token, fill) - fill
    if lacks > wait then lacking, wait = (p - at + 1) / 2, lacks end
  end
  if lacking == 0 then
    for p = at + 1, last, 2 do
      local i = numbers[p]
      full[i] = full[i] + numbers[p + 1] * numbers[2 * numbers[rate_of + i]]
      changed[i] = true
    end
  else
    local n = #refused
    refused[n + 1], refused[n + 2], refused[n + 3] = request, lacking, ceil(wait)
  end
  at = last + 1
end

local format, call = string.format, redis.call
for i in pairs(changed) do
  call('SET', KEYS[i], format('%.3f', full[i]), 'PX', ceil((full[i] - now) / 1000))
end
return refused
