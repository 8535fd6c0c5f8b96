"""How the weights of a stack start.

default      what each cell learns best from: identity for rnn-relu, orthogonal for all others
uniform      within 1 / sqrt(units), torch's own
orthogonal   recurrent weights orthogonal, gate by gate (Saxe et al., 2014), input weights by Glorot's rule
             (Glorot & Bengio, 2010), biases 0
identity     recurrent weights the identity, input weights normal with deviation 0.001, biases 0 (Le et al., 2015)
chrono       orthogonal, and gates that keep what the cells hold for up to t_max steps: their biases log(u) with u
             uniform in [1, t_max - 1], an LSTM's input gates the opposite (Tallec & Ollivier, 2018)

Gains of layer normalisation start at 1, peepholes at 0.
"""

from torch import Tensor, nn

from hiddenstate_models.cells.layer import Layer
from hiddenstate_models.cells.options import CellOptions

_IRNN_DEVIATION = 0.001


def initialise(layer: Layer, options: CellOptions) -> None:
    """Gives every weight of a layer its first value; the LSTM's forget gates start at `forget_bias` but for chrono."""
    kind = options.initialisation
    if kind == "default":
        kind = "identity" if options.cell == "rnn-relu" else "orthogonal"
    if kind != "uniform":  # or it is as torch makes it
        for name, parameter in layer.named_parameters():
            _initialise_parameter(name, parameter.data, layer.gates, identity=kind == "identity")
    if layer.keeps is not None and (kind == "chrono" or options.cell == "lstm"):
        layer.get_parameter("bias_hh_l0").data.chunk(layer.gates)[layer.keeps].zero_()
        gates = layer.get_parameter("bias_ih_l0").data.chunk(layer.gates)
        keeps = gates[layer.keeps]
        if kind == "chrono":
            keeps.uniform_(1, options.t_max - 1).log_()
            if options.cell == "lstm" and not options.coupled:
                gates[0].copy_(-keeps)
        else:
            keeps.fill_(options.forget_bias)


def _initialise_parameter(name: str, weight: Tensor, gates: int, *, identity: bool) -> None:
    if name.startswith("bias"):
        nn.init.zeros_(weight)
    elif not name.startswith("weight"):
        return
    elif name.startswith("weight_hh"):
        for gate in weight.chunk(gates):
            nn.init.eye_(gate) if identity else nn.init.orthogonal_(gate)
    elif identity:
        nn.init.normal_(weight, std=_IRNN_DEVIATION)
    else:
        nn.init.xavier_uniform_(weight)
