"""Training by truncated back-propagation through time."""
