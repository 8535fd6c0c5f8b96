"""The `hiddenstate` command."""

from hiddenstate.cli.app import main

__all__ = ["main"]
