"""What can happen to a Redis: a power cut, a full memory, lost scripts, wrong passwords, a cluster whose nodes go."""

from __future__ import annotations

import concurrent.futures
import contextlib
from binascii import crc_hqx
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.server.certificates import Authority
from tests.server.test_store import record, sessions
from tests.stores import RedisServer, free_port, redis_cluster, redis_server

from hiddenstate_server.errors import StartError
from hiddenstate_server.store import Filters, Store, StoreError, open_store
from hiddenstate_server.store.redis import _PREFIXES


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as running:
        yield running


@contextlib.contextmanager
def opened(url: str) -> Iterator[Store]:
    store = open_store(url)
    try:
        yield store
    finally:
        store.close()


def test_a_power_cut_loses_nothing_and_the_same_store_goes_on(server: RedisServer) -> None:
    with opened(server.url) as store:
        everything = sessions(1_000)
        store.write(everything)
        server.kill()
        for _ in range(2):
            with pytest.raises(StoreError, match=r"127\.0\.0\.1"):
                store.write([record()])
        server.start()
        assert store.find([each.key for each in everything]) == {each.key: each for each in everything}
        assert store.write([record()]) == []
        assert store.page("", Filters(), limit=1)[1] == 1_001


def test_lost_scripts_are_loaded_again(server: RedisServer) -> None:
    with opened(server.url) as store, server.client() as client:
        store.write([record()])
        client.script_flush()
        assert store.write([record(step=2)]) == []


def test_a_full_memory_is_told_and_passes(server: RedisServer) -> None:
    with opened(server.url) as store, server.client() as client:
        before = record(body=b"before")
        store.write([before])
        client.config_set("maxmemory", 1)
        with pytest.raises(StoreError, match="maxmemory"):
            store.write([record(body=b"after")])
        client.config_set("maxmemory", 0)
        assert store.find(["/a"]) == {"/a": before}
        assert store.write([record(body=b"after")]) == []


def test_a_redis_that_drops_what_it_likes_is_refused(tmp_path: Path) -> None:
    flags = ["--maxmemory", "1gb", "--maxmemory-policy", "allkeys-lru"]
    with redis_server(tmp_path, *flags) as server, pytest.raises(StartError, match="noeviction"):
        open_store(server.url)


def _claims(url: str, owner: str, count: int) -> list[int]:
    with opened(url) as store:
        return [store.claim(["/a"], owner)["/a"].fence for _ in range(count)]


def test_claims_race(server: RedisServer) -> None:
    with opened(server.url) as store:
        store.write([record(fence=0)])
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            claims = [pool.submit(_claims, server.url, owner, 100) for owner in ("one", "two", "three", "four")]
            fences = [fence for each in claims for fence in each.result()]
        assert sorted(fences) == list(range(1, 401))
        assert store.find(["/a"])["/a"].fence == 400


def test_passwords_are_not_shown(server: RedisServer) -> None:
    with server.client() as client:
        client.config_set("requirepass", "right-s3cret")
    for credentials in (":wrong-s3cret@", "who:right-s3cret@", ""):
        with pytest.raises(StartError) as refused:
            open_store(f"redis://{credentials}127.0.0.1:{server.port}/0")
        assert "s3cret" not in str(refused.value)
    with opened(f"redis://:right-s3cret@127.0.0.1:{server.port}/0") as store:
        assert store.write([record()]) == []
        server.kill()
        with pytest.raises(StoreError) as failed:
            store.write([record()])
        assert "s3cret" not in str(failed.value)
        server.start()


def test_over_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "authority")
    own, port = authority.sign("redis"), free_port()
    flags = [
        "--tls-port",
        str(port),
        "--tls-auth-clients",
        "no",
        "--tls-ca-cert-file",
        str(authority.files.certificate),
    ]
    flags += ["--tls-cert-file", str(own.certificate), "--tls-key-file", str(own.key)]
    with redis_server(tmp_path, *flags):
        with opened(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={authority.files.certificate}") as store:
            assert store.write([record()]) == []
        with pytest.raises(StartError, match="certificate verify failed"):
            open_store(f"rediss://127.0.0.1:{port}/0")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis:///0", "names no host"),
        ("redis://127.0.0.1:1/0", "Connection refused"),
        ("redis+cluster://127.0.0.1:1", "127.0.0.1:1 cannot be used"),
        ("redis://no-such-host.invalid/0", "cannot be used"),
        ("redis://127.0.0.1/0?colour=red", "is not one"),
    ],
)
def test_urls_where_no_redis_answers(url: str, says: str) -> None:
    with pytest.raises(StartError, match=says):
        open_store(url)


def test_a_single_server_is_no_cluster(server: RedisServer) -> None:
    with pytest.raises(StartError, match="cannot be used"):
        open_store(server.url.replace("redis:", "redis+cluster:"))


def test_buckets_lie_evenly_over_a_cluster() -> None:
    slots = [crc_hqx(prefix.split("{")[1].split("}")[0].encode(), 0) % 16_384 for prefix in _PREFIXES]
    assert set(Counter(slot // 256 for slot in slots).values()) == {1}
    assert len(slots) == 64


def test_a_cluster_that_loses_a_node_goes_on_when_it_is_back(tmp_path: Path) -> None:
    everything = sessions(300)
    with redis_cluster(tmp_path) as cluster, opened(cluster.url) as store:
        store.write(everything)
        for server in cluster.servers[1:]:
            server.kill()
        for _ in range(2):
            with pytest.raises(StoreError):
                store.write(everything)
        for server in cluster.servers[1:]:
            server.start()
        cluster.wait()
        assert store.write(everything) == []
        assert store.find([each.key for each in everything]) == {each.key: each for each in everything}
        assert store.page("", Filters(), limit=1)[1] == 300


def test_a_slot_that_moves_is_followed(tmp_path: Path) -> None:
    with redis_cluster(tmp_path) as cluster, opened(cluster.url) as store:
        store.write([record()])
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(server.client()) for server in cluster.servers]
            source = next(client for client in clients if client.dbsize())
            target, port = next(
                (client, server.port)
                for client, server in zip(clients, cluster.servers, strict=True)
                if client is not source
            )
            slot = source.cluster("KEYSLOT", source.keys()[0])
            target.cluster("SETSLOT", slot, "IMPORTING", source.cluster("MYID").decode())
            source.cluster("SETSLOT", slot, "MIGRATING", target.cluster("MYID").decode())
            source.migrate("127.0.0.1", port, source.keys(), 0, 5_000)
            for client in (target, source):
                client.cluster("SETSLOT", slot, "NODE", target.cluster("MYID").decode())
        assert store.write([record(step=2)]) == []
        assert store.page("", Filters())[1] == 1
