#!lua flags=allow-oom
-- cancel: end a request now, wherever it is, with all of its children. A worker that runs it hears of it at its next emit.
-- KEYS[1] load
-- ARGV    id, tombstone_ttl_ms
-- returns the state it was in; 'unknown' leaves a tombstone that cancels the request when it comes
-- twice   it is done
local id, ttl = ARGV[1], ARGV[2]
local h = read(id, unpack(FINISH))
if not h.v then
  redis.call('HSET', REQUEST .. id, 'v', VERSION, 'state', 'tomb')
  redis.call('PEXPIRE', REQUEST .. id, ttl)
  return 'unknown'
end
withdraw(id, h, now())
return h.state or 'unknown'
