"""The flags about a network's cells, the same for every task that trains one."""

from dataclasses import dataclass, field, fields
from typing import Any

from hiddenstate_models.cells import Cell, Initialisation
from hiddenstate_models.training.options import layer_sizes, option


@dataclass(frozen=True, kw_only=True)
class CellFlags:
    """Settings of the stack of cells; a task's own options extend them, with defaults of their own."""

    cell: Cell = option(
        "lstm",
        "Recurrent cell: a simple recurrent network with tanh (Elman, 1990) or ReLU units (Le et al., 2015), "
        "an LSTM (Hochreiter & Schmidhuber, 1997) or a GRU (Cho et al., 2014); jordan: one whose only memory is its "
        "last output (Jordan, 1986); none: no memory at all, to see what memory is worth.",
    )
    hidden: str = option("256", "Units of each layer, comma-separated.")
    projection: int = option(
        0,
        "Project each LSTM layer's output to this size (Sak et al., 2014); of a Jordan network the size of what it "
        "feeds back; 0: as hidden.",
    )
    layer_norm: bool = option(
        False, "Normalise what reaches the units at every step (Ba et al., 2016); trains up to twice as slowly."
    )
    peepholes: bool = option(False, "Let an LSTM's gates see its cells (Gers & Schmidhuber, 2000).")
    coupled: bool = option(
        False, "An LSTM whose input gates are 1 - its forget gates, a quarter smaller (Greff et al., 2017)."
    )
    residual: bool = option(False, "Add each layer's input to its output, from the second layer on (He et al., 2016).")
    dropout: float = option(0.0, "Dropout between layers and on the output; of word models on the embedding too.")
    variational: bool = option(
        False, "Dropout that drops the same units at every step of a window (Gal & Ghahramani, 2016)."
    )
    weight_dropout: float = option(
        0.0, "Share of the recurrent weights dropped in each window (DropConnect; Merity et al., 2018)."
    )
    initialisation: Initialisation = option(
        "default",
        "How weights start. default: identity for rnn-relu, else orthogonal; uniform: torch's own; orthogonal: "
        "recurrent weights keep lengths (Saxe et al., 2014); identity: they copy the state (Le et al., 2015); "
        "chrono: gates that forget within 1 to --t-max steps (Tallec & Ollivier, 2018).",
    )
    t_max: int = option(100, "Longest dependency that chrono initialisation prepares for, in steps.")
    forget_bias: float = option(1.0, "What an LSTM's forget biases start at (Jozefowicz et al., 2015).")

    def cells(self) -> dict[str, Any]:
        """The fields of `CellOptions` that these settings ask for."""
        return {
            "cell": self.cell,
            "hidden_sizes": layer_sizes(self.hidden),
            "projection": self.projection or None,
            "layer_norm": self.layer_norm,
            "peepholes": self.peepholes,
            "coupled": self.coupled,
            "residual": self.residual,
            "dropout": self.dropout,
            "variational": self.variational,
            "weight_dropout": self.weight_dropout,
            "initialisation": self.initialisation,
            "t_max": self.t_max,
            "forget_bias": self.forget_bias,
        }


def with_default(name: str, default: Any) -> Any:
    """The flag of that name with another default, for a task's own options."""
    (flag,) = (flag for flag in fields(CellFlags) if flag.name == name)
    return field(default=default, metadata=flag.metadata)
