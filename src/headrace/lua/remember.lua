#!lua
-- remember: keep an answer in the response cache, for requests that come again.
-- KEYS[1] load
-- ARGV    key, life_ms, max_entries, max_bytes, tokens in the answer, length of its text, reason, chunk (all of it)
-- returns 1, or 0 where it alone is more than max_bytes
-- twice   the same answer takes its own place
-- Those that were not used for longest make room. Not on a full server: it is the first thing to go without.
local key, life, max_entries, max_bytes, t = ARGV[1], number(ARGV[2]), number(ARGV[3]), number(ARGV[4]), now()
local kept = int(t + life) .. ' ' .. int(number(ARGV[5])) .. ' ' .. int(number(ARGV[6])) .. ' ' .. ARGV[7] .. ' ' .. ARGV[8]
local size = #kept + #key
if size > max_bytes then return 0 end
local old = on_cache('HGET', CACHE, key)
if old then forget(key, old) end
local bytes, count = number(on_cache('HGET', CACHE_SUM, 'bytes')), number(on_cache('ZCARD', CACHE_USE))
while count > 0 and (count >= max_entries or bytes + size > max_bytes) do
  local oldest = redis.call('ZRANGE', CACHE_USE, 0, 0)[1]
  local value = on_cache('HGET', CACHE, oldest) or ''
  forget(oldest, value)
  bytes, count = bytes - #value - #oldest, count - 1
  on_cache('HINCRBY', CACHE_SUM, 'evicted', 1)
end
on_cache('HSET', CACHE, key, kept)
on_cache('ZADD', CACHE_USE, int(t), key)
on_cache('HINCRBY', CACHE_SUM, 'bytes', size)
on_cache('HINCRBY', CACHE_SUM, 'kept', 1)
for _, name in ipairs({CACHE, CACHE_USE, CACHE_SUM}) do
  if redis.call('PTTL', name) < life then redis.call('PEXPIRE', name, int(life)) end
end
return 1
