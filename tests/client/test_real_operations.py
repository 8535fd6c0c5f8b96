"""What a session can do besides observing, on the real server."""

import numpy as np
import pytest

from hiddenstate import Client, GeneratedWord, RewindLimit, SessionClosed, SnapshotInvalid, WordPrediction


def test_rewinding_is_undoing(server: str) -> None:
    with Client(server) as client, client.session("next-word") as session, client.session("next-word") as straight:
        words = ["the", "w1", "w2", "w3", "w4"]
        seen = session.observe_many(words)
        assert session.rewind(3) == seen[1]
        assert (session.step, session.rewinds) == (2, 1)
        again = session.observe_many(["w7", "w8"])
        direct = straight.observe_many(["the", "w1", "w7", "w8"])
        assert again.surprise == pytest.approx(direct.surprise[2:], abs=1e-5)
        with pytest.raises(RewindLimit):
            session.rewind(5)
        session.observe_many(["w1"] * 300)
        with pytest.raises(RewindLimit) as caught:
            session.rewind(250)
        assert int(caught.value.metadata["oldest"]) > 54
        assert session.observe("the").step == 305


def test_generated_words(server: str) -> None:
    with Client(server) as client, client.session("next-word") as session:
        before = session.observe("the")
        assert isinstance(before, WordPrediction)
        first = list(session.generate(12, seed=7))
        assert first == list(session.generate(12, seed=7))
        assert all(isinstance(item, GeneratedWord) and 0 < item.probability <= 1 for item in first)
        assert session.peek() == before
        best = list(session.generate(3, temperature=0))
        assert best[0].word == before.top[0][0]
        taken = [word for word, _ in session.generate(5, seed=7, commit=True)]
        assert taken == [word for word, _ in first[:5]]
        assert session.peek().step == 6
        assert len(list(session.generate(50, stop=first[3].word, seed=7))) <= 4
        with session.generate(1000) as generation:
            next(generation)
        assert session.step == 6


def test_generated_values(server: str) -> None:
    with Client(server) as client, client.session("next-value") as session:
        session.observe_many(np.sin(np.arange(50) / 5))
        assert np.array(list(session.generate(6, seed=1))).shape == (6,)
        paths = np.array(list(session.generate(6, paths=4, seed=1)))
        assert paths.shape == (6, 4)
        low, high = np.array(list(session.generate(6, quantiles=[0.1, 0.9], seed=1))).T
        assert (low < high).all()
        assert len(list(session.generate(2, commit=True))) == 2
        assert session.peek().step == 52
    with Client(server) as client, client.session("weather") as session:
        session.observe_many(np.ones((5, 2)))
        assert np.array(list(session.generate(6, quantiles=[0.1, 0.5, 0.9], paths=32))).shape == (6, 3, 2)


def test_forks_go_their_own_way(server: str) -> None:
    with Client(server) as client, client.session("next-word", labels={"kind": "forked"}) as session:
        session.observe("the")
        copies = session.fork(2)
        assert [copy.step for copy in copies] == [1, 1]
        assert copies[0].observe("w1").surprise == pytest.approx(copies[1].observe("w1").surprise)
        assert copies[0].observe("w2").step == 3
        assert (session.step, copies[1].step) == (1, 2)
        assert copies[0].rewind(2) == session.peek()
        detached = client.fork(session.id)[0]
        with Client(server) as other:
            assert other.session("next-word", detached.id, resume=True).step == 1
        listed = [info.id for info in client.sessions("next-word", labels={"kind": "forked"})]
        assert {session.id, *(copy.id for copy in copies)} <= set(listed)
        assert client.close_sessions([copy.id for copy in copies]) == 2
        with pytest.raises(SessionClosed):
            copies[0].peek()


def test_snapshots_start_where_they_were_taken(server: str) -> None:
    with Client(server) as client, client.session("next-value") as session:
        session.observe_many(np.sin(np.arange(30) / 5))
        snapshot = session.export()
        with client.restore(snapshot, "restored") as copy:
            assert (copy.id, copy.step, copy.model.name) == ("restored", 30, "next-value")
            assert copy.peek() == session.peek()
            assert copy.observe(0.5) == session.observe(0.5)
        assert client.restore(client.export(session.id)).step == 31
        for forged in (snapshot[:-1], snapshot[:40] + bytes([snapshot[40] ^ 1]) + snapshot[41:], b"nothing"):
            with pytest.raises(SnapshotInvalid):
                client.restore(forged)


def test_following_a_session(server: str) -> None:
    with Client(server) as client, Client(server) as other:
        session = client.session("next-word")
        seen = [session.observe("the")]
        with other.watch(session.id) as watch:
            assert next(watch) == seen[0]
            seen = [session.observe(word) for word in ("w1", "w2")]
            assert [next(watch), next(watch)] == seen
            assert session.rewind() == next(watch)
            session.close()
            with pytest.raises((StopIteration, SessionClosed)):
                next(watch)


def test_warming_again(server: str) -> None:
    with Client(server) as client, client.session("next-word") as session:
        before = session.observe("the")
        session.rewarm()
        assert (session.step, session.model.version) == (1, "1")
        assert session.peek() == before
