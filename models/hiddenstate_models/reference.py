"""The served step in PyTorch, in any precision: what runs on GPUs, and what the ONNX graphs are held against."""

from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hiddenstate_models.bundle import LOG_NORMALIZER_SIZE, WEIGHTS_FILE, Bundle
from hiddenstate_models.network import NextWordConfig, NextWordNetwork


class WordStep(NamedTuple):
    """One step of n sessions of a word model."""

    surprises: Tensor
    """[n]: -log p of the tokens under the predictions before them, in nats."""
    top_tokens: Tensor
    """int64 [n, k], best first."""
    top_probabilities: Tensor
    """[n, k]."""
    next_states: Tensor
    """[n, state_size]."""


class ReferenceWordStep(nn.Module):
    """Steps rows of a next-word model."""

    def __init__(self, network: NextWordNetwork) -> None:
        super().__init__()
        self.network = network
        self.sizes = (network.state_size, LOG_NORMALIZER_SIZE)
        # The stack's output is the last layer's h: the first part of the last layer's state.
        last = network.cells.row_sizes[-1]
        self.output = slice(network.state_size - last, network.state_size - last + network.cells.output_size)

    def forward(self, tokens: Tensor, states: Tensor, k: int) -> WordStep:
        """tokens int64 [n], states [n, state_size] -> predictions of the tokens after them."""
        state, log_normalizer = states.split(self.sizes, dim=1)
        head = self.network.head
        logits = (head.matrix[tokens] * state[:, self.output]).sum(dim=1) + head.bias[tokens]
        surprises = log_normalizer.squeeze(1) - logits

        outputs, state = self.network.step(tokens, state)
        logits = head(outputs)
        log_normalizer = logits.logsumexp(dim=1, keepdim=True)
        best, top_tokens = logits.topk(k, dim=1)
        return WordStep(
            surprises, top_tokens, (best - log_normalizer).exp(), torch.cat((state, log_normalizer), dim=1)
        )


def reference_step(bundle: Bundle, *, dtype: torch.dtype = torch.float32) -> ReferenceWordStep:
    """The served step of a bundle, without gradients and ready to move to a device."""
    network = NextWordNetwork(NextWordConfig.from_dict(bundle.config.network))
    network.load_state_dict(load_file(bundle.folder / WEIGHTS_FILE))
    return ReferenceWordStep(network).to(dtype).eval().requires_grad_(False)
