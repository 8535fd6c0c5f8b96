"""The shipped next-word model in torch, for every peer: it needs torch and safetensors, and nothing of the project.

The arithmetic is what was found fastest in torch on one core, so that no peer loses by it: one product a layer for both
inputs, gates by hand (nn.LSTM is slower at every batch size), and oneDNN switched off, which slows small batches down.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from bench.peers.session import Prediction

TOP = 5


class NextWord:
    """A bundle's LSTM, its tied output layer and top-5.

    A session's state is a row: output and cells of each layer, and the normaliser of its last prediction.
    """

    def __init__(self, bundle: Path) -> None:
        torch.set_num_threads(1)
        torch.set_grad_enabled(False)
        torch.backends.mkldnn.set_flags(_enabled=False)
        config = json.loads((bundle / "config.json").read_text())
        weights = {name: weight.float() for name, weight in load_file(bundle / "model.safetensors").items()}
        self._embedding, self._bias = weights["encoder.weight"], weights["head.bias"]
        self._sizes: list[int] = config["network"]["hidden_sizes"]
        self._layers = []
        for depth in range(len(self._sizes)):
            w_ih, w_hh, b_ih, b_hh = (
                weights[f"cells.layers.{depth}.{name}_l0"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            self._layers.append((torch.cat((w_ih, w_hh), dim=1), b_ih + b_hh))
        zeros = torch.zeros(1, 2 * sum(self._sizes) + 1)
        self.initial = self.step([config["text"]["end_token"]], zeros)[1][0]
        """The row of a new session, which has read the end of a text."""

    def step(self, tokens: Sequence[int], states: Tensor) -> tuple[list[Prediction], Tensor]:
        """Tokens of n sessions and their states [n, state] -> predictions, states."""
        observed = torch.tensor(tokens)
        *rows, last_normalizer = states.split([size for size in self._sizes for _ in range(2)] + [1], dim=1)
        last_output, x = rows[-2], self._embedding[observed]
        expected = (self._embedding[observed] * last_output).sum(dim=1) + self._bias[observed]
        surprises = last_normalizer[:, 0] - expected
        kept = []
        for (weight, bias), h, c in zip(self._layers, rows[::2], rows[1::2], strict=True):
            i, f, g, o = F.linear(torch.cat((x, h), dim=1), weight, bias).chunk(4, dim=1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            x = o.sigmoid() * c.tanh()
            kept += [x, c]
        logits = F.linear(x, self._embedding, self._bias)
        normalizer = logits.logsumexp(dim=1, keepdim=True)
        best, top = logits.topk(TOP, dim=1)
        columns = surprises.tolist(), top.tolist(), (best - normalizer).exp().tolist()
        return [Prediction(*row) for row in zip(*columns, strict=True)], torch.cat((*kept, normalizer), dim=1)


class Sessions:
    """Sessions by id in a dictionary; an id that is new begins one, and nothing ends them."""

    def __init__(self, bundle: Path) -> None:
        self._model = NextWord(bundle)
        self._states: dict[str, Tensor] = {}

    def observe(self, ids: Sequence[str], tokens: Sequence[int]) -> list[Prediction]:
        """Steps these sessions as one batch. Raises ValueError when one stands in it twice."""
        if len(set(ids)) < len(ids):
            raise ValueError("a session has to wait for its answer before its next observation")
        states = torch.stack([self._states.get(id, self._model.initial) for id in ids])
        predictions, states = self._model.step(tokens, states)
        # Copies: a view of the batch would keep all of it.
        self._states.update(zip(ids, (row.clone() for row in states), strict=True))
        return predictions
