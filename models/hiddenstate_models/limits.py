"""What a model can take; for readers of data and for servers, which have no torch."""

LARGEST_VALUE = 1e30
"""Values beyond this magnitude do not fit a session's float32 state."""
