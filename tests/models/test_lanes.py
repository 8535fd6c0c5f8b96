"""Lanes: every step of every document once, in order, and fresh states where documents begin."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hiddenstate_models.data.lanes import Chunk, Lanes
from hiddenstate_models.errors import DataError

IGNORED = -100


def documents(lengths: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Documents whose inputs are numbered through, each target one more than its input."""
    starts = np.cumsum([0, *lengths])[:-1]
    return [(np.arange(s, s + n), np.arange(s, s + n) + 1) for s, n in zip(starts, lengths, strict=True)]


def read_back(chunks: list[Chunk], lane: int) -> tuple[list[list[int]], bool]:
    """The pieces a lane read, one per fresh state, and whether targets always fit inputs."""
    pieces: list[list[int]] = []
    fits = True
    for chunk in chunks:
        known = chunk.targets[:, lane] != IGNORED
        if chunk.starts[lane]:
            pieces.append([])
        pieces[-1] += chunk.inputs[known, lane].tolist()
        fits &= bool((chunk.targets[known, lane] == chunk.inputs[known, lane] + 1).all())
    return [piece for piece in pieces if piece], fits


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=20),
    lanes=st.integers(1, 5),
    steps=st.integers(1, 9),
    seed=st.none() | st.integers(0, 3),
    vary=st.booleans(),
)
def test_every_step_is_read_once_and_no_state_crosses_documents(
    lengths: list[int], lanes: int, steps: int, seed: int | None, vary: bool
) -> None:
    data = Lanes(documents(lengths), lanes=lanes, steps=steps, padding=IGNORED, seed=seed, vary=vary)
    chunks = list(data.epoch(0))
    assert len(chunks) == data.chunks_per_epoch(0)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    seen: list[int] = []
    for lane in range(lanes):
        pieces, fits = read_back(chunks, lane)
        assert fits
        for piece in pieces:
            assert piece == list(range(piece[0], piece[0] + len(piece)))
            assert len(set(owner[piece])) == 1
            seen += piece
    assert sorted(seen) == list(range(sum(lengths)))


def test_epochs_differ_and_repeat() -> None:
    data = Lanes(documents([5] * 40), lanes=4, steps=5, padding=IGNORED, seed=1)
    first, again, other = (np.stack([c.inputs for c in data.epoch(e)]) for e in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_skipping_goes_on_where_it_left() -> None:
    data = Lanes(documents([17, 9, 30, 4]), lanes=2, steps=4, padding=IGNORED, seed=1)
    whole, rest = list(data.epoch(2)), list(data.epoch(2, skip=3))
    for expected, chunk in zip(whole[3:], rest, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(expected[:3], chunk[:3], strict=True))


def test_one_long_document_fills_all_lanes() -> None:
    data = Lanes(documents([1000]), lanes=4, steps=10, padding=IGNORED)
    assert data.chunks_per_epoch(0) == 25


def test_nothing_to_learn_from_is_refused() -> None:
    with pytest.raises(DataError, match="nothing to predict"):
        Lanes(documents([]), lanes=2, steps=3, padding=IGNORED)


def test_varied_chunks_are_about_as_long_as_asked_and_can_be_taken_up_again() -> None:
    data = Lanes(documents([100_000]), lanes=4, steps=70, padding=IGNORED, seed=1, vary=True)
    chunks = list(data.epoch(0))
    lengths = np.array([len(chunk.inputs) for chunk in chunks[:-1]])
    half = lengths < 52
    assert 0.01 < half.mean() < 0.12
    assert lengths[~half].mean() == pytest.approx(70, abs=1)
    assert lengths[~half].std() == pytest.approx(5, abs=1)
    later = list(data.epoch(0, skip=100))
    assert all(np.array_equal(a.targets, b.targets) for a, b in zip(chunks[100:], later, strict=True))
    assert [len(chunk.inputs) for chunk in data.epoch(1)][:20] != lengths[:20].tolist()
