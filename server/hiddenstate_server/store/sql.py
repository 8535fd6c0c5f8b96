"""The tables of the SQLite store, and what is asked of them.

A write touches a session's row and the index of keys only. What lists and expires sessions stands beside it, in `live`
and `ended`, and changes when sessions begin and end. `live.due` is a time before which the lease cannot have run out;
it is put off when it has come, not at every use.
"""

from __future__ import annotations

from hiddenstate_server.store import Record

APPLICATION, LAYOUT = 0x48534454, 1

_COLUMNS = Record._fields[:-1]
# The tenant is what stands before the last "/".
_ENTER = """
    INSERT INTO live
        SELECT new.id, substr(prefix, 1, length(prefix) - 1), new.model, new.created, new.last_use + new.lease
        FROM (SELECT rtrim(new.key, replace(new.key, '/', '')) AS prefix) WHERE new.ended = '';
    INSERT INTO ended SELECT new.id, (julianday('now') - 2440587.5) * 86400.0 WHERE new.ended != '';
"""
SCHEMA = f"""
CREATE TABLE IF NOT EXISTS sessions (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, fence INTEGER NOT NULL, owner TEXT NOT NULL,
    model TEXT NOT NULL, version TEXT NOT NULL, step INTEGER NOT NULL, rewinds INTEGER NOT NULL,
    created INTEGER NOT NULL, last_use REAL NOT NULL, lease REAL NOT NULL, labels TEXT NOT NULL, shadow TEXT NOT NULL,
    ended TEXT NOT NULL, body BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS live (
    id INTEGER PRIMARY KEY, tenant TEXT NOT NULL, model TEXT NOT NULL, created INTEGER NOT NULL, due REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS live_by_creation ON live (tenant, created, model);
CREATE INDEX IF NOT EXISTS live_by_due ON live (due);
CREATE TABLE IF NOT EXISTS ended (id INTEGER PRIMARY KEY, at REAL NOT NULL);
CREATE INDEX IF NOT EXISTS ended_by_time ON ended (at);
CREATE TABLE IF NOT EXISTS counts (
    tenant TEXT NOT NULL, model TEXT NOT NULL, sessions INTEGER NOT NULL, PRIMARY KEY (tenant, model)
) WITHOUT ROWID;

CREATE TRIGGER IF NOT EXISTS counts_up AFTER INSERT ON live BEGIN
    INSERT INTO counts VALUES (new.tenant, new.model, 1) ON CONFLICT DO UPDATE SET sessions = sessions + 1;
END;
CREATE TRIGGER IF NOT EXISTS counts_down AFTER DELETE ON live BEGIN
    UPDATE counts SET sessions = sessions - 1 WHERE tenant = old.tenant AND model = old.model;
    DELETE FROM counts WHERE tenant = old.tenant AND model = old.model AND sessions = 0;
END;
CREATE TRIGGER IF NOT EXISTS begins AFTER INSERT ON sessions BEGIN {_ENTER} END;
CREATE TRIGGER IF NOT EXISTS turns AFTER UPDATE ON sessions
WHEN old.ended != new.ended OR old.created != new.created OR old.model != new.model BEGIN
    DELETE FROM live WHERE id = new.id;
    DELETE FROM ended WHERE id = new.id; {_ENTER}
END;
CREATE TRIGGER IF NOT EXISTS is_due_sooner AFTER UPDATE ON sessions
WHEN new.last_use + new.lease < old.last_use + old.lease OR (new.owner = '' AND old.owner != '') BEGIN
    UPDATE live SET due = new.last_use + new.lease WHERE id = new.id;
END;
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {LAYOUT};
"""

_INSERT = f"INSERT INTO sessions ({', '.join(_COLUMNS)}) VALUES "
_ROW = f"({', '.join('?' * len(_COLUMNS))})"
# Record.yields_to.
_ON_CONFLICT = f""" ON CONFLICT (key) DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in _COLUMNS[1:])}
    WHERE excluded.fence > sessions.fence
    OR (excluded.fence = sessions.fence AND (excluded.owner IN (sessions.owner, '') OR sessions.owner = ''))"""


def upsert(count: int) -> str:
    """Writes so many records; their columns follow each other in the values."""
    return _INSERT + ", ".join([_ROW] * count) + _ON_CONFLICT


_AMONG_KEYS = "key IN (SELECT value FROM json_each(?))"
HELD_BY = f"SELECT json_group_array(json_array(key, fence, owner)) FROM sessions WHERE {_AMONG_KEYS}"
CLAIM = f"UPDATE sessions SET owner = ?, fence = fence + 1 WHERE ended = '' AND {_AMONG_KEYS}"
RELEASE = f"UPDATE sessions SET owner = '' WHERE ended = '' AND owner = ? AND {_AMONG_KEYS}"
# By itself SQLite writes 15 digits of a real number into JSON: too few for a time.
_PACKED = {name: name for name in _COLUMNS} | {
    name: f"json(printf('%!.17g', {name}))" for name in ("last_use", "lease")
}
_WITHOUT_BODY = ", ".join((_PACKED | {"body": "length(body)"}).values())
FIND = f"""SELECT json_group_array(json_array(id, {_WITHOUT_BODY})) FROM sessions WHERE {_AMONG_KEYS}"""


def bodies(count: int) -> str:
    """One row with a column for each of so many ids."""
    return "SELECT " + ", ".join(["(SELECT body FROM sessions WHERE id = ?)"] * count)


_HAS_LABELS = """CASE sessions.labels WHEN '' THEN 0 ELSE NOT EXISTS (
    SELECT * FROM json_each(:labels) AS wanted WHERE NOT EXISTS (
        SELECT * FROM json_each(sessions.labels) AS has WHERE has.key = wanted.key AND has.value = wanted.value)) END"""
_MATCHING = f"""FROM live CROSS JOIN sessions USING (id) WHERE live.tenant = :tenant
    AND (:model = '' OR live.model = :model) AND last_use <= :used_by AND (:labels = '{{}}' OR {_HAS_LABELS})"""
PAGE = f"""SELECT json_group_array(json_array({_WITHOUT_BODY})) FROM (
    SELECT sessions.* {_MATCHING} AND live.created >= :created AND (live.created > :created OR key > :key)
    ORDER BY live.created, key LIMIT :limit)"""
COUNT = f"SELECT count(*) {_MATCHING}"
LIVE = "SELECT coalesce(sum(sessions), 0) FROM counts"
TOTAL = "SELECT coalesce(sum(sessions), 0) FROM counts WHERE tenant = :tenant AND (:model = '' OR model = :model)"

_END = "last_use + lease + CASE owner WHEN '' THEN 0 ELSE :grace END"
_DUE = "(SELECT id FROM live WHERE due <= :now ORDER BY due LIMIT :slice)"
EXPIRE = f"""UPDATE sessions SET ended = 'EXPIRED', owner = '', fence = fence + 1, body = x''
    WHERE id IN {_DUE} AND {_END} <= :now"""
PUT_OFF = f"UPDATE live SET due = (SELECT {_END} FROM sessions WHERE sessions.id = live.id) WHERE id IN {_DUE}"
_OLD = "(SELECT id FROM ended WHERE at < :before ORDER BY at LIMIT :slice)"
PRUNE = f"DELETE FROM sessions WHERE id IN {_OLD}"
PRUNE_TIMES = f"DELETE FROM ended WHERE id IN {_OLD}"
