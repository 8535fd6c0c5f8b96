"""Text, series and labels, read and dealt out to lanes."""
