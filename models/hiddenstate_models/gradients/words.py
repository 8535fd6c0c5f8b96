"""Numbers in plain words."""

import math

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float) -> str:
    """Three digits, and powers of ten where there would be many zeros."""
    if not math.isfinite(value):
        return "beyond all numbers"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def share(value: float) -> str:
    """As per cent; what is far less than one as a power of ten."""
    if 0 < value < 1e-5:
        return f"10{str(round(math.log10(value))).translate(_RAISED)}"
    percent = 100 * value
    return f"{percent:.2g} %" if percent < 99.5 else f"{percent:,.0f} %"


def steps(count: int) -> str:
    """ "1 step", "2 steps"."""
    return f"{count:,} step" + "s" * (count != 1)


def times(factor: float) -> str:
    """By what something grew."""
    return f"{number(factor)}-fold" if math.isfinite(factor) else "beyond all numbers"
