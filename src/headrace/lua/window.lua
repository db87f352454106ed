#!lua flags=no-writes,allow-oom
-- window: the front of what is ready, with all that a scheduler must know of it, in one round trip. No move: it changes
-- nothing.
-- KEYS[1] load
-- ARGV    count
-- returns {now_ms, how many are ready, tokens that running requests may come to hold, then 8 a request: id, score, prompt,
--         cost (tokens), tokens written before, strikes, deadline_ms, t_submit}
local ids = redis.call('ZRANGE', READY, 0, number(ARGV[1]) - 1, 'WITHSCORES')
local out = {int(now()), redis.call('ZCARD', READY), redis.call('HGET', LOAD, 'running_tokens') or '0'}
for i = 1, #ids, 2 do
  local h = redis.call('HMGET', REQUEST .. ids[i], 'prompt', 'cost', 'at', 'strikes', 'deadline', 't_submit')
  if h[1] and h[3] then
    local n = #out
    out[n+1], out[n+2], out[n+3], out[n+4] = ids[i], ids[i+1], h[1], h[2]
    out[n+5], out[n+6], out[n+7], out[n+8] = string.match(h[3], '%d+$'), h[4], h[5] or '0', h[6] or '0'
  end
end
return out
