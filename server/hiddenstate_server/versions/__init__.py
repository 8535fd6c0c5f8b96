"""Versions of models: found in the folder, loaded, taken up and let go of."""
