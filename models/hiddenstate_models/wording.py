"""Numbers in words."""


def counted(number: int, name: str) -> str:
    """ "1 run" or "3 runs"."""
    return f"{number:,} {name}" if number == 1 else f"{number:,} {name}s"
