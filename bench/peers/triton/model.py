"""What Triton's Python backend runs: sessions by correlation id. The sequence batcher forms the batches."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # only there within Triton

from bench.peers.next_word import Sessions


class TritonPythonModel:
    """The name that the backend looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the model."""
        config = json.loads(args["model_config"])
        self._sessions = Sessions(Path(config["parameters"]["bundle"]["string_value"]))

    def execute(self, requests: list[Any]) -> list[Any]:
        """One request of each session of the batch -> answers."""
        ids, tokens = (
            [pb_utils.get_input_tensor_by_name(request, name).as_numpy().item() for request in requests]
            for name in ("session", "token")
        )
        return [
            pb_utils.InferenceResponse(
                [
                    pb_utils.Tensor("surprise", np.array([[prediction.surprise]], np.float32)),
                    pb_utils.Tensor("top_tokens", np.array([prediction.top_tokens], np.int32)),
                    pb_utils.Tensor("top_probabilities", np.array([prediction.top_probabilities], np.float32)),
                ]
            )
            for prediction in self._sessions.observe(ids, tokens)
        ]
