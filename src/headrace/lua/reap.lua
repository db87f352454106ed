#!lua flags=allow-oom
-- reap: look at every request whose time has come: requeue what a lost worker held, expire, bury.
-- KEYS[1] load
-- ARGV    limit (ids a call), max_strikes, lease_ms, max_gap_ms, recheck_ms
-- returns {looked at, requeued, expired, dead, amnesty (1 or 0), strays (ids that left `ready`)}
-- twice   whatever was due has a later time now
-- Amnesty: if no reap ran for max_gap_ms, or the last one lies in the future, the broker or all reapers were away and
-- workers could not renew: no worker loses a lease for as long as one lease lasts. A row is spared once until it is
-- renewed: a reaper that is always late, and so always grants amnesty, must still find the lost ones. The half
-- millisecond in its `due` marks it; every other move writes whole ones.
-- A batch that no worker took for recheck_ms is taken back: those that could hold it may be gone for good, and it
-- would stand in the backlog for ever. Where they are only busy, the scheduler makes the same batch again.
-- The front of `ready` is looked at, too: an id behind which no queued request is would take a place in every window, and
-- hundreds of them all places. Of a request whose hash is gone nobody can say any more what it counted for in `load`; its
-- job goes, and its result when its time is over.
local limit, max_strikes, lease, max_gap, recheck = ARGV[1], number(ARGV[2]), number(ARGV[3]), number(ARGV[4]), number(ARGV[5])
local t = now()
local clock = redis.call('HMGET', LOAD, 'reaped_at', 'amnesty_until')
local last, amnesty = number(clock[1]), number(clock[2])
if last == 0 or t < last or t - last > max_gap then amnesty = t + lease
elseif amnesty <= t or amnesty - t > lease then amnesty = 0 end
local found, count = {}, {queued = 0, expired = 0, dead = 0}
local due = redis.call('ZRANGEBYSCORE', DUE, '-inf', int(t), 'WITHSCORES', 'LIMIT', 0, limit)
for i = 1, #due, 2 do
  local id = due[i]
  local h = read(id, 'v', 'state', 'cost', 'at', 'o', 'enc', 'reply', 'prompt', 'ttl', 'score', 'deadline', 'strikes', 'n0',
    'batch', 'entry', 'stream')
  local stream, entry = nil, nil
  if h.state == 'batched' then stream, entry = BATCHES, h.batch
  elseif h.state == 'submitted' then stream, entry = P .. (h.stream or 'requests'), h.entry end
  h.waits = entry and #redis.call('XRANGE', stream, entry, entry) > 0
  h.id, h.spared = id, number(due[i+1]) % 1 == 0.5
  found[#found+1] = h
end
local strays, damaged = {}, {}
for _, id in ipairs(redis.call('ZRANGE', READY, 0, number(limit) - 1)) do
  local h = read(id, 'v', 'state', 'prompt', 'cost', 'strikes', 'deadline', 't_submit', 'at')
  if not h.v or h.v == VERSION and h.state ~= 'queued' then strays[#strays+1] = {id = id, gone = not h.v}
  elseif h.v == VERSION and not is_told(h) then damaged[#damaged+1] = {id = id, h = read(id, unpack(FINISH))} end
end

local function clear(id)
  redis.call('ZREM', READY, id)
  redis.call('ZREM', DUE, id)
  redis.call('DEL', JOB .. id)
  if redis.call('PTTL', OUT .. id) == -1 then redis.call('PEXPIRE', OUT .. id, '600000') end
end

-- before anything is queued again, or it would leave `ready` at once
for _, stray in ipairs(strays) do
  if stray.gone then clear(stray.id) else redis.call('ZREM', READY, stray.id) end
end
for _, item in ipairs(damaged) do
  finish(item.id, item.h, 'error', t, failure(item.h.enc, 'lost', 'its hash was damaged while it waited'))
  count.dead = count.dead + 1
end
redis.call('HSET', LOAD, 'reaped_at', int(t), 'amnesty_until', int(amnesty))
for _, h in ipairs(found) do
  local id, deadline = h.id, number(h.deadline)
  if not h.v then clear(id)
  elseif h.v ~= VERSION then redis.call('ZADD', DUE, int(t + recheck), id)
  elseif h.state == 'done' or h.state == 'tomb' then redis.call('ZREM', DUE, id)
  elseif deadline > 0 and deadline <= t then finish(id, h, 'expired', t); count.expired = count.expired + 1
  elseif h.state == 'running' and amnesty > 0 and not h.spared then
    local over = deadline > 0 and deadline < amnesty and int(deadline) or int(amnesty) .. '.5'
    redis.call('ZADD', DUE, over, id)
  elseif h.state == 'running' or h.state == 'batched' then
    if h.state == 'batched' and h.waits then redis.call('XDEL', BATCHES, h.batch) end
    local fate = requeue(id, h, t, h.state == 'running', max_strikes)
    count[fate] = count[fate] + 1
  elseif h.state == 'submitted' and not h.waits then
    finish(id, h, 'error', t, failure(h.enc, 'lost', 'its entry was deleted from the stream before it was admitted'))
    count.dead = count.dead + 1
  elseif h.state == 'queued' or h.state == 'forked' then redis.call('ZADD', DUE, deadline > 0 and int(deadline) or '+inf', id)
  else redis.call('ZADD', DUE, int(t + recheck), id) end
end
return {#found, count.queued, count.expired, count.dead, amnesty > 0 and 1 or 0, #strays}
