"""The output layer of a word model by itself: the whole prediction a state holds, where a step answers its top."""

from __future__ import annotations

import numpy as np
from safetensors import safe_open

from hiddenstate_models.bundle import WEIGHTS_FILE, Bundle, WordNetwork
from hiddenstate_server.runtimes import FloatArray


class WordHead:
    """Weights of the output layer, float32. An int8 step's states are read with it too."""

    def __init__(self, bundle: Bundle) -> None:
        network = bundle.network
        assert isinstance(network, WordNetwork)
        with safe_open(bundle.folder / WEIGHTS_FILE, "numpy") as weights:
            matrix = weights.get_tensor("encoder.weight" if network.tied else "head.weight")
            bias = weights.get_tensor("head.bias")
        # Laid out like this the product with few rows is two to three times faster.
        self._matrix = np.ascontiguousarray(matrix.T, np.float32)
        self._bias = np.ascontiguousarray(bias, np.float32)
        self._output = network.output

    def log_probabilities(self, states: FloatArray) -> FloatArray:
        """[n, vocabulary] of states [n, state_size]."""
        logits = states[:, self._output] @ self._matrix + self._bias
        logits -= logits.max(axis=1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return logits
