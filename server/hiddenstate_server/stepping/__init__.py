"""From a frame of observations to a frame of predictions: queue, step, reply."""
