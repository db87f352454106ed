#!lua flags=no-writes,allow-oom
-- window: the front of what is ready, with all that a scheduler must know of it, in one round trip. No move: it changes
-- nothing.
-- KEYS[1] load
-- ARGV    count, then 1 if what is in batches that wait for a worker is to be counted, else 0
-- returns {now_ms, how many are ready, how many run, tokens that these may come to hold, how many are in batches that
--         wait for a worker, tokens that these may come to hold (0, 0 if not counted), then 8 a request: id, score,
--         prompt, cost (tokens), tokens written before, strikes, deadline_ms, t_submit}. Ids behind which no queued
--         request is, or one whose hash is damaged, take their places until `reap` finds them.
local ids = redis.call('ZRANGE', READY, 0, number(ARGV[1]) - 1, 'WITHSCORES')
local totals = redis.call('HMGET', LOAD, 'running', 'running_tokens')
local num_waiting, waiting_tokens = 0, 0
local batches = number(ARGV[2]) == 1 and redis.call('XRANGE', BATCHES, '-', '+') or {} -- few, and each a short list
for _, e in ipairs(batches) do
  for id in string.gmatch(field_of(e[2], 'ids'), '%S+') do
    local h = read(id, 'state', 'batch', 'cost')
    if h.state == 'batched' and h.batch == e[1] and is_whole(h.cost) then
      num_waiting, waiting_tokens = num_waiting + 1, waiting_tokens + number(h.cost)
    end
  end
end
local out = {int(now()), redis.call('ZCARD', READY), int(number(totals[1])), int(number(totals[2])),
  num_waiting, int(waiting_tokens)}
for i = 1, #ids, 2 do
  local h = read(ids[i], 'v', 'state', 'prompt', 'cost', 'at', 'strikes', 'deadline', 't_submit')
  if h.v == VERSION and h.state == 'queued' and is_told(h) then
    local n, _, _, written = #out, where(h.at)
    out[n+1], out[n+2], out[n+3], out[n+4] = ids[i], ids[i+1], h.prompt, h.cost
    out[n+5], out[n+6], out[n+7], out[n+8] = int(written), h.strikes, h.deadline or '0', h.t_submit or '0'
  end
end
return out
