"""Labels of sessions: checked once, then kept as one string that sessions opened together share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache

from hiddenstate_server import errors

_MOST, _LONGEST = 16, 64


def packed(labels: Mapping[str, str]) -> str:
    """A JSON object with sorted keys, "" without labels; InputInvalid where there are too many or too long ones."""
    if not labels:
        return ""
    if len(labels) > _MOST:
        raise errors.InputInvalid(f"{len(labels)} labels; a session has at most {_MOST}", limit=_MOST)
    for key, value in labels.items():
        if not key or len(key) > _LONGEST or len(value) > _LONGEST:
            raise errors.InputInvalid(
                f"label {key[:_LONGEST]!r} is empty or too long; keys have 1 to {_LONGEST} characters, values at most "
                f"{_LONGEST}",
                limit=_LONGEST,
            )
    return json.dumps(dict(sorted(labels.items())), ensure_ascii=False, separators=(",", ":"))


@lru_cache(maxsize=4096)
def unpacked(text: str) -> Mapping[str, str]:
    """What `packed` was given."""
    labels: dict[str, str] = json.loads(text) if text else {}
    return labels


def match(text: str, wanted: Mapping[str, str]) -> bool:
    """Whether packed labels have all that are wanted."""
    labels = unpacked(text)
    return all(labels.get(key) == value for key, value in wanted.items())
