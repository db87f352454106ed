#!lua flags=allow-oom
-- heartbeat: a worker or a scheduler lives, and tells what it does. A script for its flag: were workers to seem dead on
-- a full server, nobody would send them requests, and none would end to make room.
-- KEYS[1] load
-- ARGV    kind (worker, scheduler), name, info (JSON), life_ms
-- returns now_ms
-- twice   it is a little later
local kind, t, life = ARGV[1], now(), number(ARGV[4])
local key = P .. kind .. ':' .. ARGV[2]
redis.call('HSET', key, 'info', ARGV[3])
-- a worker's hash holds the memory of the last claim too, which may have to live longer
if redis.call('PTTL', key) < life then redis.call('PEXPIRE', key, int(life)) end
redis.call('ZADD', P .. kind .. 's', int(t), ARGV[2])
return int(t)
