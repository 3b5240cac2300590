-- Sends requests that were made ready before: the first argument names a file of them, each preceded by its size
-- and a line feed, and they are sent in turn. The second argument is the mean of the pause, in milliseconds, before
-- each request of a connection, 0 for none; pauses are drawn from an exponential distribution, so that arrivals come as
-- if from many clients who don't know of each other. wrk's clock for them has whole milliseconds.
--
-- The third argument, if there is one, names a script that leads a conversation: it returns a function that is given
-- the first request, and status and body of the newest answer, and returns the next request, or true at a good end, or
-- false at another. Counted and timed is then the whole of each. Each connection must have a thread of its own.

local requests, turn = {}, 0
local threads = {}

function setup(thread)
  threads[#threads + 1] = thread
end

-- Milliseconds of each conversation that ended well, and how many did not; global, for `done` to get at.
function converse(step)
  local ffi = require("ffi")
  ffi.cdef("typedef struct { long s, us; } clustercert_time; int gettimeofday(clustercert_time *, void *);")
  local clock = ffi.new("clustercert_time[1]")
  local function now_us()
    ffi.C.gettimeofday(clock, nil)
    return tonumber(clock[0].s) * 1e6 + tonumber(clock[0].us)
  end

  took, failed = {}, 0
  local in_turn, first, following, began = request, nil, nil, nil
  function request()
    if not following then
      first, began = in_turn(), now_us()
    end
    return following or first
  end
  function response(status, _, body)
    local outcome = step(first, status, body)
    following = type(outcome) == "string" and outcome or nil
    if outcome == true then took[#took + 1] = now_us() - began end
    if outcome == false then failed = failed + 1 end
  end
end

function init(arguments)
  local file = assert(io.open(arguments[1], "rb"))
  while true do
    local size = file:read("*n")
    if not size then break end
    file:read(1)
    requests[#requests + 1] = file:read(size)
  end
  file:close()
  -- Otherwise every run begins with the same request and pauses alike.
  math.randomseed(os.time())
  turn = math.random(#requests)
  local mean = tonumber(arguments[2])
  if mean > 0 then
    function delay()
      return math.floor(-mean * math.log(1 - math.random()) + 0.5)
    end
  end
  if arguments[3] then converse(dofile(arguments[3])) end
end

function request()
  turn = turn % #requests + 1
  return requests[turn]
end

local function say(answers, duration, mean, p50, p99, longest, refused, broken)
  io.write(string.format(
    "measured %d %d %d %d %d %d %d %d\n", answers, duration, mean, p50, p99, longest, refused, broken
  ))
end

-- Of all threads: (microseconds of each conversation in their order, the sum of these, how many failed).
local function conversations()
  local all, sum, failures = {}, 0, 0
  for _, thread in ipairs(threads) do
    for _, each in ipairs(thread:get("took")) do
      all[#all + 1], sum = each, sum + each
    end
    failures = failures + thread:get("failed")
  end
  table.sort(all)
  return all, sum, failures
end

function done(summary, latency, _)
  local errors = summary.errors
  local broken = errors.connect + errors.read + errors.write + errors.timeout
  if not threads[1]:get("took") then
    say(summary.requests, summary.duration, latency.mean, latency:percentile(50), latency:percentile(99),
      latency.max, errors.status, broken)
    return
  end
  local all, sum, failures = conversations()
  local function at(share) return all[math.max(1, math.ceil(share * #all))] or 0 end
  say(#all + failures, summary.duration, sum / math.max(1, #all), at(0.5), at(0.99), at(1), failures, broken)
end
