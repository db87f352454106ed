-- Put in front of every move, behind its first line. KEYS[1] is always the queue's key `load`: a real key, so that a
-- cluster that is moving the slot answers with a redirection instead of splitting the queue. All other keys are
-- derived from it (they share its slot); headrace/keys.py says what each one holds.
--
-- Rules that every move keeps: it reads and checks everything before its first write, because an error half-way is
-- not rolled back; sent twice it changes nothing more, because clients re-send a command whose reply was lost; time
-- comes from the server; a hash of another version of the contract is left alone.
local P = string.sub(KEYS[1], 1, -5)
local LOAD, READY, DUE, BATCHES, WAKE = KEYS[1], P .. 'ready', P .. 'due', P .. 'batches', P .. 'wake'
local REQUEST, JOB, OUT, REPLY = P .. 'request:', P .. 'job:', P .. 'out:', P .. 'reply:'
local VERSION = '1'
local REPLY_TRIM_MS, REPLY_TTL_MS, DEAD_ENTRIES = 10000, 600000, '10000'

local function now()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end

-- tostring() of a large double loses digits; + 0 makes 0 of -0, which no command takes for an integer
local function int(x) return string.format('%.0f', x + 0) end

-- 0 also of what others wrote that is no number, or none that can be written down
local function number(s)
  local x = tonumber(s or '') or 0
  return math.abs(x) < math.huge and x or 0
end

local function is_whole(s) return s ~= nil and #s <= 16 and string.match(s, '^%-?%d+$') ~= nil end

-- whether a hash says of a queued request what a scheduler must know of it
local function is_told(h)
  return is_whole(h.prompt) and is_whole(h.cost) and is_whole(h.strikes) and is_whole(h.deadline or '0')
    and is_whole(h.t_submit or '0') and string.match(h.at or '', '^[^:]*:%d+:%d+$') ~= nil
end

-- a field of a stream's entry, '' without one. Takes the entry's fields
local function field_of(fields, name)
  for i = 1, #fields, 2 do if fields[i] == name then return fields[i+1] end end
  return ''
end

-- the fence: owner, epoch, tokens written
local function where(at)
  local owner, epoch, n = string.match(at or '', '^([^:]*):(%d+):(%d+)$')
  return owner or '', number(epoch), number(n)
end

-- what somebody has put in a request's place, and is no hash, is no request
local function read(id, ...)
  local values, h = redis.pcall('HMGET', REQUEST .. id, ...), {}
  if values.err then return h end
  for i, name in ipairs({...}) do h[name] = values[i] or nil end
  return h
end

-- MessagePack, by hand: some servers' Lua lacks cmsgpack
local function mp_int(x)
  if x < 128 then return string.char(x) end
  return string.char(206, math.floor(x / 16777216) % 256, math.floor(x / 65536) % 256, math.floor(x / 256) % 256, x % 256)
end
local function mp_str(s)
  if #s < 32 then return string.char(160 + #s) .. s end
  s = string.sub(s, 1, 65535)
  return string.char(218, math.floor(#s / 256), #s % 256) .. s
end

-- an `error` object of a terminal chunk
local function failure(enc, code, message)
  if enc == 'mp' then
    return string.char(131) .. mp_str('code') .. mp_str(code) .. mp_str('message') .. mp_str(message)
      .. mp_str('field') .. mp_str('')
  end
  return '{"code":' .. cjson.encode(code) .. ',"message":' .. cjson.encode(message) .. ',"field":""}'
end

-- a terminal chunk without tokens behind n of them; err is an encoded error object or ''
local function terminal(enc, n, o, reason, prompt, completion, err)
  if enc == 'mp' then
    return string.char(133) .. mp_str('i') .. mp_int(n) .. mp_str('o') .. mp_int(o) .. mp_str('ids') .. string.char(144)
      .. mp_str('text') .. mp_str('') .. mp_str('done') .. string.char(err == '' and 130 or 131)
      .. mp_str('reason') .. mp_str(reason) .. mp_str('usage') .. string.char(130)
      .. mp_str('prompt_tokens') .. mp_int(prompt) .. mp_str('completion_tokens') .. mp_int(completion)
      .. (err == '' and '' or mp_str('error') .. err)
  end
  return '{"i":' .. int(n) .. ',"o":' .. int(o) .. ',"ids":[],"text":"","done":{"reason":"' .. reason
    .. '","usage":{"prompt_tokens":' .. int(prompt) .. ',"completion_tokens":' .. int(completion) .. '}'
    .. (err == '' and '' or ',"error":' .. err) .. '}}'
end

-- n > 1: a request forks into children <id>/0, <id>/1, …; only their ids hold a slash
local function parent_of(id) return string.match(id, '^(.+)/%d+$') end
local function children_of(id, n)
  local ids = {}
  for k = 0, number(n) - 1 do ids[#ids+1] = id .. '/' .. k end
  return ids
end

-- the head of a parent's result: where its children's results are
local function pointer(enc, ids)
  if enc == 'mp' then
    local parts = {string.char(133), mp_str('i'), mp_int(0), mp_str('o'), mp_int(0), mp_str('ids'), string.char(144),
      mp_str('text'), mp_str(''), mp_str('children'), string.char(220, 0, #ids)}
    for _, id in ipairs(ids) do parts[#parts+1] = mp_str(id) end
    return table.concat(parts)
  end
  return '{"i":0,"o":0,"ids":[],"text":"","children":["' .. table.concat(ids, '","') .. '"]}'
end

-- a request's canonical job; children share their parent's
local function job_of(id) return redis.call('GET', JOB .. (parent_of(id) or id)) or '' end

local function ring() redis.call('XADD', WAKE, 'MAXLEN', '1', '*', 'x', '1') end

local function queued(by, cost)
  redis.call('HINCRBY', LOAD, 'queued', by)
  redis.call('HINCRBY', LOAD, 'queued_tokens', int(by * cost))
end
local function running(by, cost)
  redis.call('HINCRBY', LOAD, 'running', by)
  redis.call('HINCRBY', LOAD, 'running_tokens', int(by * cost))
end

-- XADD to a key that others may have spoilt (another type, an id ahead of ours): what they wrote goes, because a write
-- that fails here would fail for ever, and half of a move would stand each time
local function append(key, ...)
  local reply = redis.pcall('XADD', key, ...)
  if type(reply) == 'table' and reply.err then
    redis.call('DEL', key)
    redis.call('XADD', key, ...)
  end
end

-- one entry a reply stream: {name = {id, chunk, id, chunk, …}}
local function deliver(mail, t)
  for name, fields in pairs(mail) do
    append(REPLY .. name, 'MINID', '~', int(t - REPLY_TRIM_MS), '*', unpack(fields))
    redis.call('PEXPIRE', REPLY .. name, REPLY_TTL_MS)
  end
end

local function publish(id, h, entry, chunk, t)
  append(OUT .. id, entry, h.enc or 'json', chunk)
  redis.call('PUBLISH', OUT .. id, chunk)
  if h.reply and h.reply ~= '' then deliver({[h.reply] = {id, chunk}}, t) end
end

local finish

-- a child has ended; the last one ends its parent, with the worst of their reasons
local RANK = {stop = 1, length = 2, expired = 3, cancelled = 4, ['error'] = 5}
local function leave(parent, child, reason, t)
  local h = read(parent, 'v', 'state', 'cost', 'at', 'o', 'enc', 'reply', 'prompt', 'ttl', 'children', 'open', 'worst', 'spent')
  if h.v ~= VERSION or h.state ~= 'forked' then return end
  local _, _, n = where(redis.call('HGET', REQUEST .. child, 'at'))
  local open, worst = number(h.open) - 1, h.worst
  if RANK[reason] > (RANK[worst] or 0) then worst = reason end
  h.completion = number(h.spent) + n
  redis.call('HSET', REQUEST .. parent, 'open', open, 'worst', worst, 'spent', int(h.completion))
  if open > 0 then return end
  finish(parent, h, worst, t, worst == 'error' and failure(h.enc, 'child', 'one of ' .. h.children
    .. ' results ended in an error, which its own last chunk tells') or '')
end

-- the only way into the state `done`, whoever calls; h has state, cost, ttl, and children where there are any.
-- A child's result lives as long as its parent's, so that a reader finds all of them or none.
local function settle(id, h, reason, t)
  local cost = number(h.cost)
  if h.state == 'running' then running(-1, cost)
  elseif h.state == 'submitted' or h.state == 'queued' or h.state == 'batched' then queued(-1, cost) end
  redis.call('ZREM', READY, id)
  redis.call('ZREM', DUE, id)
  redis.call('DEL', JOB .. id)
  redis.call('HSET', REQUEST .. id, 'state', 'done', 'reason', reason, 't_done', int(t))
  local parent = parent_of(id)
  if parent then leave(parent, id, reason, t); return end
  local ttl = number(h.ttl) > 0 and h.ttl or '600000' -- or all of it would be gone in this instant
  local ids = children_of(id, h.children)
  ids[#ids+1] = id
  for _, name in ipairs(ids) do
    redis.call('PEXPIRE', REQUEST .. name, ttl)
    redis.call('PEXPIRE', OUT .. name, ttl)
  end
end

-- what finish() must know of a request
local FINISH = {'v', 'state', 'cost', 'at', 'o', 'enc', 'reply', 'prompt', 'ttl', 'entry', 'stream', 'children'}

-- end a request with a chunk that the broker writes itself; h has FINISH
finish = function(id, h, reason, t, err)
  local _, epoch, n = where(h.at)
  local chunk = terminal(h.enc or 'json', n, number(h.o), reason, number(h.prompt), h.completion or n, err or '')
  redis.call('HSET', REQUEST .. id, 'at', ':' .. int(epoch) .. ':' .. int(n)) -- nobody may write behind it
  -- or it would be admitted after all, should its stream be read when this hash has expired
  if h.state == 'submitted' and h.entry and h.stream then redis.call('XDEL', P .. h.stream, h.entry) end
  publish(id, h, int(n) .. '-2', chunk, t)
  settle(id, h, reason, t)
end

-- end whatever of a request still lives: its children where it has forked, and with the last of them itself
local function withdraw(id, h, t)
  if h.v ~= VERSION or h.state == 'done' or h.state == 'tomb' then return end
  if h.state ~= 'forked' then finish(id, h, 'cancelled', t); return end
  for _, child in ipairs(children_of(id, h.children)) do
    withdraw(child, read(child, unpack(FINISH)), t)
  end
end

-- what requeue() must know of a request, with FINISH
local REQUEUE = {'v', 'state', 'cost', 'at', 'o', 'enc', 'reply', 'prompt', 'ttl', 'score', 'deadline', 'strikes', 'n0'}

-- give a running or batched request back to the queue, or bury it. A strike is a lease lost without a token since the
-- claim; progress forgives all of them. Returns 'queued', 'expired' or 'dead'
local function requeue(id, h, t, struck, max_strikes)
  local _, epoch, n = where(h.at)
  local strikes, deadline, cost = number(h.strikes), number(h.deadline), number(h.cost)
  if deadline > 0 and deadline <= t then finish(id, h, 'expired', t); return 'expired' end
  if h.state == 'running' and n > number(h.n0) then strikes = 0 elseif struck then strikes = strikes + 1 end
  if struck and strikes >= max_strikes then
    append(P .. 'dead', 'MAXLEN', '~', DEAD_ENTRIES, '*', 'v', VERSION, 'id', id, 'why',
      'lost ' .. strikes .. ' workers without a token', 'job', job_of(id))
    finish(id, h, 'error', t, failure(h.enc, 'poison', 'given up: ' .. strikes .. ' workers died of it without a token'))
    return 'dead'
  end
  if h.state == 'running' then running(-1, cost); queued(1, cost) end
  redis.call('HSET', REQUEST .. id, 'state', 'queued', 'at', ':' .. int(epoch) .. ':' .. int(n), 'strikes', strikes)
  redis.call('ZADD', READY, h.score, id)
  redis.call('ZADD', DUE, deadline > 0 and int(deadline) or '+inf', id)
  return 'queued'
end

-- The response cache: `cache` holds answers by key, each behind a line of what is known of it; `cacheuse` orders the keys
-- by their last use; `cachesum` has the bytes of all, and counts. All of it goes when nothing was kept for a life.
local CACHE, CACHE_USE, CACHE_SUM = P .. 'cache', P .. 'cacheuse', P .. 'cachesum'

-- a command on the cache; where somebody has spoilt its keys, all of it goes, because answers can be computed again
local function on_cache(command, ...)
  local reply = redis.pcall(command, ...)
  if type(reply) ~= 'table' or not reply.err then return reply end
  redis.call('DEL', CACHE, CACHE_USE, CACHE_SUM)
  return nil
end

local function forget(key, kept)
  on_cache('HDEL', CACHE, key)
  on_cache('ZREM', CACHE_USE, key)
  on_cache('HINCRBY', CACHE_SUM, 'bytes', -#kept - #key)
end

-- the answer kept under a key: {n, o, reason, chunk}; nil where there is none, or it is too old
local function recall(key, t)
  local kept = on_cache('HGET', CACHE, key) or ''
  local until_ms, n, o, reason, at = string.match(kept, '^(%d+) (%d+) (%d+) (%l+) ()')
  if kept ~= '' and (not at or number(until_ms) <= t) then forget(key, kept); at = nil end
  on_cache('HINCRBY', CACHE_SUM, at and 'hits' or 'misses', 1)
  if not at then return nil end
  on_cache('ZADD', CACHE_USE, int(t), key)
  return {n = n, o = o, reason = reason, chunk = string.sub(kept, at)}
end

-- a new request's hash; `fields` are further names and values
local function create(id, state, t, fields)
  redis.call('DEL', OUT .. id) -- of a namesake whose hash expired a moment earlier
  redis.call('HSET', REQUEST .. id, 'v', VERSION, 'state', state, 'at', ':0:0', 'o', 0, 'strikes', 0, 'attempts', 0,
    't_submit', int(t), unpack(fields))
  redis.call('PERSIST', REQUEST .. id)
end
