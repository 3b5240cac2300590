-- Sends requests that were made ready before: the first argument names a file of them, each preceded by its size
-- and a line feed, and they are sent in turn. The second argument, if there is one, is the mean of the pause, in
-- milliseconds, before each request of a connection; pauses are drawn from an exponential distribution, so that
-- arrivals come as if from many clients who don't know of each other.

local requests, turn = {}, 0

function init(arguments)
  local file = assert(io.open(arguments[1], "rb"))
  while true do
    local size = file:read("*n")
    if not size then break end
    file:read(1)
    requests[#requests + 1] = file:read(size)
  end
  file:close()
  turn = math.random(#requests)
  local mean = tonumber(arguments[2])
  if mean then
    function delay()
      return math.floor(-mean * math.log(1 - math.random()) + 0.5)
    end
  end
end

function request()
  turn = turn % #requests + 1
  return requests[turn]
end

function done(summary, latency, _)
  local errors = summary.errors
  io.write(string.format(
    "measured %d %d %d %d %d %d %d\n",
    summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99), latency.max,
    errors.status, errors.connect + errors.read + errors.write + errors.timeout
  ))
end
