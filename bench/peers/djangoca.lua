-- An order of django-ca's, up to its certificate: the call to sign, questions after the order until it is issued, and
-- the certificate. See `converse` in wrk.lua.

local function get(first, what)
  local base, headers = first:match("^POST (%S+/)sign/ HTTP/1.1\r\n(.-)\r\n\r\n")
  return ("GET %s%s/ HTTP/1.1\r\n%s\r\n\r\n"):format(base, what, (headers:gsub("\r\nContent%-%a+: [^\r]*", "")))
end

return function(first, status, body)
  if status > 399 then return false end
  if body:find("-----BEGIN CERTIFICATE", 1, true) then return true end
  local state = body:match('"status": *"(%a+)"')
  if state == "issued" then return get(first, "certs/" .. body:match('"serial": *"(%x+)"')) end
  if state == "pending" then return get(first, "orders/" .. body:match('"slug": *"(%w+)"')) end
  return false
end
