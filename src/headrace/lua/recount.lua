#!lua flags=allow-oom
-- recount: put totals right that somebody's writes have made wrong, by a count of all requests. No move, and needed by
-- nobody who leaves a queue's keys alone.
-- KEYS[1] load
-- ARGV    queued, queued_tokens, running, running_tokens as they were when the requests were counted, then the same four
--         as they were counted
-- returns 1, or 0 where they have changed since: then the count is worth nothing
-- twice   they are right
local NAMES = {'queued', 'queued_tokens', 'running', 'running_tokens'}
local here = redis.call('HMGET', LOAD, unpack(NAMES))
for i = 1, #NAMES do
  if number(here[i]) ~= number(ARGV[i]) then return 0 end
end
for i, name in ipairs(NAMES) do redis.call('HSET', LOAD, name, int(number(ARGV[#NAMES + i]))) end
return 1
