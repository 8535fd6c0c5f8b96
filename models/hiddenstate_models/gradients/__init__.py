"""How far back a network's gradients reach: measured, judged, shown."""
