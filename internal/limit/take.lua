-- Takes tokens for several requests, one after the other: each from all of its buckets, or from none. A bucket's key holds
-- the moment at which it will be full, and expires then.
--
-- KEYS: the buckets. ARGV: for each of them the time in which a token comes, and that in which it fills; then for each
-- request how many buckets it has, and for each of those its number and the cost.
-- Answer: for each request 0 and 0, or the position of the bucket that lacks tokens for longest, from 1, and for how long.
-- Times are microseconds. Moments are counted from a recent one, so that numbers have room for fractions.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2] - 1700000000000000
local CHUNK = 1000 -- keys per call, well below what Lua can unpack

local full, token, fill, changed = {}, {}, {}, {}
for first = 1, #KEYS, CHUNK do
  local last = math.min(first + CHUNK - 1, #KEYS)
  local values = redis.call('MGET', unpack(KEYS, first, last))
  for i = first, last do
    full[i] = math.max(tonumber(values[i - first + 1] or now) or now, now)
  end
end
for i = 1, #KEYS do
  token[i], fill[i] = tonumber(ARGV[2 * i - 1]), tonumber(ARGV[2 * i])
end

local answers, n = {}, 0
local at = 2 * #KEYS + 1
while at <= #ARGV do
  local buckets = tonumber(ARGV[at])
  local lacking, wait = 0, 0
  for b = 1, buckets do
    local i, cost = tonumber(ARGV[at + 2 * b - 1]), tonumber(ARGV[at + 2 * b])
    local lacks = full[i] - now + math.min(cost * token[i], fill[i]) - fill[i]
    if lacks > 0.1 and lacks > wait then lacking, wait = b, lacks end
  end
  if lacking == 0 then
    for b = 1, buckets do
      local i = tonumber(ARGV[at + 2 * b - 1])
      full[i] = full[i] + tonumber(ARGV[at + 2 * b]) * token[i]
      changed[i] = true
    end
  end
  answers[n + 1], answers[n + 2] = lacking, math.ceil(wait)
  n = n + 2
  at = at + 1 + 2 * buckets
end

for i = 1, #KEYS do
  if changed[i] then
    redis.call('SET', KEYS[i], string.format('%.3f', full[i]), 'PX', math.ceil((full[i] - now) / 1000))
  end
end
return answers
