#!lua flags=allow-oom
-- heartbeat: a worker or a scheduler lives, and tells what it does. A script for its flag: were workers to seem dead on
-- a full server, nobody would send them requests, and none would end to make room.
-- KEYS[1] load
-- ARGV    kind (worker, scheduler), name, info (JSON), life_ms, class of a worker
-- returns {now_ms, when (ms) somebody last asked this class to measure its costs again, 0 for never}
-- twice   it is a little later
local kind, t, life = ARGV[1], now(), number(ARGV[4])
local key = P .. kind .. ':' .. ARGV[2]
redis.call('HSET', key, 'info', ARGV[3])
-- a worker's hash holds the memory of the last claim too, which may have to live longer
if redis.call('PTTL', key) < life then redis.call('PEXPIRE', key, int(life)) end
redis.call('ZADD', P .. kind .. 's', int(t), ARGV[2])
if kind ~= 'worker' then return {int(t), '0'} end
if ARGV[5] ~= '' then redis.call('ZADD', P .. 'classes', int(t), ARGV[5]) end
local asked = redis.call('HMGET', P .. 'measure', ARGV[5], '*')
return {int(t), int(math.max(number(asked[1]), number(asked[2])))}
