"""What every store promises, held against each of them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.stores import RedisCluster, RedisServer, redis_cluster, redis_server

from hiddenstate_server.errors import StartError
from hiddenstate_server.store import Filters, Record, Store, open_store, redacted

LEASE = 600.0


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    with redis_cluster(tmp_path_factory.mktemp("cluster")) as servers:
        yield servers


@pytest.fixture(params=["memory", "sqlite", "redis", "cluster"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty store of each kind."""
    if request.param == "memory":
        return "memory://"
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/sessions.db"
    servers: RedisServer | RedisCluster = request.getfixturevalue(request.param)
    servers.empty()
    return servers.url


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    opened = open_store(url)
    yield opened
    opened.close()


def record(key: str = "/a", fence: int = 1, owner: str = "one", **fields: object) -> Record:
    """A live session, used just now."""
    blank = Record(key, fence, owner, "gru", "1", 0, 0, 1, time.time(), LEASE, "", "", "", b"state")
    return blank._replace(**fields)  # type: ignore[arg-type]


def sessions(count: int, tenant: str = "") -> list[Record]:
    """Sessions in the order of their creation, which is not that of their keys."""
    return [record(f"{tenant}/{(n * 7919) % count:06}", created=1_700_000_000_000_000_000 + n) for n in range(count)]


def test_what_is_written_is_found(store: Store) -> None:
    written = record(
        "tenant/s:1",
        3,
        "worker",
        model="next-word",
        version="12",
        step=2**40,
        rewinds=7,
        created=1_763_952_123_456_789_012,
        last_use=1_763_952_123.123456,
        lease=0.5,
        labels='{"plant":"Köln \\"1\\""}',
        shadow="13",
        body=bytes(range(256)) * 16,
    )
    assert store.write([written]) == []
    assert store.find(["tenant/s:1", "tenant/other"]) == {"tenant/s:1": written}


@pytest.mark.parametrize("body", [b"", b"\0", b"\0" * 300, "ü".encode(), b"\xff\xfe\n\r\0,'\""])
def test_bodies_are_bytes(store: Store, body: bytes) -> None:
    store.write([record(body=body)])
    assert store.find(["/a"])["/a"].body == body


def test_a_slow_old_owner_changes_nothing(store: Store) -> None:
    store.write([record("/a", step=5), record("/b", step=5)])
    claimed = store.claim(["/a"], "two")["/a"]
    assert (claimed.owner, claimed.fence, claimed.step) == ("two", 2, 5)
    assert store.write([record("/a", step=6, body=b"old"), record("/b", step=6, body=b"mine")]) == ["/a"]
    assert store.find(["/a"])["/a"] == claimed
    assert store.find(["/b"])["/b"].body == b"mine"
    assert store.write([claimed._replace(step=7)]) == []


def test_an_old_owner_cannot_end_a_session_either(store: Store) -> None:
    store.write([record()])
    claimed = store.claim(["/a"], "two")["/a"]
    assert store.write([record(ended="CLOSED", owner="", body=b"")]) == ["/a"]
    assert store.find(["/a"])["/a"] == claimed


def test_two_that_create_one_session(store: Store) -> None:
    assert store.write([record(owner="one", step=3)]) == []
    assert store.write([record(owner="two", step=9)]) == ["/a"]
    assert store.find(["/a"])["/a"].step == 3


def test_what_was_released_can_be_claimed(store: Store) -> None:
    store.write([record()])
    assert store.write([record(owner="", step=4)]) == []
    assert store.find(["/a"])["/a"].owner == ""
    claimed = store.claim(["/a"], "two")["/a"]
    assert (claimed.owner, claimed.fence, claimed.step) == ("two", 2, 4)


def test_only_what_is_still_ones_own_is_released(store: Store) -> None:
    store.write([record("/mine"), record("/taken"), record("/gone", ended="CLOSED", owner="")])
    store.claim(["/taken"], "two")
    store.release(["/mine", "/taken", "/gone", "/unknown"], "one")
    found = store.find(["/mine", "/taken", "/gone", "/unknown"])
    assert {key: (one.owner, one.fence) for key, one in found.items()} == {
        "/mine": ("", 1), "/taken": ("two", 2), "/gone": ("", 1)
    }  # fmt: skip
    assert store.write([record("/taken", 2, "two", step=1)]) == []


def test_claims_of_one_owner_after_the_other(store: Store) -> None:
    store.write([record()])
    assert [store.claim(["/a", "/nobody"], owner)["/a"].fence for owner in ("two", "three", "two")] == [2, 3, 4]
    assert "/nobody" not in store.claim(["/nobody"], "two")


def test_a_session_twice_in_one_batch(store: Store) -> None:
    assert store.write([record(step=1), record(step=2)]) == []
    assert store.find(["/a"])["/a"].step == 2


@pytest.mark.parametrize("ending", ["EXPIRED", "CLOSED", "EVICTED"])
def test_endings_are_kept(store: Store, ending: str) -> None:
    store.write([record()])
    ended = record(ended=ending, owner="", body=b"")
    store.write([ended])
    assert store.find(["/a"]) == {"/a": ended}
    assert store.claim(["/a"], "two") == {"/a": ended}
    assert store.page("", Filters()) == ([], 0)
    assert store.expire(time.time() + 10 * LEASE, 0.0) == 0
    assert store.find(["/a"]) == {"/a": ended}


def test_endings_are_pruned_by_age(store: Store) -> None:
    store.write([record("/live"), record("/a", ended="CLOSED", body=b""), record("/b")])
    store.write([record("/b", ended="EXPIRED", body=b"")])
    store.prune(time.time() - 60)
    assert set(store.find(["/live", "/a", "/b"])) == {"/live", "/a", "/b"}
    store.prune(time.time() + 60)
    assert set(store.find(["/live", "/a", "/b"])) == {"/live"}


def test_an_id_is_used_again(store: Store) -> None:
    store.write([record()])
    store.write([record(ended="CLOSED", body=b"")])
    again = record(fence=2, owner="two", created=99, model="lstm", body=b"new")
    assert store.write([again]) == []
    store.prune(time.time() + 60)
    assert store.find(["/a"]) == {"/a": again}
    listed, total = store.page("", Filters(model="lstm"))
    assert ([found.created for found in listed], total) == ([99], 1)
    assert store.page("", Filters(model="gru")) == ([], 0)
    assert store.expire(again.expires, 0.0) == 1


def test_leases_run_out(store: Store) -> None:
    now = time.time()
    store.write([record("/free", owner="", last_use=now), record("/held", last_use=now)])
    assert store.expire(now + LEASE - 1, 30.0) == 0
    assert store.expire(now + LEASE, 30.0) == 1
    free = store.find(["/free"])["/free"]
    assert (free.ended, free.owner, free.fence, free.body) == ("EXPIRED", "", 2, b"")
    assert store.find(["/held"])["/held"].ended == ""
    assert store.expire(now + LEASE + 29, 30.0) == 0
    assert store.expire(now + LEASE + 30, 30.0) == 1
    assert store.write([record("/held", step=9)]) == ["/held"]
    assert store.page("", Filters()) == ([], 0)


def test_use_puts_off_the_end_and_a_shorter_lease_brings_it_nearer(store: Store) -> None:
    now = time.time()
    store.write([record("/used", owner="", last_use=now), record("/shortened", owner="", last_use=now)])
    store.write(
        [record("/used", owner="", last_use=now + 100), record("/shortened", owner="", last_use=now, lease=5.0)]
    )
    assert store.expire(now + 6, 0.0) == 1
    assert store.find(["/shortened"])["/shortened"].ended == "EXPIRED"
    assert store.expire(now + LEASE + 99, 0.0) == 0
    assert store.expire(now + LEASE + 100, 0.0) == 1


def test_a_lease_that_ran_out_while_held_ends_at_the_release(store: Store) -> None:
    now = time.time()
    store.write([record(last_use=now)])
    assert store.expire(now + LEASE + 1, 1000.0) == 0
    store.write([record(owner="", last_use=now)])
    assert store.expire(now + LEASE + 1, 1000.0) == 1


def test_pages_follow_the_order_of_creation(store: Store) -> None:
    everything = sessions(250)
    store.write(everything[::-1])
    store.write(sessions(3, "other"))
    seen: list[str] = []
    position = (0, "")
    while len(seen) < 250:
        page, total = store.page("", Filters(), position, 40)
        assert total == 250
        assert page
        seen += [found.key for found in page]
        position = (page[-1].created, page[-1].key)
    assert seen == [each.key for each in everything]
    assert store.page("", Filters(), position, 40) == ([], 250)


def test_sessions_created_at_the_same_moment_are_listed_once(store: Store) -> None:
    keys = [f"/{name}" for name in ("a", "a-", "a.", "a:1", "aa", "b")]
    store.write([record(key, created=5) for key in keys])
    seen: list[str] = []
    while page := store.page("", Filters(), (5, seen[-1]) if seen else (0, ""), 1)[0]:
        seen += [found.key for found in page]
    assert seen == sorted(keys)


def test_a_page_holds_everything_but_the_body(store: Store) -> None:
    written = record(labels='{"a":"b"}', shadow="2", step=3, rewinds=1, body=b"12345")
    store.write([written])
    assert store.page("", Filters()) == ([written._replace(body=b"", size=5)], 1)


def test_live_sessions_of_all_tenants_are_counted(store: Store) -> None:
    assert store.live() == 0
    store.write([record("/a"), record("x/a"), record("y/b", model="lstm"), record("/c", ended="CLOSED", body=b"")])
    assert store.live() == 3
    store.write([record("x/a", ended="CLOSED", body=b"")])
    assert store.live() == 2


def test_pages_by_tenant(store: Store) -> None:
    store.write([record("/a"), record("red/a"), record("red/b"), record("redder/a"), record("red/er/a")])
    assert [store.page(tenant, Filters())[1] for tenant in ("", "red", "redder", "red/er", "re", "blue")] == [
        1,
        2,
        1,
        1,
        0,
        0,
    ]


def test_pages_by_model_labels_and_idle_time(store: Store) -> None:
    now = time.time()
    plants = [json.dumps({"plant": str(n % 2), 'od"d': "x"}) for n in range(4)]
    store.write([record(f"/{n}", created=n + 1, labels=plants[n], last_use=now - 100 * n) for n in range(4)])
    store.write([record("/word", created=9, model="next-word", last_use=now - 150)])

    def keys(**filters: object) -> list[str]:
        page, total = store.page("", Filters(**filters))  # type: ignore[arg-type]
        assert total == len(page)
        return [found.key for found in page]

    assert keys(model="next-word") == ["/word"]
    assert keys(model="none") == []
    assert keys(labels={"plant": "1"}) == ["/1", "/3"]
    assert keys(labels={"plant": "1", 'od"d': "x"}) == ["/1", "/3"]
    assert keys(labels={"plant": "1", "other": ""}) == []
    assert keys(idle_for=150.0) == ["/2", "/3", "/word"]
    assert keys(model="gru", labels={"plant": "0"}, idle_for=50.0) == ["/2"]


def test_the_total_counts_beyond_a_filtered_page(store: Store) -> None:
    store.write([each._replace(labels='{"a":"b"}') for each in sessions(50)])
    page, total = store.page("", Filters(labels={"a": "b"}), limit=20)
    assert (len(page), total) == (20, 50)


def test_big_batches(store: Store) -> None:
    everything = sessions(5_000)
    assert store.write(everything) == []
    keys = [each.key for each in everything]
    claimed = store.claim(keys, "two")
    assert len(claimed) == 5_000
    assert {each.fence for each in claimed.values()} == {2}
    assert sorted(store.write(everything)) == sorted(keys)
    assert store.page("", Filters(), limit=1)[1] == 5_000
    assert store.expire(time.time() + LEASE, 0.0) == 5_000


def test_many_that_run_out_at_once_are_ended_and_forgotten_piece_by_piece(store: Store) -> None:
    everything = [each._replace(owner="") for each in sessions(40_000)]
    for start in range(0, 40_000, 5_000):
        store.write(everything[start : start + 5_000])
    later, expired = time.time() + LEASE, 0
    while store.page("", Filters(), limit=1)[1]:
        expired += store.expire(later, 0.0)
    assert expired == 40_000
    while store.find([everything[0].key, everything[20_000].key, everything[-1].key]):
        store.prune(time.time() + 60)


def test_nothing_is_a_batch_too(store: Store) -> None:
    assert store.write([]) == []
    assert store.claim([], "one") == {}
    assert store.find([]) == {}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("postgres://here/db", "'postgres'"),
        ("sessions.db", "no kind"),
        ("redis://here:port/0", "not one"),
    ],
)
def test_urls_that_name_no_store(wrong: str, says: str) -> None:
    with pytest.raises(StartError, match=says):
        open_store(wrong)


def test_passwords_are_not_shown() -> None:
    assert redacted("rediss://me:s3cret@store:6379/1?password=s3cret") == "rediss://store:6379/1"
