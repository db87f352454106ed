#!lua flags=allow-oom
-- emit: a worker's flush, at most 256 rows: publish chunks, end rows, renew leases, hand rows back.
-- KEYS[1] load
-- ARGV    lease_ms, max_strikes, then 9 a row: id, prev and next (both 'owner:epoch:n'), entry (the chunk's id), verb, o
--         (length of the text after it), enc, reply, chunk. Verbs: 'chunk'; 'renew' (no chunk); 'yield' (hand back, costs
--         nothing); 'lost' (hand back after the engine died: a strike, unless the row has a token since its claim); or a
--         reason, which publishes the chunk as the last one
-- returns {now_ms, then 2 a refused row: id, what its `at` is ('' unknown)}: drop those rows
-- twice   compare-and-set on `at`: a chunk goes in behind the very token that it continues, or was the last to go in
local WIDTH = 9
local lease, max_strikes, t = number(ARGV[1]), number(ARGV[2]), now()
local rows, refused, seen = {}, {int(t)}, {}
local BARE, ENDS = {renew = true, yield = true, lost = true}, {stop = true, length = true, expired = true, ['error'] = true}

-- an XADD that failed half-way would leave the rows behind it unpublished, however often the call is sent
local function malformed(row)
  if BARE[row.verb] then return row.prev ~= row.next end
  local from, to = string.match(row.prev, '%d+$'), string.match(row.next, '%d+$')
  if row.prev == row.next then return not ENDS[row.verb] or row.entry ~= (to or '') .. '-2' end
  return not (row.verb == 'chunk' or ENDS[row.verb]) or number(to) <= number(from) or row.entry ~= to .. '-0'
end

if (#ARGV - 2) % WIDTH ~= 0 then return redis.error_reply('ERR emit: ' .. WIDTH .. ' arguments a row') end
for a = 3, #ARGV, WIDTH do
  local row = {id = ARGV[a], prev = ARGV[a+1], next = ARGV[a+2], entry = ARGV[a+3], verb = ARGV[a+4], o = ARGV[a+5],
    enc = ARGV[a+6], reply = ARGV[a+7], chunk = ARGV[a+8]}
  local here = read(row.id, 'at', 'v')
  local at = here.v == VERSION and here.at or ''
  if seen[row.id] then return redis.error_reply('ERR emit: ' .. row.id .. ' stands twice in one call') end
  if malformed(row) then return redis.error_reply('ERR emit: ' .. row.id .. ' cannot go on with ' .. row.verb .. ' '
    .. row.entry .. ' from ' .. row.prev .. ' to ' .. row.next) end
  if at == row.prev then row.go = true
  elseif at ~= row.next or row.verb ~= 'chunk' then refused[#refused+1] = row.id; refused[#refused+1] = at; row.skip = true end
  if row.go and row.verb ~= 'chunk' and row.verb ~= 'renew' then row.h = read(row.id, unpack(REQUEUE)) end
  seen[row.id] = true
  rows[#rows+1] = row
end
local renew, mail, ended, rang = {}, {}, {}, false
for _, row in ipairs(rows) do
  local id, verb = row.id, row.verb
  if row.skip then -- answered above
  elseif verb == 'renew' or not row.go then renew[#renew+1] = int(t + lease); renew[#renew+1] = id
  elseif verb == 'yield' or verb == 'lost' then
    requeue(id, row.h, t, verb == 'lost', max_strikes)
    rang = true
  else
    append(OUT .. id, row.entry, row.enc, row.chunk)
    redis.call('PUBLISH', OUT .. id, row.chunk)
    if row.reply ~= '' then
      local fields = mail[row.reply] or {}
      mail[row.reply] = fields
      fields[#fields+1] = id; fields[#fields+1] = row.chunk
    end
    if verb == 'chunk' then
      redis.call('HSET', REQUEST .. id, 'at', row.next, 'o', row.o)
      renew[#renew+1] = int(t + lease); renew[#renew+1] = id
    else
      local _, epoch, n = where(row.next)
      redis.call('HSET', REQUEST .. id, 'at', ':' .. int(epoch) .. ':' .. int(n), 'o', row.o)
      ended[#ended+1] = row
    end
  end
end
if #renew > 0 then redis.call('ZADD', DUE, 'XX', unpack(renew)) end
deliver(mail, t)
-- behind all chunks, for the last child's end is also its parent's
for _, row in ipairs(ended) do settle(row.id, row.h, row.verb, t) end
if rang then ring() end
return refused
