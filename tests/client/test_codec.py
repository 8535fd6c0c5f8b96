"""What a series takes as an observation, and what it refuses."""

import math
from typing import Any

import pytest

from hiddenstate.codec import ValueCodec
from hiddenstate.errors import InvalidInput

CODEC = ValueCodec(["load"], [0])


@pytest.mark.parametrize("value", [1, 2.5, True, -(10**30)])
def test_a_number_travels_as_it_is(value: float) -> None:
    assert CODEC.plain(value) == CODEC.one(value)[0, 0] == value


def test_a_missing_one_may_be_nan() -> None:
    plain = CODEC.plain(math.nan)
    assert plain is not None
    assert math.isnan(plain)


@pytest.mark.parametrize("value", [math.inf, -math.inf, 10**400, -(10**400), "1", [], [1, 2], b"x", {"lode": 1}])
def test_anything_else_is_refused(value: Any) -> None:
    assert CODEC.plain(value) is None
    with pytest.raises(InvalidInput):
        CODEC.one(value)


def test_numbers_too_large_are_refused_in_columns_too() -> None:
    with pytest.raises(InvalidInput, match="too large"):
        CODEC.many([1.0, 10**400])
