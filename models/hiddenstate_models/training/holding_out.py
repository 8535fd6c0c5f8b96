"""What is validated on where no files are named for it: a part of the data."""

from collections.abc import Sequence
from typing import TypeVar

from hiddenstate_models.errors import DataError

_EVERY = 20

_Item = TypeVar("_Item")


def held_out(items: Sequence[_Item], what: str, advice: str) -> tuple[list[_Item], list[_Item]]:
    """Items to learn from, and every twentieth one to validate on.

    Raises:
        DataError: there are too few of `what`; it ends with `advice`.
    """
    if len(items) < _EVERY:
        raise DataError(f"{len(items)} {what} are too few to hold some out: {advice}")
    return [item for i, item in enumerate(items) if (i + 1) % _EVERY], list(items[_EVERY - 1 :: _EVERY])
