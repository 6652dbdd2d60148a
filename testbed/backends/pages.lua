-- The pages of an Apache of the testbed, run by mod_lua within the worker that took the request, so that work is CPU
-- time of a real Apache process. Above this text, apache.py writes the table `settings`:
--     per_ms    iterations of the loop below that take one millisecond of a core here, as measured
--     loop      iterations of it for one of ?n=
--     demand    milliseconds of a request that names none
--     size      bytes of its body
--     wiki      milliseconds of a Wikipedia page, mean
--     objects   how many files the Wikipedia mix has, in `folder`
--     one_thread  a process serves one request at a time

local DEMAND_MOST_MS = 600000
local SIZE_MOST = 67108864
local ECHO = 4000 -- MARLLB's dummy.php prints its counter so often

-- CPU time, and nothing else: the one loop that everything here is measured in.
local function burn(iterations)
    local x = 0
    for i = 1, iterations do x = x + i end
    return x
end

local filler = string.rep("x", 8192)

local function fill(r, size)
    while size > 8192 do
        r:write(filler)
        size = size - 8192
    end
    r:write(string.sub(filler, 1, size))
end

-- What the request has cost so far. os.clock() is of the process: where others share it, it tells nothing.
local function tell_cost(r, began)
    if settings.one_thread then
        r.headers_out["X-Cpu-Ms"] = string.format("%.3f", (os.clock() - began) * 1e3)
    end
end

local function refuse(r, what)
    r.status = 400
    r:puts(what .. "\n")
    return apache2.OK
end

-- A number of the query; nil when it is not there, false when it is not one.
local function query(r, key)
    local text = r.args and string.match("&" .. r.args, "&" .. key .. "=([^&]*)")
    if not text then return nil end
    local value = tonumber(text)
    if not value or value ~= value or value < 0 then return false end
    return value
end

-- A number in (0, 1) that is always the same for the same text: FNV-1a, mixed (splitmix64).
local function lot(text, salt)
    local h = 0xcbf29ce484222325 ~ salt
    for i = 1, #text do h = (h ~ string.byte(text, i)) * 0x100000001b3 end
    h = (h ~ (h >> 30)) * 0xbf58476d1ce4e5b9
    h = (h ~ (h >> 27)) * 0x94d049bb133111eb
    h = h ~ (h >> 31)
    return ((h >> 11) + 0.5) / 9007199254740992.0
end

-- /dummy.php/?n=5478122, as the traces of MARLLB have it: counts to n and prints as many bytes as its PHP page.
local function count(r, n, size, began)
    if n * settings.loop > DEMAND_MOST_MS * settings.per_ms then return refuse(r, "n is too large") end
    local block, printed = math.floor(ECHO * settings.loop + 0.5), {}
    for i = ECHO, n, ECHO do
        burn(block)
        printed[#printed + 1] = i
    end
    burn(math.floor(n % ECHO * settings.loop + 0.5))
    tell_cost(r, began)
    if size then fill(r, size) else r:write(table.concat(printed, "\\n")) end
    return apache2.OK
end

local function work(r)
    local began = os.clock()
    local n, d, size = query(r, "n"), query(r, "d"), query(r, "size")
    if n == false or d == false or size == false then
        return refuse(r, "n, d and size must be numbers, not below 0")
    end
    if size and size > SIZE_MOST then return refuse(r, "size must be at most " .. SIZE_MOST) end
    if size then size = math.floor(size) end
    if n then return count(r, n, size, began) end
    d = d or settings.demand
    if d > DEMAND_MOST_MS then return refuse(r, "d must be at most " .. DEMAND_MOST_MS .. " ms") end
    burn(math.floor(d * settings.per_ms))
    tell_cost(r, began)
    fill(r, size or settings.size)
    return apache2.OK
end

-- A Wikipedia page: its title decides its work (exponential) and its size (log-normal by a sum of twelve lots).
local function page(r)
    local began = os.clock()
    r.content_type = "text/html"
    local title = r.uri .. "?" .. (r.args or "")
    burn(math.floor(-math.log(lot(title, 1)) * settings.wiki * settings.per_ms))
    tell_cost(r, began)
    local normal = -6
    for i = 2, 13 do normal = normal + lot(title, i) end
    fill(r, math.min(math.floor(12000 * math.exp(normal)), 400000))
    return apache2.OK
end

-- A static object of the mix: its address decides which file it is; sent by the kernel (sendfile).
local function object(r)
    local i = math.floor(lot(r.uri, 1) * settings.objects)
    r.content_type = "application/octet-stream"
    r:sendfile(string.format("%s/object-%d", settings.folder, i))
    return apache2.OK
end

local static = {
    css = true, js = true, png = true, jpg = true, jpeg = true, gif = true, svg = true, ico = true, ogg = true,
}

function handle(r)
    r.content_type = "text/plain"
    if r.uri == "/health" then
        r:puts("ok\n")
        return apache2.OK
    end
    local extension = string.match(r.uri, "%.(%w+)$")
    if extension and static[string.lower(extension)] then return object(r) end
    if string.match(r.uri, "^/wiki/") or string.match(r.uri, "^/w/") then return page(r) end
    return work(r)
end
