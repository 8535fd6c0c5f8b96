"""Free-running continuations."""
