#!lua flags=allow-oom
-- heartbeat: a worker lives, and tells what it holds. A script for its flag: were workers to seem dead on a full
-- server, nobody would send them requests, and none would end to make room.
-- KEYS[1] load
-- ARGV    worker, info (JSON), life_ms
-- returns now_ms
-- twice   it is a little later
local key, t, life = P .. 'worker:' .. ARGV[1], now(), number(ARGV[3])
redis.call('HSET', key, 'info', ARGV[2])
-- the hash holds the memory of the last claim too, which may have to live longer
if redis.call('PTTL', key) < life then redis.call('PEXPIRE', key, int(life)) end
redis.call('ZADD', P .. 'workers', int(t), ARGV[1])
return int(t)
