"""Memory that the C library keeps after it was freed."""

from __future__ import annotations

import ctypes


def give_back() -> None:
    """Returns what lies unused between what is used, page by page; tens of milliseconds where that is much.

    By itself glibc returns only what is free at the end of its heaps, so that what a crowd of sessions passes through
    on its way to the store stays with the process for ever. Other C libraries stay as they are.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
