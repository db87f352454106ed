#!lua flags=allow-oom
-- dispatch: ready requests become one batch, if the workers' backlog is short.
-- KEYS[1] load
-- ARGV    max_backlog (batches waiting that were cut for this class), recheck_ms (when reap shall see whether the batch
--         is still there), class of workers it is cut for ('' for any), log_entries (kept in `batchlog`), tokens,
--         longest, predicted_ms (what the log tells of it), hopeless (how many of the first ids cannot meet their
--         deadlines any more, as the scheduler reckons), id, id, …
-- returns {entry, id, id, …}: the batch's entry ('' none, 'full' no room) and the ids that are not in it
-- twice   its ids have left `ready`
-- A request with a strike travels alone: its batch is marked `solo`, and asked for in company it stays behind. One whose
-- deadline is over, or hopeless, ends here, whether or not there is room: it must not cost a worker anything.
local max_backlog, recheck, class, first_id = number(ARGV[1]), number(ARGV[2]), ARGV[3], 9
local last_hopeless = first_id + number(ARGV[8]) - 1
local waiting = 0
if redis.call('XLEN', BATCHES) >= max_backlog then -- few, and each a short list
  for _, e in ipairs(redis.call('XRANGE', BATCHES, '-', '+')) do
    if field_of(e[2], 'class') == class then waiting = waiting + 1 end
  end
end
local t, go, late, rest, seen, virtual, solo = now(), {}, {}, {}, {}, 0, '0'
for a = first_id, #ARGV do
  local id = ARGV[a]
  local h = read(id, 'v', 'state', 'strikes', 'start', 'deadline')
  local suspect, twice, deadline = number(h.strikes) > 0, seen[id], number(h.deadline)
  local ready = redis.call('ZSCORE', READY, id) and h.state == 'queued' and h.v == VERSION
  seen[id] = true
  if twice then -- a batch holds it once, or it would be counted twice
  elseif ready and deadline > 0 and (deadline <= t or a <= last_hopeless) then
    late[#late+1] = {id = id, h = read(id, unpack(FINISH))}
    rest[#rest+1] = id
  elseif ready and a > last_hopeless and (not suspect or #ARGV == first_id) then
    if suspect then solo = '1' end
    local due = t + recheck
    if deadline > 0 and deadline < due then due = deadline end
    go[#go+1] = {id = id, due = due}
    virtual = math.max(virtual, number(h.start))
  else rest[#rest+1] = id end
end
for _, item in ipairs(late) do finish(item.id, item.h, 'expired', t) end
if waiting >= max_backlog then return {'full'} end
if #go == 0 then return {'', unpack(rest)} end
local v, ids = number(redis.call('HGET', LOAD, 'v')), {}
for _, item in ipairs(go) do ids[#ids+1] = item.id end
local entry = redis.call('XADD', BATCHES, '*', 'v', VERSION, 'solo', solo, 'class', class,
  'ids', table.concat(ids, ' '))
append(P .. 'batchlog', 'MAXLEN', '~', ARGV[4], '*', 'kind', 'cut', 'batch', entry, 'class', class, 'rows', #go,
  'tokens', ARGV[5], 'longest', ARGV[6], 'ms', ARGV[7])
for _, item in ipairs(go) do
  redis.call('ZREM', READY, item.id)
  redis.call('ZADD', DUE, int(item.due), item.id)
  redis.call('HSET', REQUEST .. item.id, 'state', 'batched', 'batch', entry, 't_dispatch', int(t))
end
if virtual > v then redis.call('HSET', LOAD, 'v', int(virtual)) end
return {entry, unpack(rest)}
