#!lua flags=allow-oom
-- claim: a worker takes the oldest batch that it can ever hold, if it has room for it now. One that was cut by the costs
-- of another class of workers is left to them, for as long as one of them lives and it has not waited for too long.
-- KEYS[1] load
-- ARGV    worker (a name used for one life only), nonce (grows with every new claim), lease_ms, free_rows, free_tokens,
--         max_rows, max_tokens (its whole memory), unproven (rows without a token since their claim), class, patience_ms
-- returns {last, solo, batch (its entry, '' none), then 8 a row: id, epoch, n, o, enc, job, deadline_ms, reply}; `last`
--         is the id of the newest batch entry that need not be looked at again: without rows, wait for one behind it,
--         for room, or a while. solo is '1' when a suspect was taken: the worker claims nothing more until that row
--         has a token.
-- twice   the same nonce gives the same answer, less what ended meanwhile; an older one gives nothing
local worker, nonce, lease = ARGV[1], ARGV[2], number(ARGV[3])
local free_rows, free_tokens, max_rows, max_tokens = number(ARGV[4]), number(ARGV[5]), number(ARGV[6]), number(ARGV[7])
local unproven, key, mine, patience = number(ARGV[8]), P .. 'worker:' .. worker, ARGV[9], number(ARGV[10])
local t, last, solo, taken, ids = now(), '0-0', '0', '', nil
local w = redis.call('HMGET', key, 'nonce', 'ids', 'solo', 'batch')

local function answer()
  local out = {last, solo, taken}
  for id in string.gmatch(ids or '', '%S+') do
    local h = read(id, 'state', 'at', 'o', 'enc', 'deadline', 'reply')
    local owner, epoch, n = where(h.at)
    if h.state == 'running' and owner == worker then
      for _, x in ipairs({id, int(epoch), int(n), h.o or '0', h.enc or 'json', job_of(id),
        h.deadline or '0', h.reply or ''}) do out[#out+1] = x end
    end
  end
  return out
end

-- the fence is 'owner:epoch:n', and nobody owns a request whose owner is ''
if not string.find(worker, '^[^:]+$') then return redis.error_reply('ERR claim: a worker needs a name without a colon') end
if w[1] == nonce then ids, solo, taken = w[2], w[3], w[4]; return answer() end
if number(w[1] or '-1') > number(nonce) then return {last, solo, taken} end

-- read: {entry, members that are to run, members that expired}
local function look(entry, names)
  local batch = {entry = entry, run = {}, late = {}, tokens = 0, rows = 0}
  for id in string.gmatch(names or '', '%S+') do
    local h = read(id, 'v', 'state', 'batch', 'deadline', 'cost', 'at', 'o', 'enc', 'reply', 'prompt', 'ttl')
    if h.state == 'batched' and h.batch == entry and h.v == VERSION then
      local deadline = number(h.deadline)
      h.id = id
      if deadline > 0 and deadline <= t then batch.late[#batch.late+1] = h
      else
        batch.run[#batch.run+1] = h
        batch.rows, batch.tokens = batch.rows + 1, batch.tokens + number(h.cost)
      end
    end
  end
  return batch
end

local function take(batch)
  redis.call('XDEL', BATCHES, batch.entry)
  ring()
  for _, h in ipairs(batch.late) do finish(h.id, h, 'expired', t) end
  local names = {}
  for _, h in ipairs(batch.run) do
    local _, epoch, n = where(h.at)
    local cost = number(h.cost)
    redis.call('HSET', REQUEST .. h.id, 'state', 'running', 'at', worker .. ':' .. int(epoch + 1) .. ':' .. int(n),
      'n0', int(n), 't_claim', int(t))
    redis.call('HINCRBY', REQUEST .. h.id, 'attempts', 1)
    queued(-1, cost); running(1, cost)
    redis.call('ZADD', DUE, int(t + lease), h.id)
    names[#names+1] = h.id
  end
  return table.concat(names, ' ')
end

-- cut for another class that lives and has had less than patience_ms to take it
local function is_foreign(entry, class)
  if class == '' or class == mine then return false end
  if t - tonumber(string.match(entry, '^%d+')) >= patience then return false end
  return number(redis.call('ZSCORE', P .. 'classes', class)) > t - lease
end

-- true ends the search: taken, or nobody overtakes this one here, because rows end and then it fits
local function consider(e)
  local f = {}
  for i = 1, #e[2], 2 do f[e[2][i]] = e[2][i+1] end
  if f.v ~= VERSION or is_foreign(e[1], f.class or '') then return false end
  local batch = look(e[1], f.ids)
  if batch.rows == 0 then take(batch); return false end
  if batch.rows > max_rows or batch.tokens > max_tokens then return false end -- for a larger worker
  if batch.rows > free_rows or batch.tokens > free_tokens or (f.solo == '1' and unproven > 0) then
    -- what lies behind it does not matter either: the doorbell must not ring for it at once, again and again
    last = redis.call('XREVRANGE', BATCHES, '+', '-', 'COUNT', 1)[1][1]
    return true
  end
  ids, solo, taken = take(batch), f.solo, batch.entry
  redis.call('HSET', key, 'nonce', nonce, 'ids', ids, 'solo', solo, 'batch', taken)
  redis.call('PEXPIRE', key, int(math.max(lease * 6, 60000)))
  return true
end

local page, from = {}, '-'
repeat
  page = redis.call('XRANGE', BATCHES, from, '+', 'COUNT', 8)
  local stop = false
  for _, e in ipairs(page) do
    last = e[1]
    stop = consider(e)
    if stop then break end
  end
  from = '(' .. last
until stop or #page < 8
return answer()
