"""What a training run is told, saved with the run so that it can be repeated and resumed.

Every field carries the help text of the command-line flag made from it.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from hiddenstate_models.errors import ConfigurationError


def option(default: Any, help: str) -> Any:
    """A dataclass field that is a command-line flag too."""
    return field(default=default, metadata={"help": help})


def layer_sizes(text: str) -> tuple[int, ...]:
    """Units of each layer from "256,256".

    Raises:
        ConfigurationError: not a list of positive integers.
    """
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) for part in parts):
        raise ConfigurationError(f"layer sizes are positive integers with commas between them, not {text!r}")
    return tuple(int(part) for part in parts)


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Settings of the training loop, the same for every task."""

    epochs: int = option(20, "Passes over the data.")
    lanes: int = option(64, "Documents or series read side by side: the batch size, over all processes.")
    k1: int = option(35, "Steps between updates (truncated back-propagation through time).")
    k2: int = option(35, "Steps the gradient flows back at an update; a multiple of k1.")
    sample_k1: bool = option(
        False,
        "Sample every window's length around k1, now and then around half of it, and scale the rate with it "
        "(Merity et al., 2018).",
    )
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop"] = option("adam", "Optimizer.")
    learning_rate: float = option(2e-3, "Peak learning rate.")
    weight_decay: float = option(0.0, "Weight decay of adamw; an L2 penalty with the others.")
    schedule: Literal["constant", "cosine", "linear", "step", "plateau"] = option(
        "cosine",
        "Learning rate over time: falling to nearly zero along a cosine (Loshchilov & Hutter, 2017) or a line; step: "
        "times --decay with every epoch after --decay-after (Zaremba et al., 2014); plateau: times --decay after every "
        "epoch that brought no better validation loss.",
    )
    decay: float = option(0.25, "Factor of the step and plateau schedules.")
    decay_after: int = option(6, "Epochs before the step schedule lowers the rate.")
    warmup: int = option(200, "Updates over which the learning rate rises linearly.")
    clip_norm: float = option(1.0, "Largest global norm of the gradient (Pascanu et al., 2013); 0: any.")
    clip_value: float = option(0.0, "Largest absolute value of a gradient's element; 0: any.")
    clip_adaptive: float = option(
        0.0,
        "Largest ratio of a unit's gradient to its weights, by norm (adaptive clipping, Brock et al., 2021: 0.01 to "
        "0.2); 0: any.",
    )
    gradient_regulariser: float = option(
        0.0,
        "Weight of a penalty on steps that shorten or lengthen the error going back through them (Pascanu et al., "
        "2013); while it is on, cells run step by step instead of all at once; 0: none.",
    )
    average: Literal["none", "ema", "asgd", "nt-asgd"] = option(
        "none",
        "Validate and keep an average of the weights: a moving one, one over all updates (Polyak & Juditsky, 1992), or "
        "one from where validation stops improving (Merity et al., 2018).",
    )
    average_decay: float = option(0.999, "Share of itself that the moving average keeps at an update.")
    non_monotone: int = option(5, "nt-asgd: latest epochs that are not asked whether validation has stopped improving.")
    patience: int = option(5, "Stop after so many epochs without a better validation loss.")
    seed: int = option(0, "Seed of all randomness.")
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = option(
        "32-true",
        "Arithmetic; bf16-mixed is faster on GPUs and on processors with matrix units for it (AMX), slower on others.",
    )
    accelerator: Literal["auto", "cpu", "cuda"] = option("auto", "Device; auto takes a GPU where there is one.")
    checkpoint_minutes: float = option(10.0, "Minutes between checkpoints.")

    def __post_init__(self) -> None:
        for name in ("epochs", "lanes", "k1", "k2", "non_monotone", "patience"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.k2 % self.k1:
            raise ConfigurationError(f"k2 must be a multiple of k1: {self.k2} is none of {self.k1}")
        if not self.learning_rate > 0:
            raise ConfigurationError(f"learning_rate must be greater than 0, not {self.learning_rate}")
        for name in ("decay", "average_decay"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigurationError(f"{name} must lie between 0 and 1, not be {getattr(self, name)}")
        for name in (
            "clip_norm",
            "clip_value",
            "clip_adaptive",
            "gradient_regulariser",
            "weight_decay",
            "warmup",
            "decay_after",
        ):
            if getattr(self, name) < 0:
                raise ConfigurationError(f"{name} must not be negative, and is {getattr(self, name)}")
