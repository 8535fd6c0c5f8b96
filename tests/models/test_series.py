from pathlib import Path

import numpy as np
import polars as pl
import pytest

from hiddenstate_models.data.series import LONGEST_GAP, Layout, Series, read_series
from hiddenstate_models.data.sources import File
from hiddenstate_models.errors import DataError

NAN = float("nan")


def written(folder: Path, text: str, name: str = "sensor.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def read(folder: Path, text: str, name: str = "sensor.csv", layout: Layout = "auto", columns: str = "") -> list[Series]:
    return read_series([File(written(folder, text, name))], columns=columns.split(), layout=layout)


def values(series: Series) -> list[float]:
    return [float(x) for x in series.values[:, 0]]


def test_every_numeric_column_is_a_series(tmp_path: Path) -> None:
    one, two = read(tmp_path, "room,temperature,load\na,20.5,1\nb,,2\nc,NaN,3\n")
    assert (one.name, two.name) == ("sensor/temperature", "sensor/load")
    np.testing.assert_array_equal(values(one), [20.5, NAN, NAN])
    assert values(two) == [1, 2, 3]


@pytest.mark.parametrize(
    "times",
    [
        ["2024-01-01 02:00:00", "2024-01-01 00:00:00", "2024-01-01 01:00:00"],
        ["2024-01-01T02:00:00Z", "2024-01-01T00:00:00Z", "2024-01-01T01:00:00Z"],
        ["2024-01-03", "2024-01-01", "2024-01-02"],
        ["01/03/2024 14:00", "01/03/2024 12:00", "01/03/2024 13:00"],
        ["1700000020", "1700000000", "1700000010"],
    ],
)
def test_times_put_rows_in_order(tmp_path: Path, times: list[str]) -> None:
    rows = "".join(f"{time},{value}\n" for time, value in zip(times, (3, 1, 2), strict=True))
    (series,) = read(tmp_path, f"timestamp,load\n{rows}")
    assert values(series) == [1, 2, 3]


def test_equal_times_are_averaged_and_gaps_filled(tmp_path: Path) -> None:
    hours = [0, 1, 1, *range(2, 20), 22, 23]
    rows = "".join(f"2024-01-01 {hour:02}:00,{hour + extra}\n" for extra, hour in enumerate(hours))
    (series,) = read(tmp_path, f"time,load\n{rows}")
    assert len(series.values) == 24
    assert values(series)[1] == pytest.approx((2 + 3) / 2)
    assert np.flatnonzero(np.isnan(series.values[:, 0])).tolist() == [20, 21]


def test_irregular_times_leave_no_gaps(tmp_path: Path) -> None:
    rows = "".join(f"{time},{i}\n" for i, time in enumerate(np.cumsum([1, 5, 2, 9, 4, 30])))
    (series,) = read(tmp_path, f"time,load\n{rows}")
    assert values(series) == [0, 1, 2, 3, 4, 5]


def test_long_gaps_are_cut_short(tmp_path: Path) -> None:
    rows = "".join(f"{time},{time}\n" for time in [*range(30), 10**9])
    (series,) = read(tmp_path, f"time,load\n{rows}")
    assert len(series.values) == 31 + LONGEST_GAP


def test_columns_by_pattern(tmp_path: Path) -> None:
    series = read(tmp_path, "A_MW,B_MW,rain\n1,2,3\n4,5,6\n", columns="*_MW")
    assert [one.name for one in series] == ["sensor/A_MW", "sensor/B_MW"]
    with pytest.raises(DataError, match=r"no column with values that matches wind; it has A_MW, B_MW, rain"):
        read(tmp_path, "A_MW,B_MW,rain\n1,2,3\n", columns="wind")


def test_joint_columns(tmp_path: Path) -> None:
    (series,) = read(tmp_path, "a,b\n1,2\n3,\n", layout="joint")
    assert series.columns == ("a", "b")
    np.testing.assert_array_equal(series.values, [[1, 2], [3, NAN]])
    other = written(tmp_path, "a,c\n1,2\n", "other.csv")
    with pytest.raises(DataError, match="must have the same columns"):
        read_series([File(tmp_path / "sensor.csv"), File(other)], layout="joint")


@pytest.mark.parametrize("layout", ["rows", "auto"])
def test_a_wide_table_has_a_series_a_row(tmp_path: Path, layout: Layout) -> None:
    width = 300
    header = ",".join(f"V{i}" for i in range(width + 1))
    rows = [f"H{n}," + ",".join(["", *map(str, range(n)), *[""] * (width - 1 - n)]) for n in (5, 200)]
    short, long = read(tmp_path, "\n".join([header, *rows]) + "\n", layout=layout)
    assert (short.name, long.name) == ("sensor/H5", "sensor/H200")
    assert values(short) == [0, 1, 2, 3, 4]
    assert len(long.values) == 200


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "sensor.parquet"
    times = pl.Series("when", ["2024-01-02", "2024-01-01"]).str.to_date()
    pl.DataFrame({"when": times, "load": [2, 1], "name": ["a", "b"]}).write_parquet(path)
    (series,) = read_series([File(path)])
    assert values(series) == [1, 2]


def test_text(tmp_path: Path) -> None:
    (series,) = read(tmp_path, "1.5\nnan\n-2e3\n", "numbers.txt")
    np.testing.assert_array_equal(values(series), [1.5, NAN, -2000])
    both = read(tmp_path, "1, 2\n3, 4\n", "pairs.txt")
    assert [values(one) for one in both] == [[1, 3], [2, 4]]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("bad.csv", "time,load\n2024-01-01,1\n2024-01-02,oops\n2024-01-03,2\n", r"line 3, column 'load': 'oops' is no"),
        ("bad.csv", "time,load\n2024-01-01,1\n2024-01-02,inf\n", r"line 3, column 'load': inf is infinite"),
        ("bad.csv", "load\n1\n1e31\n", r"line 3, column 'load': 1e\+31 is infinite or beyond 1e\+30"),
        ("bad.csv", "time,load\n2024-01-01,1\nyesterday,2\n", r"line 3, column 'time': 'yesterday' is no time"),
        ("bad.csv", "a,b\n1,2\n1,2,3\n", r"line 3 has 3 fields where the header has 2"),
        ("bad.csv", "a,b\nx,y\nz,w\n", r"no numeric column; it has a, b"),
        ("bad.csv", "a,b\n", r"has no rows"),
        ("bad.csv", "", r"cannot read .*bad.csv"),
        ("bad.parquet", "nonsense", r"cannot read .*bad.parquet"),
        ("bad.txt", "1 2\n3\n", r"line 2: 1 number where the first line has 2"),
        ("bad.txt", "1\n2\ntwo\n", r"line 3, column 'column_1': 'two' is no number"),
    ],
)
def test_says_where_a_file_is_wrong(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, text, name)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        read_series([File(tmp_path / "nowhere.csv")])
