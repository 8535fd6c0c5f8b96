"""Freed memory is kept: large buffers made again cost no new pages."""

import ctypes
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from hiddenstate_models.training.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def use():
    return float(torch.ones(2**24).sum())  # 64 MiB
for _ in range(20):  # until the pieces that lie between large ones have found their places
    use()
before = faults()
for _ in range(4):
    use()
print(faults() - before)
"""


def page_faults(mode: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="this C library has no mallopt")
def test_large_buffers_come_from_memory_kept() -> None:
    assert page_faults("keep") * 10 < page_faults("leave")
