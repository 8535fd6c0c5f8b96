"""How the weights of a stack start.

default      what each cell learns best from: identity for rnn-relu, orthogonal for all others
uniform      within 1 / sqrt(units), torch's own
orthogonal   recurrent weights orthogonal, gate by gate (Saxe et al., 2014), input weights by Glorot's rule
             (Glorot & Bengio, 2010), biases 0
identity     recurrent weights the identity, input weights normal with deviation 0.001, biases 0 (Le et al., 2015)
chrono       orthogonal, and forget gates that keep what they hold for 1 to t_max steps (Tallec & Ollivier, 2018)
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
    if kind != "uniform":  # or it is as torch made it
        for name, parameter in layer.named_parameters():
            _initialise_parameter(name, parameter.data, layer.gates, identity=kind == "identity")
    if kind == "chrono":
        _chrono(layer, options)
    elif options.cell == "lstm":
        _, forget, _, _ = layer.get_parameter("bias_ih_l0").data.chunk(4)
        _, other, _, _ = layer.get_parameter("bias_hh_l0").data.chunk(4)
        forget.fill_(options.forget_bias)
        other.zero_()


def _initialise_parameter(name: str, weight: Tensor, gates: int, *, identity: bool) -> None:
    if name.startswith("bias"):
        nn.init.zeros_(weight)
    elif name.startswith("weight_hh"):
        for gate in weight.chunk(gates):
            nn.init.eye_(gate) if identity else nn.init.orthogonal_(gate)
    elif identity:
        nn.init.normal_(weight, std=_IRNN_DEVIATION)
    else:
        nn.init.xavier_uniform_(weight)


def _chrono(layer: Layer, options: CellOptions) -> None:
    """Biases of the gate that keeps, log(u) with u uniform in [1, t_max - 1]; of an LSTM's input gates the opposite."""
    bias = layer.get_parameter("bias_ih_l0").data.chunk(layer.gates)
    keeps = bias[1]  # an LSTM's forget gate, a GRU's update gate
    keeps.uniform_(1, options.t_max - 1).log_()
    if options.cell == "lstm":
        bias[0].copy_(-keeps)
