"""Memory that was freed in between goes back to the system."""

import ctypes
import subprocess
import sys

import pytest

PROGRAM = """
import psutil
from hiddenstate_server.allocator import give_back

def resident():
    return psutil.Process().memory_info().rss

start = resident()
kept, freed = [], []
for _ in range(10_000):
    kept.append(bytes(600))
    freed.append(bytes(20_000))
del freed
before = resident() - start
give_back()
print((resident() - start) / before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="this C library has no malloc_trim")
def test_what_lies_between_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.5
