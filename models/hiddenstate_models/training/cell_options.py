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
        "an LSTM (Hochreiter & Schmidhuber, 1997) or a GRU (Cho et al., 2014).",
    )
    hidden: str = option("256", "Units of each layer, comma-separated.")
    projection: int = option(0, "Project each LSTM layer's output to this size (Sak et al., 2014); 0: do not.")
    dropout: float = option(0.0, "Dropout between layers and on the output; of word models on the embedding too.")
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
            "dropout": self.dropout,
            "initialisation": self.initialisation,
            "t_max": self.t_max,
            "forget_bias": self.forget_bias,
        }


def with_default(name: str, default: Any) -> Any:
    """The flag of that name with another default, for a task's own options."""
    (flag,) = (flag for flag in fields(CellFlags) if flag.name == name)
    return field(default=default, metadata=flag.metadata)
