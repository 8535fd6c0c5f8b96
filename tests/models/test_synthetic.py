"""Synthetic sequences and their targets are what the papers say."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from hiddenstate_models.data.synthetic import ASK, BLANK, SYMBOLS, adding_problem, copy_memory
from hiddenstate_models.experiments.copying import memoryless
from hiddenstate_models.experiments.synthetic import PROBLEMS, FreshLanes, generator_of

lengths, batches, seeds = st.integers(2, 60), st.integers(1, 8), st.integers(0, 2**32)


@given(lengths, batches, seeds)
def test_the_sum_is_of_two_marked_values_one_in_each_half(length: int, batch: int, seed: int) -> None:
    inputs, targets = adding_problem(length, batch, torch.Generator().manual_seed(seed))
    assert inputs.shape == (length, batch, 2)
    values, marks = inputs.unbind(2)
    assert ((values >= 0) & (values < 1)).all()
    assert set(marks.unique().tolist()) <= {0.0, 1.0}
    assert (marks[: length // 2].sum(0) == 1).all()
    assert (marks[length // 2 :].sum(0) == 1).all()
    torch.testing.assert_close((values * marks).sum(0), targets)


def test_always_answering_one_has_an_error_of_a_sixth() -> None:
    _, targets = adding_problem(10, 200_000, torch.Generator().manual_seed(0))
    assert abs(float(((targets - 1) ** 2).mean()) - 1 / 6) < 2e-3


@given(st.integers(1, 60), batches, seeds)
def test_the_symbols_are_asked_for_after_the_delay(delay: int, batch: int, seed: int) -> None:
    inputs, targets = copy_memory(delay, batch, torch.Generator().manual_seed(seed))
    assert inputs.shape == targets.shape == (delay + 20, batch)
    assert ((inputs[:10] >= 1) & (inputs[:10] <= SYMBOLS)).all()
    assert (inputs[10 : delay + 9] == BLANK).all()
    assert (inputs[delay + 9] == ASK).all() or delay == 0
    assert (inputs[delay + 10 :] == BLANK).all()
    assert (targets[:-10] == BLANK).all()
    assert torch.equal(targets[-10:], inputs[:10])


def test_without_memory_the_best_loss_is_the_published_one() -> None:
    delay = 7
    problem = PROBLEMS["copy"](delay)
    _, targets = problem.draw(5, generator_of(0))
    outputs = torch.full((delay + 20, 5, SYMBOLS + 1), -torch.inf)
    outputs[:-10, :, BLANK] = 0
    outputs[-10:, :, 1:] = 0
    loss = float(problem.loss(outputs, targets)) / targets.numel()
    assert math.isclose(loss, memoryless(delay), rel_tol=1e-6)
    assert math.isclose(memoryless(1000), 0.0204, abs_tol=1e-4)


def test_the_adding_problem_scores_the_last_output_alone() -> None:
    problem = PROBLEMS["adding"](6)
    _, targets = problem.draw(3, generator_of(0))
    outputs = torch.randn(6, 3, 1)
    expected = F.mse_loss(outputs[-1, :, 0], targets[-1], reduction="sum")
    assert targets[:-1].isnan().all()
    torch.testing.assert_close(problem.loss(outputs, targets), expected)


def test_every_update_has_data_of_its_own_that_a_seed_repeats() -> None:
    draw = PROBLEMS["adding"](8).draw
    epoch = [chunk.inputs for chunk in FreshLanes(draw, 4, seed=1).epoch(0)]
    again = [chunk.inputs for chunk in FreshLanes(draw, 4, seed=1).epoch(0, 90)]
    other = [chunk.inputs for chunk in FreshLanes(draw, 4, seed=1).epoch(1)]
    assert len(epoch) == len({chunk.tobytes() for chunk in [*epoch, *other]}) / 2 == 100
    assert [chunk.tobytes() for chunk in epoch[90:]] == [chunk.tobytes() for chunk in again]
