"""What is validated on where no files are named for it: a part of the data."""

from collections.abc import Sequence
from typing import TypeVar

from hiddenstate_models.errors import DataError
from hiddenstate_models.wording import counted

_EVERY = 20

_Item = TypeVar("_Item")


def held_out(items: Sequence[_Item], what: str, advice: str) -> tuple[list[_Item], list[_Item]]:
    """Items to learn from, and every twentieth one to validate on.

    Raises:
        DataError: there are too few; it calls one of them `what`, and ends with `advice`.
    """
    if len(items) < _EVERY:
        verb = "is" if len(items) == 1 else "are"
        raise DataError(f"{counted(len(items), what)} {verb} too few to hold some out: {advice}")
    return [item for i, item in enumerate(items) if (i + 1) % _EVERY], list(items[_EVERY - 1 :: _EVERY])
