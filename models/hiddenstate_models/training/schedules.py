"""The learning rate over time."""

import math

from hiddenstate_models.training.options import TrainingOptions

COSINE_FLOOR = 0.01
"""What the cosine schedule ends at, of the peak."""


def learning_rate(
    options: TrainingOptions, *, update: int, total_updates: int, epoch: int, plateaus: int, steps: int
) -> float:
    """The rate of an update, counted from 0, on a window of `steps` steps.

    `plateaus`: epochs so far that brought no better validation loss. A window whose length was sampled has a rate
    in proportion to it, so that every step weighs the same (Merity et al., 2018).
    """
    rate = options.learning_rate * min(1.0, (update + 1) / max(options.warmup, 1))
    if options.sample_k1:
        rate *= steps / options.k1
    done = min(update / max(total_updates, 1), 1.0)
    match options.schedule:
        case "constant":
            return rate
        case "cosine":
            return rate * (COSINE_FLOOR + (1 - COSINE_FLOOR) * 0.5 * (1 + math.cos(math.pi * done)))
        case "linear":
            return rate * (1 - done)
        case "step":
            return rate * options.decay ** max(epoch + 1 - options.decay_after, 0)
        case "plateau":
            return rate * options.decay**plateaus
