-- Exact sums of int64 decimals, for the rare key near the edge: Lua's numbers end at 2^53. A sum is held as
-- high * 10^9 + low.
local BILLION = 1000000000

-- add adds the decimal to the sum, or takes it away if sign is -1.
local function add(high, low, decimal, sign)
  if string.sub(decimal, 1, 1) == '-' then
    sign = -sign
    decimal = string.sub(decimal, 2)
  end
  if #decimal > 9 then high = high + sign * tonumber(string.sub(decimal, 1, -10)) end
  return high, low + sign * tonumber(string.sub(decimal, -9))
end

-- normalise makes 0 <= low < 10^9.
local function normalise(high, low)
  local carry = math.floor(low / BILLION)
  return high + carry, low - carry * BILLION
end

-- edge returns nil if the sum fits in an int64, else the edge that it crosses.
local function edge(high, low)
  high, low = normalise(high, low)
  if high > 9223372036 or (high == 9223372036 and low > 854775807) then return '9223372036854775807' end
  if high < -9223372037 or (high == -9223372037 and low < 145224192) then return '-9223372036854775808' end
  return nil
end

-- saturated returns the sum as a decimal, stopped at the edge of int64.
local function saturated(high, low)
  local crossed = edge(high, low)
  if crossed then return crossed end
  high, low = normalise(high, low)
  local sign = ''
  if high < 0 then
    sign, high = '-', -high
    if low > 0 then high, low = high - 1, BILLION - low end
  end
  if high == 0 then return sign .. string.format('%.0f', low) end
  return sign .. string.format('%.0f%09.0f', high, low)
end

-- split_base returns the total of a base, and the part of it that comes from likes.
local function split_base(base)
  local colon = string.find(base, ':', 1, true)
  if not colon then return base, '0' end
  return string.sub(base, 1, colon - 1), string.sub(base, colon + 1)
end

local function join_base(total, likes)
  if likes == '0' then return total end
  return total .. ':' .. likes
end
