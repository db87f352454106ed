#!lua
-- submit: a producer's request enters its lane, unless the backlog is over its limit. Runs for the SDK; others XADD.
-- KEYS[1] load
-- ARGV    id, stream (its name behind the prefix), lane, enc, body, cost (tokens, an estimate), limit_requests,
--         limit_tokens, ttl_ms, tenant, reply, recheck_ms (when reap shall see whether the entry is still there)
-- returns {'ok', entry} | {'known', state} | {'cancelled', ''} | {'overloaded', queued tokens} | {'unserved', tenant}
-- twice   the hash exists: 'known'. It writes then too, because a client that waits for the disk must have written.
local id, stream, lane, enc, body = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local cost, limit_requests, limit_tokens, ttl = number(ARGV[6]), number(ARGV[7]), number(ARGV[8]), ARGV[9]
local tenant, reply, recheck = ARGV[10], ARGV[11], number(ARGV[12])
local t, h = now(), read(id, unpack(FINISH))
if h.v == VERSION and h.state == 'tomb' then
  create(id, 'new', t, {'enc', enc, 'ttl', ttl, 'reply', reply, 'tenant', tenant})
  finish(id, {enc = enc, ttl = ttl, reply = reply}, 'cancelled', t)
  return {'cancelled', ''}
end
if h.v then
  redis.call('HSET', LOAD, 't_known', int(t))
  return {'known', h.state or ''}
end
-- a scheduler enters the tenants that it serves; a stream that nobody reads would only fill the backlog
if tenant ~= '' and redis.call('HEXISTS', P .. 'tenants', lane .. ':' .. tenant) == 0 then return {'unserved', tenant} end
local load = redis.call('HMGET', LOAD, 'queued', 'queued_tokens')
if number(load[1]) + 1 > limit_requests or number(load[2]) + cost > limit_tokens then
  return {'overloaded', int(number(load[2]))}
end
local entry = redis.call('XADD', P .. stream, '*', 'id', id, enc, body)
create(id, 'submitted', t, {'entry', entry, 'stream', stream, 'lane', lane, 'enc', enc, 'cost', int(cost), 'ttl', ttl,
  'tenant', tenant, 'reply', reply, 'prompt', 0})
redis.call('ZADD', DUE, int(t + recheck), id)
queued(1, cost)
return {'ok', entry}
