-- Takes tokens for several requests, one after the other: each from all of its buckets, or from none. A bucket's key holds
-- the moment at which it will be full, and expires then.
--
-- KEYS: the buckets, those of a group one after the other. ARGV: two arrays of numbers in MessagePack, which are read much
-- sooner than as many arguments. The first has for each group of buckets the time in which a token comes, that in which a
-- bucket fills, how many tokens are taken from each bucket if all requests are granted, and the last bucket. The second
-- has for each request how many buckets it has, and for each of those which one, and the cost.
-- Answer: for each request that is refused, its position, that of the bucket which lacks tokens for longest, and for how
-- long. Positions begin with 1. Times are microseconds. Moments are counted from a recent one, so that numbers have room
-- for fractions.
local CHUNK = 1000 -- keys per call, well below what Lua can unpack
local EPOCH = 1700000000000 -- ms
local ROUNDING = 0.1 -- below which a lack is an error of rounding

local call, format, ceil, min = redis.call, string.format, math.ceil, math.min
local time = call('TIME')
local now = time[1] * 1000000 + time[2] - EPOCH * 1000
local groups = cmsgpack.unpack(ARGV[1])
local buckets = #KEYS

-- When each bucket will be full, or false for one that is.
local full = call('MGET', unpack(KEYS, 1, min(CHUNK, buckets)))
for first = CHUNK + 1, buckets, CHUNK do
  local last = min(first + CHUNK - 1, buckets)
  local values = call('MGET', unpack(KEYS, first, last))
  for i = first, last do full[i] = values[i - first + 1] end
end
local all, first = true, 1
for g = 1, #groups, 4 do
  local latest = now + groups[g + 1] - groups[g + 2] * groups[g] + ROUNDING
  if latest < now then all = false end
  for i = first, groups[g + 3] do
    local moment = full[i]
    if moment then
      moment = tonumber(moment)
      full[i] = moment and moment > now and moment
      if moment and moment > latest then all = false end
    end
  end
  first = groups[g + 3] + 1
end

-- texts are a moment as it is kept, and for how long, in ms. Hardly any moment has a fraction, whose format is slow.
local function texts(moment)
  return format(moment % 1 == 0 and '%d' or '%.3f', moment), format('%d', ceil((moment - now) / 1000))
end

-- Nearly always there is enough for all of them together, and most buckets are full.
if all then
  first = 1
  for g = 1, #groups, 4 do
    local takes = groups[g + 2] * groups[g]
    local text, expires = texts(now + takes)
    for i = first, groups[g + 3] do
      if full[i] then
        local its_text, its_expires = texts(full[i] + takes)
        call('PSETEX', KEYS[i], its_expires, its_text)
      else
        call('PSETEX', KEYS[i], expires, text)
      end
    end
    first = groups[g + 3] + 1
  end
  return {}
end

local token, fill = {}, {}
for g = 1, #groups, 4 do
  for i = #token + 1, groups[g + 3] do token[i], fill[i] = groups[g], groups[g + 1] end
end
local numbers = cmsgpack.unpack(ARGV[2])
local changed, refused, request, at = {}, {}, 0, 1
while at <= #numbers do
  request = request + 1
  local last = at + 2 * numbers[at]
  local lacking, wait = 0, ROUNDING
  for p = at + 1, last, 2 do
    local i = numbers[p]
    local lacks = (full[i] or now) - now + min(numbers[p + 1] * token[i], fill[i]) - fill[i]
    if lacks > wait then lacking, wait = (p - at + 1) / 2, lacks end
  end
  if lacking == 0 then
    for p = at + 1, last, 2 do
      local i = numbers[p]
      full[i] = (full[i] or now) + numbers[p + 1] * token[i]
      changed[i] = true
    end
  else
    local n = #refused
    refused[n + 1], refused[n + 2], refused[n + 3] = request, lacking, ceil(wait)
  end
  at = last + 1
end
for i in pairs(changed) do
  local text, expires = texts(full[i])
  call('PSETEX', KEYS[i], expires, text)
end
return refused
