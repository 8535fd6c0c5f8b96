"""Numbers and lists in words, for tables and conclusions."""

from collections.abc import Sequence
from statistics import median


def listed(names: Sequence[str]) -> str:
    """ "a", "a and b" or "a, b and c"."""
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1] if names else "") if part)


def figures(number: float) -> str:
    """Three significant figures, small ones with an exponent."""
    return (
        f"{number:.1e}".replace("e-0", "e-")
        if 0 < abs(number) < 1e-3
        else f"{number:.3g}"
        if abs(number) < 1000
        else f"{number:,.0f}"
    )


def spread(numbers: Sequence[float]) -> str:
    """The median with the smallest and the largest."""
    if not numbers:
        return "-"
    low, middle, high = (figures(number) for number in (min(numbers), median(numbers), max(numbers)))
    return middle if low == high else f"{middle} ({low} to {high})"
