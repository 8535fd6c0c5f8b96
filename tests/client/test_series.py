"""Numbers out of lines."""

import math

import pytest

from hiddenstate import InvalidInput
from hiddenstate.cli.series import Reader


def read(text: str, *wanted: str) -> tuple[list[str], list[list[float]], list[str], list[str]]:
    """Names, values, labels and warnings."""
    warnings: list[str] = []
    reader = Reader(wanted, warnings.append)
    rows = [row for line in text.splitlines(keepends=True) if (row := reader.read(line))]
    return reader.names, [row.values for row in rows], [row.label for row in rows], warnings


def test_plain_numbers() -> None:
    assert read("1\n\n2.5\n-3e2\n") == (["1"], [[1.0], [2.5], [-300.0]], ["1", "3", "4"], [])


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_csv_with_a_header(mark: str) -> None:
    text = "time,value\nmonday,1\ntuesday,2\n".replace(",", mark)
    assert read(text) == (["value"], [[1.0], [2.0]], ["monday", "tuesday"], [])


def test_csv_without_a_header() -> None:
    assert read("2020-01-01,5\n2020-01-02,6\n")[:3] == (["2"], [[5.0], [6.0]], ["2020-01-01", "2020-01-02"])


def test_columns_by_name_and_number() -> None:
    text = '\ufeffday,"low, at night",high\n1,2,3\n4,5,6\n'
    assert read(text, "high", "low, at night")[1] == [[3.0, 2.0], [6.0, 5.0]]
    assert read(text, "3")[:2] == (["high"], [[3.0], [6.0]])


def test_missing_cells() -> None:
    _, values, _, warnings = read("t,v\na,\nb,NaN\nc,null\nd\ne,7\n", "v")
    assert [math.isnan(value) for (value,) in values] == [True, True, True, True, False]
    assert warnings == []


def test_what_is_no_number_is_told() -> None:
    _, values, _, warnings = read("1\noops\ninf\n4\n")
    assert [math.isnan(value) for (value,) in values] == [False, True, True, False]
    assert warnings == [
        "line 2: 'oops' is not a number and counts as missing",
        "line 3: 'inf' is not a number and counts as missing",
    ]


@pytest.mark.parametrize(
    ("text", "wanted", "message"),
    [
        ("a,b\n1,2\n", [], r"several columns hold numbers \(a, b\)"),
        ("a,b\n1,2\n", ["c"], "no column c; the input has a, b"),
        ("1,2\n", ["3"], "no column 3; the input has 1 to 2"),
        ("a,b\nx,y\n", [], "line 2 has no number"),
    ],
)
def test_columns_that_are_not_to_be_found(text: str, wanted: list[str], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        read(text, *wanted)


def test_digits_as_written() -> None:
    reader = Reader([], print)
    assert [reader.read(line).decimals for line in ("1.250", "2", "3e-5") if reader] == [3, 0, 0]  # type: ignore[union-attr]
