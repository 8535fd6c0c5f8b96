"""Sequences in pieces: the same outputs as in one, and no more memory for ten million steps than for one."""

import math
import subprocess
import sys

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hiddenstate_models.evaluation.streaming import stream
from hiddenstate_models.networks.values import NextValueConfig, NextValueNetwork

_PEAKS = """
import resource, torch
from hiddenstate_models.cells import CellOptions, RecurrentStack
from hiddenstate_models.evaluation.streaming import stream

PIECE = 10_000
torch.set_num_threads(1)
torch.manual_seed(0)
stack = RecurrentStack(1, CellOptions(cell="lstm", hidden_sizes=(4,))).eval()

def read(steps):
    total, count = 0.0, 0
    pieces = (torch.randn(PIECE, 1, 1) for _ in range(steps // PIECE))
    for outputs in stream(stack, pieces, stack.initial_state(1)):
        total += float(outputs.sum())
        count += len(outputs)
    return total, count

for steps in (1_000_000, 10_000_000):
    total, count = read(steps)
    assert count == steps and total != 0
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
@settings(max_examples=20, deadline=None)
def test_pieces_of_any_length_give_what_the_whole_gives(lengths: list[int]) -> None:
    torch.manual_seed(0)
    network = NextValueNetwork(NextValueConfig(hidden_sizes=(5,))).eval()
    values = torch.randn(sum(lengths), 2, 1, dtype=torch.float64).cumsum(0)
    values[torch.rand(values.shape) < 0.1] = math.nan
    with torch.no_grad():
        whole, _ = network(values, network.initial_state(2))
    parts = list(stream(network, values.split(lengths), network.initial_state(2)))
    for i, field in enumerate(whole.prediction):
        joined = torch.cat([part.prediction[i] for part in parts])
        torch.testing.assert_close(joined, field, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_ten_million_steps_take_no_more_memory_than_one_million() -> None:
    done = subprocess.run([sys.executable, "-c", _PEAKS], capture_output=True, text=True, check=True)
    first, second = (int(line) for line in done.stdout.split())
    # KiB at the peak; the outputs of nine million steps would be 140 MiB.
    assert second - first < 4096, done.stdout
