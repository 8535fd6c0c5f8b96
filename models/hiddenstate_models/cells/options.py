"""Everything there is to say about a stack of cells, as one flat and frozen record."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, TypeAlias

from hiddenstate_models.errors import ConfigurationError

Cell: TypeAlias = Literal["rnn-tanh", "rnn-relu", "lstm", "gru"]
Initialisation: TypeAlias = Literal["default", "uniform", "orthogonal", "identity", "chrono"]

_ELMAN = ("rnn-tanh", "rnn-relu")
_GATED = ("lstm", "gru")


@dataclass(frozen=True, kw_only=True)
class CellOptions:
    """A stack of cells; configurations of networks extend it by fields of their own.

    Raises:
        ConfigurationError: an option is out of range, or the cell has no such thing.
    """

    cell: Cell
    hidden_sizes: tuple[int, ...]
    """Units of each layer."""
    projection: int | None = None
    """Size that each LSTM layer's output is projected to (Sak et al., 2014)."""
    dropout: float = 0.0
    """Between layers; networks apply it to the stack's input and output too."""
    initialisation: Initialisation = "default"
    """How weights start; see `initialisation`."""
    t_max: int = 100
    """Longest dependency that chrono initialisation prepares for, in steps."""
    forget_bias: float = 1.0
    """What an LSTM's forget biases start at, but for chrono initialisation (Jozefowicz et al., 2015)."""

    def __post_init__(self) -> None:
        if not self.hidden_sizes or min(self.hidden_sizes) < 1:
            raise ConfigurationError(
                f"hidden sizes must name at least one layer of at least one unit, not {self.hidden_sizes}"
            )
        self._require(self.projection is None or self.cell == "lstm", "projection is for LSTMs")
        if self.projection is not None and self.projection < 1:
            raise ConfigurationError(f"projection must be at least 1, not {self.projection}")
        if not 0 <= self.dropout < 1:
            raise ConfigurationError(f"dropout must be at least 0 and below 1, not {self.dropout}")
        if self.initialisation == "identity":
            self._require(self.cell in _ELMAN, "identity initialisation is for rnn-tanh and rnn-relu")
        if self.initialisation == "chrono":
            self._require(self.cell in _GATED, "chrono initialisation is for LSTMs and GRUs")
        if self.t_max < 3:
            raise ConfigurationError(f"t_max must be at least 3 steps, not {self.t_max}")

    @property
    def output_size(self) -> int:
        """Width of the stack's output."""
        return self.projection or self.hidden_sizes[-1]

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`; fields that are left out have their defaults."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
        }
        return cls(**values)

    def _require(self, holds: bool, what: str) -> None:
        if not holds:
            raise ConfigurationError(f"{what}; the cell is {self.cell}")
