"""All benchmarks in a row: what is left, what is summed up, and what comes of one that fails."""

import importlib
import inspect
from pathlib import Path

import pytest
from bench import full
from bench.full import BENCHMARKS, Benchmark, Outcome, judged, left

PAGE = """# A page

| load | ratio | measured | target | met |
| --- | ---: | ---: | ---: | ---: |
| 1 stream | CPU | 1.50 | <= 1.6 | yes |
| 1 stream | the same, tight | 1.78 |  |  |

| model | p50 ms | p99 ms |
| --- | ---: | ---: |
| next-word | 1 | 2 |
"""


def test_rows_with_a_target_are_taken() -> None:
    assert list(judged(PAGE)) == [["1 stream, CPU", "1.50", "<= 1.6", "yes"]]


def test_what_is_left_goes_by_the_pace_so_far() -> None:
    first, second = Benchmark("a", 2, "a"), Benchmark("b", 5, "b")
    assert left([], [first, second]) == 7
    assert left([Outcome(first, 240, False, 0.0)], [second]) == pytest.approx(10)


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda one: one.page)
def test_every_benchmark_is_there_and_takes_what_it_is_given(benchmark: Benchmark) -> None:
    module = importlib.import_module(benchmark.module)
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"{benchmark.module}.__main__")
    parameters = inspect.signature(module.main).parameters
    assert ("out" in parameters) != benchmark.prints
    assert {*(name.lstrip("-") for name in benchmark.arguments[::2])} <= set(parameters)


def test_one_that_fails_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package = tmp_path / "benchmarks"
    package.mkdir()
    (package / "fails.py").write_text("raise SystemExit('no')")
    (package / "works.py").write_text(
        f"import sys, pathlib; pathlib.Path(sys.argv[-1], 'works.md').write_text({PAGE!r}); print('printed')"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(
        full, "BENCHMARKS", (Benchmark("benchmarks.fails", 1, "fails"), Benchmark("benchmarks.works", 1, "works"))
    )
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as ended:
        full.main(out=out)
    assert ended.value.code == 1
    assert "Failed: python -m benchmarks.fails." in (out / "targets.md").read_text()
    assert "| 1 stream, CPU | 1.50 | <= 1.6 | yes | `python -m benchmarks.works` |" in (out / "targets.md").read_text()
    assert "1 of 1 targets met" in capsys.readouterr().out
    assert (out / "works.txt").read_text() == "printed\n"


def test_a_name_that_is_none_is_told() -> None:
    with pytest.raises(SystemExit, match=r"no benchmark is called soap; there are .*soak"):
        full.main(only=["soap"])
