"""The `hiddenstate-models` command."""

from hiddenstate_models.cli.app import app, main

__all__ = ["app", "main"]
