"""What the profile makes of samples."""

import pytest
from bench.processes import BenchError
from bench.profile import ELSEWHERE, OTHER, module_of, shares_of_modules, shares_of_parts

REPORT = """ 50.00% ,libpython3.11.so.1.0
 25.00% ,[kernel.kallsyms]
 10.00% ,_asyncio.cpython-311-x86_64-linux-gnu.so
 10.00% ,cygrpc.cpython-311-x86_64-linux-gnu.so
  5.00% ,somethingelse.so
"""
MAIN = "main (hiddenstate_server/main.py:19);run (loop.c:3)"
TICK = (
    f"{MAIN};tick (hiddenstate_server/sessions/host.py:456);step (hiddenstate_server/runtimes/onnx.py:53);run (ort.so)"
)
AT_REST = "_worker (thread.py:81);PyThread_acquire_lock_timed (libpython3.11.so);0x7f (libc.so.6)"


def test_libraries_are_added_up_by_part() -> None:
    found = shares_of_parts(REPORT)
    assert found["interpreter"] == pytest.approx(0.6)
    assert found["kernel"] == pytest.approx(0.25)
    assert found["gRPC core"] == pytest.approx(0.1)
    assert found[OTHER] == pytest.approx(0.05)
    assert sum(found.values()) == pytest.approx(1)


def test_no_samples_are_told() -> None:
    with pytest.raises(BenchError, match="perf saw nothing"):
        shares_of_parts("\n")


def test_time_is_the_innermost_module_that_called() -> None:
    assert module_of(TICK) == "runtimes/onnx.py"
    assert module_of("thread_run (libpython3.11.so);write (libc.so.6)") == ELSEWHERE
    assert module_of(AT_REST) is None


def test_shares_leave_out_who_waits() -> None:
    found = shares_of_modules([f"{TICK} 3", f"{MAIN} 1", f"{AT_REST} 90"])
    assert found == {"runtimes/onnx.py": 0.75, "main.py": 0.25}
