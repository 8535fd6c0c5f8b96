"""Everything there is to say about a stack of cells, as one flat and frozen record."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, TypeAlias

from hiddenstate_models.errors import ConfigurationError

Cell: TypeAlias = Literal["none", "rnn-tanh", "rnn-relu", "jordan", "lstm", "gru"]
Initialisation: TypeAlias = Literal["default", "uniform", "orthogonal", "identity", "chrono"]

_ELMAN: tuple[Cell, ...] = ("rnn-tanh", "rnn-relu")
_GATED: tuple[Cell, ...] = ("lstm", "gru")


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
    """Size of each LSTM layer's projected output (Sak et al., 2014), or of a Jordan network's output."""
    layer_norm: bool = False
    """Normalise what reaches the units at every step (Ba et al., 2016)."""
    peepholes: bool = False
    """Let an LSTM's gates see its cells (Gers & Schmidhuber, 2000)."""
    coupled: bool = False
    """Let an LSTM's input gates be 1 - its forget gates (Greff et al., 2017)."""
    residual: bool = False
    """Add each layer's input to its output, but for the first layer's (He et al., 2016)."""
    dropout: float = 0.0
    """Between layers; networks apply it to the stack's input and output too."""
    variational: bool = False
    """Drop the same units at every step of a sequence (Gal & Ghahramani, 2016)."""
    weight_dropout: float = 0.0
    """Share of the recurrent weights dropped for each sequence (Merity et al., 2018)."""
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
        self._require(self.projection is None, "projection is for LSTMs and Jordan networks", "lstm", "jordan")
        if self.projection is not None and self.projection < 1:
            raise ConfigurationError(f"projection must be at least 1, not {self.projection}")
        self._require(not self.layer_norm, "layer normalisation is for recurrent hidden units", *_ELMAN, *_GATED)
        self._require(not self.peepholes, "peepholes are for LSTMs", "lstm")
        self._require(not self.coupled, "coupled gates are for LSTMs", "lstm")
        self._require(not self.weight_dropout, "weight dropout is for recurrent weights", *_ELMAN, *_GATED, "jordan")
        if self.cell == "jordan" and len(self.hidden_sizes) > 1:
            raise ConfigurationError("a Jordan network has one hidden layer")
        if self.residual and len(set(self.output_sizes)) > 1:
            raise ConfigurationError(f"residual connections need layers of one size, not {self.output_sizes}")
        for name in ("dropout", "weight_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigurationError(f"{name} must be at least 0 and below 1, not {getattr(self, name)}")
        identity, chrono = (self.initialisation == kind for kind in ("identity", "chrono"))
        self._require(not identity, "identity initialisation is for rnn-tanh and rnn-relu", *_ELMAN)
        self._require(not chrono, "chrono initialisation is for LSTMs and GRUs", *_GATED)
        if self.t_max < 3:
            raise ConfigurationError(f"t_max must be at least 3 steps, not {self.t_max}")

    @property
    def output_sizes(self) -> tuple[int, ...]:
        """Width of each layer's output."""
        return tuple(self.projection or size for size in self.hidden_sizes)

    @property
    def output_size(self) -> int:
        """Width of the stack's output."""
        return self.output_sizes[-1]

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

    def _require(self, absent: bool, what: str, *cells: Cell) -> None:
        if not absent and self.cell not in cells:
            raise ConfigurationError(f"{what}; the cell is {self.cell}")
