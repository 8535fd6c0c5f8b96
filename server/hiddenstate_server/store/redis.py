"""Sessions in Redis or Valkey, one server or a cluster, which the servers of several machines share.

A session's key decides its bucket, and a script (redis.lua) works on the sessions of one bucket. A call is one pipeline
with one script for each bucket concerned, so a failure may leave some buckets done and others not. The buckets lie
evenly over the slots of a cluster.

What Redis has acknowledged is as safe as it was told to make it (appendonly, appendfsync, replicas).
"""

from __future__ import annotations

import json
import time
from binascii import crc32, crc_hqx
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib import resources
from itertools import count
from typing import Any
from urllib.parse import SplitResult

import redis
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisClusterException
from redis.retry import Retry

from hiddenstate_server.errors import StartError
from hiddenstate_server.store import Filters, Position, Record, StoreError, redacted

_BUCKETS, _SLOTS = 64, 16_384
_TIMEOUT = 5.0
"""Seconds for a connection, and for an answer."""
_SLICE = 500
"""Sessions that a script ends or forgets at once: Redis serves nobody meanwhile."""
_PATIENCE = 0.2
"""Seconds after which the rest is left to the next call."""
_SEPARATOR = "\x1f"
_FAILURES = (redis.RedisError, RedisClusterException, OSError)
_Arguments = Sequence[str | bytes | float]


def from_url(parts: SplitResult) -> RedisStore:
    """redis://, rediss:// and their +cluster forms; StartError where it cannot be used."""
    shown = redacted(parts.geturl())
    if not parts.hostname:
        raise StartError(f"the store's URL {shown} names no host")
    scheme, _, cluster = parts.scheme.partition("+")
    url = parts._replace(scheme=scheme).geturl()
    options: dict[str, Any] = {"socket_timeout": _TIMEOUT, "socket_connect_timeout": _TIMEOUT}
    try:
        if cluster:
            # A cluster's slots move: what is tried again asks where they are first.
            client: Any = redis.RedisCluster.from_url(url, retry=Retry(NoBackoff(), 3), **options)
        else:
            client = redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), **options)
        _check_memory(client, shown)
    except _FAILURES as error:
        raise StartError(f"the store {shown} cannot be used: {error}") from error
    except (ValueError, TypeError) as error:
        raise StartError(f"the store's URL {shown} is not one: {error}") from error
    return RedisStore(client, shown)


class RedisStore:
    """Sessions behind a client of redis-py."""

    shared = True

    def __init__(self, client: Any, shown: str) -> None:
        self._client = client
        self._shown = shown
        self._script = resources.files(__package__).joinpath("redis.lua").read_text()
        self._digest = ""

    def write(self, records: Sequence[Record]) -> list[str]:
        arguments: dict[int, list[str | bytes]] = defaultdict(list)
        for record in records:
            arguments[_bucket(record.key)] += (record.key, _packed(record))
        return [key.decode() for refused in self._run("write", arguments).values() for key in refused]

    def claim(self, keys: Sequence[str], owner: str) -> dict[str, Record]:
        return self._values("claim", keys, owner)

    def release(self, keys: Sequence[str], owner: str) -> None:
        self._by_key("release", keys, owner)

    def find(self, keys: Sequence[str]) -> dict[str, Record]:
        return self._values("find", keys)

    def page(
        self, tenant: str, filters: Filters, after: Position = (0, ""), limit: int = 100
    ) -> tuple[list[Record], int]:
        looked_for = (tenant, filters.model, json.dumps(dict(filters.labels)), filters.idle_for)
        keys = self._listed(looked_for, b"(%020d\0%s\0\xff" % (after[0], after[1].encode()), limit)
        heads = self._by_key("heads", keys)
        records = [_record(key, head, size) for key, (size, head) in heads.items()]
        records.sort(key=lambda record: (record.created, record.key))
        if filters.labels or filters.idle_for:
            return records, sum(counted for counted, _ in self._everywhere("page", *looked_for, "-", 0))
        return records, sum(self._everywhere("count", tenant, filters.model))

    def live(self) -> int:
        return sum(self._everywhere("live"))

    def expire(self, now: float, grace: float) -> int:
        total, until = 0, time.monotonic() + _PATIENCE
        buckets: Sequence[int] = range(_BUCKETS)
        while buckets and time.monotonic() < until:
            done = self._run("expire", dict.fromkeys(buckets, (now, grace, _SLICE)))
            total += sum(expired for expired, _ in done.values())
            buckets = [bucket for bucket, (_, looked_at) in done.items() if looked_at == _SLICE]
        return total

    def prune(self, before: float) -> None:
        until = time.monotonic() + _PATIENCE
        buckets: Sequence[int] = range(_BUCKETS)
        while buckets and time.monotonic() < until:
            forgotten = self._run("prune", dict.fromkeys(buckets, (before, _SLICE)))
            buckets = [bucket for bucket, number in forgotten.items() if number == _SLICE]

    def close(self) -> None:
        self._client.close()

    def _listed(self, looked_for: _Arguments, after: bytes, limit: int) -> list[str]:
        """Keys of the first sessions that match."""
        # Somewhat more than a bucket's share; past the last that a bucket with more to come gave, nothing is certain.
        share = limit // 16 + 16
        found: list[bytes] = []
        while len(found) < limit:
            pages = [members for _, members in self._everywhere("page", *looked_for, after, share)]
            certain = min((members[-1] for members in pages if len(members) == share), default=None)
            found += sorted(member for members in pages for member in members if certain is None or member <= certain)
            if certain is None:
                break
            after = b"(" + certain
        return [member.split(b"\0")[1].decode() for member in found[:limit]]

    def _values(self, operation: str, keys: Sequence[str], *arguments: str) -> dict[str, Record]:
        return {key: _record(key, value) for key, value in self._by_key(operation, keys, *arguments).items()}

    def _by_key(self, operation: str, keys: Sequence[str], *arguments: str) -> dict[str, Any]:
        """What an operation gives for each key that is known."""
        buckets: dict[int, list[str]] = defaultdict(list)
        for key in keys:
            buckets[_bucket(key)].append(key)
        answers = self._run(operation, {bucket: (*arguments, *its) for bucket, its in buckets.items()})
        given = {bucket: zip(buckets[bucket], answer, strict=True) for bucket, answer in answers.items()}
        return {key: each for pairs in given.values() for key, each in pairs if each is not None}

    def _everywhere(self, operation: str, *arguments: str | bytes | float) -> list[Any]:
        return list(self._run(operation, dict.fromkeys(range(_BUCKETS), arguments)).values())

    def _run(self, operation: str, arguments: Mapping[int, _Arguments]) -> dict[int, Any]:
        """What an operation gives for each bucket."""
        if not arguments:
            return {}
        try:
            answers = self._pipelined(operation, arguments)
            if any(isinstance(answer, NoScriptError) for answer in answers):
                self._digest = self._client.script_load(self._script)
                answers = self._pipelined(operation, arguments)
            for answer in answers:
                if isinstance(answer, Exception):
                    raise answer
        except _FAILURES as error:
            raise StoreError(f"the store {self._shown} fails: {error}") from error
        return dict(zip(arguments, answers, strict=True))

    def _pipelined(self, operation: str, arguments: Mapping[int, _Arguments]) -> list[Any]:
        now = time.time()
        with self._client.pipeline(transaction=False) as pipeline:
            for bucket, its in arguments.items():
                pipeline.execute_command("EVALSHA", self._digest, 1, _PREFIXES[bucket], operation, now, *its)
            # Raised by the pipeline, errors would quote the whole command.
            answers: list[Any] = pipeline.execute(raise_on_error=False)
        return answers


def _bucket(key: str) -> int:
    return crc32(key.encode()) % _BUCKETS


def _prefix(bucket: int) -> str:
    """What the keys of a bucket begin with; the part in braces decides their slot."""
    tags = map(str, count())
    tag = next(tag for tag in tags if crc_hqx(tag.encode(), 0) % _SLOTS * _BUCKETS // _SLOTS == bucket)
    return f"hiddenstate:{{{tag}}}:"


_PREFIXES = [_prefix(bucket) for bucket in range(_BUCKETS)]


def _packed(record: Record) -> bytes:
    """See redis.lua. Numbers whose order matters have leading zeros."""
    _, fence, owner, model, version, step, rewinds, created, last_use, lease, labels, shadow, ended, body, _ = record
    fields = (
        *(str(fence), owner, ended, f"{created:020}", repr(last_use), repr(lease)),
        *(model, version, str(step), str(rewinds), labels, shadow),
    )
    head = _SEPARATOR.join(fields).encode()
    return b"%06x%s%s" % (len(head), head, body)


def _record(key: str, value: bytes, size: int = 0) -> Record:
    body = 6 + int(value[:6], 16)
    fence, owner, ended, created, last_use, lease, model, version, step, rewinds, labels, shadow = (
        value[6:body].decode().split(_SEPARATOR)
    )
    return Record(
        key,
        int(fence),
        owner,
        model,
        version,
        int(step),
        int(rewinds),
        int(created),
        float(last_use),
        float(lease),
        labels,
        shadow,
        ended,
        value[body:],
        size,
    )


def _check_memory(client: Any, shown: str) -> None:
    """StartError where Redis would drop sessions when it is full, instead of refusing to write them."""
    answer = client.info("memory")
    for memory in [answer] if "maxmemory" in answer else answer.values():
        if memory["maxmemory"] and memory["maxmemory_policy"].startswith("allkeys"):
            raise StartError(
                f"the store {shown} would drop sessions when its memory is full; set its maxmemory-policy to noeviction"
            )
