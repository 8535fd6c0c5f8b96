"""How the C library hands out memory, set for training: the same large buffers again at every update."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE = 2**30


def keep_freed_memory() -> None:
    """Lets the process keep blocks below a gibibyte that it frees, instead of giving them back at once.

    By default glibc maps every large block anew and the kernel clears its pages again, at every update; on a processor
    that can take as long as the arithmetic in them. Other C libraries stay as they are.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_M_MMAP_THRESHOLD, _LARGE)
        set_option(_M_TRIM_THRESHOLD, _LARGE)
