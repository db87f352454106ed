#!lua
-- admit: a lane's entries, oldest first, become queued requests, refusals or cancellations.
-- KEYS[1] load
-- ARGV    stream (its name behind the prefix), lane, tenant and its weight, lane_offset (tokens), limit_requests,
--         limit_tokens, tombstone_ttl_ms, then 14 an entry: entry, kind ('request' or 'cancel'), id, enc, verdict (an
--         encoded error object, '' if valid), job ('' of one that was not tokenised, because its deadline was over),
--         cost, prompt (tokens), deadline_ms (after the entry's own time, 0 none), reply, ttl_ms, n (results; more than
--         one become children), echo (the encoded chunk that heads every result, '' none)
-- returns per entry: 'queued', 'invalid', 'overloaded', 'expired', 'cancelled', 'duplicate', or 'gone' (somebody else's)
-- twice   an entry counts once: when this call is the one that deletes it
-- A request for n > 1 results forks: its own hash and stream only say where its children are and, at last, that all
-- have ended. It costs nothing itself; each child is queued, priced and run as any request.
local WIDTH = 14
local stream, lane, tenant, weight, offset = P .. ARGV[1], ARGV[2], ARGV[3], math.max(number(ARGV[4]), 1e-6), number(ARGV[5])
local limit_requests, limit_tokens, tombstone_ttl = number(ARGV[6]), number(ARGV[7]), ARGV[8]
local t, items, out = now(), {}, {}
for a = 9, #ARGV, WIDTH do
  local item = {entry = ARGV[a], kind = ARGV[a+1], id = ARGV[a+2], enc = ARGV[a+3], verdict = ARGV[a+4], job = ARGV[a+5],
    cost = number(ARGV[a+6]), prompt = ARGV[a+7], deadline = number(ARGV[a+8]), reply = ARGV[a+9], ttl = ARGV[a+10],
    n = number(ARGV[a+11]), echo = ARGV[a+12], key = ARGV[a+13]}
  if item.deadline > 0 then item.deadline = number(string.match(item.entry, '^%d+')) + item.deadline end
  items[#items+1] = item
end
local num_queued, num_tokens, v
local function weigh()
  local load = redis.call('HMGET', LOAD, 'queued', 'queued_tokens', 'v')
  num_queued, num_tokens, v = number(load[1]), number(load[2]), number(load[3])
end
weigh()
local flow = lane .. ':' .. tenant
local finish_time = number(redis.call('HGET', P .. 'tenants', flow))

-- whether the children's names are free: tombstones are, and results whose parent has expired before them
local function are_free(ids)
  for _, id in ipairs(ids) do
    local h = read(id, 'v', 'state')
    if h.v and (h.v ~= VERSION or h.state ~= 'tomb' and h.state ~= 'done') then return false end
  end
  return true
end

-- into `ready`, by start-time fair queueing: a flow is a tenant's lane, virtual time counts tokens, the score never
-- changes again. The hash is there, and counts in `load`.
local function enqueue(id, item)
  local start = math.max(v, finish_time)
  finish_time = start + item.cost / weight
  if item.echo ~= '' then publish(id, item, '0-1', item.echo, t) end
  redis.call('HSET', REQUEST .. id, 'state', 'queued', 'enc', item.enc, 'cost', int(item.cost), 'prompt', item.prompt,
    'ttl', item.ttl, 'reply', item.reply, 'deadline', int(item.deadline), 'start', int(start),
    'score', int(start + offset), 't_admit', int(t))
  redis.call('ZADD', READY, int(start + offset), id)
  redis.call('ZADD', DUE, item.deadline > 0 and int(item.deadline) or '+inf', id)
end

local function fork(item, ids)
  redis.call('HSET', REQUEST .. item.id, 'state', 'forked', 'enc', item.enc, 'cost', 0, 'prompt', item.prompt, 'ttl', item.ttl,
    'reply', item.reply, 't_admit', int(t), 'children', #ids, 'open', #ids, 'spent', 0)
  redis.call('ZADD', DUE, '+inf', item.id)
  publish(item.id, item, '0-1', pointer(item.enc, ids), t)
  local withdrawn = {}
  for _, id in ipairs(ids) do
    if redis.call('HGET', REQUEST .. id, 'state') == 'tomb' then withdrawn[#withdrawn+1] = id end
    redis.call('DEL', REQUEST .. id)
    create(id, 'queued', t, {'entry', item.entry, 'stream', ARGV[1], 'lane', lane, 'tenant', tenant})
    queued(1, item.cost)
    enqueue(id, item)
  end
  for _, id in ipairs(withdrawn) do withdraw(id, read(id, unpack(FINISH)), t) end
end

-- the whole answer that somebody else's request was given, as this one's only chunk, behind its echo if it wants one
local function answer(id, item, was)
  local kept = recall(item.key, t)
  if not kept then return false end
  redis.call('HSET', REQUEST .. id, 'at', ':0:' .. kept.n, 'o', kept.o, 'prompt', item.prompt, 'reply', item.reply,
    't_admit', int(t))
  if item.echo ~= '' then publish(id, item, '0-1', item.echo, t) end
  publish(id, item, kept.n .. (kept.n == '0' and '-2' or '-0'), kept.chunk, t)
  settle(id, was, kept.reason, t)
  return true
end

local function register(item)
  local id = item.id
  -- read here and not in a pass of its own: an earlier entry of this call may have the same id
  local h = read(id, 'v', 'state', 'entry', 'stream', 'cost', 'at', 'o', 'enc', 'reply', 'prompt', 'ttl')
  local mine = h.state == 'submitted' and h.entry == item.entry and h.stream == ARGV[1]
  local ids = item.n > 1 and children_of(id, item.n) or {}
  if h.v and (h.v ~= VERSION or h.state ~= 'tomb' and not mine) or not are_free(ids) then return 'duplicate' end
  if not mine then
    create(id, 'new', t, {'entry', item.entry, 'stream', ARGV[1], 'lane', lane, 'enc', item.enc, 'ttl', item.ttl,
      'tenant', tenant, 'reply', item.reply, 'cost', 0, 'prompt', 0})
  end
  local was = {state = mine and 'submitted' or 'new', cost = mine and h.cost or 0, at = ':0:0', o = 0, enc = item.enc,
    reply = item.reply, prompt = item.prompt, ttl = item.ttl}
  if h.state == 'tomb' then finish(id, was, 'cancelled', t); return 'cancelled' end
  if item.verdict ~= '' then finish(id, was, 'error', t, item.verdict); return 'invalid' end
  if item.deadline > 0 and (item.deadline <= t or item.job == '') then finish(id, was, 'expired', t); return 'expired' end
  if item.key ~= '' and answer(id, item, was) then return 'cached' end
  if not mine and (num_queued + item.n > limit_requests or num_tokens + item.n * item.cost > limit_tokens) then
    finish(id, was, 'error', t, failure(item.enc, 'overloaded', 'the backlog is over its limit: ' .. int(num_queued)
      .. ' requests, ' .. int(num_tokens) .. ' tokens; submit again later'))
    return 'overloaded'
  end
  redis.call('SET', JOB .. id, item.job)
  if mine then queued(-1, number(h.cost)) end
  if #ids > 0 then
    fork(item, ids)
    weigh()
  else
    queued(1, item.cost)
    enqueue(id, item)
    num_queued = num_queued + (mine and 0 or 1)
    num_tokens = num_tokens + item.cost - (mine and number(h.cost) or 0)
  end
  return 'queued'
end

local function cancel(id)
  local h = read(id, unpack(FINISH))
  if not h.v then
    redis.call('HSET', REQUEST .. id, 'v', VERSION, 'state', 'tomb')
    redis.call('PEXPIRE', REQUEST .. id, tombstone_ttl)
  else withdraw(id, h, t) end
  weigh()
  return 'cancelled'
end

for _, item in ipairs(items) do
  if redis.call('XDEL', stream, item.entry) == 0 then out[#out+1] = 'gone'
  elseif item.kind == 'cancel' then out[#out+1] = cancel(item.id)
  else out[#out+1] = register(item) end
end
redis.call('HSET', P .. 'tenants', flow, int(finish_time))
return out
