-- What runs inside Redis, on the sessions of one bucket: all keys of a bucket lie in one slot of a cluster.
--
-- A session is one string: six hexadecimal digits that give the length of its head, the head, the body. The head is the
-- fields below, joined by a character that neither names nor JSON contain. Beside a bucket's sessions lie
--
--   live:TENANT    sorted set   creation NUL key NUL model, all with score 0 and so in that order
--   count:TENANT   hash         sessions by model
--   due            sorted set   keys by a time before which their lease cannot have run out
--   ended          sorted set   keys by the time they ended
--
-- `due` is put off when it has come, not at every use, so that a write of a session that goes on touches nothing else.

-- KEYS: what the keys of the bucket begin with. ARGV: the operation, the time now (seconds since 1970), what it needs.

local FENCE, OWNER, ENDED, CREATED, LAST_USE, LEASE, MODEL, LABELS = 1, 2, 3, 4, 5, 6, 7, 11
local CHUNK = 1000

local prefix, now, call = KEYS[1], tonumber(ARGV[2]), redis.call

local function session(key)
  return prefix .. 's:' .. key
end

local function body_starts(value)
  return 7 + tonumber(value:sub(1, 6), 16)
end

local function fields(value)
  local found = {}
  for field in (value:sub(7, body_starts(value) - 1) .. '\31'):gmatch('(.-)\31') do
    found[#found + 1] = field
  end
  return found
end

local function packed(found)
  local head = table.concat(found, '\31')
  return string.format('%06x', #head) .. head
end

local function head(key)
  local start = call('GETRANGE', session(key), 0, 255)
  if start == '' then
    return nil
  end
  if body_starts(start) > 257 then
    start = call('GETRANGE', session(key), 0, body_starts(start) - 2)
  end
  return fields(start)
end

local function expires(found)
  return tonumber(found[LAST_USE]) + tonumber(found[LEASE])
end

local function indexes(key, found)
  local tenant = key:match('^(.*)/')
  return prefix .. 'live:' .. tenant, prefix .. 'count:' .. tenant, found[CREATED] .. '\0' .. key .. '\0' .. found[MODEL]
end

local function enter(key, found)
  if found[ENDED] ~= '' then
    call('ZADD', prefix .. 'ended', now, key)
    return
  end
  local live, count, member = indexes(key, found)
  call('ZADD', live, 0, member)
  call('HINCRBY', count, found[MODEL], 1)
  call('ZADD', prefix .. 'due', expires(found), key)
end

local function leave(key, found)
  if found[ENDED] ~= '' then
    call('ZREM', prefix .. 'ended', key)
    return
  end
  local live, count, member = indexes(key, found)
  call('ZREM', live, member)
  if call('HINCRBY', count, found[MODEL], -1) == 0 then
    call('HDEL', count, found[MODEL])
  end
  call('ZREM', prefix .. 'due', key)
end

-- Record.yields_to.
local function yields_to(old, new)
  local older = tonumber(new[FENCE]) - tonumber(old[FENCE])
  if older == 0 then
    return new[OWNER] == old[OWNER] or new[OWNER] == '' or old[OWNER] == ''
  end
  return older > 0
end

local operations = {}

-- Key and value of each record -> keys refused.
function operations.write()
  local refused = {}
  for i = 3, #ARGV, 2 do
    local key, value = ARGV[i], ARGV[i + 1]
    local old, new = head(key), fields(value)
    if old and not yields_to(old, new) then
      refused[#refused + 1] = key
    else
      call('SET', session(key), value)
      if not old then
        enter(key, new)
      elseif old[ENDED] ~= new[ENDED] or old[CREATED] ~= new[CREATED] or old[MODEL] ~= new[MODEL] then
        leave(key, old)
        enter(key, new)
      elseif new[ENDED] == '' and (expires(new) < expires(old) or (new[OWNER] == '' and old[OWNER] ~= '')) then
        call('ZADD', prefix .. 'due', expires(new), key)
      end
    end
  end
  return refused
end

-- Owner, keys -> values, false where there is none.
function operations.claim()
  local values = {}
  for i = 4, #ARGV do
    local value = call('GET', session(ARGV[i]))
    local found = value and fields(value)
    if found and found[ENDED] == '' then
      found[OWNER], found[FENCE] = ARGV[3], string.format('%d', tonumber(found[FENCE]) + 1)
      value = packed(found) .. value:sub(body_starts(value))
      call('SET', session(ARGV[i]), value)
    end
    values[#values + 1] = value
  end
  return values
end

-- Owner, keys -> whether each was the owner's.
function operations.release()
  local released = {}
  for i = 4, #ARGV do
    local value = call('GET', session(ARGV[i]))
    local found = value and fields(value)
    released[#released + 1] = found and found[ENDED] == '' and found[OWNER] == ARGV[3]
    if released[#released] then
      found[OWNER] = ''
      call('SET', session(ARGV[i]), packed(found) .. value:sub(body_starts(value)))
      call('ZADD', prefix .. 'due', expires(found), ARGV[i])
    end
  end
  return released
end

-- Keys -> values, false where there is none.
function operations.find()
  local values = {}
  for i = 3, #ARGV do
    values[#values + 1] = call('GET', session(ARGV[i]))
  end
  return values
end

-- Keys -> bytes of the body and the head, false where there is none.
function operations.heads()
  local heads = {}
  for i = 3, #ARGV do
    local found = head(ARGV[i])
    local text = found and packed(found)
    heads[#heads + 1] = found ~= nil and { call('STRLEN', session(ARGV[i])) - #text, text }
  end
  return heads
end

-- Tenant, model, labels, idle for, after, how many at most (0: all that match are counted)
-- -> how many match, and their members of `live`.
function operations.page()
  local live, model, labels, limit = prefix .. 'live:' .. ARGV[3], ARGV[4], cjson.decode(ARGV[5]), tonumber(ARGV[8])
  local idle_for, after = tonumber(ARGV[6]), ARGV[7]
  local looks = idle_for > 0 or next(labels)

  local function matches(member)
    local key, its_model = member:match('^%d+%z(.-)%z(.*)$')
    if model ~= '' and model ~= its_model then
      return false
    end
    if not looks then
      return true
    end
    local found = head(key)
    if idle_for > 0 and tonumber(found[LAST_USE]) > now - idle_for then
      return false
    end
    local has = found[LABELS] == '' and {} or cjson.decode(found[LABELS])
    for label, value in pairs(labels) do
      if has[label] ~= value then
        return false
      end
    end
    return true
  end

  local members, count = {}, 0
  local size = model == '' and not looks and limit or CHUNK
  repeat
    local chunk = call('ZRANGEBYLEX', live, after, '+', 'LIMIT', 0, size)
    for _, member in ipairs(chunk) do
      if matches(member) then
        count = count + 1
        if limit > 0 then
          members[count] = member
          if count == limit then
            return { count, members }
          end
        end
      end
    end
    after = chunk[1] and '(' .. chunk[#chunk]
  until #chunk < size
  return { count, members }
end

-- Tenant, model -> how many there are.
function operations.count()
  local name, count = prefix .. 'count:' .. ARGV[3], 0
  if ARGV[4] ~= '' then
    return tonumber(call('HGET', name, ARGV[4]) or 0)
  end
  for _, sessions in ipairs(call('HVALS', name)) do
    count = count + tonumber(sessions)
  end
  return count
end

-- -> how many live sessions there are.
function operations.live()
  return call('ZCARD', prefix .. 'due')
end

-- Time, grace, how many to look at -> how many expired, how many were looked at.
function operations.expire()
  local time, grace, expired = tonumber(ARGV[3]), tonumber(ARGV[4]), 0
  local keys = call('ZRANGEBYSCORE', prefix .. 'due', '-inf', time, 'LIMIT', 0, ARGV[5])
  for _, key in ipairs(keys) do
    local found = head(key)
    local ends = expires(found) + (found[OWNER] == '' and 0 or grace)
    if ends <= time then
      leave(key, found)
      found[ENDED], found[OWNER], found[FENCE] = 'EXPIRED', '', string.format('%d', tonumber(found[FENCE]) + 1)
      call('SET', session(key), packed(found))
      enter(key, found)
      expired = expired + 1
    else
      call('ZADD', prefix .. 'due', ends, key)
    end
  end
  return { expired, #keys }
end

-- Time, how many at most -> how many were forgotten.
function operations.prune()
  local keys = call('ZRANGEBYSCORE', prefix .. 'ended', '-inf', '(' .. ARGV[3], 'LIMIT', 0, ARGV[4])
  for _, key in ipairs(keys) do
    call('DEL', session(key))
    call('ZREM', prefix .. 'ended', key)
  end
  return #keys
end

return operations[ARGV[1]]()
